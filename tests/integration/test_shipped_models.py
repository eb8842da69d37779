"""The models in the package: what each of them must do and hold."""

import logging

import pytest
import torch
from nightly import nightly
from real_speech import EMODB, clips_in

from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.export import export_onnx, load_onnx, quantize_onnx
from speechbrain_dslstm.inference import EmotionClassifier, adapt, load_safe
from speechbrain_dslstm.inference.explain import explain
from speechbrain_dslstm.pretrained.card import read_card
from speechbrain_dslstm.pretrained.names import DEFAULT_MODEL, STREAM_MODEL
from speechbrain_dslstm.pretrained.sources import SHIPPED

FREE = "pretrained/emotion-dslstm-whisper-emodb"
MODELS = (DEFAULT_MODEL, FREE, STREAM_MODEL)
LETTERS = {"W": "anger", "F": "happiness", "N": "neutral", "T": "sadness"}


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def classifier(name):
    return load_safe(name)


@pytest.fixture(scope="module")
def clips():
    """Six clips of each class that all models know, and their classes."""
    found = []
    for letter, emotion in LETTERS.items():
        matching = [f for f in clips_in(EMODB) if f.stem[5] == letter]
        found += [(load_audio(file), emotion) for file in matching[::9][:6]]
    return found


def answers(classifier, wavs):
    return [classifier.classify_batch(wav).text_lab[0] for wav in wavs]


def test_all_are_listed():
    folders = {f"pretrained/{path.name}" for path in SHIPPED.iterdir()}
    assert {f for f in folders if "__" not in f} == set(MODELS)


def test_size_and_licence(name, caplog):
    folder = SHIPPED / name.split("/")[1]
    size = sum(file.stat().st_size for file in folder.iterdir())
    assert size <= 16e6
    licence = read_card(folder)["licence"]
    assert licence == (
        "cc-by-nc-sa-4.0" if name == DEFAULT_MODEL else "cc0-1.0"
    )
    with caplog.at_level(logging.INFO):
        load_safe(name)
    assert f"licence {licence}" in caplog.text
    if name != STREAM_MODEL:
        assert "Whisper" in (folder / "README.md").read_text("utf-8")
        assert "MIT" in (folder / "README.md").read_text("utf-8")


def test_by_yaml_and_as_data_the_same(name, classifier, clips):
    by_yaml = EmotionClassifier.from_hparams(name)
    for wav, _ in clips[::6]:
        found = by_yaml.classify_batch(wav).out_prob
        assert torch.equal(found, classifier.classify_batch(wav).out_prob)


def test_clips_of_the_training_are_right(classifier, clips):
    found = answers(classifier, [wav for wav, _ in clips])
    right = sum(a == b for a, (_, b) in zip(found, clips, strict=True))
    assert right >= 0.9 * len(clips)


@pytest.mark.parametrize("gain", [0.1, 3.0])
def test_gain_and_pauses_change_little(classifier, clips, gain):
    """On quiet or loud clips with a second of silence on both sides."""
    wavs = [wav for wav, _ in clips]
    loudest = max(float(wav.abs().max()) for wav in wavs)
    wavs = [wav / loudest / 3 for wav in wavs]
    changed = [
        torch.nn.functional.pad(gain * wav, (16000, 16000)) for wav in wavs
    ]
    pairs = zip(
        answers(classifier, wavs), answers(classifier, changed), strict=True
    )
    assert sum(a != b for a, b in pairs) <= 1


def test_alone_and_in_a_batch_the_same(classifier, clips):
    wavs = [wav.flatten() for wav, _ in clips[::5]]
    sizes = torch.tensor([len(wav) for wav in wavs])
    padded = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    together = classifier.classify_batch(padded, sizes).out_prob
    for row, wav in zip(together, wavs, strict=True):
        alone = classifier.classify_batch(wav[None]).out_prob[0]
        torch.testing.assert_close(row, alone, atol=1e-5, rtol=0)


def test_explained(classifier, clips):
    wav = clips[0][0].flatten()
    found = explain(classifier.mods.embedding_model, wav)
    scaled = classifier.mods.classifier(found.posteriors[-1:].log())
    answer = classifier.classify_batch(wav[None]).out_prob
    torch.testing.assert_close(scaled, answer, atol=1e-4, rtol=0)


def test_long_recordings(classifier, clips):
    wav = torch.cat([clips[0][0].flatten(), clips[-1][0].flatten()])
    found = list(classifier.classify_long(wav, window=1.5, sample_rate=16000))
    assert found[0].label == "anger" and found[-1].label == "sadness"


def test_adapted(classifier, clips):
    wavs = [wav.flatten() for wav, _ in clips]
    adapted = adapt(classifier, wavs, seconds=30)
    before, after = (
        one.classify_batch(wavs[0][None]).out_prob
        for one in (classifier, adapted)
    )
    assert not torch.equal(before, after)


@nightly
def test_onnx(classifier, clips, tmp_path):
    """One file for any length, and its 8-bit form."""
    path = export_onnx(classifier, tmp_path / "model.onnx")
    small = quantize_onnx(path, tmp_path / "small.onnx")
    for wav, _ in clips[::5]:
        expected = classifier.classify_batch(wav).out_prob
        found = load_onnx(path).classify_batch(wav).out_prob
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        found = load_onnx(small).classify_batch(wav).out_prob
        assert found.argmax() == expected.argmax()
