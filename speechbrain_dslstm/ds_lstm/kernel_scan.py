"""The recurrence as a scan that torch.export keeps as one loop."""

import torch
from torch._higher_order_ops.scan import scan

from speechbrain_dslstm.ds_lstm.kernel_torch import project_inputs

__all__ = ["scan_ds_lstm"]


def scan_ds_lstm(layer, x, y, hx=None, valid=None):
    """A ``DSLSTM`` in evaluation mode, as a scan over time.

    Arguments
    ---------
    layer : DSLSTM
        Without gate norm, of one direction.
    x : torch.Tensor, [batch, time, input_size_x]
        Fine-time sequence.
    y : torch.Tensor, [batch, time, input_size_y]
        Fine-frequency sequence.
    hx : tuple of two torch.Tensor, each [layers, batch, hidden], optional
        Initial state; zeros if left out.
    valid : torch.Tensor, bool, [time], optional
        Steps that change the state.

    Returns
    -------
    out : torch.Tensor, [batch, time, hidden]
        Output of the last layer.
    state : tuple of two torch.Tensor, each [layers, batch, hidden]
        State after the last step.

    Example
    -------
    >>> from speechbrain_dslstm import DSLSTM
    >>> layer = DSLSTM(3, 4, 5, num_layers=2).eval()
    >>> x, y = torch.randn(2, 6, 3), torch.randn(2, 6, 4)
    >>> torch.allclose(scan_ds_lstm(layer, x, y)[0], layer(x, y)[0], atol=1e-6)
    True
    """
    hidden = layer.hidden_size

    def cell(z, c):
        """The equations, with all products done."""
        f, i_t, i_f, o = torch.sigmoid(z[:, : 4 * hidden]).chunk(4, dim=-1)
        c_t, c_f = torch.tanh(z[:, 4 * hidden :]).chunk(2, dim=-1)
        c = f * c + i_t * c_t + i_f * c_f
        return o * torch.tanh(c), c

    states = []
    for k in range(layer.num_layers):
        weights = [
            getattr(layer, f"{kind}_l{k}")
            for kind in ("weight_x", "weight_y", "bias")
        ]
        projected = project_inputs(x, y, *weights)
        weight_h = getattr(layer, f"weight_h_l{k}").t()
        state = None if hx is None else (hx[0][k], hx[1][k])
        x, state = _recur(cell, projected, weight_h, hidden, state, valid)
        states.append(state)
        if layer.output_norms:
            x = layer.output_norms[k](x)
    return x, tuple(torch.stack(s) for s in zip(*states, strict=True))


def _recur(cell, projected, weight_h, hidden, state, valid):
    """Scan one layer over [time, batch, blocks of projected inputs]."""
    if state is None:
        zeros = projected.new_zeros(projected.shape[1], hidden)
        state = (zeros, zeros.clone())
    inputs = (projected,)
    if valid is not None:
        inputs = (projected, valid.view(-1, 1, 1))

    def step(carry, inputs):
        """One step; an output must not be a state itself."""
        h, c = carry
        h_t, c_t = cell(inputs[0] + h @ weight_h, c)
        if len(inputs) > 1:
            h_t = torch.where(inputs[1], h_t, h)
            c_t = torch.where(inputs[1], c_t, c)
        return (h_t, c_t), h_t.clone()

    if torch.compiler.is_exporting():
        state, out = scan(step, state, inputs, dim=0)
        return out.transpose(0, 1), state
    # Run as it is, scan would be compiled anew for every length
    every = []
    for items in zip(*inputs, strict=True):
        state, out = step(state, items)
        every.append(out)
    return torch.stack(every, dim=1), state
