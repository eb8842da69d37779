"""Recurrences as a scan over time, which torch.export keeps as one loop.

``scan_ds_lstm`` runs a whole ``DSLSTM`` in evaluation mode; ``scan_layer`` is the
scan alone, which the export of other recurrences also uses. Reference and
symbols: ``equations``.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._higher_order_ops.scan import scan

from speechbrain_dslstm.ds_lstm.kernel_torch import project_inputs
from speechbrain_dslstm.ds_lstm.layer import DSLSTM

__all__ = ["scan_ds_lstm", "scan_layer"]

State = tuple[Tensor, Tensor]


def scan_ds_lstm(
    layer: DSLSTM,
    x: Tensor,
    y: Tensor,
    hx: State | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run a one-directional ``DSLSTM`` without gate norm, as its ``forward`` does.

    ``valid``, bool [time], marks the steps that change the state, for all
    items alike.

    >>> layer = DSLSTM(3, 4, 5, num_layers=2).eval()
    >>> x, y = torch.randn(2, 6, 3), torch.randn(2, 6, 4)
    >>> torch.allclose(scan_ds_lstm(layer, x, y)[0], layer(x, y)[0], atol=1e-6)
    True
    """
    four = 4 * layer.hidden_size

    def cell(z: Tensor, c: Tensor) -> State:
        """Apply the equations to z, the sums of all products and the bias."""
        f, i_T, i_F, o = torch.sigmoid(z[:, :four]).chunk(4, dim=-1)
        C_T, C_F = torch.tanh(z[:, four:]).chunk(2, dim=-1)
        c = f * c + i_T * C_T + i_F * C_F
        return o * torch.tanh(c), c

    states = []
    for k in range(layer.num_layers):
        weight_x, weight_y, weight_h, bias = layer.weights(f"l{k}")
        projected = project_inputs(x, y, weight_x, weight_y, bias)
        state = None if hx is None else (hx[0][k], hx[1][k])
        x, state = scan_layer(cell, projected, weight_h, state, valid)
        states.append(state)
        if layer.output_norms:
            x = layer.output_norms[k](x)
    h, c = zip(*states, strict=True)
    return x, (torch.stack(h), torch.stack(c))


def scan_layer(
    cell: Callable[[Tensor, Tensor], State],
    projected: Tensor,
    weight_h: Tensor,
    state: State | None = None,
    valid: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Scan a layer, ``h, c = cell(projected_t + h weight_h', c)``, over time.

    Shapes: projected [time, batch, blocks * hidden], weight_h
    [blocks * hidden, hidden], each state [batch, hidden] (zeros if None),
    valid bool [time]. Returns the output, [batch, time, hidden], and the last
    state.
    """
    weight = weight_h.t()
    if state is None:
        zeros = projected.new_zeros(projected.shape[1], weight_h.shape[1])
        state = (zeros, zeros.clone())
    inputs = (projected,)
    if valid is not None:
        inputs = (projected, valid.view(-1, 1, 1))

    def step(carry: State, inputs: tuple[Tensor, ...]) -> tuple[State, Tensor]:
        h, c = carry
        h_t, c_t = cell(inputs[0] + h @ weight, c)
        if len(inputs) > 1:
            h_t = torch.where(inputs[1], h_t, h)
            c_t = torch.where(inputs[1], c_t, c)
        # scan forbids an output that is also part of the state
        return (h_t, c_t), h_t.clone()

    if torch.compiler.is_exporting():
        state, out = scan(step, state, inputs, dim=0)
        return out.transpose(0, 1), state
    # Outside an export, scan would be compiled anew for every length
    every = []
    for items in zip(*inputs, strict=True):
        state, out = step(state, items)
        every.append(out)
    return torch.stack(every, dim=1), state
