"""Audio on standard input: raw PCM, or WAV, whose header is read as it comes."""

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import click

if TYPE_CHECKING:
    import numpy as np

HEAD = 2**13  # bytes in which another container is recognised
LARGEST_HEADER = 2**20  # bytes of chunks before the samples of a WAV
UNKNOWN_SIZE = 0x7FFFF000  # sizes from here on are those of a pipe
NAME = "standard input"
# Bytes of other containers, by their place
CONTAINERS = [
    (0, b"RIFF", "RIFF"),
    (0, b"RIFX", "WAV of big-endian samples"),
    (0, b"RF64", "RF64"),
    (0, b"FORM", "AIFF"),
    (0, b"fLaC", "FLAC"),
    (0, b"OggS", "Ogg"),
    (0, b"ID3", "MP3"),
    (0, b".snd", "AU"),
    (0, b"caff", "CAF"),
    (0, b"riff\x2e\x91\xcf\x11", "W64"),
    (4, b"ftyp", "MP4 or M4A"),
    (4, b"moov", "QuickTime"),
    (4, b"mdat", "QuickTime"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "WMA or ASF"),
    (0, b"#!AMR", "AMR"),
    (0, b"FLV\x01", "FLV"),
    (0, b"wvpk", "WavPack"),
    (0, b"MAC ", "Monkey's Audio"),
    (0, b"TTA1", "TTA"),
    (0, b"NIST_1A", "NIST Sphere"),
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
    (1, 8): Encoding("|u1", 128, 128),
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
        if self.held[:4] in (b"RIFF", b"RF64") and self.held[8:] == b"WAVE":
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
        names = [
            name
            for place, magic, name in CONTAINERS
            if self.held[place : place + len(magic)] == magic
        ]
        names += ["MP3 or AAC"] if _is_mpeg(self.held) else []
        name = names[0] if names else None
        if name is not None:
            raise click.ClickException(
                f"{name} on {NAME}; expected raw PCM of 16 bits or WAV. Decode "
                "it first: ffmpeg -i FILE -f wav - | dslstm stream"
            )

    def _read_header(self) -> None:
        """Read the chunks of a WAV up to its samples."""
        large, read, found = self.held[:4] == b"RF64", 12, False
        while True:
            head = self._read(8)
            read += len(head)
            if len(head) < 8 or read > LARGEST_HEADER:
                raise click.ClickException(f"a WAV without samples on {NAME}")
            name, size = head[:4], int.from_bytes(head[4:], "little")
            if name == b"data":
                break
            if read + size > LARGEST_HEADER:
                raise click.ClickException(f"a WAV without samples on {NAME}")
            body = self._read(size + size % 2)
            read += len(body)
            if name == b"fmt ":
                self._read_format(body)
                found = True
        if not found:
            raise click.ClickException(f"a WAV without format on {NAME}")
        self.held = b""
        # A program that writes to a pipe does not know the size
        if not large and 0 < size < UNKNOWN_SIZE:
            self.left = size

    def _read_format(self, body: bytes) -> None:
        if len(body) < 16:
            raise click.ClickException(f"a WAV with a bad format on {NAME}")
        tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
        if tag == 0xFFFE and len(body) >= 26:
            tag = int.from_bytes(body[24:26], "little")
        if (tag, bits) not in PCM or not channels:
            raise click.ClickException(
                f"a WAV of format {tag} with {bits} bits and {channels} "
                f"channels on {NAME}. Decode it first: ffmpeg -i FILE -f wav "
                "-c:a pcm_s16le - | dslstm stream"
            )
        self.encoding = PCM[tag, bits]
        self.rate, self.channels = rate, channels


def _is_mpeg(head: bytes) -> bool:
    """Whether three frames of MPEG audio or AAC follow each other.

    Their headers begin with 11 or 12 bits of 1, which raw PCM may have once by
    chance; within the next frames they come again with the same parameters.
    """
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    if head[1] == 0xFF or head[2] == 0xFF:
        return False
    # The padding bit and the bit rate may differ from frame to frame
    found = [
        place
        for place in range(len(head) - 3)
        if head[place : place + 2] == head[:2]
        and not (head[place + 2] ^ head[2]) & 0x0C
    ]
    return len(found) >= 3
