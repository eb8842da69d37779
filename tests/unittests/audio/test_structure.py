"""Joined files and headers without a length: read whole or refused."""

import struct

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_dslstm.audio import AudioError, load_audio, structure
from speechbrain_dslstm.audio.flac import count_samples
from speechbrain_dslstm.audio.structure import Part, PartReader

RATE = 16000
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "rf64": ("RF64", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "caf": ("CAF", "PCM_16"),
    "au": ("AU", "PCM_16"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def noise(seconds, seed=0):
    """Quiet noise after half a second of digital silence."""
    size = round(seconds * RATE)
    samples = 0.1 * np.random.default_rng(seed).standard_normal(size)
    samples[: RATE // 2] = 0
    return samples.astype("float32")


def write(path, seconds, seed=0, ending=None):
    """Write a file of a kind; returns its bytes."""
    form, subtype = KINDS[ending or path.suffix[1:]]
    soundfile.write(
        path, noise(seconds, seed), RATE, format=form, subtype=subtype
    )
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, request):
    """A file name of the kind under test."""
    return tmp_path / f"some.{request.param}"


@pytest.mark.parametrize("path", KINDS, indirect=True)
def test_joined_files(path):
    """``cat a b a`` is the one after the other."""
    data, wavs = [], []
    for seconds, seed in [(1.1, 0), (1.7, 1), (0.9, 2)]:
        data.append(write(path, seconds, seed))
        wavs.append(load_audio(path))
    path.write_bytes(b"".join(data))
    torch.testing.assert_close(load_audio(path), torch.cat(wavs))


@pytest.mark.parametrize("path", ["mp3"], indirect=True)
@pytest.mark.parametrize("first", [b"", b"ID3\x04\0\0\0\0\0\x7f" + bytes(127)])
@pytest.mark.parametrize("last", [b"", b"TAG" + bytes(125)])
def test_joined_mp3_files_with_tags(path, first, last):
    a = write(path, 1.1)
    one = load_audio(path)
    b = write(path, 1.7, 1)
    two = load_audio(path)
    path.write_bytes(first + a + last + first + b + last)
    torch.testing.assert_close(load_audio(path), torch.cat([one, two]))


def without_info(data):
    """An mp3 file without its first frame, which counts the others."""
    assert structure._info_frames(data[:256])
    return data[structure.frame_size(data[:4]) :]


@pytest.mark.parametrize("path", ["mp3"], indirect=True)
def test_joined_mp3_files_of_which_one_counts_its_frames(path):
    a, b = write(path, 1.1), write(path, 1.7, 1)
    for data in (a + without_info(b), without_info(a) + b):
        path.write_bytes(data)
        assert load_audio(path).numel() / RATE == pytest.approx(2.8, abs=0.15)


@pytest.mark.parametrize("path", ["wav", "flac", "ogg", "mp3"], indirect=True)
def test_joined_files_of_other_rates(path):
    a = write(path, 1.1)
    form, subtype = KINDS[path.suffix[1:]]
    soundfile.write(path, noise(1), 44100, format=form, subtype=subtype)
    path.write_bytes(a + path.read_bytes())
    with pytest.raises(AudioError, match="it joins recordings of 16000 Hz, 1"):
        load_audio(path)


def data_size(data, size):
    """A file with another size in the header of its samples."""
    if data[:4] == b".snd":
        return data[:8] + struct.pack(">I", size) + data[12:]
    name, form, width = {
        b"RIFF": (b"data", "<I", 4),
        b"FORM": (b"SSND", ">I", 4),
        b"caff": (b"data", ">q", 8),
        b"RF64": (b"ds64", "<Q", 8),
    }[data[:4]]
    place = data.index(name) + (16 if name == b"ds64" else 4)
    if form == ">q" and size == 2**32 - 1:
        size = -1
    return data[:place] + struct.pack(form, size) + data[place + width :]


@pytest.mark.parametrize(
    "path", ["wav", "aiff", "caf", "au", "rf64"], indirect=True
)
@pytest.mark.parametrize("size", [0, 2**32 - 1])
def test_a_file_that_was_never_closed(path, size):
    if (path.suffix, size) == (".rf64", 2**32 - 1):
        pytest.skip("RF64 has a length of 64 bits: this is a cut file")
    data = write(path, 1.7)
    expected = load_audio(path)
    path.write_bytes(data_size(data, size))
    torch.testing.assert_close(load_audio(path)[: len(expected)], expected)


@pytest.mark.parametrize("path", ["wav", "aiff", "caf", "au"], indirect=True)
@pytest.mark.parametrize("size", [200, 20000])
def test_a_header_that_counts_too_few(path, size):
    data = write(path, 1.7)
    path.write_bytes(data_size(data, size))
    with pytest.raises(AudioError, match=f"its header counts {size} of"):
        load_audio(path)


@pytest.mark.parametrize(
    "rest",
    [
        b"LIST" + struct.pack("<I", 2000) + bytes(2000),
        b"ID3\x04\0\0\0\0\x10\0" + bytes(range(256)) * 9,
        b"TAG" + bytes(2000),
        bytes(5000),
        b"\x01\x02\x03",
    ],
)
@pytest.mark.parametrize("samples", [0, 16000])
def test_what_may_follow_the_samples(rest, samples, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(1)[:samples], RATE)
    path.write_bytes(path.read_bytes() + rest)
    if samples:
        assert len(load_audio(path)) == samples
    elif rest[:1] in b"LIT":
        with pytest.raises(AudioError, match="no audio samples"):
            load_audio(path)


def with_total(data, total):
    """A flac file whose header counts so many samples."""
    info = int.from_bytes(data[18:26], "big") >> 36 << 36 | total
    return data[:18] + info.to_bytes(8, "big") + data[26:]


@pytest.mark.parametrize("path", ["flac"], indirect=True)
@pytest.mark.parametrize("seconds", [0.1, 1.0, 1.7, 40.0])
@pytest.mark.parametrize("counted", [0, 100])
def test_a_flac_file_without_its_length(path, seconds, counted):
    data = write(path, seconds)
    with open(path, "rb") as file:
        total = round(seconds * RATE)
        assert count_samples(file, len(data)) == (total, total)
    expected = load_audio(path)
    for rest in (b"", b"TAG" + bytes(125)):
        path.write_bytes(with_total(data, counted) + rest)
        assert torch.equal(load_audio(path), expected)
    # Cut within the last frame
    path.write_bytes(with_total(data, 0)[:-20])
    with pytest.raises(AudioError, match="is cut off: its last frame"):
        load_audio(path)
    path.write_bytes(with_total(data, total + 2000))
    with pytest.raises(AudioError, match=f"{total} of {total + 2000} samples"):
        load_audio(path)


def pages(data):
    """First bytes of the pages of an Ogg file."""
    places, place = [], 0
    while place < len(data):
        places.append(place)
        count = data[place + 26]
        place += 27 + count + sum(data[place + 27 : place + 27 + count])
    return places


@pytest.mark.parametrize("path", ["ogg", "opus"], indirect=True)
def test_an_ogg_file_that_was_never_closed(path):
    data = write(path, 8.0)
    *_, before, last = pages(data)
    path.write_bytes(data[:last])
    held = load_audio(path)
    assert len(held) > RATE
    # In the middle of a page
    for place in (before + 40, last + 20, len(data) - 1):
        path.write_bytes(data[:place])
        with pytest.raises(AudioError, match="its last page is incomplete"):
            load_audio(path)
    path.write_bytes(data[:before] + b"1234" + data[before + 4 :])
    with pytest.raises(AudioError, match=f"damaged at byte {before}"):
        load_audio(path)


def test_a_part_with_a_patch(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(100)))
    expected = bytearray(range(10, 60))
    expected[20:24] = b"abcd"
    with open(path, "rb") as file:
        reader = PartReader(file, Part(10, 50, {20: b"abcd"}))
        for size in (1, 3, 7, 50):
            reader.seek(0)
            read = b"".join(iter(lambda n=size: reader.read(n), b""))
            assert read == expected
        buffer = bytearray(30)
        reader.seek(-10, 2)
        assert reader.readinto(buffer) == 10 and reader.tell() == 50


def test_an_error_of_the_file_is_not_swallowed(tmp_path):
    """libsndfile takes it for the end of the file."""
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(60), RATE)

    class Breaks:
        def __init__(self):
            self.file = open(path, "rb")  # noqa: SIM115
            self.seek, self.tell = self.file.seek, self.file.tell
            self.seekable = lambda: True

        def read(self, size=-1):
            if self.file.tell() > 10**6:
                raise OSError("the line is dead")
            return self.file.read(size)

    with pytest.raises(AudioError, match="the line is dead"):
        load_audio(Breaks())
