"""Decode with FFmpeg, through PyAV, what libsndfile does not read.

These are m4a, mp4, webm, amr, wma and the sound of videos. Only a kind of file
that ``kinds`` recognises is opened, as that kind and through an open file, so
that no playlist or name in a file makes FFmpeg open another file or address.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.audio.checks import AudioError, truncated, unreadable
from speechbrain_dslstm.audio.kinds import REMEDY, Kind, has_ffmpeg
from speechbrain_dslstm.audio.structure import check_single, joined

__all__ = ["MediaReader", "open_media"]

logger = get_logger(__name__)

# Formats whose header states the duration of a stream exactly
EXACT = {"mov", "flac", "caf", "wav", "aiff"}
LARGEST_INDEX = 2**24  # bytes of the index of an mp4 file that are searched


@contextmanager
def open_media(
    file: BinaryIO, kind: Kind, source: object
) -> Iterator["MediaReader"]:
    """Open the sound of a media file."""
    if not has_ffmpeg():
        raise unreadable(source, f"{kind.name} requires FFmpeg: {REMEDY}")
    import av

    if kind.format != "matroska":
        check_single(file, kind, source)
    if kind.format == "mov":
        _check_boxes(file, source, kind)
    elif kind.format == "matroska":
        _check_segment(file, source, kind)
    elif kind.format == "asf":
        _check_properties(file, source)
    file.seek(0)
    options = {"format_whitelist": WHITELIST, "protocol_whitelist": "none"}
    try:
        with av.open(
            file, format=kind.format, options=options, metadata_errors="replace"
        ) as container:
            yield MediaReader(container, kind, source)
    except av.FFmpegError as error:
        raise unreadable(source, f"{error.strerror} ({kind.name})") from error


class MediaReader:
    """The sound of an open container, read like a ``SoundFile``.

    ``frames`` is the number of samples per channel, from the header or from
    the times of the packets; ``exact`` says whether a header states it.
    """

    def __init__(self, container: Any, kind: Kind, source: object) -> None:
        self.container, self.source = container, source
        sounds = container.streams.audio
        if not sounds:
            held = sorted({stream.type for stream in container.streams})
            raise AudioError(
                f"no sound in {source}: this {kind.name} file holds "
                f"{' and '.join(held) or 'nothing'} only",
                "empty",
            )
        stream = container.streams.best("audio") or sounds[0]
        if len(sounds) > 1:
            logger.warning(
                "%s has %d audio streams; stream %d (%s) is read",
                source,
                len(sounds),
                stream.index,
                stream.language or "no language",
            )
        self.stream = stream
        context = stream.codec_context
        self.samplerate, self.channels = context.sample_rate, context.channels
        # Damage becomes an error instead of a click
        context.options = {"err_detect": "crccheck+bitstream+buffer"}
        context.thread_count = 1
        self.exact = kind.format in EXACT and bool(stream.duration)
        # CAF counts the silence that fills the last packet; its chunks have
        # been checked
        self.exact &= (kind.format, context.name) != ("caf", "alac")
        self.decoded, self.held, self.frames = 0, [], 0
        self.pieces = self._decode()
        if not self.samplerate or not self.channels:
            raise unreadable(source, f"{kind.name} without a known codec")
        if self.exact:
            seconds = float(stream.duration * stream.time_base)
            self.frames = round(seconds * self.samplerate)
        elif container.duration:
            self.frames = round(container.duration / 1e6 * self.samplerate)
        else:
            self.frames = self._count()

    def _count(self):
        """Samples up to the end of the last packet."""
        end = 0
        for packet in self.container.demux(self.stream):
            if packet.pts is not None and packet.time_base:
                last = packet.pts + (packet.duration or 0)
                end = max(end, float(last * packet.time_base))
        self.container.seek(0)
        return round(end * self.samplerate)

    def _decode(self):
        """Yield the decoded pieces, [samples, channels]."""
        import av

        faults = 0
        for packet in self.container.demux(self.stream):
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                # A stream may begin in the middle of a frame
                faults += 1
                if not self.decoded and faults < 4:
                    continue
                seconds = self.decoded / self.samplerate
                raise unreadable(
                    self.source, f"it is damaged or cut off at {seconds:.1f} s"
                ) from error
            for frame in frames:
                yield self._to_floats(frame)

    def _to_floats(self, frame):
        channels = frame.layout.nb_channels
        if (frame.sample_rate, channels) != (self.samplerate, self.channels):
            raise unreadable(
                self.source,
                f"its sound changes from {self.samplerate} Hz, "
                f"{self.channels} channels, to {frame.sample_rate} Hz, "
                f"{channels} channels",
            )
        samples = frame.to_ndarray()
        if frame.format.is_planar:
            samples = samples.T
        else:
            samples = samples.reshape(-1, channels)
        self.decoded += len(samples)
        if samples.dtype.kind == "f":
            return samples.astype("float32")
        if samples.dtype == np.uint8:
            return ((samples - 128.0) / 128.0).astype("float32")
        scale = -float(np.iinfo(samples.dtype).min)
        return (samples / scale).astype("float32")

    def seek(self, sample: int) -> None:
        """Skip to a sample; all before it are decoded, as places are vague."""
        skip(self, sample)

    def read(self, size: int) -> np.ndarray:
        """The next ``size`` samples, [samples, channels], fewer at the end."""
        count = sum(map(len, self.held))
        while count < size:
            piece = next(self.pieces, None)
            if piece is None:
                break
            self.held.append(piece)
            count += len(piece)
        if not self.held:
            return np.zeros((0, self.channels), "float32")
        joined = np.concatenate(self.held)
        self.held = [joined[size:]] if len(joined) > size else []
        return joined[:size]


def skip(recording: Any, samples: int) -> None:
    """Read samples and drop them."""
    while samples > 0 and len(recording.read(min(samples, 2**16))):
        samples -= 2**16


WHITELIST = (
    "aac,ac3,eac3,aiff,amr,ape,asf,au,avi,caf,flac,flv,matroska,webm,mov,mp4,"
    "m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,tta,w64,wav,wv"
)


# Names of boxes that a file consists of
BOXES = set(
    b"ftyp moov mdat free skip wide moof mfra sidx ssix styp uuid meta pnot udta "
    b"emsg prft pdin".split()
)


def _check_boxes(file, source, kind):
    """Refuse an mp4 file that is cut off or encrypted, by its boxes."""
    file.seek(0, 2)
    size, place, index = file.tell(), 0, 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        length, name = struct.unpack(">I4s", head[:8])
        if length == 1 and len(head) == 16:
            length = int.from_bytes(head[8:], "big")
        elif length == 0:
            length = size - place
        # Tags or remains behind a file that is whole
        if length < 8 or (index and name not in BOXES):
            break
        if place + length > size:
            missing = place + length - size
            raise truncated(source, f"{missing} bytes are missing at the end")
        if name == b"moov":
            index += 1
            file.seek(place)
            found = file.read(min(length, LARGEST_INDEX))
            if b"enca" in found or b"drms" in found:
                raise unreadable(source, "it is encrypted (DRM)")
        place += length
    if index > 1:
        raise joined(source, kind)
    if not index:
        raise truncated(source, "its index (moov) is missing")


# Names of the header, the segment, padding and a checksum
ELEMENTS = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\xec", b"\xbf"


def _check_segment(file, source, kind):
    """Refuse a Matroska or WebM file that is cut off, by the segment's size."""
    file.seek(0, 2)
    size, place = file.tell(), 0
    while place < size:
        file.seek(place)
        head = file.read(12)
        # Elements have a name of up to 4 bytes and a size of up to 8
        width = 9 - head[0].bit_length()
        if width > 4 or len(head) <= width or head[:width] not in ELEMENTS:
            return
        sized = 9 - head[width].bit_length()
        if sized > 8:
            return
        digits = head[width : width + sized]
        if len(digits) < sized:
            digits += bytes(sized - len(digits))
        length = int.from_bytes(digits, "big") & (1 << 7 * sized) - 1
        if length == (1 << 7 * sized) - 1:
            # A live recording does not know its size, and hides what follows it
            check_single(file, kind, source)
            return
        place += width + sized + length
        if place > size:
            missing = place - size
            raise truncated(source, f"{missing} bytes are missing at the end")


# Name of the object of an ASF file that holds the file's size
FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _check_properties(file, source):
    """Refuse a WMA file that is cut off, by the size in its header."""
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    head = file.read(2**16)
    place = head.find(FILE_PROPERTIES)
    if place < 0:
        return
    stated = int.from_bytes(head[place + 40 : place + 48], "little")
    live = head[place + 88 : place + 89] == b"\x01"
    if stated > size and not live:
        missing = stated - size
        raise truncated(source, f"{missing} bytes are missing at the end")
