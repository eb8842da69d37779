"""Read audio files as mono waveforms of a given rate, and refuse bad audio.

All audio is checked here, whether from files, folders, streams, recipes or for
ONNX: ``open_audio`` checks the kind of file and its header before anything is
decoded, ``decode`` the decoded samples, ``check_samples`` waveforms.
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from speechbrain_dslstm.lengths import to_counts, zero_padding

__all__ = [
    "AudioError",
    "printable",
    "open_audio",
    "decode",
    "load_audio",
    "read_blocks",
    "check_samples",
]

LONGEST_CLIP = 60.0  # longest clip, in seconds, that is classified at once
LARGEST_BLOCK = 2**21  # samples decoded at a time, over all channels
RATES = 4000, 384000  # Hz; speech needs at least the lower one
# 60 dB above full scale: no decoder and no float recording reaches it, but
# integers stored as floats do, and so do random bytes read as floats
LOUDEST = 1000.0
# Lengths in headers written to a pipe, where the true one is unknown:
# 0x7FFFF000 (sox), 0x80000000 (arecord), 0xFFFFFFFF (ffmpeg)
UNKNOWN_LENGTH = 0x7FFFF000
MISSING = 0.1  # seconds by which the length of an mp3 may be wrong


class AudioError(ValueError):
    """An audio input that cannot be classified; the message says why.

    Arguments
    ---------
    message
        Names the input and the reason.
    kind
        Reason in a few words, for a list of bad files: "missing",
        "unreadable", "truncated", "empty", "too long", "with NaN or infinite
        samples", "out of range", "of an impossible rate", "without speech".

    Example
    -------
    >>> load_audio("missing.wav")
    Traceback (most recent call last):
    speechbrain_dslstm.audio.AudioError: cannot read audio from missing.wav...
    """

    def __init__(self, message: str, kind: str = "unreadable") -> None:
        super().__init__(message)
        self.kind = kind


def printable(path: str | Path) -> str:
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


@contextmanager
def open_audio(
    path: str | Path, longest: float | None = None
) -> Iterator[soundfile.SoundFile]:
    """Open an audio file after checking its kind and header, without decoding.

    Errors of soundfile within the block become ``AudioError``.

    Arguments
    ---------
    path
        An audio file that libsndfile reads: wav, flac, ogg, mp3.
    longest
        Longest duration accepted, in seconds; any if left out.

    Raises
    ------
    AudioError
        The file is missing, unreadable, not audio, cut off or too long, or its
        sample rate is outside 4 to 384 kHz.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, np.zeros(3), 1)
    >>> with open_audio(path):
    ...     pass
    Traceback (most recent call last):
    speechbrain_dslstm.audio.AudioError: a sample rate of 1 Hz in ...tone.wav...
    """
    _check_readable(path)
    # As bytes, because a name need not be UTF-8; Windows names are Unicode
    name = str(path) if os.name == "nt" else os.fsencode(path)
    try:
        with soundfile.SoundFile(name) as file:
            _check_header(file, path, longest)
            yield file
    # TypeError: soundfile requires a rate for a file named .raw
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # soundfile's own text without the name, which may not be printable
        reason = getattr(error, "error_string", error)
        raise _unreadable(path, reason) from error


def _unreadable(path, reason, kind="unreadable"):
    shown = printable(path)
    return AudioError(f"cannot read audio from {shown}: {reason}", kind)


def _check_readable(path):
    """Refuse all but regular files, because opening a pipe would block."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise _unreadable(path, "it is a folder")
        if not stat.S_ISREG(mode):
            raise _unreadable(path, "it is not a regular file")
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        link = os.path.islink(path)
        missing = "a link to nothing" if link else "no such file"
        raise _unreadable(path, missing, "missing") from error
    except OSError as error:
        raise _unreadable(path, error.strerror) from error
    except AudioError:
        raise
    # A NUL character in the name
    except ValueError as error:
        raise _unreadable(path, error) from error


def _check_header(file, path, longest):
    """Refuse an impossible rate, a file that is cut off, and one too long."""
    rate, shown = file.samplerate, printable(path)
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(
            f"a sample rate of {rate} Hz in {shown}; expected {RATES[0]} to "
            f"{RATES[1]} Hz",
            "of an impossible rate",
        )
    # libsndfile reads what a cut file has, and mentions the cut only in its log
    for claimed, found in re.findall(
        r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)",
        file.extra_info,
        re.MULTILINE,
    ):
        if int(found) < int(claimed) < UNKNOWN_LENGTH:
            raise _truncated(path, f"it has {found} of {claimed} bytes")
    _check_length(file.frames, file, path, longest)


def _check_length(samples, file, path, longest):
    if longest is not None and samples > longest * file.samplerate:
        raise AudioError(
            f"{printable(path)} is longer than {longest:g} s: use "
            "classify_long (dslstm classify --long), or give another limit as "
            "longest",
            "too long",
        )


def _truncated(path, what):
    text = f"the audio in {printable(path)} is cut off: {what}"
    return AudioError(text, "truncated")


def decode(
    file: soundfile.SoundFile,
    path: str | Path,
    seconds: float = 10.0,
    longest: float | None = None,
) -> Iterator[np.ndarray]:
    """Decode an open file in float32 pieces, [samples, channels], at its rate.

    Arguments
    ---------
    file
        From ``open_audio``.
    path
        Its name, for messages.
    seconds
        Duration decoded at a time; less if the file has many channels.
    longest
        Longest duration accepted, in seconds, whatever the header claims.

    Raises
    ------
    AudioError
        There are no samples, fewer than the header claims or more than
        ``longest``; or samples are NaN, infinite or far outside [-1, 1].

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, np.zeros((9, 2)), 16000)
    >>> with open_audio(path) as file:
    ...     [piece.shape for piece in decode(file, path)]
    [(9, 2)]
    """
    shown, rate = printable(path), file.samplerate
    size = min(round(seconds * rate), LARGEST_BLOCK // file.channels)
    size, decoded, last = max(1, size), 0, False
    while not last:
        piece = file.read(size, dtype="float32", always_2d=True)
        decoded += len(piece)
        last = len(piece) < size
        check_samples(torch.from_numpy(piece), where=shown)
        # Checked again, because a header may claim fewer samples than there are
        _check_length(decoded, file, path, longest)
        yield piece
    if not decoded:
        raise AudioError(f"no audio samples in {shown}", "empty")
    if decoded < file.frames - MISSING * rate:
        raise _truncated(path, f"it has {decoded} of {file.frames} samples")


def load_audio(
    path: str | Path, sample_rate: int = 16000, longest: float | None = None
) -> Tensor:
    """Read an audio file: the mean over its channels, [samples], in [-1, 1].

    Arguments
    ---------
    path
        An audio file that libsndfile reads: wav, flac, ogg, mp3.
    sample_rate
        Rate of the result, in Hz.
    longest
        Longest duration accepted, in seconds; without it, memory is the limit.

    Raises
    ------
    AudioError
        The file is missing, not audio, cut off, empty or too long, or has
        samples that are NaN, infinite or above 1000.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.zeros(4410, 2).numpy(), 44100)
    >>> load_audio(path).shape
    torch.Size([1600])
    """
    return torch.cat(list(read_blocks(path, sample_rate, longest=longest)))


def read_blocks(
    path: str | Path,
    sample_rate: int = 16000,
    seconds: float = 10.0,
    longest: float | None = None,
) -> Iterator[Tensor]:
    """Read an audio file of any length piece by piece.

    Joined, the blocks equal the result of ``load_audio``, however long they
    are; errors are the same.

    Arguments
    ---------
    path
        An audio file that libsndfile reads: wav, flac, ogg, mp3.
    sample_rate
        Rate of the result, in Hz.
    seconds
        Duration held in memory at a time; less if there are many channels.
    longest
        Longest duration accepted, in seconds; any if left out.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.zeros(4000).numpy(), 8000)
    >>> sum(len(block) for block in read_blocks(path, seconds=0.1))
    8000
    """
    empty = True
    with open_audio(path, longest) as file:
        pieces = decode(file, path, seconds, longest)
        for mono in _resample(pieces, file.samplerate, sample_rate):
            if len(mono):
                empty = False
                yield torch.from_numpy(mono)
    if empty:
        raise AudioError(f"no audio samples in {printable(path)}", "empty")


def _resample(pieces, rate, new_rate):
    """Mean over the channels of each piece, at another rate."""
    resample = soxr.ResampleStream(rate, new_rate, 1, "float32")
    for piece in pieces:
        mono = piece[:, 0] if piece.shape[1] == 1 else piece.mean(axis=1)
        yield mono if rate == new_rate else resample.resample_chunk(mono)
    # The resampling filter still holds the last samples
    if rate != new_rate:
        yield resample.resample_chunk(np.zeros(0, "float32"), last=True)


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
    speechbrain_dslstm.audio.AudioError: samples up to 1e+30 in a.wav: ...
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
