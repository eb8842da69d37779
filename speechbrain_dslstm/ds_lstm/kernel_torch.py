"""The DS-LSTM in plain torch: the backends ``eager`` and ``fused``.

Both project the inputs of all steps before the loop, so that a step is one
product of h_{t-1} with the stacked weight [6H, H], one sigmoid over four gates
and one tanh over two candidates. ``ds_lstm_eager`` leaves the backward pass to
autograd; it supports a gate norm and second derivatives. ``ds_lstm_fused``
supports neither; its backward pass is written by hand: factors that do not
depend on later steps are computed for all steps at once, and the gradient of
the weight is one product at the end. The compiled kernels use the same formulas.

Reference and symbols: ``equations``.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = [
    "ds_lstm_eager",
    "ds_lstm_fused",
    "project_inputs",
    "refuse_second_derivatives",
]


def project_inputs(
    x: Tensor, y: Tensor, weight_x: Tensor, weight_y: Tensor, bias: Tensor
) -> Tensor:
    """Sum, for all steps, the terms of the activations that do not depend on h.

    The arguments are those of ``ds_lstm_naive``; the result,
    [time, batch, 6 * hidden], holds the blocks f i_T i_F o C_T C_F.

    >>> sizes = [(5, 7, 3), (5, 7, 4), (10, 3), (10, 4), (12,)]
    >>> project_inputs(*(torch.randn(size) for size in sizes)).shape
    torch.Size([7, 5, 12])
    """
    gate_rows = bias.shape[0] // 6 * 4
    x, y = x.transpose(0, 1), y.transpose(0, 1)
    # The four gates read [x; y], so their two products are one
    both = torch.cat([weight_x[:gate_rows], weight_y[:gate_rows]], dim=1)
    gates = linear(torch.cat([x, y], dim=-1), both)
    C_T, C_F = linear(x, weight_x[gate_rows:]), linear(y, weight_y[gate_rows:])
    return torch.cat([gates, C_T, C_F], dim=-1) + bias


def ds_lstm_eager(
    x: Tensor, y: Tensor, h0: Tensor, c0: Tensor,
    weight_x: Tensor, weight_y: Tensor, weight_h: Tensor, bias: Tensor,
    counts: Tensor | None = None,
    gate_norm: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run one layer; same signature as ``ds_lstm_naive``."""
    hidden = h0.shape[-1]
    projected = project_inputs(x, y, weight_x, weight_y, bias).unbind(0)
    weight_h = weight_h.t()
    valid = [None] * len(projected)
    if counts is not None:
        steps = torch.arange(len(projected), device=counts.device)
        valid = (steps.unsqueeze(1) < counts).unsqueeze(-1).unbind(0)
    h, c, out = h0, c0, []
    for t, (step, keep) in enumerate(zip(projected, valid, strict=True)):
        z = torch.addmm(step, h, weight_h)
        gates = torch.sigmoid(z[:, : 4 * hidden])
        if gate_norm is not None:
            gates = gate_norm(gates, t, None if keep is None else keep[:, 0])
        f, i_T, i_F, o = gates.chunk(4, dim=-1)
        C_T, C_F = torch.tanh(z[:, 4 * hidden :]).chunk(2, dim=-1)
        c_t = torch.addcmul(torch.addcmul(f * c, i_T, C_T), i_F, C_F)
        h_t = o * torch.tanh(c_t)
        if keep is None:
            h, c = h_t, c_t
        else:
            h, c = torch.where(keep, h_t, h), torch.where(keep, c_t, c)
        out.append(h)
    out = torch.stack(out, dim=1)
    if counts is not None:
        padded = torch.stack(valid, dim=1).logical_not()
        out = out.masked_fill(padded, 0)
    return out, h, c


def ds_lstm_fused(
    x: Tensor, y: Tensor, h0: Tensor, c0: Tensor,
    weight_x: Tensor, weight_y: Tensor, weight_h: Tensor, bias: Tensor,
    counts: Tensor | None = None,
    gate_norm: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run one layer; same signature as ``ds_lstm_naive``, without gate norm."""
    if gate_norm is not None:
        raise ValueError(
            "backend 'fused' has no gate norm; use backend='eager'"
        )
    projected = project_inputs(x, y, weight_x, weight_y, bias)
    # Autocast may have narrowed them; states keep the weights' precision
    projected, h0, c0 = (v.to(weight_h.dtype) for v in (projected, h0, c0))
    valid = None
    if counts is not None:
        steps = torch.arange(x.shape[1], device=x.device)
        valid = (steps.unsqueeze(1) < counts).unsqueeze(-1)
    out, h, c = _Recurrence.apply(projected, h0, c0, weight_h, valid)
    return out.transpose(0, 1), h, c


class _Recurrence(torch.autograd.Function):
    """The recurrence on projected inputs [time, batch, 6 * hidden]."""

    @staticmethod
    def forward(ctx, projected, h0, c0, weight_h, valid):
        """Run all steps, keeping what the backward pass needs."""
        time, batch, _ = projected.shape
        hidden = h0.shape[-1]
        act = torch.empty_like(projected)
        # States before and after each step
        h = projected.new_empty(time + 1, batch, hidden)
        c = projected.new_empty(time + 1, batch, hidden)
        tanh_c = projected.new_empty(time, batch, hidden)
        h[0], c[0] = h0, c0
        weight = weight_h.t()
        for t in range(time):
            _step(
                projected[t], h[t], c[t], weight,
                act[t], c[t + 1], tanh_c[t], h[t + 1],
            )  # fmt: skip
            if valid is not None:
                torch.where(valid[t], h[t + 1], h[t], out=h[t + 1])
                torch.where(valid[t], c[t + 1], c[t], out=c[t + 1])
        ctx.save_for_backward(act, h, c, tanh_c, weight_h)
        ctx.valid = valid
        out = h[1:] if valid is None else h[1:].masked_fill(~valid, 0)
        return out.clone(), h[-1].clone(), c[-1].clone()

    @staticmethod
    def backward(ctx, grad_out, grad_h, grad_c):
        """Run all steps backwards, then one product for the weight's gradient."""
        refuse_second_derivatives()
        act, h, c, tanh_c, weight_h = ctx.saved_tensors
        valid = ctx.valid
        time, batch, hidden = tanh_c.shape
        f, i_T, i_F, o, C_T, C_F = act.chunk(6, dim=-1)
        # The factors of dc and dh in the blocks' gradients, for all steps at once
        partner = torch.cat([c[:-1], C_T, C_F, tanh_c, i_T, i_F], dim=-1)
        aten, four = torch.ops.aten, 4 * hidden
        gates = aten.sigmoid_backward(partner[..., :four], act[..., :four])
        candidates = aten.tanh_backward(partner[..., four:], act[..., four:])
        slope = torch.cat([gates, candidates], dim=-1)
        slope = slope.view(time, batch, 6, hidden)
        through_o = aten.tanh_backward(o, tanh_c)
        if valid is not None:
            # Padded steps pass the gradients of the states on unchanged
            grad_out = grad_out.masked_fill(~valid, 0)
            slope = slope.masked_fill(~valid.unsqueeze(-1), 0)
            through_o = through_o.masked_fill(~valid, 0)
            f = f.masked_fill(~valid, 1)
        grad_z = torch.empty_like(slope)
        dh, dc = grad_h, grad_c
        for t in range(time - 1, -1, -1):
            dh = dh + grad_out[t]
            dc = torch.addcmul(dc, dh, through_o[t])
            torch.mul(slope[t], dc.unsqueeze(1), out=grad_z[t])
            torch.mul(slope[t, :, 3], dh, out=grad_z[t, :, 3])
            back = torch.mm(grad_z[t].view(batch, -1), weight_h)
            dh = back if valid is None else torch.where(valid[t], back, dh)
            dc = dc * f[t]
        grad_z = grad_z.view(time, batch, 6 * hidden)
        grad_weight = grad_z.flatten(0, 1).t() @ h[:-1].flatten(0, 1)
        return grad_z, dh, dc, grad_weight, None


def _step(projected, h, c, weight_h, act, c_t, tanh_c, h_t):
    """Compute one step into ``act`` [batch, 6 * hidden], c_t, tanh_c and h_t."""
    hidden = h.shape[-1]
    torch.addmm(projected, h, weight_h, out=act)
    act[:, : 4 * hidden].sigmoid_()
    act[:, 4 * hidden :].tanh_()
    f, i_T, i_F, o, C_T, C_F = act.chunk(6, dim=-1)
    torch.mul(f, c, out=c_t)
    c_t.addcmul_(i_T, C_T).addcmul_(i_F, C_F)
    torch.tanh(c_t, out=tanh_c)
    torch.mul(o, tanh_c, out=h_t)


def refuse_second_derivatives() -> None:
    """Raise in a backward pass that autograd records, for a second derivative.

    Autograd would take the first derivatives for constants, so that a penalty
    on a gradient would silently have no effect.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "this backend has no second derivatives; use backend='eager'"
        )
