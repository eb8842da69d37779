"""Whatever Python hands over is the same waveform, or one clear error."""

import io
import os
import tempfile

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_dslstm.audio import AudioError, load_audio

RATE = 16000
WAV = (0.1 * np.random.default_rng(0).standard_normal(RATE)).astype("float32")
STEREO = np.stack([WAV, WAV / 2], 1)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """The waveform as a file."""
    path = tmp_path_factory.mktemp("inputs") / "a.wav"
    soundfile.write(path, WAV, RATE, "FLOAT")
    return path


class Pipe(io.RawIOBase):
    """A stream that cannot seek, and hands over a little at a time."""

    def __init__(self, data):
        self.data, self.place = data, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        piece = self.data[self.place : self.place + min(999, len(buffer))]
        buffer[: len(piece)] = piece
        self.place += len(piece)
        return len(piece)


class OnlyRead:
    """An object with nothing but ``read``."""

    def __init__(self, data):
        self.file = io.BytesIO(data)

    def read(self, size=-1):
        return self.file.read(size)


@pytest.mark.parametrize(
    "make",
    [
        str,
        os.fspath,
        lambda path: path.read_bytes(),
        lambda path: bytearray(path.read_bytes()),
        lambda path: memoryview(path.read_bytes()),
        lambda path: io.BytesIO(path.read_bytes()),
        lambda path: open(path, "rb"),
        lambda path: open(path, "rb", buffering=0),
        lambda path: Pipe(path.read_bytes()),
        lambda path: OnlyRead(path.read_bytes()),
    ],
)
def test_files(make, path):
    given = make(path)
    np.testing.assert_array_equal(load_audio(given), WAV)
    if hasattr(given, "close"):
        given.close()


def test_a_file_object_is_read_from_its_beginning_and_left_as_it_was(path):
    with open(path, "rb") as file:
        for position in (0, 100, os.path.getsize(path)):
            file.seek(position)
            np.testing.assert_array_equal(load_audio(file), WAV)
            assert file.tell() == position and not file.closed


FULL = {"int8": 127, "int16": 2**15 - 1, "int32": 2**31 - 1}


@pytest.mark.parametrize("kind", [*FULL, "uint8"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_integers_are_scaled(kind, as_tensor):
    full = FULL.get(kind, 127)
    samples = np.round(WAV.astype("float64") * full)
    samples = (samples + (128 if kind == "uint8" else 0)).astype(kind)
    given = torch.from_numpy(samples) if as_tensor else samples
    found = load_audio((given, RATE))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, WAV, atol=1.01 / full)


@pytest.mark.parametrize(
    "given",
    [
        WAV,
        WAV.astype("float64"),
        WAV[::-1][::-1],
        torch.from_numpy(WAV).double(),
        torch.from_numpy(WAV).requires_grad_(),
        WAV[:, None],
        WAV[None],
        STEREO[:, :1],
        np.asfortranarray(STEREO)[:, 0],
    ],
)
def test_arrays(given):
    np.testing.assert_array_equal(load_audio((given, RATE)), WAV)
    np.testing.assert_array_equal(load_audio(given, input_rate=RATE), WAV)
    np.testing.assert_array_equal(
        load_audio((given, np.int64(RATE)), channel=0), WAV
    )


@pytest.mark.parametrize("given", [STEREO, STEREO.T, torch.from_numpy(STEREO)])
def test_channels_before_or_after_the_samples(given):
    found = load_audio((given, RATE), channel="each")
    np.testing.assert_array_equal(found, STEREO.T)


def test_an_array_of_another_rate(path):
    half = load_audio(path, sample_rate=8000)
    found = load_audio((half.numpy(), 8000), sample_rate=RATE)
    assert len(found) == len(WAV)
    assert load_audio((WAV, 16000.0)).shape == (RATE,)


def test_half_precision():
    found = load_audio((torch.from_numpy(WAV).half(), RATE))
    np.testing.assert_allclose(found, WAV, atol=1e-3)
    found = load_audio((torch.from_numpy(WAV).bfloat16(), RATE))
    np.testing.assert_allclose(found, WAV, atol=1e-2)


def error_of(given, **options):
    """The one line of an error."""
    with pytest.raises(AudioError) as caught:
        load_audio(given, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (np.float32(0.1), "expected a path"),
        (np.array(0.1, "f4"), "the shape []"),
        (np.zeros(0), "no audio samples in the array"),
        (np.zeros((0, 2)), "no audio samples in the array"),
        (np.zeros((1, 2, 3)), "the shape [1, 2, 3]"),
        (np.zeros((9, 16000)), "classify_batch takes several"),
        (np.zeros((16000, 9)), "cannot tell samples from channels"),
        (np.zeros((8, 100)), "cannot tell samples from channels"),
        (np.zeros((2, 2)), "cannot tell samples from channels"),
        (WAV.astype(complex), "complex128"),
        (torch.from_numpy(WAV).to(torch.complex64), "complex64"),
        (WAV.astype(object), "object"),
        (WAV > 0, "got bool"),
        (WAV.astype("int64"), "int64"),
        (np.array(["a"]), "<U1"),
        (WAV * np.nan, "NaN or infinite samples in the array"),
        (WAV * 1e300, "NaN or infinite samples in the array"),
        (WAV * 1e9, "samples up to"),
    ],
)
def test_wrong_arrays(given, match):
    whole = isinstance(given, np.ndarray | torch.Tensor)
    assert match in error_of((given, RATE) if whole else given)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (WAV, "the array has no sample rate"),
        ((RATE, WAV), "(rate, samples): give (samples, rate)"),
        ((WAV, WAV), "got an array"),
        ((WAV, RATE, 1), "expected (samples, rate)"),
        (("a.wav", RATE), "expected (samples, rate)"),
        ((), "expected (samples, rate)"),
        ((WAV, 0), "a sample rate of 0 Hz"),
        ((WAV, -16000), "a sample rate of -16000 Hz"),
        ((WAV, 16000.5), "expected a whole number"),
        ((WAV, float("nan")), "a sample rate of nan Hz"),
        ((WAV, "16000"), "got a str"),
        ((WAV, True), "got a bool"),
        ((WAV, None), "has no sample rate"),
        (None, "got None"),
        (16000, "got a int"),
        ([0.1] * 16000, "got a list"),
        (b"", "cannot read audio from the 0 bytes given"),
        (b"no audio", "cannot read audio from the 8 bytes given"),
        (io.StringIO("text"), 'with mode "rb"'),
        (io.BytesIO(), "cannot read audio from the file object"),
    ],
)
def test_wrong_inputs(given, match):
    assert match in error_of(given)


def test_more_wrong_inputs(path):
    assert "two sample rates" in error_of((WAV, RATE), input_rate=8000)
    assert "a file states its own" in error_of(path, input_rate=RATE)
    assert "os.fsdecode(path)" in error_of(os.fsencode(path))
    with tempfile.TemporaryFile("w+") as file:
        assert 'with mode "rb"' in error_of(file)
    closed = io.BytesIO(b"")
    closed.close()
    assert "closed file" in error_of(closed)

    class Upload:
        async def read(self, size=-1):
            return b""

    assert "got a coroutine" in error_of(Upload())


def test_limits_hold_for_arrays():
    assert "longer than 0.5 s" in error_of((WAV, RATE), longest=0.5)
    assert len(load_audio((WAV, RATE), longest=1.0)) == RATE
