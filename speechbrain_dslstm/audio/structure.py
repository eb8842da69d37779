"""Find joined recordings in a file, and headers that do not know the length.

libsndfile stops where the header of a file says that it ends: at the end of the
first of several files joined by ``cat``, or at once in a WAV file that was
never closed. ``find_parts`` finds what there is; ``Part`` is read by libsndfile
in place of the file.
"""

import re
import struct
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from speechbrain_dslstm.audio.checks import AudioError, truncated, unreadable
from speechbrain_dslstm.audio.flac import count_samples, patch_total
from speechbrain_dslstm.audio.kinds import Kind, frame_size, skip_tags

__all__ = ["Part", "PartReader", "check_single", "find_parts"]

# Lengths in headers written to a pipe, where the true one is unknown:
# 0x7FFFF000 (sox), 0x80000000 (arecord), 0xFFFFFFFF (ffmpeg)
UNKNOWN_LENGTH = 0x7FFFF000
BLOCK = 2**20  # bytes read at a time
REST = 1024  # bytes behind the samples that are not looked at
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN", b"<?xml")
FLAC_HEAD = b"\x00\x00\x00\x22", b"\x80\x00\x00\x22"


@dataclass
class Part:
    """Bytes of a file that are one recording, some of them replaced."""

    start: int
    size: int
    # Replacements by their place in the part
    patches: dict[int, bytes] = field(default_factory=dict)


class PartReader:
    """A part as a binary file; keeps an error of the file under it.

    libsndfile reads through a callback, which cannot raise.
    """

    def __init__(self, file: BinaryIO, part: Part) -> None:
        self.file, self.part, self.position = file, part, 0
        self.error = None

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a place of the part."""
        base = (0, self.position, self.part.size)[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        """Place in the part."""
        return self.position

    def read(self, size: int = -1) -> bytes:
        """Read bytes, empty at the end and after an error."""
        left = max(0, self.part.size - self.position)
        size = left if size < 0 else min(size, left)
        try:
            self.file.seek(self.part.start + self.position)
            data = self.file.read(size)
        # A file object may be of anybody's making
        except Exception as error:
            self.error = self.error or error
            return b""
        for place, new in self.part.patches.items():
            at = place - self.position
            if -len(new) < at < len(data):
                first, last = max(at, 0), min(at + len(new), len(data))
                data = data[:first] + new[first - at : last - at] + data[last:]
        self.position += len(data)
        return data

    def readinto(self, buffer: bytearray) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: bytes) -> int:
        """Refuse; soundfile requires the method."""
        raise OSError("read only")


def find_parts(
    file: BinaryIO, kind: Kind | None, source: object
) -> list[Part] | None:
    """Recordings in a file, None if libsndfile reads all of it as it is.

    Raises AudioError if the header counts fewer samples than there are.
    """
    if kind is None:
        return None
    file.seek(0, 2)
    size = file.tell()
    if kind.format in LAYOUTS:
        parts = _chunked(file, size, source, kind)
    elif kind.format in FINDERS:
        parts = FINDERS[kind.format](file, size, source)
    else:
        return None
    if not parts or (len(parts) == 1 and parts[0] == Part(0, size)):
        return None
    return parts


def _read(file, place, size):
    file.seek(place)
    return file.read(size)


def _uncounted(source, counted, held):
    return unreadable(
        source,
        f"its header counts {counted} of {held} bytes of samples; write it "
        "again with a true header",
    )


class _Layout(NamedTuple):
    """Chunks of a format: after the header, each with a name and a size."""

    header: int
    data: bytes  # name of the chunk with the samples
    size: str  # its format for ``struct``
    begins: tuple[bytes, ...]  # first bytes of a file
    even: bool  # whether a byte follows a chunk of odd size


WAV = (b"RIFF", b"RF64", b"RIFX")
LAYOUTS = {
    "wav": _Layout(12, b"data", "<I", WAV, True),
    "aiff": _Layout(12, b"SSND", ">I", (b"FORM",), True),
    "caf": _Layout(8, b"data", ">q", (b"caff",), False),
}


def _chunked(file, size, source, kind):
    """WAV, RF64, AIFF and CAF files, joined or never closed."""
    parts, start = [], 0
    while start < size:
        layout = LAYOUTS[kind.format]
        if _read(file, start, 4) == b"RIFX":
            layout = layout._replace(size=">I")
        part, start = _one_file(file, start, size, source, layout)
        parts.append(part)
    return parts


def _chunk(file, place, layout):
    """Name of a chunk, its size and where it begins and ends."""
    width = struct.calcsize(layout.size)
    head = _read(file, place, 4 + width)
    length = struct.unpack(layout.size, head[4:].ljust(width, b"\0"))[0]
    begin = place + 4 + width
    odd = length % 2 if layout.even else 0
    return head[:4], length, begin, begin + max(length, 0) + odd


def _one_file(file, start, size, source, layout):
    place, whole = start + layout.header, Part(start, size - start)
    large = None
    while True:
        if place + 8 > size:
            return whole, size
        name, length, begin, end = _chunk(file, place, layout)
        if name == layout.data:
            break
        if name == b"ds64":
            large = place + 16
        place = end
    held = size - begin
    if large is not None and length == 2**32 - 1:
        length = int.from_bytes(_read(file, large, 8), "little")
        if length > held:
            raise truncated(source, f"it has {held} of {length} bytes")
    elif length >= UNKNOWN_LENGTH and begin + length > size:
        return whole, size
    if length == -1 or (
        length == 0 and not _are_chunks(file, begin, size, layout)
    ):
        # Never closed: the samples go to the end of the file
        if large is not None:
            new, at = struct.pack("<Q", held), large
        else:
            most = 2**32 - 1 if layout.size[1] == "I" else held
            new, at = struct.pack(layout.size, min(held, most)), place + 4
        whole.patches = {at - start: new}
        return whole, size
    if layout.size == ">q" and length > held:
        raise truncated(source, f"it has {held} of {length} bytes")
    for after in (begin + length, begin + length + length % 2):
        if _read(file, after, 4) in layout.begins:
            return Part(start, after - start), after
    if size - after > REST and not _are_chunks(file, after, size, layout):
        if not _are_zeros(file, after):
            raise _uncounted(source, length, held)
    return whole, size


def _are_zeros(file, place):
    """Whether the file ends with padding."""
    file.seek(place)
    while data := file.read(BLOCK):
        if any(data):
            return False
    return True


def _are_chunks(file, place, size, layout):
    """Whether the bytes behind the samples are chunks or tags."""
    while place + 8 <= size:
        if _read(file, place, 12).startswith(TAGS):
            return True
        name, length, _, place = _chunk(file, place, layout)
        if length < 0 or not all(32 <= byte < 127 for byte in name):
            return False
        if place > size + 1:
            return False
    return True


def _au(file, size, source):
    """AU files, joined or never closed."""
    head = _read(file, 0, 12)
    begin, length = struct.unpack(">II", head[4:12].ljust(8, b"\0"))
    if length == 2**32 - 1 or begin + length >= size:
        return None
    if not length:
        return [Part(0, size, {8: b"\xff" * 4})]
    end = begin + length
    if _read(file, end, 4) == b".snd":
        parts = [Part(0, end)]
        for part in _au_rest(file, end, size, source):
            parts.append(Part(part.start + end, part.size, part.patches))
        return parts
    if size - end > REST:
        raise _uncounted(source, length, size - begin)
    return None


def _au_rest(file, start, size, source):
    window = PartReader(file, Part(start, size - start))
    return _au(window, size - start, source) or [Part(0, size - start)]


def _w64(file, size, source):
    """W64 files, joined, cut off or never closed: names of 16 bytes, sizes of 8."""
    parts, start = [], 0
    while start < size:
        place, length, name = start, 40, b""
        while name != b"data" and length >= 24:
            # Chunks begin at multiples of 8 bytes; sizes include the header
            place += -(-length // 8) * 8
            head = _read(file, place, 24)
            name = head[:4]
            length = int.from_bytes(head[16:], "little")
        if name != b"data":
            return [*parts, Part(start, size - start)]
        held = size - place
        if length <= 24 or length >= 2**62:
            patches = {place + 16 - start: struct.pack("<Q", held)}
            return [*parts, Part(start, size - start, patches)]
        if length > held:
            raise truncated(source, f"it has {held} of {length} bytes")
        after = place + -(-length // 8) * 8
        if _read(file, after, 4) != b"riff":
            return [*parts, Part(start, size - start)]
        # Without the padding, which libsndfile takes for samples
        parts.append(Part(start, place + length - start))
        start = after
    return parts


def _ogg(file, size, source):
    """Chained Ogg streams: a first page after pages that are none."""
    starts, place, began = [], 0, True
    while place < size:
        head = _read(file, place, 282)
        if head[:4] != b"OggS":
            if not any(head) or head.startswith(TAGS):
                break
            raise unreadable(source, f"it is damaged at byte {place}")
        if len(head) < 27 or len(head) < 27 + head[26]:
            raise truncated(source, "its last page is incomplete")
        first = bool(head[5] & 2)
        if first and (began is False or not starts):
            starts.append(place)
        began = first
        place += 27 + head[26] + sum(head[27 : 27 + head[26]])
        if place > size:
            raise truncated(source, "its last page is incomplete")
    return _split(starts, size)


def _split(starts, size):
    if not starts:
        return None
    ends = [*starts[1:], size]
    return [Part(a, b - a) for a, b in zip(starts, ends, strict=True)]


def _flac(file, size, source):
    """FLAC files, joined, or with a header that does not know its length."""
    start = skip_tags(file)
    starts, place, kept = [start], start + 4, b""
    file.seek(place)
    while block := file.read(BLOCK):
        data, at = kept + block, 0
        while (at := data.find(b"fLaC", at)) >= 0:
            if data[at + 4 : at + 8] in FLAC_HEAD:
                starts.append(place - len(kept) + at)
            at += 4
        place += len(block)
        kept = data[-7:]
    starts = sorted(set(starts))
    parts = []
    for part in _split(starts, size):
        reader = PartReader(file, part)
        total, counted = count_samples(reader, part.size)
        if total is None and not counted:
            raise truncated(source, "its last frame is incomplete")
        if total is not None and counted > total:
            raise truncated(source, f"it has {total} of {counted} samples")
        if total is not None and counted != total:
            part.patches = patch_total(reader, total)
        parts.append(part)
    return parts


def _mp3(file, size, source):
    """MP3 files that were joined.

    A file begins at a tag or an info frame that is not the first, and where
    there are more frames than the info frame counts.
    """
    place = skip_tags(file)
    starts, buffer, at = [0], b"", place
    # Where tags between two files begin; frames that the info frame still
    # counts, and the first one that it does not
    tagged, left, over = None, None, 0
    fresh = True
    while place < size:
        if not at <= place <= at + len(buffer) - 256:
            buffer, at = _read(file, place, BLOCK), place
        head = buffer[place - at : place - at + 256]
        length = frame_size(head[:4])
        if not length:
            after = _skip_foreign(file, place, head)
            if after is None:
                break
            # A tag of the old kind ends a file, one of the new kind begins it
            if head[:3] == b"TAG":
                tagged = after
            elif head[:3] == b"ID3" and tagged is None:
                tagged = place
            place = after
            continue
        info = _info_frames(head)
        if not fresh and (tagged is not None or info):
            starts.append(place if tagged is None else tagged)
            fresh = True
        if fresh:
            left, fresh = info or None, False
        elif left is not None:
            if left == 0:
                over = place
            left -= 1
            # A few frames more are no file
            if left == -4:
                starts.append(over)
                left = None
        tagged = None
        place += length
    return _split(starts, size)


def _info_frames(head):
    """Frames that a Xing or Info frame counts after itself, 0 if it is none."""
    for at in (36, 21, 13):
        if head[at : at + 4] in (b"Xing", b"Info"):
            flags = head[at + 7 : at + 8]
            if flags and flags[0] & 1:
                return int.from_bytes(head[at + 8 : at + 12], "big")
            return 2**40
    return 2**40 if head[36:40] == b"VBRI" else 0


def counts_frames(file: BinaryIO, part: Part) -> bool:
    """Whether an info frame counts the frames of an mp3 file.

    Without one, libsndfile guesses the length from the first frame.
    """
    head = _read(file, skip_tags(file, part.start), 256)
    return 0 < _info_frames(head) < 2**40


def _skip_foreign(file, place, head):
    """Place behind tags or padding between frames, None at the end."""
    if head[:3] == b"ID3":
        after = skip_tags(file, place)
        return after if after > place else place + 1
    if head[:3] == b"TAG":
        return place + 128
    if head[:8] == b"APETAGEX" and len(head) >= 32:
        header = head[23] & 0x20
        length = int.from_bytes(head[12:16], "little")
        return place + (32 + length if header else 32)
    file.seek(place)
    data = file.read(BLOCK)
    at = 1
    while (at := data.find(b"\xff", at)) >= 0:
        length = frame_size(data[at : at + 4])
        if length and frame_size(data[at + length : at + length + 4]):
            return place + at
        at += 1
    for tag in (b"ID3", b"APETAGEX"):
        if (at := data.find(tag, 1)) > 0:
            return place + at
    return place + len(data) if len(data) == BLOCK else None


FINDERS = {"au": _au, "w64": _w64, "ogg": _ogg, "flac": _flac, "mp3": _mp3}
# First bytes of a file, too long to occur by chance, of formats of which FFmpeg
# reads the first of several joined files only
BEGINS = {
    "asf": b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c",
    "flv": rb"FLV\x01[\x00-\x05]\x00\x00\x00\x09\x00\x00\x00\x00",
    "tta": rb"TTA1[\x01\x02]\x00[\x01-\x08]\x00",
    "amr": rb"#!AMR(?:-WB)?\n",
    "matroska": rb"\x1a\x45\xdf\xa3(?:[\x80-\xfe]|\x01.{7})\x42[\x86\xf7]",
}


def check_single(file: BinaryIO, kind: Kind, source: object) -> None:
    """Refuse joined files of a kind of which FFmpeg reads only the first."""
    begin = BEGINS.get(kind.format)
    if begin is None:
        return
    if kind.format == "asf":
        begin = re.escape(begin)
    place = last = 0
    kept = b""
    file.seek(0)
    while block := file.read(BLOCK):
        data = kept + block
        for found in re.finditer(begin, data, re.DOTALL):
            last = max(last, place - len(kept) + found.start())
        place += len(block)
        kept = data[-20:]
    if last > 0:
        raise joined(source, kind)


def joined(source: object, kind: Kind) -> AudioError:
    """Make the error of several files in one."""
    return unreadable(source, f"it joins several {kind.name} files: split it")
