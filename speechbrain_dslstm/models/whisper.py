"""The encoder of Whisper in plain torch, for clips of any length.

Source: "Robust Speech Recognition via Large-Scale Weak Supervision"
(arXiv:2212.04356). Two convolutions halve the frame rate of the log-mel
spectrogram, a table of positions is added, and pre-norm transformer layers
follow. Whisper always reads 30 s; here a clip is read at its own length, and
padding is masked in every convolution and in the attention, so that a clip has
the same frames alone and in any batch.

The table of positions ends at 30 s. A longer clip is read in windows of 30 s,
each 25 s after the one before. Of the 5 s that two windows share, the first half
comes from the earlier window and the second half from the later one.

Symbols: B batch, T frames, D size, W windows, L layers.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

from speechbrain_dslstm.lengths import length_mask, zero_padding

__all__ = ["WhisperEncoder"]

# Sizes of tiny.en
TINY = {
    "n_mels": 80,
    "size": 384,
    "heads": 6,
    "ffn_size": 1536,
    "num_layers": 4,
    "max_frames": 1500,
}


class WhisperEncoder(torch.nn.Module):
    """First layers of Whisper's encoder: log-mel spectrogram in, frames out.

    The parameters have the names that ``transformers.WhisperModel`` uses.

    Arguments
    ---------
    sizes
        "n_mels", "size" D, "heads", "ffn_size", "num_layers" of the whole
        encoder and "max_frames" of its table of positions; those of tiny.en
        if left out.
    num_layers
        Layers to build; all of them if left out. Whisper's last layer ends with
        a layer normalisation, the others do not.

    Raises
    ------
    ValueError
        There are fewer layers than asked for, or the size is not a multiple of
        the heads.

    Example
    -------
    >>> encoder = WhisperEncoder(num_layers=2).eval()
    >>> hidden, counts = encoder.embed(
    ...     torch.randn(1, 100, 80), torch.tensor([100])
    ... )
    >>> layers = encoder.run(hidden, counts)
    >>> len(layers), layers[0].shape, counts
    (2, torch.Size([1, 50, 384]), tensor([50]))
    """

    def __init__(
        self,
        sizes: Mapping[str, int] | None = None,
        num_layers: int | None = None,
    ) -> None:
        super().__init__()
        self.sizes = {**TINY, **(sizes or {})}
        unknown = sorted(self.sizes.keys() - TINY.keys())
        if unknown:
            raise ValueError(
                f"unknown size {unknown[0]!r}; expected {', '.join(TINY)}"
            )
        size, total = self.sizes["size"], self.sizes["num_layers"]
        built = total if num_layers is None else num_layers
        if not 1 <= built <= total:
            raise ValueError(
                f"num_layers must be in 1..{total}, the layers of this "
                f"encoder, got {built}"
            )
        if size % self.sizes["heads"]:
            raise ValueError(
                f"size must be a multiple of heads, got size {size} and "
                f"{self.sizes['heads']} heads"
            )
        self.num_layers = built
        self.conv1 = torch.nn.Conv1d(self.sizes["n_mels"], size, 3, padding=1)
        self.conv2 = torch.nn.Conv1d(size, size, 3, stride=2, padding=1)
        # Computed on the device "meta", a table would import torch's compiler
        with torch.device("cpu"):
            table = _sinusoids(self.max_frames, size)
        self.embed_positions = torch.nn.Embedding.from_pretrained(
            table, freeze=False
        )
        self.layers = torch.nn.ModuleList(
            _Layer(size, self.sizes["heads"], self.sizes["ffn_size"])
            for _ in range(built)
        )
        if built == total:
            self.layer_norm = torch.nn.LayerNorm(size)

    @property
    def max_frames(self) -> int:
        """Frames of the table of positions: 1500 for 30 s."""
        return self.sizes["max_frames"]

    def num_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames of ``n`` frames of the log-mel spectrogram."""
        return (n + 1) // 2

    def embed(self, mel: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Run both convolutions: [B, 2T, n_mels] -> [B, T, D], no positions yet.

        ``counts``, [B], are the valid frames of ``mel``; those of the result
        are returned with it.
        """
        x = zero_padding(mel.to(self.conv1.weight.dtype), counts)
        x = gelu(self.conv1(x.transpose(1, 2))).transpose(1, 2)
        # The second convolution must read zeros after the end of a clip
        x = zero_padding(x, counts).transpose(1, 2)
        x = gelu(self.conv2(x)).transpose(1, 2)
        counts = self.num_frames(counts)
        return zero_padding(x, counts), counts

    def run(
        self,
        hidden: Tensor,
        counts: Tensor,
        first: int = 0,
        last: int | None = None,
    ) -> list[Tensor]:
        """Run the layers after ``first`` on [B, T, D]; list the output of each.

        With ``first`` 0, ``hidden`` is that of ``embed``; otherwise it is the
        output of layer ``first``. ``last`` is the number of the last layer to
        run; all of them if left out. Frames after ``counts``, [B], are zero.
        """
        time = hidden.shape[1]
        exporting = torch.compiler.is_compiling()
        windows = None
        if exporting or time > self.max_frames:
            windows = _Windows(time, counts, self.max_frames)
            hidden, valid = windows.cut(hidden, counts)
        else:
            valid = counts
        if first == 0:
            places = torch.arange(hidden.shape[1], device=hidden.device)
            hidden = hidden + self.embed_positions(places)
        mask = length_mask(valid, hidden.shape[1])[:, None, None, :]
        found = []
        for k, layer in enumerate(self.layers[first:last], first + 1):
            hidden = layer(hidden, mask)
            final = k == self.sizes["num_layers"]
            out = self.layer_norm(hidden) if final else hidden
            out = out if windows is None else windows.join(out)
            found.append(zero_padding(out, counts))
        return found


class _Layer(torch.nn.Module):
    """Pre-norm transformer layer: attention, then two linear layers."""

    def __init__(self, size: int, heads: int, ffn_size: int) -> None:
        super().__init__()
        self.self_attn_layer_norm = torch.nn.LayerNorm(size)
        self.self_attn = _Attention(size, heads)
        self.final_layer_norm = torch.nn.LayerNorm(size)
        self.fc1 = torch.nn.Linear(size, ffn_size)
        self.fc2 = torch.nn.Linear(ffn_size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map [batch, time, size]; ``mask`` [batch, 1, 1, time] marks valid keys."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        return x + self.fc2(gelu(self.fc1(self.final_layer_norm(x))))


class _Attention(torch.nn.Module):
    """Multi-head attention of each frame to all valid ones."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = torch.nn.Linear(size, size)
        self.k_proj = torch.nn.Linear(size, size, bias=False)
        self.v_proj = torch.nn.Linear(size, size)
        self.out_proj = torch.nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class _Windows:
    """Cut sequences [B, T, D] into windows that overlap by a sixth, and join them.

    How a clip is cut depends on its own length only. Plain indexing serves all
    numbers of windows, so an exported graph holds for any length.
    """

    def __init__(self, time: int, counts: Tensor, longest: int) -> None:
        self.overlap = longest // 6
        self.stride = longest - self.overlap
        self.size = torch.sym_min(time, longest)
        self.number = torch.sym_max(self._number(time), 1)
        device = counts.device
        self.starts = torch.arange(self.number, device=device) * self.stride
        # A window's first frames serve as context, except at the clip's start
        steps = torch.arange(time, device=device)
        window = (steps - self.overlap // 2) // self.stride
        last = self._number(counts).clamp(min=1).unsqueeze(1) - 1
        window = torch.minimum(window.clamp(min=0).unsqueeze(0), last)
        # Padded frames may lie beyond the last window
        inside = (steps - window * self.stride).clamp(max=self.size - 1)
        self.places = window * self.size + inside
        self.last = time - 1

    def _number(self, frames: int | Tensor) -> int | Tensor:
        return (frames - self.overlap + self.stride - 1) // self.stride

    def cut(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Windows [B W, size, D] and the valid frames of each, at least 1."""
        inside = torch.arange(self.size, device=x.device)
        index = self.starts.unsqueeze(1) + inside
        pieces = x[:, index.clamp(max=self.last)].flatten(0, 1)
        valid = (counts.unsqueeze(1) - self.starts).flatten()
        return pieces, valid.clamp(min=1, max=self.size)

    def join(self, pieces: Tensor) -> Tensor:
        """Sequences [B, T, D] of the windows [B W, size, D]."""
        x = pieces.unflatten(0, (self.places.shape[0], -1)).flatten(1, 2)
        index = self.places.unsqueeze(2).expand(-1, -1, x.shape[2])
        return x.gather(1, index)


def _sinusoids(length, size):
    """Whisper's table of positions [length, size]: sines, then cosines."""
    half = size // 2
    rates = torch.arange(half, dtype=torch.float64) / max(1, half - 1)
    angles = torch.arange(length).unsqueeze(1) * 10000.0**-rates
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    return pad(table, (0, size - 2 * half)).float()
