"""The input of Whisper: equal to transformers' and independent of the batch."""

import pytest
import torch
from transformers import WhisperFeatureExtractor

from speechbrain_dslstm.features import WhisperMel
from speechbrain_dslstm.lengths import zero_padding

CLOSE = {"atol": 1e-5, "rtol": 0}


def tones(samples, seed=0):
    """Noise below tones that come and go, at the level of speech."""
    torch.manual_seed(seed)
    time = torch.arange(samples) / 16000
    tone = torch.sin(900 * time) * torch.sin(3 * time).clamp(min=0)
    return 0.2 * tone + 0.001 * torch.randn(samples)


@pytest.mark.parametrize("samples", [480000, 50001])
def test_window_of_30_seconds_equals_transformers(samples):
    """A full window, and a shorter clip that is padded to one."""
    wav = torch.nn.functional.pad(tones(samples), (0, 480000 - samples))
    extract = WhisperFeatureExtractor()
    found = extract(wav.numpy(), sampling_rate=16000, return_tensors="pt")
    theirs = found.input_features.transpose(1, 2)
    ours = WhisperMel()(wav.unsqueeze(0))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_large_model_has_128_bands():
    extract = WhisperFeatureExtractor(feature_size=128)
    wav = tones(480000)
    found = extract(wav.numpy(), sampling_rate=16000, return_tensors="pt")
    ours = WhisperMel(128)(wav.unsqueeze(0))
    theirs = found.input_features.transpose(1, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("samples", [1, 159, 160, 199, 200, 201, 16000, 16159])
def test_number_of_frames(samples):
    """One frame each 10 ms, at least one, and the same traced and unchecked."""
    mel = WhisperMel()
    frames = mel(tones(samples).unsqueeze(0)).shape[1]
    assert frames == max(1, samples // 160) == mel.num_frames(samples)
    assert mel.num_frames(torch.tensor([samples])).item() == frames


def test_batch_changes_nothing():
    """One by one on a CPU, or all at once as on a GPU and in a graph.

    The clips differ in level, so a maximum of the batch would show.
    """
    counts = torch.tensor([9000, 16000, 150, 4321])
    wavs = torch.full((4, 16000), float("nan"))
    for row, n in enumerate(counts.tolist()):
        wavs[row, :n] = 10.0**-row * tones(n, row)
    mel = WhisperMel()
    together = mel(wavs, counts)
    at_once = mel.of_batch(zero_padding(wavs, counts), counts)
    torch.testing.assert_close(at_once, together, **CLOSE)
    for row, n in enumerate(counts.tolist()):
        alone = mel(wavs[row : row + 1, :n])[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, **CLOSE)
        assert not together[row, len(alone) :].any()


@pytest.mark.parametrize("gain", [0.1, 10.0])
def test_level_takes_out_the_gain(gain):
    """Each clip's maximum is the level, and silence is not made loud."""
    wav = tones(16000).unsqueeze(0)
    mel = WhisperMel(level=1.4)
    louder = mel(gain * wav)
    assert louder.max().item() == pytest.approx(1.4)
    torch.testing.assert_close(louder, mel(wav), atol=1e-4, rtol=0)
    assert mel(torch.zeros(1, 16000)).max() <= 0.0
    # The shape of the spectrum is Whisper's
    moved = WhisperMel()(wav)
    moved = moved - moved.max() + 1.4
    torch.testing.assert_close(mel(wav), moved, **CLOSE)


def test_level_must_be_finite():
    with pytest.raises(ValueError, match="level must be a finite number"):
        WhisperMel(level=float("nan"))
