"""Audio on standard input: raw PCM, or WAV, whose header is read as it comes."""

import io
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import click

if TYPE_CHECKING:
    import numpy as np

HEAD = 2**13  # bytes in which another container is recognised
LARGEST_HEADER = 2**26  # bytes of chunks before the samples of a WAV
UNKNOWN_SIZE = 0x7FFFF000  # sizes from here on are those of a pipe
NAME = "standard input"
RIFF = (b"RIFF", b"RF64", b"BW64")  # a WAV begins so, the last two with ds64
# First bytes of files that ``audio.kinds`` does not know or tells by more bytes
OTHERS = [
    (b"RIFF", "RIFF"),
    (b"RF64", "RF64"),
    (b"BW64", "BW64"),
    (b"RIFX", "WAV of big-endian samples"),
    (b"FORM", "AIFF or IFF"),
    (b"NIST_1A", "NIST Sphere"),
    (b"Creative Voice File", "VOC"),
    (b"#!SILK_V3", "SILK"),
    (b"\x02#!SILK_V3", "SILK"),
    (b".RMF", "RealMedia"),
    (b".ra\xfd", "RealAudio"),
    (b"MPCK", "Musepack"),
    (b"DSD ", "DSF"),
    (b"FRM8", "DSDIFF"),
    (b"ajkg", "Shorten"),
    (b"MThd", "MIDI"),
    (b"#EXTM3U", "a playlist"),
    (b"PK\x03\x04", "ZIP"),
    (b"\x1f\x8b\x08", "gzip"),
    (b"\x89PNG", "PNG"),
    (b"%PDF", "PDF"),
]


class Encoding(NamedTuple):
    """How samples are stored: the NumPy type, its offset and its full scale."""

    dtype: str
    offset: float = 0.0
    scale: float = 1.0

    def decode(self, data: bytes) -> "np.ndarray":
        """Samples in [-1, 1], float32."""
        import numpy as np

        if self.dtype == "<i3":
            parts = np.frombuffer(data, np.uint8).reshape(-1, 3)
            wide = np.zeros((len(parts), 4), np.uint8)
            wide[:, 1:] = parts
            samples = wide.view("<i4").ravel() / (self.scale * 256)
        else:
            samples = np.frombuffer(data, self.dtype) - self.offset
            samples = samples / self.scale
        return samples.astype(np.float32)

    @property
    def size(self) -> int:
        """Bytes of a sample."""
        return int(self.dtype[-1])


PCM = {
    (1, 8): Encoding("|u1", 128.0, 128),
    (1, 16): Encoding("<i2", 0, 2**15),
    (1, 24): Encoding("<i3", 0, 2**23),
    (1, 32): Encoding("<i4", 0, 2**31),
    (3, 32): Encoding("<f4"),
    (3, 64): Encoding("<f8"),
}


class RawAudio:
    """Reads standard input as blocks of samples.

    ``rate`` and ``channels`` are those of the options, for raw PCM of 16 bits,
    or of the WAV header, if there is one. Another container is refused.
    """

    def __init__(self, file: BinaryIO, rate: int, channels: int) -> None:
        self.file, self.rate, self.channels = file, rate, channels
        self.encoding = PCM[1, 16]
        # Bytes of samples that the header of a WAV counts
        self.left = None
        self.held = self._read(12)
        if self.held[:4] in RIFF and self.held[8:] == b"WAVE":
            self._read_header()
            return
        self.held += self._read(HEAD - 12, least=4096 - 12)
        self._refuse_containers()

    def blocks(self, seconds: float) -> Iterator["np.ndarray"]:
        """Yield float32 [samples, channels] of that length, as they arrive.

        Bytes at the end that are no whole sample are left out.
        """
        import torch

        from speechbrain_dslstm.audio.checks import check_samples

        frame = self.encoding.size * self.channels
        wanted = frame * max(1, round(seconds * self.rate))
        left = self.left
        while True:
            # The first bytes may be more than a block
            size = max(0, wanted - len(self.held))
            size = size if left is None else min(size, left)
            new = self._read(size)
            left = None if left is None else left - len(new)
            data, self.held = self.held + new, b""
            whole = len(data) // frame * frame
            block = self.encoding.decode(data[:whole])
            check_samples(torch.from_numpy(block), where=NAME)
            if whole:
                yield block.reshape(-1, self.channels)
            self.held = data[whole:] if len(new) == size else b""
            if len(new) < size or left == 0:
                break
        if left:
            raise click.ClickException(
                f"the WAV on {NAME} is cut off: it has {self.left - left} of "
                f"{self.left} bytes"
            )
        if left == 0:
            self._check_end()

    def _check_end(self) -> None:
        """Refuse samples behind those that the header of a WAV counts."""
        odd = self.left % 2
        rest = self._read(8 + odd)
        # The byte after an odd size is often left out
        names = [rest[place : place + 4] for place in {0, odd}]
        if any(name in RIFF for name in names):
            raise click.ClickException(
                f"{NAME} joins several WAV files: pipe one at a time"
            )
        chunk = any(all(32 <= byte < 127 for byte in name) for name in names)
        if len(rest) == 8 + odd and any(rest) and not chunk:
            raise click.ClickException(
                f"the WAV on {NAME} goes on behind the {self.left} bytes that "
                "its header counts"
            )

    def _read(self, size: int, least: int | None = None) -> bytes:
        """Read so many bytes, or fewer at the end."""
        data = b""
        while len(data) < (size if least is None else least):
            part = self.file.read(size - len(data))
            if not part:
                break
            data += part
        return data

    def _refuse_containers(self) -> None:
        name = _name_container(self.held)
        if name is not None:
            raise click.ClickException(
                f"{name} on {NAME}; expected raw PCM of 16 bits or WAV. Decode "
                "it first: ffmpeg -i FILE -f wav - | dslstm stream"
            )

    def _read_header(self) -> None:
        """Read the chunks of a WAV up to its samples."""
        large, read, found = None, 12, False
        while True:
            head = self._read(8)
            read += len(head)
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if len(head) < 8:
                raise click.ClickException(f"a WAV without samples on {NAME}")
            if name == b"data":
                break
            if read + size > LARGEST_HEADER:
                raise click.ClickException(
                    f"the WAV on {NAME} has more than {LARGEST_HEADER} bytes "
                    "before its samples"
                )
            body = self._read(size + size % 2)
            read += len(body)
            if name == b"fmt ":
                self._read_format(body)
                found = True
            elif name == b"ds64":
                large = int.from_bytes(body[8:16], "little")
        if not found:
            raise click.ClickException(f"a WAV without format on {NAME}")
        self.held = b""
        if large is not None and size == 2**32 - 1:
            self.left = large or None
        # A program that writes to a pipe does not know the size
        elif 0 < size < UNKNOWN_SIZE:
            self.left = size

    def _read_format(self, body: bytes) -> None:
        if len(body) < 16:
            raise click.ClickException(f"a WAV with a bad format on {NAME}")
        from speechbrain_dslstm.audio.checks import check_rate

        tag, channels, rate, _, frame, bits = struct.unpack(
            "<HHIIHH", body[:16]
        )
        if tag == 0xFFFE and len(body) >= 26:
            tag = int.from_bytes(body[24:26], "little")
        if (tag, bits) not in PCM or not channels:
            raise click.ClickException(
                f"a WAV of format {tag} with {bits} bits and {channels} "
                f"channels on {NAME}. Decode it first: ffmpeg -i FILE -f wav "
                "-c:a pcm_s16le - | dslstm stream"
            )
        self.encoding = PCM[tag, bits]
        if frame not in (0, self.encoding.size * channels):
            raise click.ClickException(
                f"a WAV on {NAME} with {frame} bytes for {channels} samples of "
                f"{bits} bits; expected {self.encoding.size * channels}"
            )
        check_rate(rate, NAME)
        self.rate, self.channels = rate, channels


def _name_container(head: bytes) -> str | None:
    """Name of a container by its first bytes, None for raw samples."""
    from speechbrain_dslstm.audio.kinds import find_frames, recognise, skip_tags

    # A constant signal may repeat the sync byte of any stream
    if len(head) > 16 and head[8:] == head[:-8]:
        return None
    file = io.BytesIO(head)
    kind = recognise(file)
    if kind is not None:
        return kind.name
    # A tag may be longer than the bytes that were read
    if skip_tags(file):
        return "MP3"
    for magic, name in OTHERS:
        if head.startswith(magic):
            return name
    # A broadcast does not begin with a whole frame
    return None if find_frames(head) is None else "MP3"
