"""Matrix products on a CPU by whichever of torch's two libraries is faster.

``torch.mm`` is MKL's in float32; oneDNN, which torch uses for convolutions and
for compiled models, is up to a quarter faster where a matrix is large (an AMD
EPYC, one thread: 8 % forward, 15 % and 8 % back at 200 x 1504 x 1000) and
slower where it is small.
"""

import functools

import torch

__all__ = ["product"]

# Values of the right matrix or the product that are worth oneDNN's longer call
LARGE = 1 << 18


def product(left, right):
    """Matrix product, without a gradient.

    Arguments
    ---------
    left : torch.Tensor, [n, k]
        Copied if it is neither contiguous nor small.
    right : torch.Tensor, [k, m]
        Contiguous or the transpose of what is.

    Returns
    -------
    torch.Tensor, [n, m]
        left right.

    Example
    -------
    >>> left, right = torch.randn(3, 600), torch.randn(600, 500)
    >>> torch.allclose(product(left, right), left @ right, atol=1e-4)
    True
    """
    rows, (inner, columns) = len(left), right.shape
    large = max(rows, inner) * columns >= LARGE
    if rows > 1 and inner and large and left.dtype == torch.float32:
        linear = _onednn() if torch.backends.mkldnn.enabled else None
        if linear is not None:
            return linear(left, right.t(), None, "none", [], "")
    return left @ right


@functools.cache
def _onednn():
    """OneDNN's product with a transposed matrix; None where it is not."""
    if not torch.backends.mkldnn.is_available():
        return None
    # What torch.compile emits for a linear layer: not in its documentation
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if linear is None else linear.default
