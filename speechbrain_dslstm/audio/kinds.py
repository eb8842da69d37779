"""Kinds of audio files: their first bytes, their endings, and their decoder."""

from importlib.util import find_spec
from typing import BinaryIO, NamedTuple

__all__ = [
    "ENDINGS",
    "MEDIA_ENDINGS",
    "Kind",
    "find_frames",
    "has_ffmpeg",
    "recognise",
]

# Read by libsndfile
ENDINGS = set(
    """
    .wav .wave .bwf .rf64 .w64 .flac .fla .ogg .oga .opus .mp3 .mp2 .aiff .aif
    .aifc .au .snd .caf .sph .nist .voc .wve .ircam .avr .htk .8svx .svx .paf
    .pvf .sds
    """.split()
)
# Read by FFmpeg
MEDIA_ENDINGS = set(
    """
    .m4a .m4b .m4r .mp4 .m4v .mov .qt .3gp .3g2 .aac .webm .weba .mka .mkv .amr
    .awb .wma .wmv .asf .avi .flv .f4v .f4a .ac3 .eac3 .spx .ogv .ogm .wv .ape
    .tta .mpg .mpeg .mpga .m2ts .mts
    """.split()
)
REMEDY = 'pip install "speechbrain-dslstm[media]"'


class Kind(NamedTuple):
    """A kind of file: its name, FFmpeg's format, and whether libsndfile reads it."""

    name: str
    format: str
    sndfile: bool = False


# Place and bytes of the beginning of a file
KINDS = [
    (0, b"fLaC", Kind("FLAC", "flac", True)),
    (0, b"OggS", Kind("Ogg", "ogg", True)),
    (0, b".snd", Kind("AU", "au", True)),
    (0, b"caff", Kind("CAF", "caf", True)),
    (0, b"riff\x2e\x91\xcf\x11", Kind("W64", "w64", True)),
    (8, b"WAVE", Kind("WAV", "wav", True)),
    (8, b"AIFF", Kind("AIFF", "aiff", True)),
    (8, b"AIFC", Kind("AIFF", "aiff", True)),
    (8, b"AVI ", Kind("AVI", "avi")),
    (4, b"ftyp", Kind("MP4 or M4A", "mov")),
    (4, b"moov", Kind("QuickTime", "mov")),
    (4, b"mdat", Kind("QuickTime", "mov")),
    (4, b"wide", Kind("QuickTime", "mov")),
    (4, b"skip", Kind("QuickTime", "mov")),
    (4, b"free", Kind("QuickTime", "mov")),
    (4, b"styp", Kind("MP4 or M4A", "mov")),
    (4, b"moof", Kind("MP4 or M4A", "mov")),
    (4, b"sidx", Kind("MP4 or M4A", "mov")),
    (0, b"\x1a\x45\xdf\xa3", Kind("WebM or Matroska", "matroska")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("WMA or ASF", "asf")),
    (0, b"#!AMR", Kind("AMR", "amr")),
    (0, b"FLV\x01", Kind("FLV", "flv")),
    (0, b"wvpk", Kind("WavPack", "wv")),
    (0, b"MAC ", Kind("Monkey's Audio", "ape")),
    (0, b"TTA1", Kind("TTA", "tta")),
    (0, b"\x00\x00\x01\xba", Kind("MPEG", "mpeg")),
]
MP3 = Kind("MP3", "mp3", True)
AAC = Kind("AAC", "aac")
STREAM = Kind("MPEG stream", "mpegts")
AC3 = b"\x0b\x77"  # first bytes of a frame
LARGEST_AC3 = 3840  # bytes of a frame


def has_ffmpeg() -> bool:
    """Whether PyAV is installed, whose wheels carry FFmpeg."""
    return find_spec("av") is not None


def skip_tags(file: BinaryIO, start: int = 0) -> int:
    """Position after the ID3v2 tags at ``start``, where the audio begins."""
    while True:
        file.seek(start)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3" or max(head[6:10]) > 127:
            return start
        if 255 in head[3:5]:
            return start
        size = 0
        for byte in head[6:10]:
            size = size << 7 | byte
        start += 10 + size + (10 if head[5] & 16 else 0)


def recognise(file: BinaryIO) -> Kind | None:
    """Kind of an open file by its content, None if it is unknown."""
    start = skip_tags(file)
    file.seek(start)
    head = file.read(2**13)
    for place, magic, kind in KINDS:
        if head[place : place + len(magic)] == magic:
            if place != 8 or head[:4] in (b"RIFF", b"RF64", b"RIFX", b"FORM"):
                return kind
    if head[:4] == b"BW64" and head[8:12] == b"WAVE":
        return Kind("BW64", "wav")
    if _is_transport(head) or _is_transport(head[4:], 192):
        return STREAM
    if head[:2] == AC3 and _is_ac3(head):
        new = len(head) > 5 and head[5] >> 3 > 10
        return Kind("AC-3", "eac3" if new else "ac3")
    if head[0:1] == b"\xff" and _is_adts(head):
        return AAC
    # Two frames in a row, as one may occur by chance
    size = frame_size(head[:4])
    if size and (frame_size(head[size : size + 4]) or len(head) <= size + 4):
        return MP3
    return None


def _is_transport(head, size=188):
    """Whether packets of an MPEG stream follow each other."""
    packets = [head[k : k + 4] for k in range(0, len(head) - 3, size)]
    # Two bits of each packet say what it holds
    return len(packets) > 2 and all(x[0] == 71 and x[3] & 48 for x in packets)


def _is_ac3(head):
    """Whether a second frame follows; two bytes alone may be a sample."""
    place = head.find(AC3, 64)
    while place > 0:
        # Of the same size, but for a bit, and the same version
        if head[place + 4 : place + 5] and not (head[place + 4] ^ head[4]) & ~1:
            return head[place + 5 : place + 6] == head[5:6]
        place = head.find(AC3, place + 1)
    return len(head) < LARGEST_AC3


def find_frames(head: bytes, count: int = 4) -> int | None:
    """Place of the first of some MPEG audio frames in a row, None without any."""
    first = head.find(b"\xff")
    while first >= 0:
        place, found = first, 0
        while found < count and (size := frame_size(head[place : place + 4])):
            # Version, layer and rate are those of the first
            if head[place + 1] != head[first + 1]:
                break
            place, found = place + size, found + 1
        if found == count:
            return first
        first = head.find(b"\xff", first + 1)
    return None


def _is_adts(head):
    """Whether two AAC frames follow each other."""
    if len(head) < 7 or head[1] & 0xF6 != 0xF0:
        return False
    size = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    after = head[size : size + 2]
    return size > 7 and (after == head[:2] or len(head) <= size)


BITRATES = {
    (1, 1): [0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
    (1, 2): [0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
    (1, 3): [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
    (2, 1): [0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
    (2, 2): [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
}  # fmt: skip
BITRATES[2, 3] = BITRATES[2, 2]


def frame_size(head: bytes) -> int:
    """Bytes of the MPEG audio frame with this header of 4 bytes, 0 if it is none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return 0
    old = 1 if version == 3 else 2
    kbits = BITRATES[old, layer][bitrate]
    hertz = (44100, 48000, 32000)[rate] // (1, 2, 4)[[3, 2, 0].index(version)]
    padding = head[2] >> 1 & 1
    if layer == 1:
        return (12000 * kbits // hertz + padding) * 4
    samples = 576 if layer == 3 and old == 2 else 1152
    return samples // 8 * 1000 * kbits // hertz + padding
