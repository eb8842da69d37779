"""Feature statistics of unlabelled recordings in place of the training set's."""

import shutil

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.inference import adapt, load_safe
from speechbrain_dslstm.pretrained import make_label_encoder

LABELS = ["sadness", "anger", "neutral"]


def make(model):
    """A classifier of a model in memory."""
    return EmotionClassifier.from_model(
        model, make_label_encoder(LABELS), 16000, temperature=1.5
    )


def statistics(classifier):
    """Mean and variance of each stream."""
    streams = classifier.mods.embedding_model.streams
    return {
        name: stream.normalization.statistics[1:]
        for name, stream in streams.items()
    }


def assert_same(one, other, atol=0.0):
    """The same statistics in two classifiers."""
    for name, values in statistics(one).items():
        for a, b in zip(values, statistics(other)[name], strict=True):
            torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def old(small_model):
    """A classifier that centres utterances."""
    return make(small_model(center=True))


@pytest.fixture(scope="module")
def few(speech_files):
    """Enough recordings for a limit of ten seconds."""
    return speech_files[3:9]


def test_statistics_are_those_of_the_recordings(old, few):
    before = statistics(old)
    new = adapt(old, few, seconds=10)
    frames = {name: [] for name in before}
    for path in few:
        found = old.mods.embedding_model.extract(load_audio(path)[None])
        for name, (feats, counts) in found.items():
            frames[name].append(feats[0, : counts[0]].double())
    for name, (mean, variance) in statistics(new).items():
        pooled = torch.cat(frames[name])
        torch.testing.assert_close(mean, pooled.mean(0))
        torch.testing.assert_close(variance, pooled.var(0, correction=0))
        # The old classifier is as it was
        assert torch.equal(before[name][0], statistics(old)[name][0])
    wav = load_audio(few[0])
    assert not torch.equal(
        old.classify_batch(wav)[0], new.classify_batch(wav)[0]
    )
    assert new.adaptation.recordings == len(few)
    assert new.adaptation.skipped == {} and old.adaptation is None
    # No weight has changed
    theirs = dict(new.mods.embedding_model.named_parameters())
    for name, value in old.mods.embedding_model.named_parameters():
        assert torch.equal(value, theirs[name])


def test_any_order_and_no_file_twice(old, few, tmp_path):
    for path in few:
        shutil.copy(path, tmp_path)
    first = adapt(old, tmp_path, seconds=10)
    copies = sorted(tmp_path.iterdir(), reverse=True)
    assert_same(first, adapt(old, [*copies, tmp_path], seconds=10))
    wavs = [load_audio(path) for path in few]
    again = adapt(old, wavs, seconds=10)
    assert_same(first, again, 1e-6)
    arrays = [wav.numpy() for wav in wavs[::-1]]
    assert_same(again, adapt(old, arrays, seconds=10))


def test_blend(old, few):
    new = adapt(old, few, seconds=10)
    half = adapt(old, few, blend=0.25, seconds=10)
    assert_same(old, adapt(old, few, blend=0, seconds=10))
    for name, (mean, variance) in statistics(half).items():
        (m1, v1), (m2, v2) = statistics(old)[name], statistics(new)[name]
        expected = 0.75 * m1 + 0.25 * m2
        torch.testing.assert_close(mean, expected)
        # Second moment of a mixture
        square = 0.75 * (v1 + m1**2) + 0.25 * (v2 + m2**2)
        torch.testing.assert_close(variance, square - expected**2)


@pytest.mark.parametrize("blend", [-0.1, 1.5, float("nan")])
def test_a_blend_outside(old, few, blend):
    with pytest.raises(ValueError, match=r"blend must be in \[0, 1\]"):
        adapt(old, few, blend=blend)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_limit_that_is_none(old, few, seconds):
    with pytest.raises(ValueError, match="seconds must be a finite number"):
        adapt(old, few, seconds=seconds)


def test_bad_files_alone(old, tmp_path):
    """The error says why, even without a limit."""
    with pytest.raises(ValueError, match="none of the 1 .*gone.wav"):
        adapt(old, tmp_path / "gone.wav", seconds=0)


def test_bad_files_are_skipped(old, few, tmp_path):
    for path in few:
        shutil.copy(path, tmp_path)
    expected = adapt(old, tmp_path, seconds=10)
    soundfile.write(tmp_path / "b_silence.wav", np.zeros(32000), 16000)
    noise = 0.1 * np.random.default_rng(0).standard_normal(32000)
    soundfile.write(tmp_path / "b_noise.wav", noise, 16000)
    (tmp_path / "a_text.wav").write_text("no audio")
    whole = few[0].read_bytes()
    (tmp_path / "a_cut.flac").write_bytes(whole[: len(whole) // 2])
    # Over a minute, so that the damage shows after the first windows
    speech = np.concatenate([load_audio(path).numpy() for path in few])
    long = np.tile(speech, 1 + 70 * 16000 // len(speech))
    path = tmp_path / "a_long.wav"
    soundfile.write(path, long, 16000, "FLOAT")
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32("nan").tobytes()
    path.write_bytes(data)
    found = adapt(old, [tmp_path, tmp_path / "gone.wav"], seconds=10)
    assert_same(expected, found)
    assert found.adaptation.recordings == len(few)
    assert found.adaptation.seconds == expected.adaptation.seconds
    names = sorted(name.rpartition("/")[2] for name in found.adaptation.skipped)
    assert names == [
        "a_cut.flac",
        "a_long.wav",
        "a_text.wav",
        "b_noise.wav",
        "b_silence.wav",
        "gone.wav",
    ]


def test_seconds_are_seconds_of_speech(old, few, tmp_path):
    """Silence around the speech does not help to reach the limit."""
    speech = load_audio(few[0]).numpy()
    padded = np.concatenate([speech, np.zeros(16000 * 40, "float32")])
    soundfile.write(tmp_path / "a.wav", padded, 16000)
    message = r"s of speech in 1 recordings \(0 skipped\), at least 40 s"
    with pytest.raises(ValueError, match=message) as caught:
        adapt(old, tmp_path, seconds=40)
    seconds = float(str(caught.value).split()[0])
    assert 0.3 * len(speech) / 16000 < seconds < 1.1 * len(speech) / 16000


def test_a_long_recording_is_many_utterances(old, few, tmp_path):
    """Read by windows; pauses of seconds between them do not count."""
    speech = [load_audio(path).numpy() for path in few]
    pieces = [p for s in speech for p in (s, np.zeros(16000 * 18, "float32"))]
    soundfile.write(tmp_path / "long.wav", np.concatenate(pieces), 16000)
    found = adapt(old, tmp_path / "long.wav", seconds=5)
    assert found.adaptation.recordings == 1
    short = adapt(old, few, seconds=5)
    assert found.adaptation.seconds == pytest.approx(
        short.adaptation.seconds, rel=0.2
    )


@pytest.mark.parametrize(
    "wav",
    [
        torch.zeros(2, 16000),
        torch.zeros(16000, dtype=torch.int16),
        torch.full((16000,), float("nan")),
        torch.zeros(0),
    ],
)
def test_bad_waveforms_are_skipped(old, few, wav):
    wavs = [load_audio(path) for path in few]
    found = adapt(old, [*wavs, wav], seconds=10)
    assert len(found.adaptation.skipped) == 1
    assert_same(found, adapt(old, wavs, seconds=10))


def test_nothing_is_given(old, tmp_path):
    with pytest.raises(FileNotFoundError, match="no audio files"):
        adapt(old, [])
    with pytest.raises(FileNotFoundError, match="no audio files in"):
        adapt(old, tmp_path)


def change(model, **others):
    """Set attributes of the normalisation of every stream."""
    for stream in model.streams.values():
        for name, value in others.items():
            setattr(stream.normalization, name, value)
    return model


def test_a_model_without_normalisation(small_model, few):
    old = make(change(small_model(), source="none"))
    with pytest.raises(ValueError, match="does not standardise its features"):
        adapt(old, few, seconds=10)


def test_statistics_of_a_speaker(small_model, few, tmp_path):
    """As with the speaker's name in training; the folder keeps them."""
    model = change(small_model(), source="speaker")
    new = adapt(make(model), few, seconds=10)
    for path in few:
        wav = load_audio(path)[None]
        model.update_statistics(model.extract(wav), ["me"])
    wav = load_audio(few[2])[None]
    streams = model.normalize(model.extract(wav), ["me"])
    with torch.no_grad():
        expected = model(streams=streams)
    found = new.mods.embedding_model(wav)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="blend must be 1 for a model with"):
        adapt(make(model), few, blend=0.5)
    new.save(tmp_path / "saved")
    again = load_safe(tmp_path / "saved").classify_batch(wav)[0]
    torch.testing.assert_close(again, new.classify_batch(wav)[0])


@pytest.mark.parametrize("load", [load_safe, EmotionClassifier.from_hparams])
def test_save(old, few, tmp_path, load):
    new = adapt(old, few, seconds=10)
    new.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.labels == LABELS
    assert_same(new, again)
    wav = load_audio(few[0])
    torch.testing.assert_close(
        again.classify_batch(wav)[0], new.classify_batch(wav)[0]
    )


def test_running_statistics_cannot_be_saved(old, tmp_path):
    with pytest.raises(ValueError, match='the normalization "running"'):
        old.with_normalization("running").save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
