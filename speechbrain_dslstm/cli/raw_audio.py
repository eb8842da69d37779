"""Audio on standard input: raw PCM, or WAV, whose header is read as it comes."""

import io
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
# Containers by their first bytes alone; raw PCM may begin with the two bytes
# by which AC-3 is recognised
RIFF = b"RIFF", b"RIFX", b"RF64", b"FORM", b"ID3"
WEAK = ("AC-3",)


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
        from speechbrain_dslstm.audio.kinds import recognise

        kind = recognise(io.BytesIO(self.held))
        name = kind.name if kind else None
        if name in WEAK:
            name = None
        if name is None and self.held.startswith(RIFF):
            name = self.held[:4].decode("ascii", "replace").strip()
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
