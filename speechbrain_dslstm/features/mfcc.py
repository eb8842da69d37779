"""MFCC-39: openSMILE's configuration MFCC12_E_D_A.

Cepstral coefficients 1 to 12 and the log energy, their deltas and
accelerations: the input of the standard LSTM of arXiv:1910.08874. On 16-bit
speech the values equal openSMILE's within 1e-3 (one frame of a million:
1.5e-3), because openSMILE's Fourier transform rounds to float32.

Symbols: K frequency bins, M mel bands.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from speechbrain_dslstm.features.extractor import (
    Extractor,
    band_groups,
    check_positive,
)

__all__ = ["MFCC39"]


class MFCC39(Extractor):
    """openSMILE's MFCC12_E_D_A: c1..c12, log energy, deltas, accelerations.

    Frames are not centred: the first one starts at sample 0. A clip shorter
    than one frame is padded with silence to one frame. Deltas repeat the first
    and the last frame; openSMILE does so from 4 frames on, and pads shorter
    clips with zeros. Its Python package rounds samples to 16 bits.

    Arguments
    ---------
    sample_rate
        In Hz.
    win_length, hop_length
        Samples per frame, and from one frame to the next.
    n_fft
        Points of the Fourier transform, at least ``win_length``.
    n_mels
        Triangular mel bands.
    f_min, f_max
        Lowest and highest edge of the bands in Hz.
    n_mfcc
        Cepstral coefficients from the first one on; the zeroth is left out.
    preemphasis
        Fraction of the previous sample that is subtracted, within each frame.
    lifter
        Length of the cepstral lifter.
    delta_window
        Frames before and after a frame that its delta reads.
    scale
        Factor on the samples, which makes [-1, 1] the range of 16-bit
        integers: the floors of the logarithms are 1 on that scale.

    Raises
    ------
    ValueError
        A size is below 1, a frame is longer than the transform, the bands lie
        outside 0..``sample_rate / 2``, or ``n_mfcc`` is not below ``n_mels``.

    Example
    -------
    >>> compute_mfcc = MFCC39()
    >>> compute_mfcc(torch.rand(2, 16000)).shape, compute_mfcc.num_frames(16000)
    (torch.Size([2, 98, 39]), 98)
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        win_length: int = 400,
        hop_length: int = 160,
        n_fft: int = 512,
        n_mels: int = 26,
        f_min: float = 0.0,
        f_max: float = 8000.0,
        n_mfcc: int = 12,
        preemphasis: float = 0.97,
        lifter: int = 22,
        delta_window: int = 2,
        scale: float = 32767.0,
    ) -> None:
        super().__init__()
        check_positive(
            sample_rate=sample_rate,
            win_length=win_length,
            hop_length=hop_length,
            n_mels=n_mels,
            n_mfcc=n_mfcc,
            lifter=lifter,
            delta_window=delta_window,
        )
        if win_length > n_fft:
            raise ValueError(
                f"win_length must be at most n_fft, got {win_length} > {n_fft}"
            )
        if not 0 <= f_min < f_max <= sample_rate / 2:
            raise ValueError(
                f"expected 0 <= f_min < f_max <= {sample_rate / 2} Hz (half "
                f"the sample rate), got f_min {f_min} and f_max {f_max}"
            )
        if n_mfcc >= n_mels:
            raise ValueError(
                f"n_mfcc must be below n_mels, got {n_mfcc} >= {n_mels}"
            )
        self.sample_rate = sample_rate
        self.win_length = win_length
        self.hop_length = hop_length
        self.n_fft = n_fft
        self.n_mels = n_mels
        self.f_min = f_min
        self.f_max = f_max
        self.n_mfcc = n_mfcc
        self.preemphasis = preemphasis
        self.lifter = lifter
        self.delta_window = delta_window
        self.scale = scale
        self.output_size = 3 * (n_mfcc + 1)
        mel = _htk_mel_matrix(sample_rate, n_fft, n_mels, f_min, f_max)
        # The log energy comes last and stays as it is
        dct = torch.block_diag(
            _cosine_matrix(n_mels, n_mfcc, lifter), torch.ones(1, 1)
        )
        self.register_buffer("mel", mel.float(), persistent=False)
        self.register_buffer("dct", dct.float(), persistent=False)
        self.groups = band_groups(mel)
        # No buffer: a window rounded to float32 leaks into the quiet bands
        window = torch.hamming_window(win_length, False, dtype=torch.float64)
        self.window = pad(scale * window, (0, n_fft - win_length))
        self.first_weight = float((1 - preemphasis) * self.window[0])

    def count_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames of ``n`` samples, unchecked; a short clip gives one frame."""
        past = n - self.win_length
        past = past.clamp(min=0) if torch.is_tensor(n) else max(past, 0)
        return 1 + past // self.hop_length

    def static(self, wavs: Tensor) -> Tensor:
        """Cepstra, log energy: [..., samples] -> [..., frames, n_mfcc + 1]."""
        # The pre-emphasis reads one sample before each frame, the transform
        # samples after it, where the window is zero
        after = max(0, self.win_length - wavs.shape[-1])
        after += self.n_fft - self.win_length
        return self._by_pieces(wavs, 1, after, self.n_fft + 1)

    def _of_piece(self, wavs):
        now, before = wavs[..., 1:], wavs[..., :-1]
        emphasised = torch.sub(now, before, alpha=self.preemphasis)
        frames = emphasised.unfold(-1, self.n_fft, self.hop_length)
        frames = frames * self.window.to(wavs)
        # Pre-emphasis of a frame's first sample uses that sample itself
        first = now.unfold(-1, self.n_fft, self.hop_length)[..., 0]
        frames[..., 0] = first * self.first_weight
        energy = torch.linalg.vector_norm(frames, dim=-1, keepdim=True).square()
        # sqrt() has no gradient at zero
        magnitude = self._power(frames).clamp_(min=1e-20).sqrt_()
        levels = self._bands(magnitude, energy.to(magnitude.dtype))
        cepstra = levels.clamp_(min=1.0).log_() @ self.dct.to(levels.dtype)
        return self._output(cepstra)

    def append_deltas(
        self, static: Tensor, frames: Tensor | None = None
    ) -> Tensor:
        """Append deltas and accelerations: [..., time, n] -> [..., time, 3 n].

        The first and the last frame are repeated. ``frames``, [batch], are the
        valid frames of each item of a batch; None: all of them.
        """
        size, width = static.shape[-2], self.delta_window
        steps = torch.arange(-width, size + 2 * width, device=static.device)
        if frames is None:
            wide = static[..., steps.clamp_(0, size - 1), :]
        else:
            index = steps.clamp_(min=0).minimum(frames.unsqueeze(1) - 1)
            index = index.unsqueeze(2).expand(-1, -1, static.shape[2])
            wide = static.gather(1, index)
        delta = self.slope(wide)
        # openSMILE repeats the first delta, but computes deltas past the last frame
        first = delta[..., :1, :].expand(*delta.shape[:-2], width, -1)
        acceleration = self.slope(torch.cat([first, delta], dim=-2))
        return torch.cat([static, delta[..., :size, :], acceleration], dim=-1)

    def slope(self, x: Tensor) -> Tensor:
        """Slope at each frame, except ``delta_window`` frames at each end."""
        width = self.delta_window
        size = x.shape[-2] - 2 * width

        def from_frame(start):
            """As many frames as there are slopes, from ``start`` on."""
            return x.narrow(-2, start, size)

        rise = from_frame(width + 1) - from_frame(width - 1)
        for k in range(2, width + 1):
            more = from_frame(width + k) - from_frame(width - k)
            rise = rise.add_(more, alpha=k)
        return rise / (2 * sum(k * k for k in range(1, width + 1)))


def _htk_mel_matrix(sample_rate, n_fft, n_mels, f_min, f_max):
    """HTK's triangular bands, linear in mel instead of Hz: [K, M]."""
    hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64)
    hz = hz * (sample_rate / n_fft)
    low, high = (1127 * math.log1p(f / 700) for f in (f_min, f_max))
    spacing = (high - low) / (n_mels + 1)
    position = ((1127 * (hz / 700).log1p() - low) / spacing).unsqueeze(1)
    centre = torch.arange(1, n_mels + 1, dtype=torch.float64)
    return (1 - (position - centre).abs()).clamp(min=0)


def _cosine_matrix(n_mels, n_mfcc, lifter):
    """DCT-II without the zeroth coefficient, liftered: [M, n_mfcc]."""
    order = torch.arange(1, n_mfcc + 1, dtype=torch.float64)
    band = torch.arange(n_mels, dtype=torch.float64).unsqueeze(1) + 0.5
    lift = 1 + lifter / 2 * (math.pi * order / lifter).sin()
    cosine = (math.pi * order * band / n_mels).cos()
    return math.sqrt(2 / n_mels) * cosine * lift
