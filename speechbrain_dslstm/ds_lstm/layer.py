"""DSLSTM: the Dual-Sequence LSTM as a module, used like ``torch.nn.LSTM``.

This file has the parameters, layers, directions, states and lengths. The
recurrence itself is in ``equations`` (to read) and in the ``kernel_*`` modules
(to run).

Every layer after the first receives the output of the layer below as its x,
and the same y as the first. Source: arXiv:1910.08874; the two norms are
options of the authors' public code.
"""

import torch
from torch import Tensor

from speechbrain_dslstm.ds_lstm.backends import (
    announce_backend,
    check_backend,
    choose_backend,
)
from speechbrain_dslstm.layers.batch_norm import MaskedBatchNorm, StepBatchNorm
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.utils.distributed import max_over_ranks

__all__ = ["DSLSTM"]


class DSLSTM(torch.nn.Module):
    """Multi-layer Dual-Sequence LSTM over two aligned sequences.

    Parameters of layer l = 0, 1, ..., in blocks of H rows; those of the
    backward direction end in ``_reverse``:

    * ``weight_x_l{l}`` [5H, Dx]: f i_T i_F o C_T
    * ``weight_y_l{l}`` [5H, Dy]: f i_T i_F o C_F
    * ``weight_h_l{l}`` [6H, H]: f i_T i_F o C_T C_F
    * ``bias_l{l}`` [6H]: f i_T i_F o C_T C_F

    Arguments
    ---------
    input_size_x
        Features of the fine-time sequence.
    input_size_y
        Features of the fine-frequency sequence.
    hidden_size
        Hidden units H of one direction.
    num_layers
        Stacked layers.
    dropout
        Dropout probability on the output of every layer but the last.
    gate_norm
        "batch": batch normalisation of the gates after the sigmoid, with
        running statistics for each time step. None: no normalisation.
    output_norm
        "batch": batch normalisation of each layer's output sequence. None: no
        normalisation.
    bidirectional
        Add a second direction that reads each item backwards.
    backend
        "auto", "naive", "eager", "fused", "numba" or "triton"; the environment
        variable ``DSLSTM_BACKEND`` takes precedence.

    Raises
    ------
    ValueError
        A size, norm, dropout or backend is unknown or out of range.

    Example
    -------
    >>> layer = DSLSTM(496, 1008, hidden_size=200, num_layers=2)
    >>> x, y = torch.randn(3, 27, 496), torch.randn(3, 27, 1008)
    >>> out, (h, c) = layer(x, y, lengths=torch.tensor([27, 20, 9]))
    >>> out.shape, h.shape, c.shape
    (torch.Size([3, 27, 200]), torch.Size([2, 3, 200]), torch.Size([2, 3, 200]))
    >>> torch.equal(h[1, 2], out[2, 8]), out[2, 9:].abs().max().item()
    (True, 0.0)
    """

    def __init__(
        self,
        input_size_x: int,
        input_size_y: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        gate_norm: str | None = None,
        output_norm: str | None = None,
        bidirectional: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        sizes = {
            "input_size_x": input_size_x,
            "input_size_y": input_size_y,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        norms = {"gate_norm": gate_norm, "output_norm": output_norm}
        for name, norm in norms.items():
            if norm not in (None, "batch"):
                raise ValueError(
                    f'{name} must be None or "batch", got {norm!r}'
                )
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        check_backend(backend, gate_norm is not None)
        self.input_size_x = input_size_x
        self.input_size_y = input_size_y
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.backend = backend
        self.suffixes = ["", "_reverse"] if bidirectional else [""]
        self.output_size = hidden_size * len(self.suffixes)
        self.dropout = torch.nn.Dropout(dropout)
        self.gate_norms = torch.nn.ModuleDict()
        self.output_norms = torch.nn.ModuleList()
        for layer in range(num_layers):
            size_x = input_size_x if layer == 0 else self.output_size
            for suffix in self.suffixes:
                name = f"l{layer}{suffix}"
                for kind, shape in {
                    "weight_x": (5 * hidden_size, size_x),
                    "weight_y": (5 * hidden_size, input_size_y),
                    "weight_h": (6 * hidden_size, hidden_size),
                    "bias": (6 * hidden_size,),
                }.items():
                    parameter = torch.nn.Parameter(torch.empty(shape))
                    self.register_parameter(f"{kind}_{name}", parameter)
                if gate_norm == "batch":
                    self.gate_norms[name] = StepBatchNorm(4 * hidden_size)
            if output_norm == "batch":
                self.output_norms.append(MaskedBatchNorm(self.output_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw uniformly from +-1/sqrt(hidden_size), as torch.nn.LSTM does."""
        bound = self.hidden_size**-0.5
        for parameter in self.parameters(recurse=False):
            torch.nn.init.uniform_(parameter, -bound, bound)
        for norm in [*self.gate_norms.values(), *self.output_norms]:
            norm.reset_parameters()

    def get_config(self) -> dict:
        """Return the constructor's arguments, except the backend."""
        return {
            "input_size_x": self.input_size_x,
            "input_size_y": self.input_size_y,
            "hidden_size": self.hidden_size,
            "num_layers": self.num_layers,
            "dropout": self.dropout.p,
            "gate_norm": "batch" if self.gate_norms else None,
            "output_norm": "batch" if self.output_norms else None,
            "bidirectional": self.bidirectional,
        }

    def extra_repr(self) -> str:
        """Return sizes and backend, for print."""
        return (
            f"{self.input_size_x}, {self.input_size_y}, {self.hidden_size}, "
            f"num_layers={self.num_layers}, "
            f"bidirectional={self.bidirectional}, backend={self.backend!r}"
        )

    def weights(self, name: str) -> list[Tensor]:
        """Return weight_x, weight_y, weight_h and bias of "l0", "l1_reverse", ..."""
        kinds = ("weight_x", "weight_y", "weight_h", "bias")
        return [getattr(self, f"{kind}_{name}") for kind in kinds]

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        lengths: Tensor | None = None,
        hx: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run over x [batch, time, input_size_x] and y [batch, time, input_size_y].

        ``lengths``, [batch], are relative (floats) or frame counts (integers);
        by default all frames are valid. ``hx``, the initial hidden and cell
        state, each [layers, batch, hidden], is zero by default.

        Returns the output of the last layer, [batch, time, hidden], zero at
        padded steps, and both states, [layers, batch, hidden], after each
        item's last valid frame. With two directions there are 2 * hidden
        outputs, forward first, and 2 * layers states, forward before backward
        in each layer.
        """
        self._check_inputs(x, y)
        batch, time = x.shape[:2]
        counts = None
        if lengths is not None:
            counts = to_counts(lengths, time, batch, x.device)
        h0, c0 = self._initial_state(x, hx)
        padded_time = time
        if self.gate_norms and self.training:
            # Every rank takes part in reducing the statistics of every step
            padded_time = max_over_ranks(time, x.device)
        if padded_time > time:
            counts = to_counts(counts, time, batch, x.device)
            grow = (0, 0, 0, padded_time - time)
            x = torch.nn.functional.pad(x, grow)
            y = torch.nn.functional.pad(y, grow)
        h_n, c_n = [], []
        for layer in range(self.num_layers):
            out = []
            for suffix in self.suffixes:
                k, name = len(h_n), f"l{layer}{suffix}"
                h_all, h, c = self._run(name, x, y, h0[k], c0[k], counts)
                out.append(h_all)
                h_n.append(h)
                c_n.append(c)
            x = torch.cat(out, dim=-1) if len(out) > 1 else out[0]
            if self.output_norms:
                x = self.output_norms[layer](x, counts)
            if layer + 1 < self.num_layers:
                x = self.dropout(x)
        return x[:, :time], (torch.stack(h_n), torch.stack(c_n))

    def _run(self, name, x, y, h0, c0, counts):
        """Run one layer in one direction, such as "l0" or "l1_reverse"."""
        weights = self.weights(name)
        norm = self.gate_norms[name] if name in self.gate_norms else None
        choice = choose_backend(self.backend, norm is not None, weights[0])
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing()):
            announce_backend(choice.name, choice.reason)
        recurrence = choice.function
        if not name.endswith("_reverse"):
            return recurrence(x, y, h0, c0, *weights, counts, norm)
        x, y = _reverse(x, counts), _reverse(y, counts)
        out, h, c = recurrence(x, y, h0, c0, *weights, counts, norm)
        return _reverse(out, counts), h, c

    def _initial_state(self, x, hx):
        rows = self.num_layers * len(self.suffixes)
        shape = (rows, x.shape[0], self.hidden_size)
        if hx is None:
            return x.new_zeros(shape), x.new_zeros(shape)
        for state in hx:
            if state.shape != shape:
                raise ValueError(
                    f"expected an initial state of shape {list(shape)}, "
                    f"got {list(state.shape)}"
                )
        return hx

    def _check_inputs(self, x, y):
        sizes = ("x", x, self.input_size_x), ("y", y, self.input_size_y)
        for name, value, size in sizes:
            if value.dim() != 3 or value.shape[-1] != size:
                raise ValueError(
                    f"expected {name} of shape [batch, time, {size}], "
                    f"got {list(value.shape)}"
                )
        if x.shape[:2] != y.shape[:2] or x.shape[1] < 1:
            raise ValueError(
                "expected x and y of the same batch size and the same number "
                f"of frames, at least 1; got {list(x.shape[:2])} and "
                f"{list(y.shape[:2])} (speechbrain_dslstm.layers.alignment "
                "aligns them)"
            )


def _reverse(x, counts):
    """Reverse the valid frames of each item; padded frames keep their places."""
    if counts is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    index = counts.unsqueeze(1) - 1 - steps
    index = torch.where(index < 0, steps, index)
    return x.gather(1, index.unsqueeze(-1).expand_as(x))
