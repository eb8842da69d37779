"""Count the samples of a FLAC file by its last frame.

The header of a FLAC file written to a pipe does not know the number of samples.
Each frame states its place in the stream; RFC 9639 has the format.
"""

from typing import BinaryIO

__all__ = ["count_samples", "patch_total"]

SYNC = b"\xff"
LARGEST_FRAME = 2**20  # bytes searched for the last frame, and more
# Headers tried from the end: more than one only where samples look like one
MOST_HEADERS = 4


def count_samples(file: BinaryIO, size: int) -> tuple[int | None, int]:
    """Samples up to the end of the last frame, and those the header counts.

    The first is None if the file does not end with a whole frame.
    """
    file.seek(0)
    head = file.read(42)
    if len(head) < 42:
        return None, 1
    block_size = int.from_bytes(head[10:12], "big")
    counted = int.from_bytes(head[18:26], "big") & (2**36 - 1)
    for length in (2**15, LARGEST_FRAME):
        begin = max(0, size - length)
        file.seek(begin)
        data = file.read(length)
        # An ID3v1 tag may follow
        if data[-128:-125] == b"TAG":
            data = data[:-128]
        place, tried = len(data), 0
        while tried < MOST_HEADERS:
            place = data.rfind(SYNC, 0, place)
            if place < 0:
                break
            found = _frame_end(data[place : place + 20], block_size)
            if found and crc16(data[place:]) == 0:
                return found, counted
            tried += found is not None
        if begin == 0 or tried:
            break
    return None, counted


def patch_total(file: BinaryIO, total: int) -> dict[int, bytes]:
    """Replacement of the header's number of samples."""
    file.seek(18)
    old = int.from_bytes(file.read(8), "big")
    return {18: (old >> 36 << 36 | total).to_bytes(8, "big")}


def _frame_end(frame, block_size):
    """Samples up to the end of a frame, None if its header is none."""
    if len(frame) < 8 or frame[1] not in (0xF8, 0xF9):
        return None
    code, rate = frame[2] >> 4, frame[2] & 15
    if not code or rate == 15 or frame[3] >> 4 > 10 or frame[3] & 1:
        return None
    # The number is coded as in UTF-8, with up to 7 bytes
    first, at = frame[4], 5
    ones = 8 - (~first & 255).bit_length()
    if ones == 1 or ones > 7:
        return None
    number = first & (0xFF >> min(ones + 1, 8))
    for byte in frame[5 : 4 + ones] if ones else b"":
        number = number << 6 | byte & 63
        at += 1
    if code == 1:
        samples = 192
    elif code < 6:
        samples = 576 << code - 2
    elif code in (6, 7):
        width = code - 5
        samples = 1 + int.from_bytes(frame[at : at + width], "big")
        at += width
    else:
        samples = 256 << code - 8
    at += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if len(frame) <= at or crc8(frame[:at]) != frame[at]:
        return None
    # Of a stream with blocks of one size, it is the number of the frame
    return (number if frame[1] & 1 else number * block_size) + samples


def _table(polynomial, bits):
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value <<= 1
            if value >> bits:
                value ^= polynomial | 1 << bits
        table.append(value)
    return table


CRC8, CRC16 = _table(0x07, 8), _table(0x8005, 16)


def crc8(data: bytes) -> int:
    """Check sum of a frame's header."""
    value = 0
    for byte in data:
        value = CRC8[value ^ byte]
    return value


def crc16(data: bytes) -> int:
    """Check sum of a frame; 0 over a whole frame with its own sum."""
    value = 0
    for byte in data:
        value = (value << 8 & 0xFF00) ^ CRC16[value >> 8 ^ byte]
    return value
