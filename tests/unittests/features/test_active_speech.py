"""The active part does not depend on what surrounds the speech."""

import pytest
import torch
from torch.nn.functional import pad

from speechbrain_dslstm import DualLevelClassifier
from speechbrain_dslstm.features import ActiveSpeech, FeatureCache
from speechbrain_dslstm.features.cache import SpeedCache

RATE = 16000


def noise(seconds, level, color=0.0, seed=0):
    """Noise of a level in dBFS; 0 white, 0.5 pink, 1 brown above 50 Hz."""
    size = round(seconds * RATE)
    if level is None:
        return torch.zeros(size)
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(size, generator=generator))
    hz = torch.arange(len(spectrum)) * RATE / size
    x = torch.fft.irfft(spectrum / hz.clamp(min=50) ** color, size)
    return x / x.square().mean().sqrt() * 10 ** (level / 20)


def voice(seconds=1.2, level=0.1, seed=0):
    """Harmonics of a gliding pitch in three syllables."""
    time = torch.arange(round(seconds * RATE)) / RATE
    phase = 2 * torch.pi * (120 * time + 20 * time.square())
    x = sum(torch.sin(k * phase) / k**0.5 for k in range(1, 16))
    envelope = torch.sin(torch.pi * 3 * time / seconds).abs() + 0.1
    return level * x * envelope + noise(seconds, -70, seed=seed)


@pytest.fixture
def speech():
    return ActiveSpeech()


@pytest.mark.parametrize("place", ["before", "after", "both"])
@pytest.mark.parametrize("seconds", [0.5, 5])
@pytest.mark.parametrize(
    ("level", "color"),
    [(None, 0), (-75, 0), (-60, 0), (-60, 0.5), (-60, 1)],
)
def test_padding_is_cut(speech, level, color, seconds, place):
    """Silence and noise of any colour around the voice change nothing."""
    wav = voice()
    padding = noise(seconds, level, color)
    before = padding if place != "after" else padding[:0]
    after = padding if place != "before" else padding[:0]
    cut = speech.cut(torch.cat([before, wav, after]))
    alone = speech.cut(wav)
    assert abs(len(cut) - len(alone)) <= 0.08 * RATE


@pytest.mark.parametrize("before", [1, 37, 159, 160, 499, 8219])
def test_padding_of_any_length_moves_no_cut(speech, before):
    """The same samples are kept, though cells begin every 160 samples."""
    wav = pad(voice(), (1000, 1000))
    expected = speech.cut(wav)
    padded = pad(wav, (before, 77))
    torch.testing.assert_close(speech.cut(padded), expected, rtol=0, atol=1e-6)
    spans = [(a - before, b - before) for a, b in speech.find(padded)]
    assert spans == speech.find(wav)
    start = spans[0][0]
    torch.testing.assert_close(
        expected[:100], wav[start : start + 100], rtol=0, atol=0.01
    )


def test_cells_of_a_periodic_sound(speech):
    """Peaks that are equal but for rounding do not compete."""
    time = torch.arange(RATE) / RATE
    tone = 0.5 * torch.sin(988 * time) * (5 * time).clamp(max=1)
    leads = {
        speech.lead(tone * (1 + noise(1, -80, seed=seed))) for seed in range(8)
    }
    assert len(leads) == 1
    assert speech.lead(tone[:0]) == 0


def test_inner_pauses_are_cut_to_a_length(speech):
    """A short pause stays, a long one becomes 0.1 s."""
    wav = voice()
    for pause, kept in ((0.08, 0.08), (0.5, 0.1), (3.0, 0.1)):
        both = torch.cat([wav, noise(pause, -60), wav])
        more = len(speech.cut(both)) / RATE - 2 * len(speech.cut(wav)) / RATE
        assert abs(more - kept) < 0.06, pause


def test_clicks_hum_and_steps_are_no_voice(speech):
    """They are louder than nothing, or periodic, but not speech."""
    wav = voice()
    around = noise(2, -75)
    around[7000:7008] = 0.8
    around[20000] = -0.9
    time = torch.arange(2 * RATE) / RATE
    hum = sum(
        torch.sin(2 * torch.pi * 100 * k * time) / k for k in (1, 2, 3, 5)
    )
    alone = len(speech.cut(wav))
    # A hum as loud as the voice is kept for half a second at each of its ends
    for padding, more in ((around, 0.1), (0.1 * hum, 2.2), (around + 0.3, 0.1)):
        padding = padding + noise(2, -80)
        found = len(speech.cut(torch.cat([padding, wav, padding])))
        assert abs(found - alone) <= more * RATE


def test_dc_is_removed_and_gain_does_not_matter(speech):
    """Neither decides what is kept, and there is no step at the start."""
    wav = torch.cat([noise(1, -70), voice(), noise(1, -70)])
    expected = speech.find(wav)
    for offset in (-0.1, 0.1):
        assert speech.find(wav + offset) == expected
        for clip in (wav, voice()):
            moved = speech.cut(clip + offset) - speech.cut(clip)
            assert float(moved.abs().max()) < 1e-6
    for gain in (0.1, 0.7):
        assert speech.find(gain * wav) == expected


def test_audio_without_voice(speech):
    """Whispers lose the silence around them, noise and silence stay whole."""
    whisper = noise(1, -30)
    padded = torch.cat([torch.zeros(RATE), whisper, torch.zeros(RATE)])
    assert abs(len(speech.cut(padded)) - RATE) < 0.1 * RATE
    for wav in (noise(2, -40), torch.zeros(RATE), noise(0.3, -40)):
        assert len(speech.cut(wav)) == len(wav)
    assert len(speech.cut(torch.ones(1))) == 1
    assert 0 <= 30 * RATE - len(speech.cut(noise(40, -40))) < 160


def test_batch_equals_each_item_alone(speech):
    """Other clips of a batch, and its padding, change no sample."""
    wavs = [
        torch.cat([noise(s, -60), voice(seed=k)])
        for k, s in enumerate((0.3, 2))
    ]
    counts = torch.tensor([len(wav) for wav in wavs])
    padded = torch.nn.utils.rnn.pad_sequence(wavs, True, padding_value=0.5)
    cut, sizes = speech(padded, counts)
    for row, size, wav in zip(cut, sizes.tolist(), wavs, strict=True):
        assert torch.equal(row[:size], speech.cut(wav))
        assert not row[size:].any()


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100])
def test_other_sample_rates(rate):
    """Sizes that do not divide the rate still find the voice."""
    wav = torch.cat([torch.zeros(RATE), voice(), torch.zeros(RATE)])
    size = round(len(wav) * rate / RATE)
    wav = torch.nn.functional.interpolate(wav[None, None], size)[0, 0]
    spans = ActiveSpeech(rate).find(wav)
    assert abs(spans[0][0] / rate - 1) < 0.1
    assert abs(spans[-1][1] / rate - 2.2) < 0.1


def test_arguments_are_checked():
    """Errors name the argument."""
    with pytest.raises(ValueError, match="sample_rate must be at least 4000"):
        ActiveSpeech(3999)
    with pytest.raises(ValueError, match="pause must be at least 0, got -1"):
        ActiveSpeech(pause=-1)


def test_a_model_reads_the_active_part_only(speech):
    """Posteriors, features and statistics of padded clips are those of the cut."""
    model = DualLevelClassifier(2, p=0.0, active_speech=speech).eval()
    plain = DualLevelClassifier(2, p=0.0).eval()
    plain.load_state_dict(model.state_dict())
    wav = torch.cat([noise(1, -60), voice(), torch.zeros(RATE)])[None]
    cut = speech.cut(wav[0])[None]
    with torch.no_grad():
        assert torch.equal(model(wav), plain(cut))
        assert not torch.allclose(model(wav), plain(wav), atol=1e-4)
    model.update_normalization(wav)
    plain.update_normalization(cut)
    norms = [m.streams["mfcc"].normalization.mean for m in (model, plain)]
    assert torch.equal(*norms)


def test_cached_features_are_those_of_the_model(speech, tmp_path):
    """The option is part of the entry: without it, other features are kept."""
    wav = torch.cat([noise(1, -60), voice(), torch.zeros(RATE)])
    for active in (speech, None, ActiveSpeech(pause=0.3)):
        model = DualLevelClassifier(2, p=0.0, active_speech=active)
        extractors = {"mfcc": model.streams["mfcc"].extractor}
        cache = FeatureCache(tmp_path, extractors, "voices")
        cache = SpeedCache(
            cache, lambda *_: wav, RATE, model.min_samples, active
        )
        found = cache.get("a.wav", "a0", len(wav) / RATE, 100)["mfcc"]
        assert torch.equal(found, model.extract(wav[None])["mfcc"].feats[0])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
