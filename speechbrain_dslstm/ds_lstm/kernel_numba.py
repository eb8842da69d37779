"""The DS-LSTM on a CPU: numba's compiled loops between torch's matrix products.

The input projections of all steps are two products, one of x and one of y. One
compiled call runs all steps and another runs them backwards, gate norm
included, by the formulas of ``kernel_torch``; the
gradients of the weights are one product each at the end. A batch is cut into
pieces whose projections fit the cache, unless a gate norm in training needs
all items at once. Reference and symbols: ``equations``.
"""

import functools
import math
import threading

import numpy as np
import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd

from speechbrain_dslstm.ds_lstm.kernel_torch import refuse_second_derivatives
from speechbrain_dslstm.layers.batch_norm import StepBatchNorm
from speechbrain_dslstm.utils.loops import Loops

__all__ = ["ds_lstm_numba", "numba_problem", "product"]

LOOPS = Loops("speechbrain_dslstm.ds_lstm.kernel_numba_loops")
# Activations of a piece of the batch: 8 MB of float32
PIECE_VALUES = 1 << 21
# Fewer items than this make a slow matrix product
PIECE_ITEMS = 16
# From this number of steps on, a transposed copy of the recurrent weight pays
TRANSPOSE_STEPS = 16
# From this size of the right matrix or the product on, oneDNN's slower call pays
ONEDNN_VALUES = 1 << 18
_memory = threading.local()


def numba_problem(like: Tensor, gate_norm: bool = False) -> str | None:
    """Reason why this backend cannot run on weights like this, or None.

    >>> numba_problem(torch.zeros(1, dtype=torch.float16))
    'numba computes in float32 and float64, not float16'
    """
    if like.device.type != "cpu":
        return f"numba runs on the CPU, not on {like.device.type}"
    if like.dtype not in (torch.float32, torch.float64):
        name = str(like.dtype).removeprefix("torch.")
        return f"numba computes in float32 and float64, not {name}"
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return "numba cannot be traced"
    distributed = torch.distributed
    if gate_norm and distributed.is_available():
        if distributed.is_initialized():
            return "numba does not share a gate norm's sums among processes"
    return LOOPS.problem


def ds_lstm_numba(
    x: Tensor, y: Tensor, h0: Tensor, c0: Tensor,
    weight_x: Tensor, weight_y: Tensor, weight_h: Tensor, bias: Tensor,
    counts: Tensor | None = None, gate_norm: StepBatchNorm | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run one layer; same signature as ``ds_lstm_naive``, no second derivatives."""
    problem = numba_problem(weight_h, gate_norm is not None)
    if problem is not None:
        raise ValueError(f"{problem}; use backend='auto'")
    # Autocast may have narrowed them; states keep the weights' precision
    x, y, h0, c0 = (v.to(weight_h.dtype) for v in (x, y, h0, c0))
    if counts is None:
        counts = torch.full((x.shape[0],), x.shape[1])
    norm = (None, None)
    if gate_norm is not None:
        norm = gate_norm.weight, gate_norm.bias
    tensors = (x, y, h0, c0, weight_x, weight_y, weight_h, bias, *norm)
    if not torch.is_autocast_enabled("cpu"):
        return _run(tensors, counts, gate_norm)
    with torch.autocast("cpu", enabled=False):
        return _run(tensors, counts, gate_norm)


def _run(tensors, counts, gate_norm):
    """Run with autograd only where a gradient is needed."""
    if torch.is_grad_enabled() and any(
        v is not None and v.requires_grad for v in tensors
    ):
        return _Recurrence.apply(*tensors, counts, gate_norm)
    tensors = [v if v is None else v.detach() for v in tensors]
    x, y, h0, c0, *weights, norm_weight, norm_bias = tensors
    norm = _Norm(gate_norm, x.shape[1], norm_weight, norm_bias, x)
    return _walk(x, y, h0, c0, weights, counts, norm)


class _Recurrence(torch.autograd.Function):
    """Projections and recurrence with a backward pass."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(
        ctx, x, y, h0, c0, weight_x, weight_y, weight_h, bias,
        norm_weight, norm_bias, counts, module,
    ):  # fmt: skip
        """Run all steps, keeping what the backward pass needs."""
        (batch, time, _), hidden = x.shape, h0.shape[1]
        x, y = x.contiguous(), y.contiguous()
        act = x.new_empty(batch, time, 6 * hidden)
        h_before = x.new_empty(batch, time, hidden)
        c_all = x.new_empty(batch, time + 1, hidden)
        h_before[:, 0], c_all[:, 0] = h0, c0
        weights = weight_x, weight_y, weight_h, bias
        norm = _Norm(module, time, norm_weight, norm_bias, x)
        kept = act, h_before, c_all
        result = _walk(x, y, h0, c0, weights, counts, norm, kept)
        ctx.save_for_backward(x, y, *weights[:3], *kept, counts)
        ctx.norm = norm
        return result

    @staticmethod
    @custom_bwd(device_type="cpu")
    def backward(ctx, grad_out, grad_h, grad_c):
        """Run all steps backwards, then the products for the weights' gradients."""
        refuse_second_derivatives()
        x, y, weight_x, weight_y, weight_h, *kept = ctx.saved_tensors
        act, h_before, c_all, counts = kept
        norm, needs = ctx.norm, ctx.needs_input_grad
        batch, time, six = act.shape
        hidden = six // 6
        four, five = 4 * hidden, 5 * hidden
        dh, dc, grad_out = _own(grad_h), _own(grad_c), grad_out.contiguous()
        pieces = _pieces(batch, time, six, norm)
        # With a single piece, its product is the gradient, without a copy
        grad_x, grad_y = (
            v.new_empty(v.shape) if need and len(pieces) > 1 else None
            for v, need in ((x, needs[0]), (y, needs[1]))
        )
        grads_w = None
        weight = weight_h.contiguous().numpy()
        sums = [x.new_zeros(six)]
        sums += [torch.zeros_like(v) for v in norm.tensors[1:]]
        for piece in pieces:
            acts = act[piece].numpy()
            grads = _scratch(x, 2, len(acts), time, five)
            LOOPS.load().backward(
                *(acts, weight, c_all[piece].numpy(), counts[piece].numpy()),
                *_for_blas(hidden, len(acts), six, acts),
                *(v[piece].numpy() for v in (grad_out, dh, dc)),
                *(v.numpy() for v in (*grads, sums[0])),
                *norm.arguments(),
                *(v.numpy() for v in sums[1:]),
            )
            for_x, for_y = grads.flatten(1, 2)
            x_, y_, h_ = (v[piece].flatten(0, 1) for v in (x, y, h_before))
            pairs = (for_x, x_), (for_y, y_), (for_x, h_), (for_y[:, four:], h_)
            products = [product(grad.t(), value) for grad, value in pairs]
            if grads_w is None:
                grads_w = products
            else:
                torch._foreach_add_(grads_w, products)
            if needs[0]:
                grad_x = _placed(product(for_x, weight_x), x, piece, grad_x)
            if needs[1]:
                grad_y = _placed(product(for_y, weight_y), y, piece, grad_y)
        grad_wx, grad_wy, *grad_wh = grads_w
        grad_norm = sums[1:] if norm.module is not None else [None] * 2
        return (
            *(grad_x, grad_y, dh, dc),
            *(grad_wx, grad_wy, torch.cat(grad_wh), sums[0]),
            *(*grad_norm, None, None),
        )


def _walk(x, y, h0, c0, weights, counts, norm, kept=None):
    """Project and run all steps; fill ``kept``, for the backward pass, if given."""
    (batch, time, _), hidden = x.shape, h0.shape[1]
    weight_x, weight_y, weight_h, bias = weights
    out = x.new_empty(batch, time, hidden)
    h, c = _own(h0), _own(c0)
    # The loops read a transposed weight faster, but few steps do not pay for it
    transpose = batch >= LOOPS.load().FEW or time >= TRANSPOSE_STEPS
    weight = (weight_h.t() if transpose else weight_h).contiguous()
    for piece in _pieces(batch, time, 6 * hidden, norm):
        items = len(h[piece])
        if kept is None:
            act = x.new_empty(items, 1, 6 * hidden)
            h_before = c_all = act.new_empty(0, 0, 0)
        else:
            act, h_before, c_all = (v[piece] for v in kept)
        parts = _project(x[piece], weight_x), _project(y[piece], weight_y)
        given = (*parts, weight, bias, h[piece], c[piece], counts[piece])
        given = [v.numpy() for v in given]
        LOOPS.load().forward(
            *(*given, *_for_blas(6 * hidden, items, hidden, given[0])),
            *(v.numpy() for v in (out[piece], act, h_before, c_all)),
            *norm.arguments(),
        )
    norm.update(counts)
    return out, h, c


class _Norm:
    """The gate norm as arrays for the loops."""

    def __init__(self, module, time, weight, bias, like):
        loops = LOOPS.load()
        empty = like.new_empty(0)
        self.kind, self.eps = loops.NO_NORM, 0.0
        self.tensors = [empty.view(0, 0, 0), empty, empty]
        if module is not None:
            self.eps = module.eps
            if module.training:
                self.kind = loops.BATCH_NORM
                moments = like.new_empty(2, time, len(weight))
            else:
                self.kind = loops.FIXED_NORM
                moments = torch.stack(module.statistics(time)).to(like)
            self.tensors = [moments, weight.detach(), bias.detach()]
        self.module = module

    def update(self, counts):
        """Update the running statistics of a norm in training."""
        if self.kind == LOOPS.load().BATCH_NORM:
            moments = self.tensors[0]
            steps = torch.arange(moments.shape[1]).unsqueeze(1)
            self.module.update(*moments, (steps < counts).sum(dim=1))

    def arguments(self):
        """Kind, eps, moments, weight and bias, in the order of the loops' arguments."""
        return self.kind, self.eps, *(v.numpy() for v in self.tensors)


def _pieces(batch, time, six, norm):
    """Slices of a batch, of about equal size, whose projections fit the cache."""
    if norm.kind == LOOPS.load().BATCH_NORM:
        return [slice(0, batch)]
    items = max(PIECE_ITEMS, PIECE_VALUES // (time * six))
    items = -(-batch // max(1, round(batch / items)))
    return [slice(k, k + items) for k in range(0, batch, items)]


def _for_blas(columns, rows, inner, like):
    """Arguments ``sizes`` and ``numbers`` of the loops, which pass them to BLAS."""
    sizes = np.array([columns, rows, inner, ord("N")], np.int32)
    return sizes, np.array([1, 0], like.dtype)


def _project(x, weight):
    """Input projections of all steps: [batch, time, 5 * hidden]."""
    return product(x.flatten(0, 1), weight.t()).view(*x.shape[:2], -1)


def _scratch(like, *shape):
    """Return reused memory, because fresh pages cost more time than the work."""
    values = math.prod(shape)
    if values > 4 * PIECE_VALUES:
        return like.new_empty(shape)
    have = getattr(_memory, "values", None)
    if have is None or len(have) < values or have.dtype != like.dtype:
        have = _memory.values = like.new_empty(values)
    return have[:values].view(shape)


def _placed(found, like, piece, whole):
    """Copy a piece's gradient into the batch's; return it if there is one piece."""
    found = found.view(like[piece].shape)
    if whole is None:
        return found
    whole[piece] = found
    return whole


def _own(state):
    """Copy a state, which the loops overwrite."""
    return state.clone(memory_format=torch.contiguous_format)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product of [n, k] and [k, m], without a gradient.

    Fast if ``left`` is contiguous and ``right`` is contiguous or the transpose
    of a contiguous matrix.
    """
    rows, (inner, columns) = len(left), right.shape
    large = max(rows, inner) * columns >= ONEDNN_VALUES
    if rows > 1 and inner and large and left.dtype == torch.float32:
        linear = _onednn() if torch.backends.mkldnn.enabled else None
        if linear is not None:
            return linear(left, right.t(), None, "none", [], "")
    return left @ right


@functools.cache
def _onednn():
    """oneDNN's product with a transposed matrix, or None if torch lacks it."""
    if not torch.backends.mkldnn.is_available():
        return None
    # Undocumented: the operator that torch.compile emits for a linear layer
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return None if linear is None else linear.default
