"""Audio files of every kind -> the same tone at the rate of the model."""

import math

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_dslstm.audio import (
    AudioError,
    channels,
    check_samples,
    checks,
    decode,
    load_audio,
    open_audio,
    read_blocks,
    reading,
    structure,
)

SECONDS = 0.3
SHORTER = SECONDS - 0.5 / 16000  # by half a sample


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
def test_blocks(tmp_path, rate, seconds, monkeypatch):
    """Joined, blocks of any size are the whole file."""
    monkeypatch.setattr(channels, "CELL", 0.05)
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


# Limits: on the duration, the level, and the memory in use

LOUD = checks.LOUDEST


def test_the_limits():
    """A change must be meant: documents and other modules rely on them."""
    assert checks.LONGEST_CLIP == 60
    assert checks.LOUDEST == 1000
    assert reading.LARGEST_BLOCK == 2**21
    assert structure.UNKNOWN_LENGTH == 0x7FFFF000


@pytest.fixture
def clip(tmp_path):
    """A tone of exactly 0.3 s."""
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(16000), 16000)
    return path


@pytest.fixture
def forged(clip, monkeypatch):
    """The same tone, whose header claims a hundred samples."""

    class Forged(soundfile.SoundFile):
        frames = property(lambda self: 100)

        # Or soundfile itself reads as many as claimed
        def seekable(self):
            return False

    monkeypatch.setattr(soundfile, "SoundFile", Forged)
    return clip


def not_decoded(*args, **options):
    raise AssertionError("decoded")


@pytest.mark.parametrize("read", [open_audio, load_audio, read_blocks])
def test_a_long_file_is_refused_before_it_is_decoded(read, clip, monkeypatch):
    monkeypatch.setattr(soundfile.SoundFile, "read", not_decoded)
    with pytest.raises(AudioError, match=r"longer than 0\.29\d* s") as caught:
        opened = read(clip, longest=SHORTER)
        if read is open_audio:
            opened.__enter__()
        else:
            next(iter(opened))
    assert caught.value.kind == "too long"


def test_a_file_may_be_as_long_as_the_limit(clip, forged):
    assert len(load_audio(clip, longest=SECONDS)) == 4800
    with open_audio(clip, SECONDS) as file:
        assert sum(map(len, decode(file, clip, longest=SECONDS))) == 4800
    with open_audio(clip) as file:
        assert sum(map(len, decode(file, clip))) == 4800


def test_a_header_that_claims_too_few_samples(forged):
    """The limit holds for what is decoded, and decoding stops there."""
    with open_audio(forged, SHORTER) as file:
        with pytest.raises(AudioError, match="longer than") as caught:
            list(decode(file, forged, longest=SHORTER))
    assert caught.value.kind == "too long"
    for read in (load_audio, read_blocks):
        with pytest.raises(AudioError, match="longer than"):
            list(read(forged, longest=SHORTER))
    pieces = []
    with open_audio(forged) as file:
        with pytest.raises(AudioError, match="longer than"):
            for piece in decode(file, forged, seconds=0.01, longest=0.05):
                pieces.append(piece)
    assert sum(map(len, pieces)) == 800


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [LOUD, 1.001 * LOUD, 1e30])
def test_the_loudest_sample(level, sign, tmp_path):
    """The last sample of a file, of a waveform and of a batch."""
    wav = torch.zeros(2, 3000)
    wav[1, -1] = sign * level
    path = tmp_path / "loud.wav"
    soundfile.write(path, wav[1].numpy(), 16000, subtype="FLOAT")

    def decoded(seconds):
        with open_audio(path) as file:
            return list(decode(file, path, seconds))

    checks = [
        lambda: check_samples(wav[1]),
        lambda: check_samples(wav),
        lambda: check_samples(wav, torch.ones(2)),
        lambda: decoded(10.0),
        lambda: decoded(0.05),
        lambda: load_audio(path),
        lambda: list(read_blocks(path, seconds=0.05)),
    ]
    for check in checks:
        if level == LOUD:
            check()
            continue
        with pytest.raises(AudioError, match="samples up to") as caught:
            check()
        assert caught.value.kind == "out of range"
    # Past the end of an utterance it is not looked at
    check_samples(wav, torch.tensor([3000, 2999]))


def test_many_channels_are_decoded_in_small_pieces(tmp_path, monkeypatch):
    path = tmp_path / "channels.wav"
    soundfile.write(path, np.zeros((100, 32)), 16000)
    monkeypatch.setattr(reading, "LARGEST_BLOCK", 320)
    with open_audio(path) as file:
        assert [len(piece) for piece in decode(file, path)] == [10] * 10 + [0]
    monkeypatch.setattr(reading, "LARGEST_BLOCK", 1)
    with open_audio(path) as file:
        assert max(len(piece) for piece in decode(file, path)) == 1


def resized(path, size):
    """Write another length of the samples into the header of a wav file."""
    data = bytearray(path.read_bytes())
    place = data.index(b"data") + 4
    data[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("size", "refused"),
    [
        (9598, False),
        (9600, False),
        (9602, True),
        (structure.UNKNOWN_LENGTH - 2, True),
        (structure.UNKNOWN_LENGTH, False),
        (0xFFFFFFFF, False),
    ],
)
def test_a_file_shorter_than_its_header_says(size, refused, clip):
    """It is cut off, unless the header says that the length is unknown."""
    resized(clip, size)
    if refused:
        with pytest.raises(AudioError, match="is cut off") as caught:
            load_audio(clip)
        assert caught.value.kind == "truncated"
    else:
        assert len(load_audio(clip)) == min(size, 9600) // 2


def test_fewer_samples_than_the_header_says(clip, monkeypatch):
    """A tenth of a second may be missing, as in an mp3."""
    for frames, refused in ((6400, False), (6401, True)):
        claimed = property(lambda self, n=frames: n)
        monkeypatch.setattr(soundfile.SoundFile, "frames", claimed)
        if refused:
            with pytest.raises(AudioError, match="4800 of 6401 samples"):
                load_audio(clip)
        else:
            assert len(load_audio(clip)) == 4800


@pytest.mark.parametrize(
    ("rate", "refused"),
    [(3999, True), (4000, False), (384000, False), (384001, True)],
)
def test_rates(rate, refused, tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, np.zeros(rate // 100), rate)
    if refused:
        with pytest.raises(AudioError, match=f"rate of {rate} Hz") as caught:
            load_audio(path)
        assert caught.value.kind == "of an impossible rate"
    else:
        assert len(load_audio(path)) == 160 or rate < 5000
