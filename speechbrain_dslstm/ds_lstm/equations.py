r"""The Dual-Sequence LSTM, one line of code per equation.

This is the readable reference: the tests hold every faster backend to its
outputs, states and gradients. It is never optimised.

Source: Wang, Xue, Culhane, Diao, Ding, Tarokh, "Speech Emotion Recognition
with Dual-Sequence LSTM Architecture", ICASSP 2020, arXiv:1910.08874.

Symbols: x_t fine-time input, y_t fine-frequency input, h hidden state,
c cell state, [.; .] concatenation, * elementwise product::

    f_t   = sigmoid(W_f  [x_t; y_t; h_{t-1}] + b_f)     forget gate
    i_T,t = sigmoid(W_iT [x_t; y_t; h_{t-1}] + b_iT)    input gate, time
    i_F,t = sigmoid(W_iF [x_t; y_t; h_{t-1}] + b_iF)    input gate, frequency
    o_t   = sigmoid(W_o  [x_t; y_t; h_{t-1}] + b_o)     output gate
    C_T,t = tanh(W_T [x_t; h_{t-1}] + b_T)              candidate, time
    C_F,t = tanh(W_F [y_t; h_{t-1}] + b_F)              candidate, frequency
    c_t   = f_t * c_{t-1} + i_T,t * C_T,t + i_F,t * C_F,t
    h_t   = o_t * tanh(c_t)

The weights are stored by their input, H rows a block, in this order:

    weight_x [5H, Dx]   f i_T i_F o C_T
    weight_y [5H, Dy]   f i_T i_F o C_F
    weight_h [6H, H]    f i_T i_F o C_T C_F
    bias     [6H]       f i_T i_F o C_T C_F
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

__all__ = ["ds_lstm_step", "ds_lstm_naive"]


def ds_lstm_step(
    x_t: Tensor, y_t: Tensor, h: Tensor, c: Tensor,
    weight_x: Tensor, weight_y: Tensor, weight_h: Tensor, bias: Tensor,
    normalize: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute one time step of the DS-LSTM.

    Arguments
    ---------
    x_t : [batch, input_x]
        Fine-time input.
    y_t : [batch, input_y]
        Fine-frequency input.
    h, c : [batch, hidden]
        Hidden and cell state of the previous step.
    weight_x, weight_y, weight_h, bias
        Blocks of ``hidden`` rows, in the order given at the top of this file.
    normalize
        Maps the four gates, [batch, 4 * hidden], to normalised ones.

    Returns
    -------
    h, c : [batch, hidden]
        Hidden and cell state after this step.

    Example
    -------
    >>> h = c = torch.zeros(1, 2)
    >>> zero = [torch.zeros(n, d) for n, d in [(10, 3), (10, 4), (12, 2)]]
    >>> h, c = ds_lstm_step(
    ...     torch.ones(1, 3), torch.ones(1, 4), h, c, *zero, torch.ones(12)
    ... )
    >>> c  # 2 * sigmoid(1) * tanh(1)
    tensor([[1.1135, 1.1135]])
    """
    x_f, x_iT, x_iF, x_o, x_T = (x_t @ weight_x.t()).chunk(5, dim=-1)
    y_f, y_iT, y_iF, y_o, y_F = (y_t @ weight_y.t()).chunk(5, dim=-1)
    h_f, h_iT, h_iF, h_o, h_T, h_F = (h @ weight_h.t()).chunk(6, dim=-1)
    b_f, b_iT, b_iF, b_o, b_T, b_F = bias.chunk(6)

    f = torch.sigmoid(x_f + y_f + h_f + b_f)
    i_T = torch.sigmoid(x_iT + y_iT + h_iT + b_iT)
    i_F = torch.sigmoid(x_iF + y_iF + h_iF + b_iF)
    o = torch.sigmoid(x_o + y_o + h_o + b_o)
    if normalize is not None:
        gates = normalize(torch.cat([f, i_T, i_F, o], dim=-1))
        f, i_T, i_F, o = gates.chunk(4, dim=-1)
    C_T = torch.tanh(x_T + h_T + b_T)
    C_F = torch.tanh(y_F + h_F + b_F)
    c = f * c + i_T * C_T + i_F * C_F
    h = o * torch.tanh(c)
    return h, c


def ds_lstm_naive(
    x: Tensor, y: Tensor, h0: Tensor, c0: Tensor,
    weight_x: Tensor, weight_y: Tensor, weight_h: Tensor, bias: Tensor,
    counts: Tensor | None = None,
    gate_norm: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Run one layer of the DS-LSTM over whole sequences, step by step.

    Every backend has this signature.

    Arguments
    ---------
    x : [batch, time, input_x]
        Fine-time sequence.
    y : [batch, time, input_y]
        Fine-frequency sequence, aligned with ``x``.
    h0, c0 : [batch, hidden]
        Initial hidden and cell state.
    weight_x, weight_y, weight_h, bias
        Blocks of ``hidden`` rows, in the order given at the top of this file.
    counts : int64 [batch], optional
        Valid steps of each item; by default all of them.
    gate_norm
        Normalises the gates of a step, such as ``StepBatchNorm``: called as
        ``gate_norm(gates, step=t, valid=valid)`` with gates [batch, 4 * hidden]
        and valid, bool [batch] or None.

    Returns
    -------
    out : [batch, time, hidden]
        Hidden states; zero at padded steps.
    h, c : [batch, hidden]
        Hidden and cell state after each item's last valid step.

    Example
    -------
    >>> sizes = [(10, 3), (10, 4), (12, 2), (12,)]
    >>> weights = [torch.randn(size) for size in sizes]
    >>> x, y = torch.randn(5, 7, 3), torch.randn(5, 7, 4)
    >>> state, counts = torch.zeros(5, 2), torch.tensor([7, 6, 5, 4, 3])
    >>> out, h, c = ds_lstm_naive(x, y, state, state, *weights, counts)
    >>> out.shape, torch.equal(h[4], out[4, 2])
    (torch.Size([5, 7, 2]), True)
    """
    weights = weight_x, weight_y, weight_h, bias
    h, c, out = h0, c0, []
    for t in range(x.shape[1]):
        valid = None if counts is None else t < counts
        normalize = None
        if gate_norm is not None:
            normalize = partial(gate_norm, step=t, valid=valid)

        h_t, c_t = ds_lstm_step(x[:, t], y[:, t], h, c, *weights, normalize)
        if valid is None:
            h, c = h_t, c_t
            out.append(h_t)
        else:
            keep = valid.unsqueeze(-1)
            h, c = torch.where(keep, h_t, h), torch.where(keep, c_t, c)
            out.append(torch.where(keep, h_t, torch.zeros_like(h_t)))
    return torch.stack(out, dim=1), h, c
