"""No channel silences another, and each can be had by itself."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_dslstm.audio import AudioError, load_audio, read_blocks

RATE = 16000


def voice(seconds=3.5, seed=0):
    """Noise with pauses."""
    size = round(seconds * RATE)
    wav = 0.1 * np.random.default_rng(seed).standard_normal(size)
    wav[: size // 5] = 0
    wav[size // 2 : size // 2 + 3000] = 0
    return wav.astype("float32")


def level(wav):
    """Root mean square."""
    return float(torch.as_tensor(wav).square().mean().sqrt())


def mixed(*channels):
    """Mixture of an array of these channels."""
    return load_audio((np.stack(channels, 1), RATE))


@pytest.mark.parametrize("gain", [-1.0, -0.9, -0.6, -1.6])
@pytest.mark.parametrize("rest", [0, 4])
def test_opposite_phase(gain, rest):
    """The louder channel, from beginning to end; also among silent ones."""
    wav = voice()
    silent = [0 * wav] * rest
    expected = torch.from_numpy(wav * max(1, abs(gain)))
    found = mixed(wav, np.float32(gain) * wav, *silent)
    torch.testing.assert_close(found.abs(), expected.abs())


def test_a_part_of_opposite_phase():
    """Equal at first, opposite later: no second is lost, and there is no click."""
    wav = voice(6.0, seed=1)
    sign = np.where(np.arange(len(wav)) < 3 * RATE, 1, -1).astype("float32")
    found = mixed(wav, wav * sign)
    for second in range(2, 6):
        piece = slice(second * RATE, (second + 1) * RATE)
        assert level(found[piece]) > 0.9 * level(wav[piece])
    time = np.arange(6 * RATE) / RATE
    tone = np.sin(2 * np.pi * 200 * time).astype("float32")
    found = mixed(tone, tone * np.where(time < 3, 1, 0.2 - 1).astype("f4"))
    assert found.diff().abs().max() < 1.2 * np.abs(np.diff(tone)).max()


def test_other_channels_are_averaged():
    a, b = voice(seed=1), voice(seed=2)
    torch.testing.assert_close(mixed(a, b), torch.from_numpy((a + b) / 2))
    torch.testing.assert_close(mixed(a, 0 * a), torch.from_numpy(a / 2))
    # A centre channel among six
    six = [0 * a, 0 * a, a, 0 * a, 0 * a, 0 * a]
    torch.testing.assert_close(mixed(*six), torch.from_numpy(a / 6))


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_index_and_each(rate, tmp_path):
    path = tmp_path / "call.wav"
    a, b = voice(seed=1), voice(seed=2)
    soundfile.write(path, np.stack([a, b], 1), rate, "FLOAT")
    expected = []
    for k, wav in enumerate((a, b)):
        soundfile.write(tmp_path / "one.wav", wav, rate, "FLOAT")
        expected.append(load_audio(tmp_path / "one.wav"))
        torch.testing.assert_close(load_audio(path, channel=k), expected[k])
    both = load_audio(path, channel="each")
    torch.testing.assert_close(both, torch.stack(expected))
    blocks = list(read_blocks(path, seconds=0.3, channel="each"))
    assert len(blocks) > 3
    torch.testing.assert_close(torch.cat(blocks, 1), both)
    assert load_audio(tmp_path / "one.wav", channel="each").shape[0] == 1


def test_blocks_of_any_size_are_mixed_alike(tmp_path):
    path = tmp_path / "call.wav"
    wav = voice(5.0)
    sign = np.where(np.arange(len(wav)) < 3 * RATE, 1, -1)
    soundfile.write(path, np.stack([wav, wav * sign], 1), RATE, "FLOAT")
    whole = load_audio(path)
    for seconds in (0.013, 0.9, 1.0, 2.7):
        blocks = read_blocks(path, seconds=seconds)
        assert torch.equal(torch.cat(list(blocks)), whole)


@pytest.mark.parametrize(
    ("channel", "match"),
    [
        (2, r"no channel 2 in the array, which has 2 \(0 to 1\)"),
        (-1, "unknown channel -1"),
        ("left", "unknown channel 'left'; expected"),
        (True, "unknown channel True"),
        (0.5, "unknown channel 0.5"),
        (None, "unknown channel None"),
    ],
)
def test_wrong_channels(channel, match):
    wavs = np.stack([voice(), voice()], 1)
    with pytest.raises(AudioError, match=match):
        load_audio((wavs, RATE), channel=channel)
