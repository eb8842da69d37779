"""Waveform -> MFCC-39 and log-mel spectrograms.

The three features of "Speech Emotion Recognition with Dual-Sequence LSTM
Architecture" (ICASSP 2020, arXiv:1910.08874): openSMILE's MFCC12_E_D_A for
the standard LSTM, and librosa's log-mel spectrogram, once with fine time and
once with fine frequency, for the DS-LSTM. On 16-bit speech each equals its
original: librosa within 1e-4 dB, openSMILE, whose Fourier transform rounds to
float32, within 1e-3 (one frame of a million: 1.5e-3). Each frame of a padded
batch equals the frame of the utterance alone. No statistics, no augmentation,
no file reading.

Windows and transforms are in float64: in float32 the transform's rounding
shows in the quiet bands of loud frames (0.14 dB on speech). What follows is
in float32, as with librosa and openSMILE.

Symbols: B batch, S samples, T frames, K frequency bins, M mel bands.
"""

import inspect

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from speechbrain_dslstm.lengths import check_later, to_counts, zero_padding

# Raised when the numbers change, so that features kept on disk are made anew
FEATURES_VERSION = 1
# Measured on a CPU: more leave the caches, fewer are too many calls
FRAMES_AT_ONCE = 256
# Bands in one product; more multiply zeros, fewer are too many products
BANDS_AT_ONCE = 32


class Extractor(nn.Module):
    """What the features share: checks, silent padding, precision."""

    def forward(self, wavs, wav_lens=None):
        """Compute the features of a padded batch.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1].
        wav_lens : torch.Tensor, optional, [batch]
            Relative lengths, or integer sample counts; whatever lies past
            an utterance's end is taken for silence.

        Returns
        -------
        torch.Tensor, [batch, frames, output_size]
            Features; zero past an utterance's last frame.

        Raises
        ------
        ValueError
            Not [batch, samples], no samples, integer samples, or lengths
            that do not fit.
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
                # One at a time, as the caches do not hold a batch
                sizes = counts.tolist()
                rows = [w[:n] for w, n in zip(wavs, sizes, strict=True)]
                feats = pad_sequence(
                    [self.append_deltas(self.static(row)) for row in rows], True
                )
                missing = self.count_frames(samples) - feats.shape[1]
                return pad(feats, (0, 0, 0, missing)) if missing else feats
            feats = self.static(zero_padding(wavs, counts))
            frames = self.count_frames(counts)
            return zero_padding(self.append_deltas(feats, frames), frames)

    def get_config(self):
        """Constructor arguments that build the same extractor."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def num_frames(self, n):
        """Say how many frames come out.

        Arguments
        ---------
        n : int or torch.Tensor
            Samples.

        Returns
        -------
        int or torch.Tensor
            Frames, of the type of ``n``.

        Raises
        ------
        ValueError
            Fewer samples than one.
        """
        _check_samples(n)
        return self.count_frames(n)

    def _by_pieces(self, wavs, before, after, size):
        """Features of each frame of a waveform with silence around it."""
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
        # A graph that is exported holds for any length: no loop in it
        whole = torch.compiler.is_compiling() or not _on_cpu(wavs)
        at_once = frames if whole else FRAMES_AT_ONCE
        rest = size - hop
        pieces = [
            self._of_piece(padded[..., i * hop : (i + at_once) * hop + rest])
            for i in ([0] if whole else range(0, frames, at_once))
        ]
        return torch.cat(pieces, dim=-2) if len(pieces) > 1 else pieces[0]

    def _power(self, frames):
        """Power spectrum, in the precision of all that follows."""
        dtype = frames.dtype
        if _on_cpu(frames):
            # Elsewhere TF32, which SpeechBrain switches on, would get into it
            mode = torch.backends.mkldnn.matmul.fp32_precision
            dtype = torch.float32 if mode in ("none", "ieee") else dtype
        dtype = torch.promote_types(self.mel.dtype, dtype)
        parts = torch.view_as_real(torch.fft.rfft(frames)).to(dtype).square_()
        return parts[..., 0] + parts[..., 1]

    def _bands(self, spectrum, *more):
        """Mel bands, each group from those bins only that it looks at."""
        mel = self.mel
        groups = [
            spectrum[..., bins] @ mel[bins, bands].to(spectrum.dtype)
            for bins, bands in self.groups
        ]
        return torch.cat([*groups, *more], dim=-1)

    def _output(self, x):
        return x.to(torch.promote_types(self.mel.dtype, torch.float32))


def check_positive(**sizes):
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


def groups(mel):
    """Slices of the bins and of the bands, for each group of bands."""
    groups = []
    for first in range(0, mel.shape[1], BANDS_AT_ONCE):
        bands = slice(first, first + BANDS_AT_ONCE)
        bins = mel[:, bands].any(dim=1).nonzero().flatten().tolist() or [0]
        groups.append((slice(bins[0], bins[-1] + 1), bands))
    return groups
