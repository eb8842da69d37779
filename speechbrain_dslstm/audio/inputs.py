"""What may be given as audio: a path, bytes, a file object, or samples.

``to_source`` turns each of them into a ``FileSource`` or a ``SampleSource``;
both print as a name for messages.
"""

import inspect
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from speechbrain_dslstm.audio.checks import (
    AudioError,
    check_rate,
    unreadable,
)

__all__ = [
    "AudioInput",
    "FileSource",
    "SampleSource",
    "check_batch",
    "is_array",
    "is_one_input",
    "to_source",
]

AudioInput = (
    str
    | os.PathLike
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | np.ndarray
    | torch.Tensor
    | tuple[np.ndarray | torch.Tensor, float]
)
Array = np.ndarray | torch.Tensor
MOST_CHANNELS = 8  # of an array; a larger second dimension is a batch
# More utterances than this and than samples in each are channels of a recording
FEWEST_SAMPLES = 8
IN_MEMORY = 2**24  # bytes of a pipe that are kept in memory, not on disk
LARGEST_PIPE = 2**32  # bytes; a longer stream has no end
TAKEN = (
    "expected a path, the bytes of a file, a file object opened in binary "
    "mode, or a numpy array or tensor with its sample rate"
)


class FileSource:
    """An encoded audio file: on disk, as bytes, or behind a file object."""

    def __init__(self, name: str, content: str | Path | BinaryIO) -> None:
        self.name, self.content = name, content

    def __str__(self) -> str:
        return self.name

    @property
    def path(self) -> Path | None:
        """Path of a file on disk, None otherwise."""
        return self.content if isinstance(self.content, Path) else None

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open a seekable binary file at its beginning.

        A file object that was given gets back its position at the end.
        """
        if self.path is not None:
            with open(self.path, "rb") as file:
                yield file
            return
        position = self.content.tell()
        self.content.seek(0)
        try:
            yield self.content
        finally:
            self.content.seek(position)

    def check(self) -> None:
        """Refuse all but regular files, because opening a pipe would block."""
        if self.path is None:
            return
        path = self.path
        try:
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                raise unreadable(path, "it is a folder")
            if not stat.S_ISREG(mode):
                raise unreadable(path, "it is not a regular file")
            with open(path, "rb"):
                pass
        except FileNotFoundError as error:
            link = os.path.islink(path)
            missing = "a link to nothing" if link else "no such file"
            raise unreadable(path, missing, "missing") from error
        except OSError as error:
            raise unreadable(path, error.strerror) from error
        except AudioError:
            raise
        # A NUL character in the name
        except ValueError as error:
            raise unreadable(path, error) from error


class SampleSource:
    """Samples in memory: float32, [samples, channels], at a rate in Hz."""

    path = None

    def __init__(self, name: str, samples: np.ndarray, rate: int) -> None:
        self.name, self.samples, self.rate = name, samples, rate

    def __str__(self) -> str:
        return self.name


def is_array(given: Any) -> bool:
    """Whether this is an array or tensor."""
    return isinstance(given, Array)


def is_one_input(given: Any) -> bool:
    """Whether this is one recording; otherwise it holds several."""
    if isinstance(given, tuple):
        # (samples, rate), or the refused (rate, samples)
        return (
            len(given) == 2
            and any(isinstance(x, Array) for x in given)
            and any(isinstance(x, Real) for x in given)
        )
    kinds = str | os.PathLike | bytes | bytearray | memoryview | Array
    sources = FileSource | SampleSource
    return isinstance(given, kinds | sources) or hasattr(given, "read")


def to_source(
    given: Any, sample_rate: float | None = None, name: str | None = None
) -> FileSource | SampleSource:
    """Recognise what was given as audio.

    ``sample_rate``, in Hz, belongs to an array; ``name`` is used in messages
    instead of "the array" or "the bytes".
    """
    if isinstance(given, FileSource | SampleSource):
        return given
    if isinstance(given, tuple):
        if len(given) != 2 or not isinstance(given[0], Array):
            raise _wrong_tuple(given, name)
        if sample_rate is not None and sample_rate != given[1]:
            raise AudioError(
                f"two sample rates, {given[1]} in (samples, rate) and "
                f"sample_rate={sample_rate}",
                "of an impossible rate",
            )
        given, sample_rate = given
    if isinstance(given, Array):
        return _from_array(given, sample_rate, name or "the array")
    if sample_rate is not None and is_one_input(given):
        raise AudioError(
            "sample_rate is the rate of an array; a file states its own",
            "of a wrong type",
        )
    if isinstance(given, str | os.PathLike):
        path = os.fspath(given)
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        return FileSource(path, Path(path))
    if isinstance(given, bytes | bytearray | memoryview):
        data = bytes(given)
        if len(data) < 4096 and b"\0" not in data and os.path.exists(data):
            raise AudioError(
                f"{data!r} is a path as bytes, and bytes are read as the "
                "content of a file: give os.fsdecode(path)",
                "of a wrong type",
            )
        return FileSource(
            name or f"the {len(data)} bytes given", io.BytesIO(data)
        )
    if hasattr(given, "read"):
        return _from_file(given, name)
    raise AudioError(
        f"{TAKEN}; got {_kind(given)}" + (f" as {name}" if name else ""),
        "of a wrong type",
    )


def _kind(given):
    if isinstance(given, Array):
        return "an array"
    return "None" if given is None else f"a {type(given).__name__}"


def _wrong_tuple(given, name):
    if len(given) == 2 and isinstance(given[1], Array):
        text = "(rate, samples): give (samples, rate)"
    else:
        text = f"({', '.join(map(_kind, given))}); expected (samples, rate)"
    where = f" as {name}" if name else ""
    return AudioError(f"got a tuple {text}{where}", "of a wrong type")


def _from_file(file, name):
    """Source of a file object; one that cannot seek is copied."""
    given = getattr(file, "name", None)
    name = name or (given if isinstance(given, str) else "the file object")
    try:
        seekable = bool(file.seekable()) if hasattr(file, "seekable") else False
        if seekable:
            position = file.tell()
            file.seek(0)
            first = file.read(1)
            file.seek(position)
        else:
            first = file.read(IN_MEMORY)
    # A file object may be of anybody's making
    except Exception as error:
        raise unreadable(name, error) from error
    if not isinstance(first, bytes | bytearray | memoryview):
        if inspect.iscoroutine(first):
            first.close()
        raise AudioError(
            f"expected bytes from {name}, got {_kind(first)}: open the file "
            'with mode "rb"',
            "of a wrong type",
        )
    if seekable:
        return FileSource(name, file)
    copy = tempfile.SpooledTemporaryFile(IN_MEMORY)
    try:
        while first:
            copy.write(first)
            if copy.tell() > LARGEST_PIPE:
                raise unreadable(name, "it does not end", "too long")
            first = file.read(2**20)
    except OSError as error:
        raise unreadable(name, error) from error
    return FileSource(name, copy)


def _check_rate_given(rate, name):
    if rate is None:
        raise AudioError(
            f"{name} has no sample rate: give sample_rate=, or (samples, rate)",
            "of an impossible rate",
        )
    if isinstance(rate, bool | np.bool_) or not isinstance(rate, Real):
        raise AudioError(
            f"expected the sample rate of {name} in Hz, got {_kind(rate)}",
            "of an impossible rate",
        )
    check_rate(rate, name)
    if rate != round(rate):
        raise AudioError(
            f"a sample rate of {rate} Hz in {name}; expected a whole number",
            "of an impossible rate",
        )


def _from_array(given, rate, name):
    """Source of an array [samples], or with channels before or after them."""
    _check_rate_given(rate, name)
    samples = to_floats(given, name)
    shape = list(samples.shape)
    if not samples.size:
        raise AudioError(f"no audio samples in {name}: it is {shape}", "empty")
    if samples.ndim == 1:
        samples = samples[:, None]
    elif samples.ndim != 2:
        raise AudioError(
            f"expected one recording, [samples], [samples, channels] or "
            f"[channels, samples], in {name}, got the shape {shape}",
            "of a wrong shape",
        )
    else:
        channels, size = sorted(shape)
        if channels > 1 and (channels > MOST_CHANNELS or size < 16 * channels):
            raise AudioError(
                f"cannot tell samples from channels in {name} of shape "
                f"{shape}: give [samples] or at most {MOST_CHANNELS} channels; "
                "classify_batch takes several utterances",
                "of a wrong shape",
            )
        if shape[0] < shape[1]:
            samples = samples.T
    return SampleSource(name, samples, int(rate))


def to_floats(given: Array, name: str = "the array") -> np.ndarray:
    """Copy samples as float32; integers are divided by their full scale."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu()
        if given.is_sparse or given.is_quantized:
            given = given.to_dense() if given.is_sparse else given.dequantize()
        given = (given.float() if given.is_floating_point() else given).numpy()
    if isinstance(given, np.ma.MaskedArray) and np.ma.is_masked(given):
        raise AudioError(
            f"masked samples in {name}: fill them", "of a wrong type"
        )
    # Of the other byte order, as in big-endian files
    given = given.astype(given.dtype.newbyteorder("="), copy=False)
    if given.dtype.kind == "f":
        # Values beyond float32 become infinite, which check_samples refuses
        with np.errstate(over="ignore"):
            return np.array(given, "float32")
    if given.dtype in (np.int8, np.int16, np.int32):
        scale = -float(np.iinfo(given.dtype).min)
        return np.asarray(given / scale, "float32")
    if given.dtype == np.uint8:
        return np.asarray((given - 128.0) / 128.0, "float32")
    raise AudioError(
        f"expected floats in [-1, 1], int16 or int32 samples in {name}, got "
        f"{given.dtype}",
        "of a wrong type",
    )


def check_batch(wavs: Array) -> torch.Tensor:
    """Convert waveforms [batch, samples] or [samples] to a tensor with both axes.

    Other shapes and types raise AudioError, and so does what looks like one
    recording [samples, channels].
    """
    if isinstance(wavs, np.ndarray) and wavs.dtype.kind in "fiu":
        # A copy in the machine's byte order, which torch may own
        wavs = torch.from_numpy(np.array(wavs, wavs.dtype.newbyteorder("=")))
    if not isinstance(wavs, torch.Tensor):
        kind = wavs.dtype if is_array(wavs) else type(wavs).__name__
        raise AudioError(
            "classify_batch expects a tensor or array of floats, [batch, "
            f"samples], got {kind}; classify_file takes files and recordings",
            "of a wrong type",
        )
    shape = list(wavs.shape)
    if len(shape) == 1:
        wavs = wavs.unsqueeze(0)
    elif len(shape) != 2:
        raise AudioError(
            f"classify_batch expects waveforms [batch, samples], got {shape}",
            "of a wrong shape",
        )
    if not wavs.numel():
        raise AudioError(f"no audio samples in the batch {shape}", "empty")
    if len(wavs) > max(wavs.shape[1], FEWEST_SAMPLES):
        raise AudioError(
            f"got a batch of {shape[0]} utterances of {shape[1]} samples: for a "
            "recording [samples, channels] use classify_file(wavs, "
            "sample_rate=...), for utterances [samples, batch] wavs.T",
            "of a wrong shape",
        )
    return wavs
