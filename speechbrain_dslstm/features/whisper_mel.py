"""Log-mel input of Whisper for clips of any length.

Whisper (arXiv:2212.04356) pads each clip to a window of 30 s and floors the
log-mel spectrogram 8 below the maximum of that window. Here the clip itself is
the window: the reflection at both ends and the maximum are the clip's own. A
clip of 30 s, or one that is padded to 30 s beforehand, has the frames of
``transformers.WhisperFeatureExtractor`` within 1e-4.

Symbols: B batch, S samples, T frames, M mel bands.
"""

import math

import torch
from torch import Tensor

from speechbrain_dslstm.features.extractor import (
    Extractor,
    band_groups,
    check_positive,
)
from speechbrain_dslstm.features.mel import slaney_mel_matrix
from speechbrain_dslstm.lengths import length_mask

__all__ = ["WhisperMel"]

N_FFT, HOP, SAMPLE_RATE = 400, 160, 16000
FLOOR = 1e-10  # smallest power
RANGE = 8.0  # decades below a clip's maximum that are kept
LARGEST_GAIN = 6.0  # decades, 60 dB: silence stays silent


class WhisperMel(Extractor):
    """Log-mel spectrogram as Whisper reads it, 100 frames per second at 16 kHz.

    Each frame is a Hann window of 25 ms; the mel bands have Slaney's scale and
    normalisation. The values are log10 of the power, floored 8 below the clip's
    maximum, plus 4, divided by 4.

    Arguments
    ---------
    n_mels
        Mel bands: 80, or 128 for the large-v3 models.
    level
        The value that each clip's maximum is moved to, so that a gain changes
        nothing; clips with a maximum near 1.4 are as loud as usual. No clip is
        raised by more than 60 dB. None: levels stay as recorded, which Whisper
        was trained on.

    Raises
    ------
    ValueError
        ``n_mels`` is below 1, or ``level`` is not a finite number.

    Example
    -------
    >>> compute_mel = WhisperMel()
    >>> compute_mel(torch.rand(2, 16000)).shape, compute_mel.num_frames(16000)
    (torch.Size([2, 100, 80]), 100)
    """

    def __init__(self, n_mels: int = 80, level: float | None = None) -> None:
        super().__init__()
        check_positive(n_mels=n_mels)
        if level is not None and not math.isfinite(level):
            raise ValueError(f"level must be a finite number, got {level}")
        self.n_mels = n_mels
        self.level = level
        self.hop_length = HOP
        self.output_size = n_mels
        mel = slaney_mel_matrix(SAMPLE_RATE, N_FFT, n_mels)
        self.register_buffer("mel", mel.float(), persistent=False)
        self.groups = band_groups(mel)
        # No buffer: a window rounded to float32 leaks into the quiet bands
        self.window = torch.hann_window(N_FFT, dtype=torch.float64)

    def count_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames of ``n`` samples, unchecked; at least 1."""
        if isinstance(n, Tensor):
            return (n // HOP).clamp(min=1)
        # Comparisons of symbolic sizes would become guards of an export
        return torch.sym_max(n // HOP, 1)

    def static(self, wavs: Tensor) -> Tensor:
        """Frames of whole clips: [..., samples] -> [..., frames, n_mels]."""
        batch = wavs.reshape(-1, wavs.shape[-1])
        counts = torch.full((len(batch),), wavs.shape[-1], device=wavs.device)
        feats = self.of_batch(batch, counts)
        return feats.view(*wavs.shape[:-1], *feats.shape[1:])

    def of_batch(self, wavs: Tensor, counts: Tensor) -> Tensor:
        """Frames of padded clips [batch, samples] of ``counts`` samples each."""
        time = self.count_frames(wavs.shape[1])
        log_power = self._by_pieces(_reflected(wavs, counts), 0, 0, N_FFT)
        log_power = log_power[:, :time]
        mask = length_mask(self.count_frames(counts), time).unsqueeze(-1)
        lowest = log_power.new_tensor(FLOOR).log10()
        top = log_power.where(mask, lowest).amax(dim=(1, 2), keepdim=True)
        feats = (torch.maximum(log_power, top - RANGE) + 4.0) / 4.0
        if self.level is not None:
            gain = self.level - (top + 4.0) / 4.0
            feats = feats + gain.clamp(max=LARGEST_GAIN / 4.0)
        return feats.masked_fill(~mask, 0)

    def _of_piece(self, wavs):
        frames = wavs.unfold(-1, N_FFT, HOP)
        power = self._bands(self._power(frames * self.window.to(frames)))
        return self._output(power).clamp(min=FLOOR).log10()


def _reflected(wavs: Tensor, counts: Tensor) -> Tensor:
    """Add half a frame at both ends, each clip mirrored at its own ends."""
    half = N_FFT // 2
    # At least one whole frame, whatever the length
    places = torch.arange(-half, wavs.shape[1] + half, device=wavs.device)
    last = counts.unsqueeze(1) - 1
    inside = places <= last + half
    places = places.abs()
    places = torch.where(places > last, 2 * last - places, places)
    # The mirror of a clip shorter than half a frame is its first sample
    places = torch.minimum(places.clamp(min=0), last)
    return wavs.gather(1, places) * inside
