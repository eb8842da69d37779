"""Refuse audio that cannot be audio: its samples, its rate and its length."""

import torch
from torch import Tensor

from speechbrain_dslstm.lengths import to_counts, zero_padding

__all__ = ["AudioError", "check_samples", "printable"]

LONGEST_CLIP = 60.0  # longest clip, in seconds, that is classified at once
RATES = 4000, 384000  # Hz; speech needs at least the lower one
# 60 dB above full scale: no decoder and no float recording reaches it, but
# integers stored as floats do, and so do random bytes read as floats
LOUDEST = 1000.0


class AudioError(ValueError):
    """An audio input that cannot be classified; the message says why.

    Arguments
    ---------
    message
        Names the input and the reason.
    kind
        Reason in a few words, for a list of bad files: "missing",
        "unreadable", "truncated", "empty", "too long", "with NaN or infinite
        samples", "out of range", "of an impossible rate", "of a wrong type",
        "of a wrong shape", "without speech".

    Example
    -------
    >>> raise AudioError("no audio samples in a.wav", "empty")
    Traceback (most recent call last):
    speechbrain_dslstm.audio.checks.AudioError: no audio samples in a.wav
    """

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


def printable(path: object) -> str:
    """File name for a message, with escape codes for bytes that are not UTF-8.

    Arguments
    ---------
    path
        Name of the file.

    Example
    -------
    >>> print(printable("tone\\udce9.wav"))
    tone\\udce9.wav
    """
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def unreadable(
    source: object, reason: object, kind: str = "unreadable"
) -> AudioError:
    """Make the error of audio that cannot be read."""
    shown = printable(source)
    return AudioError(f"cannot read audio from {shown}: {reason}", kind)


def truncated(source: object, what: str) -> AudioError:
    """Make the error of audio that is cut off."""
    text = f"the audio in {printable(source)} is cut off: {what}"
    return AudioError(text, "truncated")


def check_rate(rate: float, source: object) -> None:
    """Refuse a sample rate that no recording has."""
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(
            f"a sample rate of {rate} Hz in {printable(source)}; expected "
            f"{RATES[0]} to {RATES[1]} Hz",
            "of an impossible rate",
        )


def check_length(
    samples: int, rate: int, source: object, longest: float | None
) -> None:
    """Refuse more samples than ``longest`` seconds."""
    if longest is not None and samples > longest * rate:
        raise AudioError(
            f"{printable(source)} is longer than {longest:g} s: use "
            "classify_long (dslstm classify --long), or give another limit as "
            "longest",
            "too long",
        )


def check_samples(
    wavs: Tensor, wav_lens: Tensor | None = None, where: str = "the batch"
) -> None:
    """Refuse waveforms that cannot be audio.

    Arguments
    ---------
    wavs : [samples] or [batch, samples]
        Waveforms in [-1, 1]; samples up to 1000 are accepted.
    wav_lens : [batch]
        Relative lengths (floats) or sample counts (integers); samples past an
        utterance's end are not checked.
    where
        Name of the input, for the error.

    Raises
    ------
    AudioError
        The samples are not floats, or are NaN, infinite or above 1000.

    Example
    -------
    >>> check_samples(torch.tensor([0.5, 1e30]), where="a.wav")
    Traceback (most recent call last):
    speechbrain_dslstm.audio.checks.AudioError: samples up to 1e+30 in a.wav: ...
    """
    if not wavs.is_floating_point():
        raise AudioError(
            f"expected floats in [-1, 1] in {where}, got {wavs.dtype}",
            "out of range",
        )
    if not wavs.numel() or _in_range(wavs):
        return
    if wav_lens is not None:
        counts = to_counts(wav_lens, wavs.shape[1], len(wavs), wavs.device)
        wavs = zero_padding(wavs, counts)
        if _in_range(wavs):
            return
    if wavs.dim() == 2 and len(wavs) > 1 and wav_lens is not None:
        bad = [k for k, wav in enumerate(wavs) if not _in_range(wav)]
        where = f"items {bad} of {where}"
    if not bool(torch.isfinite(wavs).all()):
        kind = "with NaN or infinite samples"
        raise AudioError(f"NaN or infinite samples in {where}", kind)
    raise AudioError(
        f"samples up to {float(wavs.abs().max()):g} in {where}: expected "
        "[-1, 1] (were integers stored as floats?)",
        "out of range",
    )


def _in_range(wavs):
    low, high = wavs.detach().aminmax()
    # Comparisons with NaN are false
    return bool((low >= -LOUDEST) & (high <= LOUDEST))
