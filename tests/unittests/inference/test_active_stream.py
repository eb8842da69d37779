"""A stream keeps the samples that ``ActiveSpeech`` keeps of the whole audio."""

import random

import pytest
import torch

from speechbrain_dslstm import DualLevelClassifier
from speechbrain_dslstm.features import ActiveSpeech
from speechbrain_dslstm.inference import EmotionStream
from speechbrain_dslstm.inference.active_stream import ActiveFront
from tests.unittests.features.test_active_speech import noise, voice

RATE = 16000


def cut_in_chunks(speech, wav, sizes):
    """What the stream keeps, how often it starts anew, and its largest state."""
    draw = random.Random(0)
    front, kept, restarts, largest = ActiveFront(speech), [], 0, 0
    start = 0
    while start < len(wav):
        size = draw.choice(sizes)
        anew, new = front.advance(wav[start : start + size], end=False)
        start += size
        restarts += anew
        kept = [new] if anew else [*kept, new]
        largest = max(largest, front.state_size())
    anew, new = front.advance(wav[:0], end=True)
    return torch.cat([new] if anew else [*kept, new]), restarts + anew, largest


def recordings():
    """Audio that needs every branch of the stream, by name."""
    wav, quiet = voice(), voice(level=0.0005)
    gap = noise(1.7, -60)
    return {
        "clip": wav,
        "short": wav[:4000],
        "tiny": wav[:50],
        "padded": torch.cat([noise(3, -60), wav, noise(2, -75)]),
        "pauses": torch.cat([wav, gap, wav, torch.zeros(5 * RATE), wav, gap]),
        "louder": torch.cat([quiet, gap, wav, gap]),
        "rising": torch.cat([quiet[:9001], 20 * quiet[:9333], gap, wav[77:]]),
        "swell": wav * torch.linspace(0.2, 1, len(wav)),
        "late": torch.cat([noise(33, -60), wav, noise(4, -60), quiet, wav]),
        "long": torch.cat([wav, gap, quiet, gap, wav, gap] * 5),
        "click": torch.cat([noise(32, -60), wav[6000:7000], gap, wav]),
        "noise": noise(32, -40),
        "silence": torch.zeros(2 * RATE),
    }


@pytest.mark.parametrize("name", recordings())
@pytest.mark.parametrize("sizes", [[1600], [16000, 333, 77, 5000]])
def test_chunks_equal_the_whole(name, sizes):
    """The same samples, whatever the chunks."""
    speech, wav = ActiveSpeech(), recordings()[name]
    kept, restarts, largest = cut_in_chunks(speech, wav, sizes)
    torch.testing.assert_close(kept, speech.cut(wav), rtol=0, atol=1e-6)
    if name in ("louder", "rising", "swell") and sizes[0] < 2000:
        assert restarts
    # 30 s of audio, and a second for the cells
    assert largest < 34 * RATE


def test_margin_longer_than_a_pause():
    """The tail of a pause is as long as either needs."""
    speech = ActiveSpeech(pause=0.04, margin=0.1)
    for name in ("padded", "pauses", "late", "long"):
        wav = recordings()[name]
        kept, _, _ = cut_in_chunks(speech, wav, [1600])
        torch.testing.assert_close(kept, speech.cut(wav), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["short", "padded", "louder", "tiny"])
def test_posterior_equals_the_offline_one(name):
    """Through the whole model, and None before there is speech."""
    torch.manual_seed(0)
    model = DualLevelClassifier(3, active_speech=ActiveSpeech()).eval()
    wav = recordings()[name]
    with torch.no_grad():
        expected = model(wav[None])[0]
    for size in (800, 20000):
        stream = EmotionStream(model)
        running = [stream.push(chunk) for chunk in wav.split(size)]
        found = stream.finish()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    if name == "padded":
        assert running[0] is None
