"""DS-LSTM on a CPU: numba's compiled loops between torch's matrix products.

The input projections of all steps are two products, of x and of y as they
come: nothing is concatenated. One compiled call then walks through all steps,
and one walks back, by the formulas of ``kernel_fused``; the gradients of the
weights are a product each at the end. Batches are cut into pieces whose
projections fit the cache, wherever their items do not need each other.

The gate norm is part of the walk. Reference: ``equations.ds_lstm_naive``,
whose signature this has.
"""

import functools
import importlib
import math
import threading

import numpy as np
import torch
from torch.amp import custom_bwd, custom_fwd

from speechbrain_dslstm.ds_lstm.kernel_torch import refuse_second_derivatives
from speechbrain_dslstm.utils.loops import import_problem

__all__ = ["numba_problem", "ds_lstm_numba", "product"]

# Activations that are worked on at a time: 8 MB of float32
PIECE_VALUES = 1 << 21
# Fewer items than this make a slow matrix product
PIECE_ITEMS = 16
# Steps that are worth a transposed copy of the recurrent weight
TURNING = 16
_memory = threading.local()
LOOPS = "speechbrain_dslstm.ds_lstm.kernel_numba_loops"


@functools.cache
def _loops():
    return importlib.import_module(LOOPS)


def numba_problem(like, gate_norm=False):
    """Why this backend cannot run, if it cannot.

    Arguments
    ---------
    like : torch.Tensor
        Any of the weights.
    gate_norm : bool
        Whether gates are normalised.

    Returns
    -------
    str or None
        The reason; None if it can run.

    Example
    -------
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
    return import_problem(LOOPS)


def _scratch(like, *shape):
    """Memory that is used again: fresh pages cost more than what is done."""
    values = math.prod(shape)
    if values > 4 * PIECE_VALUES:
        return like.new_empty(shape)
    have = getattr(_memory, "values", None)
    if have is None or len(have) < values or have.dtype != like.dtype:
        have = _memory.values = like.new_empty(values)
    return have[:values].view(shape)


def _placed(found, like, piece, whole):
    """A piece of the batch in its place; itself, where it is all."""
    found = found.view(like[piece].shape)
    if whole is None:
        return found
    whole[piece] = found
    return whole


def _own(state):
    return state.clone(memory_format=torch.contiguous_format)


def _pieces(batch, time, six, norm):
    """Slices of a batch, about equally large."""
    if norm.kind == _loops().BATCH_NORM:
        return [slice(0, batch)]
    items = max(PIECE_ITEMS, PIECE_VALUES // (time * six))
    items = -(-batch // max(1, round(batch / items)))
    return [slice(k, k + items) for k in range(0, batch, items)]


def _for_blas(columns, rows, inner, like):
    """Sizes and numbers of the recurrent product."""
    sizes = np.array([columns, rows, inner, ord("N")], np.int32)
    return sizes, np.array([1, 0], like.dtype)


class _Norm:
    """The gate norm in the form that the loops read."""

    def __init__(self, module, time, weight, bias, like):
        loops = _loops()
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
        """Bring the running statistics up to date."""
        if self.kind == _loops().BATCH_NORM:
            moments = self.tensors[0]
            steps = torch.arange(moments.shape[1]).unsqueeze(1)
            self.module.update(*moments, (steps < counts).sum(dim=1))

    def arguments(self):
        """What both loops take."""
        return self.kind, self.eps, *(v.numpy() for v in self.tensors)


def _walk(x, y, h0, c0, weights, counts, norm, kept=None):
    """Projections and all steps; fills ``kept``, what the way back needs."""
    (batch, time, _), hidden = x.shape, h0.shape[1]
    weight_x, weight_y, weight_h, bias = weights
    out = x.new_empty(batch, time, hidden)
    h, c = _own(h0), _own(c0)
    # Reading its rows is faster, but few steps do not pay for turning it
    turn = batch >= _loops().FEW or time >= TURNING
    turned = weight_h.t().contiguous() if turn else None
    for piece in _pieces(batch, time, 6 * hidden, norm):
        items = len(h[piece])
        if kept is None:
            act = x.new_empty(items, 1, 6 * hidden)
            h_before = c_all = act.new_empty(0, 0, 0)
        else:
            act, h_before, c_all = (v[piece] for v in kept)
        parts = _project(x[piece], weight_x), _project(y[piece], weight_y)
        weight = weight_h.contiguous() if turned is None else turned
        given = (*parts, weight, bias, h[piece], c[piece], counts[piece])
        given = [v.numpy() for v in given]
        _loops().forward(
            *(*given, *_for_blas(6 * hidden, items, hidden, given[0])),
            *(v.numpy() for v in (out[piece], act, h_before, c_all)),
            *norm.arguments(),
        )
    norm.update(counts)
    return out, h, c


def _project(x, weight):
    """What an input gives to all steps: [batch, time, 5 * hidden]."""
    return product(x.flatten(0, 1), weight.t()).view(*x.shape[:2], -1)


class _Recurrence(torch.autograd.Function):
    """Projections and recurrence, in training."""

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(
        ctx, x, y, h0, c0, weight_x, weight_y, weight_h, bias,
        norm_weight, norm_bias, counts, module,
    ):  # fmt: skip
        """All steps, keeping what the way back needs."""
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
        """All steps backwards, then the products of the weights."""
        refuse_second_derivatives()
        x, y, weight_x, weight_y, weight_h, *kept = ctx.saved_tensors
        act, h_before, c_all, counts = kept
        norm, needs = ctx.norm, ctx.needs_input_grad
        batch, time, six = act.shape
        hidden = six // 6
        four, five = 4 * hidden, 5 * hidden
        dh, dc, grad_out = _own(grad_h), _own(grad_c), grad_out.contiguous()
        pieces = _pieces(batch, time, six, norm)
        # The product of a single piece is the gradient, without a copy
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
            _loops().backward(
                *(acts, weight, c_all[piece].numpy(), counts[piece].numpy()),
                *_for_blas(hidden, len(acts), six, acts),
                *(v[piece].numpy() for v in (grad_out, dh, dc)),
                *(v.numpy() for v in (*grads, sums[0])),
                *norm.arguments(),
                *(v.numpy() for v in sums[1:]),
            )
            for_x, for_y = grads.flatten(1, 2)
            x_, y_, h_ = (v[piece].flatten(0, 1) for v in (x, y, h_before))
            more = [
                product(for_x.t(), x_),
                product(for_y.t(), y_),
                product(for_x.t(), h_),
                product(for_y[:, four:].t(), h_),
            ]
            if grads_w is None:
                grads_w = more
            else:
                torch._foreach_add_(grads_w, more)
            if needs[0]:
                grad_x = _placed(product(for_x, weight_x), x, piece, grad_x)
            if needs[1]:
                grad_y = _placed(product(for_y, weight_y), y, piece, grad_y)
        grad_wx, grad_wy, *grad_wh = grads_w
        grad_norm = sums[1:] if norm.kind != _loops().NO_NORM else [None] * 2
        return (
            *(grad_x, grad_y, dh, dc),
            *(grad_wx, grad_wy, torch.cat(grad_wh), sums[0]),
            *(*grad_norm, None, None),
        )


def _run(tensors, counts, gate_norm):
    if torch.is_grad_enabled() and any(
        v is not None and v.requires_grad for v in tensors
    ):
        return _Recurrence.apply(*tensors, counts, gate_norm)
    tensors = [v if v is None else v.detach() for v in tensors]
    x, y, h0, c0, *weights, norm_weight, norm_bias = tensors
    norm = _Norm(gate_norm, x.shape[1], norm_weight, norm_bias, x)
    return _walk(x, y, h0, c0, weights, counts, norm)


def ds_lstm_numba(
    x,
    y,
    h0,
    c0,
    weight_x,
    weight_y,
    weight_h,
    bias,
    counts=None,
    gate_norm=None,
):
    """One layer of the DS-LSTM over whole sequences; no second derivatives.

    Arguments
    ---------
    x : torch.Tensor, [batch, time, input_x]
        Fine-time sequence.
    y : torch.Tensor, [batch, time, input_y]
        Fine-frequency sequence, aligned with ``x``.
    h0 : torch.Tensor, [batch, hidden]
        Initial hidden state.
    c0 : torch.Tensor, [batch, hidden]
        Initial cell state.
    weight_x : torch.Tensor, [5 * hidden, input_x]
        Blocks f i_T i_F o C_T.
    weight_y : torch.Tensor, [5 * hidden, input_y]
        Blocks f i_T i_F o C_F.
    weight_h : torch.Tensor, [6 * hidden, hidden]
        Blocks f i_T i_F o C_T C_F.
    bias : torch.Tensor, [6 * hidden]
        Blocks f i_T i_F o C_T C_F.
    counts : torch.Tensor, int64, [batch], optional
        Valid steps of each item; all of them if left out.
    gate_norm : StepBatchNorm, optional
        Norm of the gates, in a single process.

    Returns
    -------
    out : torch.Tensor, [batch, time, hidden]
        Hidden states; zero at padded steps.
    h : torch.Tensor, [batch, hidden]
        Hidden state after each item's last valid step.
    c : torch.Tensor, [batch, hidden]
        Cell state after each item's last valid step.

    Raises
    ------
    ValueError
        It cannot run here or on these tensors.

    Example
    -------
    >>> from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive
    >>> sizes = [(10, 3), (10, 4), (12, 2)]
    >>> weights = [torch.randn(n, d) for n, d in sizes]
    >>> args = [torch.randn(5, 7, 3), torch.randn(5, 7, 4)]
    >>> args += [torch.zeros(5, 2)] * 2 + weights + [torch.randn(12)]
    >>> out, h, c = ds_lstm_numba(*args)
    >>> torch.allclose(out, ds_lstm_naive(*args)[0], atol=1e-6)
    True
    """
    problem = numba_problem(weight_h, gate_norm is not None)
    if problem is not None:
        raise ValueError(f"{problem}; use backend='auto'")
    # Autocast may have made them narrower: states keep the weights' precision
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
