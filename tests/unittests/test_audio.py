"""Audio files of every kind -> the same tone at the rate of the model."""

import math

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_dslstm.audio import AudioError, load_audio, read_blocks

SECONDS = 0.3


def tone(rate, level=0.5):
    """A tone of 440 Hz."""
    time = np.arange(round(SECONDS * rate)) / rate
    return level * np.sin(2 * math.pi * 440 * time)


def assert_tone(wav, rate=16000, level=0.5, tolerance=1e-3):
    """The middle of a tone: at its ends a resampling filter sees the edge."""
    expected = torch.from_numpy(tone(rate, level)).float()
    assert wav.dtype == torch.float32 and wav.dim() == 1
    assert abs(len(wav) - len(expected)) <= 1
    middle = slice(rate // 20, -rate // 20)
    torch.testing.assert_close(
        wav[: len(expected)][middle],
        expected[: len(wav)][middle],
        atol=tolerance,
        rtol=0,
    )


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_every_rate(tmp_path, ending, rate):
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, tone(rate), rate)
    wav = load_audio(path)
    assert len(wav) == math.ceil(SECONDS * 16000)
    assert_tone(wav)
    torch.testing.assert_close(load_audio(str(path)), wav, atol=0, rtol=0)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
@pytest.mark.parametrize(
    ("ending", "tolerance"), [("ogg", 0.05), ("mp3", 0.05)]
)
def test_lossy_formats(tmp_path, ending, tolerance, rate):
    path = tmp_path / f"tone.{ending}"
    soundfile.write(path, tone(rate), rate)
    assert_tone(load_audio(path), tolerance=tolerance)


@pytest.mark.parametrize(
    ("subtype", "tolerance"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 1e-6),
        ("PCM_32", 1e-6),
        ("FLOAT", 1e-6),
        ("DOUBLE", 1e-6),
    ],
)
def test_every_sample_format(tmp_path, subtype, tolerance):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(16000), 16000, subtype=subtype)
    assert_tone(load_audio(path), tolerance=tolerance)


def test_another_rate_of_the_model(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(16000), 16000)
    assert_tone(load_audio(path, sample_rate=8000), rate=8000)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_channels_are_averaged(tmp_path, rate):
    path = tmp_path / "stereo.wav"
    left = tone(rate)
    soundfile.write(path, np.stack([left, 0 * left], axis=1), rate)
    assert_tone(load_audio(path), level=0.25)
    soundfile.write(path, np.stack([left, -left], axis=1), rate)
    assert load_audio(path).abs().max() < 1e-3
    soundfile.write(path, np.stack([left, left, left, 0 * left], 1), rate)
    assert_tone(load_audio(path), level=0.375)


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_single_sample(tmp_path, rate):
    path = tmp_path / "click.wav"
    soundfile.write(path, [0.5], rate)
    assert 1 <= len(load_audio(path)) <= 2


def test_a_third_of_a_sample(tmp_path):
    path = tmp_path / "click.wav"
    soundfile.write(path, [0.5], 48000)
    with pytest.raises(AudioError, match="no audio samples in .*click.wav"):
        load_audio(path)


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
@pytest.mark.parametrize("seconds", [1e-4, 0.017, 0.1, 10.0])
def test_blocks(tmp_path, rate, seconds):
    """Joined, blocks of any size are the whole file."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.stack([tone(rate), tone(rate)], 1), rate)
    blocks = list(read_blocks(path, seconds=seconds))
    if seconds < 1:
        assert max(map(len, blocks)) < 16000 * seconds + 6000
    assert len(blocks) > 1 or seconds > SECONDS
    torch.testing.assert_close(
        torch.cat(blocks), load_audio(path), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_a_number(tmp_path, value):
    path = tmp_path / "broken.wav"
    samples = tone(16000)
    samples[100] = value
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match="NaN or infinite samples in .*broken"):
        load_audio(path)


def test_no_samples(tmp_path):
    path = tmp_path / "empty.wav"
    soundfile.write(path, np.zeros(0), 16000)
    with pytest.raises(ValueError, match="no audio samples in .*empty.wav"):
        load_audio(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"no audio at all\n" * 9),
        ("notes.wav", b"no audio at all\n" * 9),
        ("notes.mp3", b"no audio at all\n" * 9),
        ("samples.raw", b"\0" * 800),
        ("nothing.flac", b""),
        ("missing.wav", None),
    ],
)
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_no_audio(tmp_path, name, content, kind):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot read audio from .*{name}"):
        load_audio(kind(path))


def test_a_folder(tmp_path):
    with pytest.raises(ValueError, match=f"read audio from .*{tmp_path.name}"):
        load_audio(tmp_path)


def test_a_truncated_file(tmp_path):
    """Half a flac file is an error or half a tone, never noise."""
    path = tmp_path / "half.flac"
    soundfile.write(path, tone(16000), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="half.flac"):
        load_audio(path)
