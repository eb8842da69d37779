"""Base class of the feature extractors: framing, precision and input checks.

The extractors compute the inputs of "Speech Emotion Recognition with
Dual-Sequence LSTM Architecture" (ICASSP 2020, arXiv:1910.08874): ``mfcc`` for
the standard LSTM, ``mel`` with fine time and with fine frequency for the
DS-LSTM. Each frame of a padded batch equals the frame of the utterance alone.

Windows and Fourier transforms are in float64: in float32 the transform's
rounding error shows in the quiet bands of loud frames (0.14 dB on
speech). Later steps are in float32, as in librosa and openSMILE.

Symbols: B batch, S samples, T frames, K frequency bins, M mel bands.
"""

import inspect

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from speechbrain_dslstm.lengths import check_later, to_counts, zero_padding

__all__ = ["Extractor", "band_groups", "check_positive"]

# Increase it when the values change, so that cached features are recomputed
FEATURES_VERSION = 1
# Fastest on a CPU: more frames do not fit its caches, fewer mean more calls
FRAMES_AT_ONCE = 256
# Mel bands per matrix product: more multiply zeros, fewer mean more products
BANDS_AT_ONCE = 32


class Extractor(nn.Module):
    """Base class of the extractors: checks, silent padding and precision.

    A subclass defines ``count_frames``, ``static`` and ``_of_piece`` (the features
    of a padded piece), sets ``hop_length``, ``mel`` and ``groups``, and may
    override ``append_deltas``.
    """

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Waveforms [batch, samples] in [-1, 1] -> [batch, frames, output_size].

        ``wav_lens``, [batch], are relative lengths (floats) or sample counts
        (integers). Samples past an utterance's end count as silence, frames
        past its last one are zero. Shapes, types or lengths that do not fit
        raise ValueError.
        """
        if wavs.dim() != 2:
            raise ValueError(
                "expected waveforms of shape [batch, samples], 2 dimensions, "
                f"got {wavs.dim()}: {list(wavs.shape)}"
            )
        if not wavs.is_floating_point():
            raise ValueError(
                f"expected waveforms of floats in [-1, 1], got {wavs.dtype}"
            )
        batch, samples = wavs.shape
        _check_samples(samples)
        counts = to_counts(wav_lens, samples, batch, wavs.device)
        with torch.autocast(wavs.device.type, enabled=False):
            if _on_cpu(wavs):
                # One utterance at a time: a batch does not fit the caches
                sizes = counts.tolist()
                rows = [w[:n] for w, n in zip(wavs, sizes, strict=True)]
                feats = pad_sequence(
                    [self.append_deltas(self.static(row)) for row in rows], True
                )
                missing = self.count_frames(samples) - feats.shape[1]
                return pad(feats, (0, 0, 0, missing)) if missing else feats
            feats = self.of_batch(zero_padding(wavs, counts), counts)
            frames = self.count_frames(counts)
            return zero_padding(self.append_deltas(feats, frames), frames)

    def get_config(self) -> dict[str, int | float]:
        """Constructor arguments that build the same extractor."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def num_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames of ``n`` samples; fewer than one sample raises ValueError."""
        _check_samples(n)
        return self.count_frames(n)

    def count_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames of ``n`` samples, unchecked, so that it can be traced."""
        raise NotImplementedError

    def static(self, wavs: Tensor) -> Tensor:
        """Features of single frames: [..., samples] -> [..., frames, size]."""
        raise NotImplementedError

    def of_batch(self, wavs: Tensor, counts: Tensor) -> Tensor:
        """Features of padded clips, [batch, samples], zero after ``counts``."""
        return self.static(wavs)

    def append_deltas(
        self, static: Tensor, frames: Tensor | None = None
    ) -> Tensor:
        """Append features of neighbouring frames; by default there are none.

        ``static`` is [..., time, size]; ``frames``, [batch], are the valid frames
        of each item; None: all of them.
        """
        return static

    def _by_pieces(
        self, wavs: Tensor, before: int, after: int, size: int
    ) -> Tensor:
        """Features of frames of ``size`` samples, with silence before and after."""
        samples = wavs.shape[-1]
        mps = wavs.device.type == "mps"
        padded = wavs.new_zeros(
            *wavs.shape[:-1],
            before + samples + after,
            # MPS has no float64
            dtype=torch.float32 if mps else torch.float64,
        )
        padded[..., before : before + samples] = wavs
        hop = self.hop_length
        frames = 1 + (padded.shape[-1] - size) // hop
        # An exported graph must hold for any length, so it has no loop
        whole = torch.compiler.is_compiling() or not _on_cpu(wavs)
        at_once = frames if whole else FRAMES_AT_ONCE
        rest = size - hop
        pieces = [
            self._of_piece(padded[..., i * hop : (i + at_once) * hop + rest])
            for i in ([0] if whole else range(0, frames, at_once))
        ]
        return torch.cat(pieces, dim=-2) if len(pieces) > 1 else pieces[0]

    def _power(self, frames: Tensor) -> Tensor:
        """Power spectrum, in the precision of the later steps."""
        dtype = frames.dtype
        if _on_cpu(frames):
            # Elsewhere float64 stays, because SpeechBrain enables TF32, which rounds
            mode = torch.backends.mkldnn.matmul.fp32_precision
            dtype = torch.float32 if mode in ("none", "ieee") else dtype
        dtype = torch.promote_types(self.mel.dtype, dtype)
        parts = torch.view_as_real(torch.fft.rfft(frames)).to(dtype).square_()
        return parts[..., 0] + parts[..., 1]

    def _bands(self, spectrum: Tensor, *more: Tensor) -> Tensor:
        """Compute mel bands, each group from its own bins only; append ``more``."""
        mel = self.mel
        groups = [
            spectrum[..., bins] @ mel[bins, bands].to(spectrum.dtype)
            for bins, bands in self.groups
        ]
        return torch.cat([*groups, *more], dim=-1)

    def _output(self, x: Tensor) -> Tensor:
        return x.to(torch.promote_types(self.mel.dtype, torch.float32))


def check_positive(**sizes: int) -> None:
    """Raise ValueError for a size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_samples(n):
    least, expected = n, "an utterance needs at least 1 sample"
    if torch.is_tensor(n):
        least = n.min()
        if check_later(least >= 1, expected):
            return
    if least < 1:
        raise ValueError(f"{expected}, got {int(least)}")


def _on_cpu(x):
    return x.device.type == "cpu"


def band_groups(mel: Tensor) -> list[tuple[slice, slice]]:
    """Slices of the bins and of the bands of each group of mel bands."""
    groups = []
    for first in range(0, mel.shape[1], BANDS_AT_ONCE):
        bands = slice(first, first + BANDS_AT_ONCE)
        bins = mel[:, bands].any(dim=1).nonzero().flatten().tolist() or [0]
        groups.append((slice(bins[0], bins[-1] + 1), bands))
    return groups
