"""draft"""
import numpy as np
import torch
from torch.autograd.function import once_differentiable

__all__ = ["ds_lstm_numba"]


def _loops():
    from speechbrain_dslstm.ds_lstm import numba_loops
    return numba_loops


def project(x, y, weight_x, weight_y):
    (batch, time, _), hidden = x.shape, weight_x.shape[0] // 5
    act = x.new_empty(batch, time, 6 * hidden)
    flat, x, y = (v.reshape(batch * time, -1) for v in (act, x, y))
    torch.mm(x, weight_x.t(), out=flat[:, : 5 * hidden])
    flat[:, : 4 * hidden].addmm_(y, weight_y[: 4 * hidden].t())
    torch.mm(y, weight_y[4 * hidden :].t(), out=flat[:, 5 * hidden :])
    return act


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, h0, c0, weight_x, weight_y, weight_h, bias, counts, norm, norm_weight, norm_bias):
        (batch, time, _), hidden = x.shape, h0.shape[1]
        training = any(ctx.needs_input_grad)
        act = project(x, y, weight_x, weight_y)
        h, c = h0.clone(memory_format=torch.contiguous_format), c0.clone(memory_format=torch.contiguous_format)
        out = x.new_empty(batch, time, hidden)
        keep = (batch, time) if training else (0, 0)
        h_before = x.new_empty(*keep, hidden)
        c_all = x.new_empty(keep[0], keep[1]+1, hidden)
        if training:
            h_before[:, 0], c_all[:, 0] = h0, c0
        mode, eps, moments, nw, nb = 0, 0.0, x.new_empty(2, 0, 0), x.new_empty(0), x.new_empty(0)
        weight = weight_h.contiguous() if batch == 1 else weight_h.t().contiguous()
        sizes = np.array([6*hidden, batch, hidden, 6*hidden, hidden, time*6*hidden, ord("N")], np.int32)
        numbers = np.array([1, 1], act.numpy().dtype)
        counts = torch.full((batch,), time) if counts is None else counts
        a = lambda v: v.detach().numpy()
        loops = _loops()
        loops.forward(a(act), a(weight), a(bias), a(h), a(c), a(counts), sizes, numbers, a(out), a(h_before), a(c_all), mode, eps, a(moments), a(nw), a(nb))
        ctx.save_for_backward(x, y, weight_x, weight_y, weight_h, act, h_before, c_all, counts, moments, nw, nb)
        ctx.mode = mode, eps
        return out, h, c

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_out, dh, dc):
        x, y, weight_x, weight_y, weight_h, act, h_before, c_all, counts, moments, nw, nb = ctx.saved_tensors
        mode, eps = ctx.mode
        (batch, time, _), hidden = x.shape, dh.shape[1]
        dh, dc = (v.clone(memory_format=torch.contiguous_format) for v in (dh, dc))
        grad = torch.empty_like(act)
        grad_bias = x.new_zeros(6 * hidden)
        gnw, gnb = torch.zeros_like(nw), torch.zeros_like(nb)
        weight = weight_h.t().contiguous() if batch == 1 else weight_h.contiguous()
        sizes = np.array([hidden, batch, 6*hidden, hidden, 6*hidden*time, hidden, ord("N")], np.int32)
        a = lambda v: v.detach().numpy()
        numbers = np.array([1, 0], a(act).dtype)
        _loops().backward(a(act), a(weight), a(c_all), a(counts), sizes, numbers, a(grad_out.contiguous()), a(dh), a(dc), a(grad), a(grad_bias), mode, eps, a(moments), a(nw), a(nb), a(gnw), a(gnb))
        flat = grad.view(batch * time, -1)
        gx, gy, gwx, gwy, gwh = [None] * 5
        four, five = 4 * hidden, 5 * hidden
        needs = ctx.needs_input_grad
        if needs[0]:
            gx = torch.mm(flat[:, :five], weight_x).view_as(x)
        if needs[1]:
            gy = torch.mm(flat[:, :four], weight_y[:four])
            gy = gy.addmm_(flat[:, five:], weight_y[four:]).view_as(y)
        if needs[4]:
            gwx = torch.mm(flat[:, :five].t(), x.reshape(batch * time, -1))
        if needs[5]:
            y2 = y.reshape(batch * time, -1)
            gwy = torch.empty_like(weight_y)
            torch.mm(flat[:, :four].t(), y2, out=gwy[:four])
            torch.mm(flat[:, five:].t(), y2, out=gwy[four:])
        if needs[6]:
            gwh = torch.mm(flat.t(), h_before.view(batch * time, -1))
        return gx, gy, dh, dc, gwx, gwy, gwh, grad_bias, None, None, None, None


def ds_lstm_numba(x, y, h0, c0, weight_x, weight_y, weight_h, bias, counts=None, gate_norm=None):
    return _Recurrence.apply(x, y, h0, c0, weight_x, weight_y, weight_h, bias, counts, gate_norm, None, None)
