"""Read audio as waveforms of a given rate, and refuse bad audio.

All audio is checked here, whether from files, folders, streams, recipes or for
ONNX: ``open_audio`` checks the kind of file and its header before anything is
decoded, ``decode`` the decoded samples, ``check_samples`` waveforms.
"""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from speechbrain_dslstm.audio.channels import (
    Channel,
    check_channel,
    select_channels,
)
from speechbrain_dslstm.audio.checks import (
    AudioError,
    check_length,
    check_rate,
    check_samples,
    printable,
    truncated,
    unreadable,
)
from speechbrain_dslstm.audio.inputs import (
    AudioInput,
    SampleSource,
    to_source,
)
from speechbrain_dslstm.audio.kinds import recognise
from speechbrain_dslstm.audio.media import open_media, skip
from speechbrain_dslstm.audio.structure import (
    UNKNOWN_LENGTH,
    Part,
    PartReader,
    counts_frames,
    find_parts,
)

__all__ = ["open_audio", "decode", "load_audio", "read_blocks"]

LARGEST_BLOCK = 2**21  # samples decoded at a time, over all channels
MISSING = 0.1  # seconds by which the length of an mp3 may be wrong


class Recording(Protocol):
    """An open recording, as ``open_audio`` yields it."""

    samplerate: int
    channels: int
    frames: int  # samples per channel that the header counts
    exact: bool  # whether fewer decoded samples mean that the file is cut

    def read(self, size: int) -> np.ndarray:
        """The next samples [samples, channels], fewer than ``size`` at the end."""

    def seek(self, sample: int) -> None:
        """Skip to a sample, before anything is read."""


class _Samples:
    """Samples in memory."""

    exact = True

    def __init__(self, source: SampleSource) -> None:
        self.samples, self.samplerate = source.samples, source.rate
        self.frames, self.channels = source.samples.shape
        self.position = 0

    def read(self, size):
        """Read on."""
        self.position += size
        return self.samples[self.position - size : self.position]

    def seek(self, sample):
        """Skip to a sample."""
        self.position = sample


class _SoundFiles:
    """One or more files of libsndfile, one after the other."""

    def __init__(
        self, files: list, readers: list, source: object, exact: bool
    ) -> None:
        self.exact = exact
        self.files, self.readers, self.source = files, readers, source
        self.samplerate, self.channels = files[0].samplerate, files[0].channels
        self.frames = sum(file.frames for file in files)
        self.index = 0
        for file in files[1:]:
            if (file.samplerate, file.channels) != (
                self.samplerate,
                self.channels,
            ):
                raise unreadable(
                    source,
                    f"it joins recordings of {self.samplerate} Hz, "
                    f"{self.channels} channels, and of {file.samplerate} Hz, "
                    f"{file.channels} channels: split it",
                )

    def seek(self, sample):
        """Skip to a sample."""
        if len(self.files) == 1:
            self.files[0].seek(sample)
        else:
            skip(self, sample)

    def read(self, size):
        """Read on, in the next file at the end of one."""
        pieces, missing = [], size
        while missing and self.index < len(self.files):
            file = self.files[self.index]
            piece = file.read(missing, dtype="float32", always_2d=True)
            for reader in self.readers:
                if reader.error is not None:
                    raise unreadable(self.source, reader.error)
            if len(piece) < missing:
                self.index += 1
            missing -= len(piece)
            pieces.append(piece)
        if len(pieces) == 1:
            return pieces[0]
        empty = np.zeros((0, self.channels), "float32")
        return np.concatenate([empty, *pieces])


@contextmanager
def open_audio(
    path: AudioInput,
    longest: float | None = None,
    sample_rate: float | None = None,
) -> Iterator[Recording]:
    """Open audio after checking its kind and header, without decoding.

    Errors of the decoder within the block become ``AudioError``.

    Arguments
    ---------
    path
        A file that libsndfile or, with the extra "media", FFmpeg reads; its
        bytes; a file object; or an array, see ``load_audio``.
    longest
        Longest duration accepted, in seconds; any if left out.
    sample_rate
        Rate of an array, in Hz.

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
    speechbrain_dslstm.audio.checks.AudioError: a sample rate of 1 Hz in ...tone.wav...
    """
    source = to_source(path, sample_rate)
    if isinstance(source, SampleSource):
        recording = _Samples(source)
        check_length(recording.frames, source.rate, source, longest)
        yield recording
        return
    source.check()
    with ExitStack() as stack:
        try:
            recording = _open_file(source, stack)
            check_rate(recording.samplerate, source)
            if recording.exact:
                check_length(
                    recording.frames, recording.samplerate, source, longest
                )
            yield recording
        # TypeError: soundfile requires a rate for a file named .raw
        except (soundfile.SoundFileError, OSError, TypeError) as error:
            # soundfile's own text without the name, which may not be printable
            reason = getattr(error, "error_string", error)
            # What libsndfile says of a file without any MP3 frame
            if str(reason).startswith("File does not exist"):
                reason = "Format not recognised."
            raise unreadable(source, reason) from error


def _open_file(source, stack):
    """Open a file with libsndfile; with FFmpeg if that does not read its kind."""
    file = stack.enter_context(source.open())
    kind = recognise(file)
    if kind is not None and not kind.sndfile:
        return stack.enter_context(open_media(file, kind, source))
    parts, readers = find_parts(file, kind, source), []
    if parts is None and source.path is not None:
        # As bytes, because a name need not be UTF-8; Windows names are Unicode
        name = str(source.path)
        opened = [name if os.name == "nt" else os.fsencode(name)]
    else:
        parts = parts or [Part(0, file.seek(0, 2))]
        opened = readers = [PartReader(file, part) for part in parts]
    try:
        files = [
            stack.enter_context(soundfile.SoundFile(name)) for name in opened
        ]
    except soundfile.LibsndfileError as error:
        # Unknown kinds and malformed headers are not tried with FFmpeg, which
        # finds sound in anything
        if kind is None or error.code in (1, 3) or not _is_other_codec(error):
            raise
        return stack.enter_context(open_media(file, kind, source))
    for opened in files:
        _check_cut(opened, source)
    exact = kind is None or kind.format != "mp3"
    if not exact:
        whole = parts or [Part(0, file.seek(0, 2))]
        exact = all(counts_frames(file, part) for part in whole)
    return _SoundFiles(files, readers, source, exact)


def _is_other_codec(error):
    """Whether the file may be sound with a codec that libsndfile lacks."""
    return error.code in OTHER_CODEC


# Errors of libsndfile: unsupported encoding; unimplemented or unknown formats
# of WAV and Ogg; Speex; FLAC in Ogg
OTHER_CODEC = {4, 7, 23, 29, 30, 39, 42, 47, 48, 50, 52, 161, 172, 173}


def _check_cut(file, source):
    """Refuse a file that has fewer bytes than its header counts."""
    # libsndfile reads what a cut file has, and mentions the cut only in its log
    for claimed, found in re.findall(
        r"^\s*(?:data|SSND|Data Size)\s*: (\d+) \(should be (\d+)\)",
        file.extra_info,
        re.MULTILINE,
    ):
        if int(found) < int(claimed) < UNKNOWN_LENGTH:
            raise truncated(source, f"it has {found} of {claimed} bytes")


def decode(
    file: Recording,
    path: object,
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
        piece = file.read(size)
        decoded += len(piece)
        last = len(piece) < size
        check_samples(torch.from_numpy(piece), where=shown)
        # Checked again, because a header may claim fewer samples than there are
        check_length(decoded, rate, path, longest)
        yield piece
    if not decoded:
        raise AudioError(f"no audio samples in {shown}", "empty")
    if file.exact and decoded < file.frames - MISSING * rate:
        raise truncated(path, f"it has {decoded} of {file.frames} samples")


def load_audio(
    path: AudioInput,
    sample_rate: int = 16000,
    longest: float | None = None,
    channel: Channel = "mix",
    input_rate: float | None = None,
) -> Tensor:
    """Read audio as one channel, [samples], in [-1, 1].

    Arguments
    ---------
    path
        A file that libsndfile reads (wav, flac, ogg, mp3, ...) or, with the
        extra "media", FFmpeg (m4a, mp4, webm, ...); its bytes; a binary file
        object, read from its beginning; or an array or tensor, [samples],
        [samples, channels] or [channels, samples], with ``input_rate`` or as
        ``(samples, rate)``.
    sample_rate
        Rate of the result, in Hz.
    longest
        Longest duration accepted, in seconds; without it, memory is the limit.
    channel
        "mix": the mean over the channels, but the loudest channel where they
        would cancel; an index from 0; or "each": all, [channels, samples].
    input_rate
        Rate of an array, in Hz.

    Raises
    ------
    AudioError
        The file is missing, not audio, cut off, empty or too long, has no such
        channel, or has samples that are NaN, infinite or above 1000.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.zeros(4410, 2).numpy(), 44100)
    >>> load_audio(path).shape, load_audio(path, channel="each").shape
    (torch.Size([1600]), torch.Size([2, 1600]))
    """
    blocks = read_blocks(
        path,
        sample_rate,
        longest=longest,
        channel=channel,
        input_rate=input_rate,
    )
    return torch.cat(list(blocks), dim=-1)


def read_blocks(
    path: AudioInput,
    sample_rate: int = 16000,
    seconds: float = 10.0,
    longest: float | None = None,
    channel: Channel = "mix",
    input_rate: float | None = None,
) -> Iterator[Tensor]:
    """Read audio of any length piece by piece.

    Joined, the blocks equal the result of ``load_audio``, however long they
    are; errors are the same.

    Arguments
    ---------
    path
        A file, bytes, a file object or an array, see ``load_audio``.
    sample_rate
        Rate of the result, in Hz.
    seconds
        Duration held in memory at a time; less if there are many channels.
    longest
        Longest duration accepted, in seconds; any if left out.
    channel
        "mix", an index, or "each", see ``load_audio``.
    input_rate
        Rate of an array, in Hz.

    Example
    -------
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.zeros(4000).numpy(), 8000)
    >>> sum(len(block) for block in read_blocks(path, seconds=0.1))
    8000
    """
    channel, empty = check_channel(channel), True
    source = to_source(path, input_rate)
    with open_audio(source, longest) as file:
        rate, channels = file.samplerate, file.channels
        pieces = decode(file, source, seconds, longest)
        pieces = select_channels(pieces, channel, rate, channels, source)
        kept = channels if channel == "each" else 1
        for piece in resample(pieces, rate, sample_rate, kept):
            if len(piece):
                empty = False
                block = torch.from_numpy(np.ascontiguousarray(piece.T))
                yield block if channel == "each" else block[0]
    if empty:
        raise AudioError(f"no audio samples in {printable(source)}", "empty")


def resample(
    pieces: Iterable[np.ndarray], rate: int, new_rate: int, channels: int
) -> Iterator[np.ndarray]:
    """Yield pieces [samples, channels] at another rate."""
    if rate == new_rate:
        yield from pieces
        return
    resampler = soxr.ResampleStream(rate, new_rate, channels, "float32")
    for piece in pieces:
        yield resampler.resample_chunk(np.ascontiguousarray(piece))
    # The resampling filter still holds the last samples
    end = np.zeros((0, channels), "float32")
    yield resampler.resample_chunk(end, last=True)
