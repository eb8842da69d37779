"""DS-LSTM in plain torch with as few operations per step as autograd allows.

Nothing of a step that does not depend on h_{t-1} stays in the loop: the input
projections of all steps are matrix products before it. Inside, one product
with the stacked [6H, H] weight, one sigmoid over four gates, one tanh over two
candidates. Reference: ``equations.ds_lstm_naive``, whose signature this has.
"""

import torch

__all__ = ["ds_lstm_eager", "project_inputs"]


def project_inputs(x, y, weight_x, weight_y, bias):
    """Input part of all steps: everything that does not depend on h_{t-1}.

    Arguments
    ---------
    x : torch.Tensor, [batch, time, input_x]
        Fine-time sequence.
    y : torch.Tensor, [batch, time, input_y]
        Fine-frequency sequence.
    weight_x : torch.Tensor, [5 * hidden, input_x]
        Blocks f i_T i_F o C_T.
    weight_y : torch.Tensor, [5 * hidden, input_y]
        Blocks f i_T i_F o C_F.
    bias : torch.Tensor, [6 * hidden]
        Blocks f i_T i_F o C_T C_F.

    Returns
    -------
    torch.Tensor, [time, batch, 6 * hidden]
        Blocks f i_T i_F o C_T C_F.

    Example
    -------
    >>> sizes = [(5, 7, 3), (5, 7, 4), (10, 3), (10, 4), (12,)]
    >>> project_inputs(*(torch.randn(size) for size in sizes)).shape
    torch.Size([7, 5, 12])
    """
    hidden = bias.shape[0] // 6
    x, y = x.transpose(0, 1), y.transpose(0, 1)
    # The four gates read [x; y], so their two products are one
    gates = torch.nn.functional.linear(
        torch.cat([x, y], dim=-1),
        torch.cat([weight_x[: 4 * hidden], weight_y[: 4 * hidden]], dim=1),
    )
    time = torch.nn.functional.linear(x, weight_x[4 * hidden :])
    frequency = torch.nn.functional.linear(y, weight_y[4 * hidden :])
    return torch.cat([gates, time, frequency], dim=-1) + bias


def ds_lstm_eager(
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
    """One layer of the DS-LSTM over whole sequences, in plain torch.

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
    gate_norm : callable, optional
        As in ``ds_lstm_naive``.

    Returns
    -------
    out : torch.Tensor, [batch, time, hidden]
        Hidden states; zero at padded steps.
    h : torch.Tensor, [batch, hidden]
        Hidden state after each item's last valid step.
    c : torch.Tensor, [batch, hidden]
        Cell state after each item's last valid step.

    Example
    -------
    >>> from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive
    >>> sizes = [(10, 3), (10, 4), (12, 2)]
    >>> weights = [torch.randn(n, d) for n, d in sizes]
    >>> args = [torch.randn(5, 7, 3), torch.randn(5, 7, 4)]
    >>> args += [torch.zeros(5, 2)] * 2 + weights + [torch.randn(12)]
    >>> out, h, c = ds_lstm_eager(*args)
    >>> torch.allclose(out, ds_lstm_naive(*args)[0], atol=1e-6)
    True
    """
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
