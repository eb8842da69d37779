"""Audio files -> mono waveforms at the rate a model expects, or an AudioError.

The one gate for all audio, of files, folders, streams, the recipe and ONNX:
``open_audio`` judges a file by what it is and by its header, before anything
is decoded; ``decode`` what comes out of it; ``check_samples`` waveforms.
"""

import os
import re
import stat
from contextlib import contextmanager

import numpy as np
import soundfile
import soxr
import torch

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

LONGEST_CLIP = 60.0  # seconds that are held and classified at once
LARGEST_BLOCK = 2**21  # samples of all channels
RATES = 4000, 384000  # Hz; below, there is no speech to be heard
# 60 dB above full scale: no decoder and no float recorder gets there, but
# integers that were stored as floats do, and noise that was no audio
LOUDEST = 1000.0
# What writers to a pipe leave for a length they do not know: 0x7FFFF000 (sox),
# 0x80000000 (arecord), 0xFFFFFFFF (ffmpeg)
UNKNOWN_LENGTH = 0x7FFFF000
MISSING = 0.1  # seconds by which the length of an mp3 may be wrong


class AudioError(ValueError):
    """An audio input from which no emotion can be told; the message says why.

    Arguments
    ---------
    message : str
        Names the input and the reason.
    kind : str
        The reason in a word, as a list of bad files wants it: "missing",
        "unreadable", "truncated", "empty", "too long", "with NaN or infinite
        samples", "out of range", "of an impossible rate", "without speech".

    Example
    -------
    >>> load_audio("missing.wav")
    Traceback (most recent call last):
    speechbrain_dslstm.audio.AudioError: cannot read audio from missing.wav...
    """

    def __init__(self, message, kind="unreadable"):
        super().__init__(message)
        self.kind = kind


def printable(path):
    """Name of a file for a message, also one that is no UTF-8.

    Arguments
    ---------
    path : str or pathlib.Path
        The name.

    Returns
    -------
    str
        With a backslash code for each byte that is no text.

    Example
    -------
    >>> print(printable("tone\\udce9.wav"))
    tone\\udce9.wav
    """
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


@contextmanager
def open_audio(path, longest=None):
    """Open an audio file that looks sound; nothing is decoded yet.

    Arguments
    ---------
    path : str or pathlib.Path
        An audio file that libsndfile reads: wav, flac, ogg, mp3.
    longest : float, optional
        Seconds; a longer file is refused.

    Yields
    ------
    soundfile.SoundFile
        Open for reading. What soundfile raises in the block becomes an
        ``AudioError``.

    Raises
    ------
    AudioError
        Not an audio file, or one that cannot be read; cut off; of a rate
        that no speech is recorded at; or too long.

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
    # Bytes, as a name need not be UTF-8; Windows has its own way
    name = str(path) if os.name == "nt" else os.fsencode(path)
    try:
        with soundfile.SoundFile(name) as file:
            _check_header(file, path, longest)
            yield file
    # TypeError: of a file that ends in .raw soundfile wants to know the rate
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        # Without the name, which may be no text
        reason = getattr(error, "error_string", error)
        raise _unreadable(path, reason) from error


def _unreadable(path, reason, kind="unreadable"):
    shown = printable(path)
    return AudioError(f"cannot read audio from {shown}: {reason}", kind)


def _check_readable(path):
    """Refuse what is no file; opening a pipe would wait for its writer."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise _unreadable(path, "it is a folder")
        if not stat.S_ISREG(mode):
            raise _unreadable(path, "it is no regular file")
        with open(path, "rb"):
            pass
    except FileNotFoundError as error:
        missing = (
            "a link to nothing" if os.path.islink(path) else "no such file"
        )
        raise _unreadable(path, missing, "missing") from error
    except OSError as error:
        raise _unreadable(path, error.strerror) from error
    except AudioError:
        raise
    # A NUL in the name
    except ValueError as error:
        raise _unreadable(path, error) from error


def _check_header(file, path, longest):
    rate, shown = file.samplerate, printable(path)
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(
            f"a sample rate of {rate} Hz in {shown}; expected {RATES[0]} to "
            f"{RATES[1]} Hz",
            "of an impossible rate",
        )
    # libsndfile reads what is left of a cut file without a word, but to itself
    for told, found in re.findall(
        r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)",
        file.extra_info,
        re.MULTILINE,
    ):
        if int(found) < int(told) < UNKNOWN_LENGTH:
            raise _truncated(path, f"{found} of {told} bytes are there")
    if longest is not None and file.frames > longest * rate:
        raise _too_long(path, longest)


def _truncated(path, what):
    return AudioError(
        f"the audio in {printable(path)} is cut off: {what}", "truncated"
    )


def _too_long(path, longest):
    return AudioError(
        f"{printable(path)} is longer than {longest:g} s: use classify_long "
        "(dslstm classify --long), or give another limit as longest",
        "too long",
    )


def decode(file, path, seconds=10.0, longest=None):
    """Decode an open file piece by piece.

    Arguments
    ---------
    file : soundfile.SoundFile
        What ``open_audio`` gave.
    path : str or pathlib.Path
        Its name, for messages.
    seconds : float
        Audio decoded at a time; less where it has many channels.
    longest : float, optional
        Seconds, for a file that is longer than its header says.

    Yields
    ------
    numpy.ndarray, float32, [samples, channels]
        At the file's rate; the last one may be empty.

    Raises
    ------
    AudioError
        No samples, NaN or infinite ones, or ones far outside [-1, 1]; or less
        than the header says.

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
    size, heard, last = max(1, size), 0, False
    while not last:
        piece = file.read(size, dtype="float32", always_2d=True)
        heard += len(piece)
        last = len(piece) < size
        check_samples(torch.from_numpy(piece), where=shown)
        if longest is not None and heard > longest * rate:
            raise _too_long(path, longest)
        yield piece
    if not heard:
        raise AudioError(f"no audio samples in {shown}", "empty")
    if heard < file.frames - MISSING * rate:
        raise _truncated(path, f"{heard} of {file.frames} samples are there")


def load_audio(path, sample_rate=16000, longest=None):
    """Read an audio file of any rate and channel count.

    Arguments
    ---------
    path : str or pathlib.Path
        An audio file that libsndfile reads: wav, flac, ogg, mp3.
    sample_rate : int
        Rate of the result, in Hz.
    longest : float, optional
        Seconds; a longer file is refused before it is decoded. None: no
        limit but memory.

    Returns
    -------
    torch.Tensor, [samples]
        Mean over the channels, in [-1, 1].

    Raises
    ------
    AudioError
        A ValueError: the file is missing, no audio, cut off, empty, too long,
        or holds NaN, infinity or samples above 1000; the message names it.

    Example
    -------
    >>> import soundfile
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.zeros(4410, 2).numpy(), 44100)
    >>> load_audio(path).shape
    torch.Size([1600])
    """
    return torch.cat(list(read_blocks(path, sample_rate, longest=longest)))


def read_blocks(path, sample_rate=16000, seconds=10.0, longest=None):
    """Read an audio file of any length piece by piece.

    Arguments
    ---------
    path : str or pathlib.Path
        An audio file that libsndfile reads: wav, flac, ogg, mp3.
    sample_rate : int
        Rate of the result, in Hz.
    seconds : float
        Audio held in memory at a time; less where it has many channels.
    longest : float, optional
        Seconds; a longer file is refused.

    Yields
    ------
    torch.Tensor, [samples]
        Mean over the channels, in [-1, 1]. Joined, the blocks are what
        ``load_audio`` returns, however long they are.

    Raises
    ------
    AudioError
        As ``load_audio``.

    Example
    -------
    >>> import soundfile
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.zeros(4000).numpy(), 8000)
    >>> sum(len(block) for block in read_blocks(path, seconds=0.1))
    8000
    """
    given = False
    with open_audio(path, longest) as file:
        rate = file.samplerate
        resample = soxr.ResampleStream(rate, sample_rate, 1, "float32")
        for piece in decode(file, path, seconds, longest):
            mono = piece[:, 0] if piece.shape[1] == 1 else piece.mean(axis=1)
            if rate != sample_rate:
                mono = resample.resample_chunk(mono)
            if len(mono):
                given = True
                yield torch.from_numpy(mono)
        # What the filter holds back
        if rate != sample_rate:
            mono = resample.resample_chunk(np.zeros(0, "float32"), last=True)
            if len(mono):
                given = True
                yield torch.from_numpy(mono)
    if not given:
        raise AudioError(f"no audio samples in {printable(path)}", "empty")


def check_samples(wavs, wav_lens=None, where="the batch"):
    """Refuse waveforms that are no audio.

    Arguments
    ---------
    wavs : torch.Tensor, [samples] or [batch, samples]
        Waveforms in [-1, 1]; somewhat louder ones are let through.
    wav_lens : torch.Tensor, [batch], optional
        Relative lengths (floats) or sample counts (integers); what lies past
        an utterance's end may be anything.
    where : str
        What it is called in the error.

    Raises
    ------
    AudioError
        Not floats, NaN, infinity, or samples above 1000.

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
        raise AudioError(
            f"NaN or infinite samples in {where}",
            "with NaN or infinite samples",
        )
    raise AudioError(
        f"samples up to {float(wavs.abs().max()):g} in {where}: expected "
        "[-1, 1] (were integers stored as floats?)",
        "out of range",
    )


def _in_range(wavs):
    low, high = wavs.detach().aminmax()
    # Of NaN nothing is true
    return bool((low >= -LOUDEST) & (high <= LOUDEST))
