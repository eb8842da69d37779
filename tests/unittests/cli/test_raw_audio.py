"""Samples, headers and containers on standard input, without a model."""

import io
import struct

import click
import numpy as np
import pytest
import soundfile

from speechbrain_dslstm.audio.checks import AudioError
from speechbrain_dslstm.cli.raw_audio import RawAudio

RATE = 16000


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(0).integers(-9000, 9000, 9001).astype("<i2")


def read(data):
    """All samples of a stream, [samples]."""
    audio = RawAudio(io.BytesIO(data), RATE, 1)
    return np.concatenate([block[:, 0] for block in audio.blocks(0.1)])


def wav(data, head=b"RIFF", size=None, chunks=b"", bits=16, frame=2, rate=RATE):
    """A WAV with such fields in its header."""
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * frame, frame, bits)
    size = len(data) if size is None else size
    return (
        head
        + b"\xff\xff\xff\xffWAVE"
        + chunks
        + b"fmt \x10\0\0\0"
        + form
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def ds64(size):
    return b"ds64" + struct.pack("<IQQQI", 28, size + 72, size, 0, 0)


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]
)
def test_samples_equal_those_of_libsndfile(subtype, samples):
    file = io.BytesIO()
    soundfile.write(file, samples / 2**15, RATE, format="WAV", subtype=subtype)
    file.seek(0)
    expected, _ = soundfile.read(file, dtype="float32")
    np.testing.assert_array_equal(read(file.getvalue()), expected)


@pytest.mark.parametrize("head", [b"RF64", b"BW64"])
def test_sizes_of_large_files(head, samples):
    data = samples.tobytes()
    options = {"head": head, "size": 2**32 - 1, "chunks": ds64(len(data))}
    whole = wav(data, **options)
    for tail in (b"", b"LIST\x04\0\0\0abcd"):
        np.testing.assert_array_equal(read(whole + tail), samples / 2**15)
    with pytest.raises(click.ClickException, match="has 18000 of 18002 bytes"):
        read(whole[:-2])
    live = wav(data, head=head, size=2**32 - 1, chunks=ds64(0))
    np.testing.assert_array_equal(read(live), samples / 2**15)


def test_chunks_before_the_samples(samples):
    """A picture of megabytes is skipped, and nothing is read without end."""
    picture = b"id3 " + struct.pack("<I", 3 * 2**20) + bytes(3 * 2**20)
    data = wav(samples.tobytes(), chunks=picture)
    np.testing.assert_array_equal(read(data), samples / 2**15)
    endless = b"id3 " + struct.pack("<I", 2**31)
    with pytest.raises(click.ClickException, match="bytes before its samples"):
        read(wav(samples.tobytes(), chunks=endless))


def test_more_samples_than_the_header_counts(samples):
    """Never the first part alone."""
    data = samples.tobytes()
    with pytest.raises(click.ClickException, match="the 8000 bytes that"):
        read(wav(data, size=8000))
    with pytest.raises(click.ClickException, match="joins several"):
        read(wav(data) * 2)
    # Padding at the end
    np.testing.assert_array_equal(read(wav(data) + bytes(512)), samples / 2**15)


@pytest.mark.parametrize("rate", [0, 1, 2**32 - 1])
def test_rates_of_no_recording(rate, samples):
    with pytest.raises(AudioError, match=f"a sample rate of {rate} Hz"):
        form = wav(samples.tobytes(), rate=RATE)
        place = form.index(b"fmt ") + 12
        read(form[:place] + struct.pack("<I", rate) + form[place + 4 :])


def test_24_bits_in_4_bytes_are_refused(samples):
    wide = samples.astype("<i4").tobytes()
    with pytest.raises(click.ClickException, match="expected 3"):
        read(wav(wide, bits=24, frame=4))


def noise(head):
    return head + np.random.default_rng(1).bytes(9000)


def packets(size, head):
    """Packets of an MPEG stream."""
    return b"".join(noise(head)[:size] for _ in range(50))


FRAME = b"\xff\xfb\x90\x00"  # 128 kbit/s at 44.1 kHz: 417 bytes


@pytest.mark.parametrize(
    "data",
    [
        noise(b"Creative Voice File\x1a"),
        noise(b"FORM\0\0\1\08SVX"),
        noise(b"\x02#!SILK_V3"),
        noise(b"\0\0\0\x18stypmsdh"),
        noise(b"\0\0\0\x18moof"),
        noise(b"\x89PNG\r\n"),
        noise(b"PK\x03\x04"),
        packets(188, b"\x47\x40\x11\x10"),
        packets(192, b"\0\0\0\0\x47\x40\x11\x10"),
        packets(768, b"\x0b\x77\xab\xcd\x14\x40"),
        # The end of a frame first, as in a broadcast
        noise(b"")[:100] + packets(417, FRAME),
        b"ID3\x04\0\0\0\x7f\x7f\x7f" + bytes(9000),
        b"RIFF",
    ],
)
def test_containers_are_refused(data):
    with pytest.raises(click.ClickException, match="on standard input"):
        read(data)


@pytest.mark.parametrize(
    "head",
    [
        b"\x0b\x77",
        b"ID3\xff\0\0\1\1\1\1",
        b"\xff\xfb",
        b"\x47\x10" * 5000,
        b"\xff\xfb\x90\x00" * 3000,
        b"\0\0\x01",
    ],
)
def test_samples_that_begin_like_a_container(head, samples):
    data = head + bytes(len(head) % 2) + samples.tobytes()
    expected = np.frombuffer(data, "<i2") / 2**15
    np.testing.assert_array_equal(read(data), expected)
