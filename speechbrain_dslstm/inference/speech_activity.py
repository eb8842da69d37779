"""Check that a recording holds speech at all.

An emotion classifier answers for any sound. Three measures of 40 ms frames
tell which sounds it should not answer for: their level; whether they are voiced
(periodic at a pitch of the human voice, Boersma 1993); and how much the
spectrum of the voiced frames varies, which it does in speech and not in a hum.
Whispered speech is not voiced and counts as noise; music counts as speech.
"""

from pathlib import Path
from typing import NamedTuple

import torch

from speechbrain_dslstm.audio.checks import AudioError, printable

__all__ = ["NoSpeechError", "check_speech", "measure_activity"]

FRAME, HOP = 0.04, 0.02  # seconds
PITCH = (70.0, 450.0)  # Hz
BAND = (80.0, 2000.0)  # Hz, searched for periodicity
PERIODICITY = 0.6  # least autocorrelation of a voiced frame
RUN = 3  # least number of consecutive voiced frames
BELOW_LOUDEST = 40.0  # dB; a quieter frame is not voiced
# Least values of speech. All clips of EMO-DB, RAVDESS and nEMO exceed the first
# three by 10 dB, 4 frames and 3.5 dB; white to brown noise, hums and tones vary
# by 3.5 dB at most
SILENCE = -65.0  # dBFS of the loudest frame
VOICED = 0.1  # seconds
VARIATION = 3.7  # dB
SHORTEST = 0.2  # seconds


class NoSpeechError(AudioError):
    """The audio holds no speech.

    Arguments
    ---------
    reason
        "too short", "silence" or "noise".
    where
        Name of the audio in the message.

    Example
    -------
    >>> raise NoSpeechError("silence", "a.wav")
    Traceback (most recent call last):
    speechbrain_dslstm.inference.speech_activity.NoSpeechError: no speech in a.wav: silence
    """

    def __init__(self, reason: str, where: str | Path = "the audio") -> None:
        where = printable(where)
        super().__init__(f"no speech in {where}: {reason}", "without speech")
        self.reason = reason


class SpeechActivity(NamedTuple):
    """Measures of speech, as ``measure_activity`` finds them."""

    seconds: float  # length of the audio
    level: float  # RMS of the loudest frame in dB of full scale
    voiced: float  # seconds of voiced stretches
    # Standard deviation over the voiced frames of the level in narrow bands,
    # mean over the bands, in dB
    variation: float

    @property
    def reason(self) -> str | None:
        """Why this is no speech: "too short", "silence" or "noise"."""
        if self.level < SILENCE and self.seconds >= SHORTEST:
            return "silence"
        if self.seconds < SHORTEST:
            return "too short"
        if self.voiced < VOICED or self.variation < VARIATION:
            return "noise"
        return None


def measure_activity(
    wav: torch.Tensor, sample_rate: int = 16000
) -> SpeechActivity:
    """Measure what distinguishes speech from silence and noise.

    ``wav``, [samples], is in [-1, 1] at ``sample_rate`` Hz.

    >>> measure_activity(0.1 * torch.randn(16000)).voiced
    0.0
    """
    size, hop = round(FRAME * sample_rate), round(HOP * sample_rate)
    seconds = len(wav) / sample_rate
    wav = wav.float() - wav.float().mean()
    wav = torch.nn.functional.pad(wav, (0, max(0, size - len(wav))))
    frames = wav.unfold(0, size, hop)
    level = 10 * frames.square().mean(1).clamp(min=1e-12).log10()
    loudest = float(level.max())
    if loudest < SILENCE:
        return SpeechActivity(seconds, loudest, 0.0, 0.0)
    loud = level > max(loudest - BELOW_LOUDEST, SILENCE - 5)
    power, periodicity = _spectrum(frames, sample_rate)
    voiced = _runs(loud & (periodicity > PERIODICITY))
    count = int(voiced.sum())
    variation = 0.0
    if count > 1:
        bands = 10 * power[voiced].clamp(min=1e-9).log10()
        variation = float(bands.std(dim=0).mean())
    return SpeechActivity(seconds, loudest, count * HOP, variation)


def check_speech(
    wav: torch.Tensor,
    sample_rate: int = 16000,
    where: str | Path = "the audio",
) -> None:
    """Raise NoSpeechError if a waveform [samples] in [-1, 1] holds no speech."""
    reason = measure_activity(wav, sample_rate).reason
    if reason:
        raise NoSpeechError(reason, where)


def _spectrum(frames, sample_rate):
    """Power in narrow bands [T, bands] and periodicity [T] of each frame."""
    size = frames.shape[1]
    n_fft = 1 << (2 * size - 1).bit_length()
    window = torch.hann_window(size, dtype=torch.float32)
    spectrum = torch.fft.rfft(frames * window, n_fft)
    power = spectrum.real.square() + spectrum.imag.square()
    hz = torch.arange(power.shape[1]) * (sample_rate / n_fft)
    inside = (hz >= BAND[0]) & (hz <= BAND[1])
    # The window lowers the autocorrelation: divide by the window's own
    own = torch.fft.irfft(torch.fft.rfft(window, n_fft).abs().square())
    correlation = torch.fft.irfft(power * inside)
    shortest, longest = (round(sample_rate / f) for f in reversed(PITCH))
    lags = slice(shortest, longest)
    correlation = correlation[:, lags] / (correlation[:, :1] + 1e-9 * size)
    correlation = correlation * (own[0] / own[lags])
    # A period is a maximum within the lags; low frequencies give a slope
    middle = correlation[:, 1:-1]
    maximum = (middle >= correlation[:, :-2]) & (middle >= correlation[:, 2:])
    periodicity = (middle * maximum).amax(dim=1)
    bands = power[:, inside]
    bands = bands[:, : bands.shape[1] // 8 * 8].unflatten(1, (-1, 8)).sum(2)
    return bands, periodicity


def _runs(flags: torch.Tensor) -> torch.Tensor:
    """Keep the flags that are True for at least ``RUN`` frames in a row."""
    if len(flags) < RUN:
        return torch.zeros_like(flags)
    starts = flags.unfold(0, RUN, 1).all(dim=1)
    kept = torch.zeros_like(flags)
    for k in range(RUN):
        kept[k : len(starts) + k] |= starts
    return kept
