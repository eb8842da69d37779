"""Log-mel spectrograms, equal to librosa's within 1e-4 dB on 16-bit speech.

The inputs of the DS-LSTM of arXiv:1910.08874: one with fine time resolution
(``n_fft=512``), one with fine frequency resolution (``n_fft=1024``).

Symbols: K frequency bins, M mel bands.
"""

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from speechbrain_dslstm.features.extractor import (
    Extractor,
    band_groups,
    check_positive,
)
from speechbrain_dslstm.utils.processes import default_dtype

__all__ = ["LogMelSpectrogram"]


class LogMelSpectrogram(Extractor):
    """Log-mel power spectrogram in dB, with librosa's defaults.

    Frames are centred on multiples of the hop, with silence around the clip;
    Hann window, Slaney's mel scale and band normalisation,
    10 * log10(max(power, floor)).

    Arguments
    ---------
    n_fft
        Samples per frame and points of the Fourier transform; even.
    hop_length
        Samples from one frame to the next; ``n_fft // 2`` if left out.
    n_mels
        Mel bands up to half the sample rate; ``n_fft // 4`` if left out.
    sample_rate
        In Hz.
    scale
        Factor on the samples; 32768 gives the level of 16-bit integers.
    floor
        Smallest power; the smallest output is ``10 * log10(floor)`` dB.

    Raises
    ------
    ValueError
        A size is below 1, ``n_fft`` is odd, or floor or scale is not above 0.

    Example
    -------
    >>> compute_mel = LogMelSpectrogram(n_fft=512)
    >>> compute_mel(torch.rand(2, 16000)).shape, compute_mel.num_frames(16000)
    (torch.Size([2, 63, 128]), 63)
    """

    def __init__(
        self,
        n_fft: int = 512,
        hop_length: int | None = None,
        n_mels: int | None = None,
        sample_rate: int = 16000,
        scale: float = 1.0,
        floor: float = 1e-10,
    ) -> None:
        super().__init__()
        hop_length = n_fft // 2 if hop_length is None else hop_length
        n_mels = n_fft // 4 if n_mels is None else n_mels
        check_positive(
            n_fft=n_fft,
            hop_length=hop_length,
            n_mels=n_mels,
            sample_rate=sample_rate,
        )
        if n_fft % 2:
            raise ValueError(f"n_fft must be even, got {n_fft}")
        if scale <= 0 or floor <= 0:
            raise ValueError(
                f"scale and floor must be above 0, got {scale} and {floor}"
            )
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.n_mels = n_mels
        self.sample_rate = sample_rate
        self.scale = scale
        self.floor = floor
        self.output_size = n_mels
        mel = slaney_mel_matrix(sample_rate, n_fft, n_mels)
        self.register_buffer("mel", mel.float(), persistent=False)
        self.groups = band_groups(mel)
        # No buffer: a window rounded to float32 leaks into the quiet bands
        self.window = scale * torch.hann_window(n_fft, dtype=torch.float64)

    def count_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames of ``n`` samples, unchecked."""
        return 1 + n // self.hop_length

    def static(self, wavs: Tensor) -> Tensor:
        """Mel bands in dB: [..., samples] -> [..., frames, n_mels]."""
        half = self.n_fft // 2
        return self._by_pieces(wavs, half, half, self.n_fft)

    def _of_piece(self, wavs):
        frames = wavs.unfold(-1, self.n_fft, self.hop_length)
        power = self._bands(self._power(frames * self.window.to(frames)))
        return self._output(power).clamp_(min=self.floor).log10_().mul_(10)


def slaney_mel_matrix(sample_rate: int, n_fft: int, n_mels: int) -> Tensor:
    """Slaney's triangular bands of equal area: [K, M]."""
    # In float32 its bands would be off by up to 0.01 dB; a model that is only
    # described is built on the device "meta", where it cannot be computed
    with default_dtype(torch.float64), torch.device("cpu"):
        return melscale_fbanks(
            n_fft // 2 + 1,
            0.0,
            sample_rate / 2,
            n_mels,
            sample_rate,
            norm="slaney",
            mel_scale="slaney",
        )
