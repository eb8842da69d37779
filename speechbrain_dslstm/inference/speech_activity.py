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
from speechbrain_dslstm.features.voicing import analyse_frames

__all__ = ["NoSpeechError", "check_speech", "measure_activity"]

FRAME, HOP = 0.04, 0.02  # seconds
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
    found = analyse_frames(frames, sample_rate, BAND)
    voiced = _runs(loud & (found.periodicity() > PERIODICITY))
    count = int(voiced.sum())
    variation = 0.0
    if count > 1:
        bands = found.power[voiced][:, found.inside]
        bands = bands[:, : bands.shape[1] // 8 * 8].unflatten(1, (-1, 8)).sum(2)
        bands = 10 * bands.clamp(min=1e-9).log10()
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


def _runs(flags: torch.Tensor) -> torch.Tensor:
    """Keep the flags that are True for at least ``RUN`` frames in a row."""
    if len(flags) < RUN:
        return torch.zeros_like(flags)
    starts = flags.unfold(0, RUN, 1).all(dim=1)
    kept = torch.zeros_like(flags)
    for k in range(RUN):
        kept[k : len(starts) + k] |= starts
    return kept
