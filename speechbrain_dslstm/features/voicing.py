"""Periodicity of short frames, which is high where a voice speaks.

The highest maximum of the autocorrelation at the lags of a human pitch, divided
by the autocorrelation of the window (Boersma 1993).
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PITCH", "FrameSpectrum", "analyse_frames"]

PITCH = (70.0, 450.0)  # Hz, of the human voice


class FrameSpectrum(NamedTuple):
    """Spectrum of frames [T, size] under a Hann window."""

    power: Tensor  # [T, bins]
    inside: Tensor  # bool [bins], within the band
    n_fft: int
    window: Tensor  # [size]
    sample_rate: float

    def periodicity(
        self, energy: Tensor | None = None, beyond: int = 0
    ) -> Tensor:
        """Height [T] of the highest maximum of the autocorrelation in the band.

        It is relative to ``energy`` [T, 1], by default that of the band, and is
        searched ``beyond`` lags further on both sides than the pitches reach.
        """
        correlation = torch.fft.irfft(self.power * self.inside)
        own = torch.fft.rfft(self.window, self.n_fft).abs().square()
        # The window lowers the autocorrelation: divide by the window's own
        own = torch.fft.irfft(own)
        if energy is None:
            energy = correlation[:, :1] + 1e-9 * len(self.window)
        rate = self.sample_rate
        shortest, longest = (round(rate / f) for f in reversed(PITCH))
        lags = slice(shortest - beyond, longest + beyond)
        found = correlation[:, lags] / energy * (own[0] / own[lags])
        # A period is a maximum within the lags; low frequencies give a slope
        middle = found[:, 1:-1]
        maximum = (middle >= found[:, :-2]) & (middle >= found[:, 2:])
        return (middle * maximum).amax(dim=1)


def analyse_frames(
    frames: Tensor, sample_rate: float, band: tuple[float, float]
) -> FrameSpectrum:
    """Compute the spectrum of frames [T, size]; ``band`` and the rate are in Hz.

    >>> time = torch.arange(320) / 8000
    >>> hum = torch.sin(6.283 * 200 * time).unsqueeze(0)
    >>> found = analyse_frames(hum, 8000, (80.0, 2000.0)).periodicity()
    >>> float(found) > 0.95
    True
    """
    size = frames.shape[1]
    n_fft = 1 << (2 * size - 1).bit_length()
    window = torch.hann_window(size, dtype=torch.float32)
    spectrum = torch.fft.rfft(frames * window, n_fft)
    power = spectrum.real.square() + spectrum.imag.square()
    hz = torch.arange(n_fft // 2 + 1) * (sample_rate / n_fft)
    inside = (hz >= band[0]) & (hz <= band[1])
    return FrameSpectrum(power, inside, n_fft, window, sample_rate)
