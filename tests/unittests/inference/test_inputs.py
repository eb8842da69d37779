"""All ways to hand over a recording give one answer; the model stays as it is."""

import copy
import inspect
import io
import math
import warnings

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.audio import AudioError, load_audio
from speechbrain_dslstm.inference import NoSpeechError
from speechbrain_dslstm.pretrained import make_label_encoder

RATE = 16000


@pytest.fixture(scope="module")
def path(speech_clips, tmp_path_factory):
    """A clip as a file that holds its exact samples."""
    path = tmp_path_factory.mktemp("inputs") / "a.wav"
    soundfile.write(path, speech_clips[0].numpy(), RATE, "FLOAT")
    return path


def ways(path):
    """The recording in every form."""
    samples, rate = soundfile.read(path, dtype="float32")
    return [
        path,
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        (samples, rate),
        (torch.from_numpy(samples), rate),
        (samples[:, None], rate),
    ]


def test_every_way(classifier, path):
    expected = classifier.classify_file(path)
    inputs = ways(path)
    for given in inputs:
        found = classifier.classify_file(given)
        assert torch.equal(found.out_prob, expected.out_prob)
        [segment] = list(classifier.classify_long(given, window=60.0))
        torch.testing.assert_close(segment.log_posteriors, found.out_prob[0])
        [result] = classifier.classify_files(given)
        assert torch.equal(result.answer.out_prob, expected.out_prob)
    results = classifier.classify_files(inputs)
    assert [r.path for r in results] == [path, path] + [None] * 5
    for result in results:
        torch.testing.assert_close(result.answer.out_prob, expected.out_prob)
    wav = load_audio(path).numpy()
    found = classifier.classify_files([wav, path, wav], sample_rate=RATE)
    assert [r.label for r in found] == [expected.text_lab[0]] * 3
    found = classifier.classify_file(wav, sample_rate=RATE)
    assert torch.equal(found.out_prob, expected.out_prob)


def test_a_bad_input_does_not_stop_the_others(classifier, path):
    found = classifier.classify_files(
        [path, b"no audio", np.zeros(5), (RATE, np.zeros(5)), None, path]
    )
    assert [r.label is None for r in found] == [False, *[True] * 4, False]
    assert "input 1: Format not recognised" in found[1].error
    assert "input 2 has no sample rate" in found[2].error
    assert "(rate, samples)" in found[3].error and "input 3" in found[3].error
    assert "got None as input 4" in found[4].error
    with pytest.raises(AudioError, match="sample_rate is the rate of arrays"):
        classifier.classify_files([path], sample_rate=RATE)


def test_a_recording_is_no_batch(classifier, path):
    """Never 8,000 answers."""
    samples = load_audio(path)
    stereo = torch.stack([samples, samples], 1)
    expected = classifier.classify_file(path).out_prob
    found = classifier.classify_file(stereo, sample_rate=RATE)
    torch.testing.assert_close(found.out_prob, expected)
    with pytest.raises(AudioError, match=r"use classify_file\(wavs, sample"):
        classifier.classify_batch(stereo)
    for wrong, match in [
        (stereo[None], "expects waveforms"),
        (torch.tensor(0.1), "expects waveforms"),
        (torch.zeros(0), "no audio samples in the batch"),
        (torch.zeros(2, 0), "no audio samples in the batch"),
        (stereo.T.numpy().astype(object), "got object"),
        (stereo.T.to(torch.complex64), "got torch.complex64"),
        ([0.1] * 1000, "got list"),
        (str(path), "got str; classify_file takes files"),
    ]:
        with pytest.raises(AudioError, match=match):
            classifier.classify_batch(wrong)
    both = classifier.classify_batch(stereo.T.numpy())
    torch.testing.assert_close(both.out_prob, expected.expand(2, -1))


def call_file(tmp_path, *channels):
    """A file of several channels."""
    size = max(map(len, channels))
    rows = [torch.nn.functional.pad(c, (0, size - len(c))) for c in channels]
    path = tmp_path / "call.wav"
    soundfile.write(path, torch.stack(rows, 1).numpy(), RATE, "FLOAT")
    return path


def test_both_parties_of_a_call(classifier, speech_clips, tmp_path):
    size = min(len(speech_clips[0]), len(speech_clips[9]))
    a, b = speech_clips[0][:size], speech_clips[9][:size]
    path = call_file(tmp_path, a, b)
    answers = [classifier.classify_batch(wav).out_prob[0] for wav in (a, b)]
    assert (answers[0] - answers[1]).abs().max() > 0.01
    found = classifier.classify_file(path, channel="each")
    torch.testing.assert_close(
        found.out_prob, torch.stack(answers), atol=1e-4, rtol=0
    )
    results = classifier.classify_files([path, path], channel="each")
    assert [r.channel for r in results] == [0, 1, 0, 1]
    segments = list(classifier.classify_long(path, 60.0, channel="each"))
    assert [s.channel for s in segments] == [0, 1]
    for k in (0, 1):
        one = classifier.classify_file(path, channel=k)
        torch.testing.assert_close(one.out_prob[0], answers[k])
        for other in (results[k], results[k + 2], segments[k]):
            torch.testing.assert_close(
                other.log_posteriors, answers[k], atol=1e-4, rtol=0
            )
    [result] = classifier.classify_files(path, channel=1)
    assert result.channel == 1
    [result] = classifier.classify_files(path)
    assert result.channel is None
    [result] = classifier.classify_files(path, channel=2)
    assert "no channel 2 in" in result.error and "which has 2" in result.error
    with pytest.raises(AudioError, match="unknown channel 'left'"):
        classifier.classify_long(path, channel="left")


def test_a_silent_party(classifier, speech_clips, tmp_path):
    speech = speech_clips[0]
    path = call_file(tmp_path, 0 * speech, speech)
    found = classifier.classify_file(path, channel="each")
    assert found.out_prob[0].isnan().all() and found.score[0].isnan()
    assert found.index[0] == -1 and found.text_lab[0] is None
    torch.testing.assert_close(
        found.out_prob[1], classifier.classify_batch(speech).out_prob[0]
    )
    results = classifier.classify_files(path, channel="each")
    assert [r.reason for r in results] == ["silence", None]
    with pytest.raises(NoSpeechError, match="silence"):
        classifier.classify_file(path, channel=0)
    path = call_file(tmp_path, 0 * speech, 0 * speech)
    with pytest.raises(NoSpeechError, match="silence"):
        classifier.classify_file(path, channel="each")


def test_opposite_phase_is_no_silence(classifier, speech_clips, tmp_path):
    speech = speech_clips[0]
    path = call_file(tmp_path, speech, -speech)
    expected = classifier.classify_batch(speech).out_prob
    found = classifier.classify_file(path)
    torch.testing.assert_close(found.out_prob, expected)


def test_signatures_are_explicit():
    for name in ("batch", "file", "files", "long"):
        method = getattr(EmotionClassifier, f"classify_{name}")
        kinds = {p.kind for p in inspect.signature(method).parameters.values()}
        assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.fixture
def trainable(small_model):
    """A classifier that is not frozen, with batch norm in its CNNs."""
    model = copy.deepcopy(small_model())
    modules = {"embedding_model": model, "classifier": torch.nn.Identity()}
    hparams = {
        "label_encoder": make_label_encoder(["a", "b", "c"]),
        "sample_rate": RATE,
    }
    return EmotionClassifier(modules, hparams, freeze_params=False)


@pytest.mark.parametrize("train", [False, True])
def test_classification_never_changes_the_model(trainable, path, train):
    """Also where the caller has set the training mode."""
    trainable.train(train)
    # A module that was frozen by itself stays so
    frozen = trainable.mods.embedding_model.branches["mfcc"].eval()
    before = copy.deepcopy(trainable.mods.state_dict())
    modes = [module.training for module in trainable.modules()]
    calls = [
        lambda: trainable.classify_file(path).out_prob,
        lambda: trainable.classify_files([path])[0].answer.out_prob,
        lambda: next(trainable.classify_long(path, 60.0)).log_posteriors[None],
        lambda: trainable(load_audio(path)).out_prob,
    ]
    answers = [call() for call in calls for _ in range(2)]
    for answer in answers:
        torch.testing.assert_close(answer, answers[0], atol=1e-6, rtol=0)
        assert not answer.requires_grad
    after = trainable.mods.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert [module.training for module in trainable.modules()] == modes
    assert not frozen.training
    with pytest.raises(AudioError):
        trainable.classify_batch(torch.full((9000,), torch.nan))
    assert [module.training for module in trainable.modules()] == modes


def test_who_trains_has_gradients(trainable, path):
    model = trainable.mods.embedding_model.train()
    wavs = trainable.load_audio(path)[None]
    assert model(wavs).requires_grad
    frozen = trainable.classify_batch(wavs).out_prob
    assert not frozen.requires_grad and model.training


def test_arrays_that_torch_cannot_share(classifier):
    """Read-only arrays give no warning, and big-endian ones an answer."""
    wav = 0.1 * np.random.default_rng(0).standard_normal(16000)
    expected = classifier.classify_batch(torch.tensor(wav)).out_prob
    locked = wav.copy()
    locked.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (locked, wav.astype(">f8"), wav[::-1][::-1]):
            found = classifier.classify_batch(given).out_prob
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("channels", [9, 16, 64])
def test_a_recording_of_many_channels_is_no_batch(channels, classifier):
    with pytest.raises(AudioError, match="batch of 8000 utterances"):
        classifier.classify_batch(np.zeros((8000, channels), "float32"))


@pytest.mark.parametrize("given", [None, 5, {}, [0.1, 0.2]])
def test_what_is_no_audio(given, classifier):
    for options in ({}, {"sample_rate": 16000}):
        with pytest.raises(AudioError, match="expected a path, the bytes"):
            classifier.classify_file(given, **options)
    if not isinstance(given, dict | list):
        with pytest.raises(AudioError, match=f"got {given}"):
            classifier.classify_files(given)


@pytest.mark.parametrize("value", [math.inf, math.nan, -math.inf])
def test_windows_that_are_no_number(value, classifier):
    wav = torch.zeros(16000)
    for options in ({"window": value}, {"hop": value}):
        with pytest.raises(ValueError, match="expected 0 < hop <= window"):
            list(classifier.classify_long((wav, 16000), **options))


def test_an_array_is_no_channel(classifier):
    with pytest.raises(AudioError, match="unknown channel array"):
        classifier.classify_file((torch.zeros(9), 16000), channel=np.arange(2))
