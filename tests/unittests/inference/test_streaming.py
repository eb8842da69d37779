"""A stream ends with the offline answer for any chunks, in constant memory."""

import gc
import math
import weakref

import pytest
import torch
from hypothesis import given, settings, strategies as st

from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
from speechbrain_dslstm.export.stream_graph import ExportableStep
from speechbrain_dslstm.export.utterance_graph import ExportableClassifier
from speechbrain_dslstm.features.normalization import RunningNormalization
from speechbrain_dslstm.inference import EmotionStream
from speechbrain_dslstm.inference.explain import explain
from speechbrain_dslstm.inference.streaming import with_normalization
from speechbrain_dslstm.models import MFCCBranch, SpectrogramBranch
from speechbrain_dslstm.pretrained import make_label_encoder

CONFIGURATIONS = {
    "dual_level": {},
    "ds_lstm": {"p": 1.0},
    "mfcc_lstm": {"p": 0.0},
    "running": {"center": True},
    "output_norm": {"output_norm": "batch"},
    "statistics": {"pooling": "statistics"},
}


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def model(request, small_model):
    made = small_model(**CONFIGURATIONS[request.param])
    if request.param == "running":
        made = with_normalization(made, "running")
    return made


def chunks_of(wav, sizes):
    """Cut a waveform into chunks of these sizes, repeated in turn."""
    start, k = 0, 0
    while start < len(wav):
        size = sizes[k % len(sizes)]
        yield wav[start : start + size]
        start, k = start + size, k + 1


def stream_all(model, wav, sizes):
    stream = EmotionStream(model)
    for chunk in chunks_of(wav, sizes):
        stream.push(chunk)
    return stream.finish()


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=6),
    samples=st.integers(1, 30000),
    clip=st.integers(0, 20),
)
def test_any_chunks(model, speech_clips, sizes, samples, clip):
    """Clips may be shorter than the shortest that the model can classify."""
    wav = speech_clips[clip][:samples]
    if max(sizes) < 200:
        wav = wav[:4000]
    with torch.no_grad():
        expected = model(wav.unsqueeze(0))[0]
    found = stream_all(model, wav, sizes)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_head_with_dimensions():
    """Outputs after the classes (valence, arousal) are no logits."""
    branches = {
        "mfcc": MFCCBranch(5, hidden_size=8),
        "spectrogram": SpectrogramBranch(5),
    }
    model = DualLevelClassifier(3, **branches).eval()
    wav = torch.randn(20480) * 0.1
    step = ExportableStep(model)
    states = step.initial_state()
    with torch.no_grad():
        expected = model(wav.unsqueeze(0))
        exported = ExportableClassifier(model)(
            wav.unsqueeze(0), torch.tensor([len(wav)])
        )
        stream = EmotionStream(model)
        for t, chunk in enumerate(wav.split(step.samples)):
            running = stream.push(chunk)
            found, *states = step(chunk[None], torch.tensor(t), tuple(states))
    torch.testing.assert_close(found[0], running, atol=1e-5, rtol=0)
    last = explain(model, wav).posteriors[-1].log()
    for found in (stream.finish(), exported[0], last):
        torch.testing.assert_close(found, expected[0], atol=1e-5, rtol=0)


def test_answers_differ(model, speech_clips):
    """Without this, the test above would pass for a model of constant answer."""
    answers = [stream_all(model, wav, [5000]) for wav in speech_clips[:4]]
    for answer in answers[1:]:
        assert (answer - answers[0]).abs().max() > 1e-3


def test_whole_clips_and_the_temperature(classifier, clips_of_both):
    for wav in clips_of_both[:5]:
        stream = classifier.stream()
        for chunk in wav.split(1600):
            running = stream.push(chunk)
        expected = classifier.classify_batch(wav)[0][0]
        torch.testing.assert_close(stream.finish(), expected, atol=1e-5, rtol=0)
        assert (running - expected).abs().max() < 0.5


def test_a_stream_costs_little(small_model, speech_clips):
    """A stream shares the model's weights, and is freed with its last reference."""
    model = small_model(center=True)
    labels = make_label_encoder([str(k) for k in range(model.n_classes)])
    made = EmotionClassifier.from_model(model, labels, 16000)
    stream = made.stream(normalization="running")
    assert stream.model is not model
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, one in stream.model.named_parameters():
        assert one is own[name]
    for name, one in stream.model.named_buffers():
        # The running mean's statistics are its own
        assert one is own[name] or ".normalization." in name
    stream.push(speech_clips[0])
    gone = weakref.ref(stream.branches["spectrogram"])
    gc.disable()
    try:
        del stream
        assert gone() is None, "kept until the garbage collector runs"
    finally:
        gc.enable()


def test_running_posterior(model, speech_clips):
    """The running posterior begins after half a second, and sums to 1."""
    stream = EmotionStream(model)
    seconds = {}
    for k, chunk in enumerate(speech_clips[0].split(1600)):
        found = stream.push(chunk)
        if found is not None:
            seconds[k] = found
            assert math.isclose(found.exp().sum().item(), 1, rel_tol=1e-5)
    assert min(seconds) <= 5
    assert torch.stack(list(seconds.values())).std(0).max() > 1e-3
    torch.testing.assert_close(stream.posterior(), found, atol=0, rtol=0)


def test_constant_state(model, speech_clips):
    """The state does not grow with the stream."""
    stream = EmotionStream(model)
    sizes = []
    for wav in speech_clips[:12]:
        for chunk in wav.split(4000):
            stream.push(chunk)
            sizes.append(stream.state_size())
    # The number of frames that wait for their counterpart differs a little
    half = len(sizes) // 2
    assert max(sizes[half:]) < 1.1 * max(sizes[:half])
    # Views would keep the memory of whole chunks
    for features in stream.features.values():
        held = features.layer.held
        assert held.untyped_storage().nbytes() < 4 * held.numel() + 4


def test_sums_of_an_hour_do_not_drift(small_model, speech_clips):
    """Each sum over the stream is in float64, so that it loses no frame."""
    stream = EmotionStream(with_normalization(small_model(), "running"))
    stream.push(speech_clips[0])
    means = stream.branches.values()
    states = [features.state[1] for features in stream.features.values()]
    totals = [mean.total for mean in means]
    assert {value.dtype for value in (*totals, *states)} == {torch.float64}
    # An hour of MFCC frames; in float32 the sum would not change at all
    for mean in means:
        mean.total, mean.steps = torch.full_like(mean.total, 3e5), 360_000
        for _ in range(100):
            mean.add(torch.full((1, 1, mean.total.shape[-1]), 1e-2))
        # Sums of the outputs and of their squares
        sums = torch.tensor([3e5 + 1, 3e5 + 0.01], dtype=torch.float64)
        expected = sums[:, None, None].expand_as(mean.total)
        torch.testing.assert_close(mean.total, expected, atol=1e-6, rtol=0)
    norm = RunningNormalization(1)
    state = (360_000, torch.full((1, 1, 1), 3e5, dtype=torch.float64))
    for _ in range(100):
        _, state = norm.step(torch.full((1, 1, 1), 1e-2), state)
    assert state[1].item() == pytest.approx(3e5 + 1, abs=1e-6)
    feats = torch.full((1, 100_000, 1), 0.1)
    _, state = norm.step(feats, None)
    assert state[1].item() == pytest.approx(
        1e5 * feats[0, 0, 0].item(), abs=1e-6
    )


def test_one_chunk_of_any_length(small_model, speech_clips):
    """A chunk of many seconds has the answer of its pieces."""
    model, wav = small_model(), torch.cat(speech_clips[:8])
    stream = EmotionStream(model)
    stream.push(wav)
    found = stream.finish()
    torch.testing.assert_close(
        found, stream_all(model, wav, [1600]), atol=1e-5, rtol=0
    )


def test_running_normalization_nears_the_utterances_mean(small_model):
    """Ten seconds remove most of a constant offset."""
    norm = RunningNormalization(2, prior=25.0)
    feats = torch.randn(1, 1000, 2) + 3.0
    counts = torch.tensor([1000])
    out = norm(feats, counts)
    assert out[0, -100:].mean().abs() < 0.3 < out[0, :5].mean()
    padded = torch.cat([feats, torch.full((1, 5, 2), 7.0)], dim=1)
    torch.testing.assert_close(norm(padded, counts)[:, :1000], out)
    assert norm(padded, counts)[:, 1000:].abs().max() == 0


def test_with_normalization_leaves_the_model_alone(small_model, speech_clips):
    model = small_model(center=True)
    wav = speech_clips[0].unsqueeze(0)
    before = model(wav)
    running = with_normalization(model, "running")
    training = with_normalization(model, "training")
    torch.testing.assert_close(model(wav), before, atol=0, rtol=0)
    assert (running(wav) - before).abs().max() > 1e-4
    assert (training(wav) - running(wav)).abs().max() > 1e-4
    with pytest.raises(ValueError, match="expected one of running, training"):
        with_normalization(model, "utterance")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"center": True}, "subtracts each utterance's own mean"),
        ({"gate_norm": "batch"}, "gate_norm"),
        ({"bidirectional": True}, "backwards"),
    ],
)
def test_models_that_need_the_whole_utterance(options, match, small_model):
    with pytest.raises(ValueError, match=match):
        EmotionStream(small_model(**options))


def test_an_unknown_branch(small_model):
    class Other(MFCCBranch):
        """Of another kind."""

    model = small_model(p=0.0)
    model.branches["mfcc"].__class__ = Other
    with pytest.raises(ValueError, match='no Other .branch "mfcc"'):
        EmotionStream(model)
    with pytest.raises(ValueError, match="supports no Linear"):
        EmotionStream(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match='stretch "mel_x" to 230'):
        EmotionStream(DualLevelClassifier(2, resize=[230, 120]))


@pytest.mark.parametrize(
    ("chunk", "match"),
    [
        (torch.zeros(1, 5), r"floats \[samples\], got \[1, 5\]"),
        (torch.zeros(5, dtype=torch.int16), "int16"),
        (torch.tensor([0.0, math.nan]), "NaN"),
        (torch.tensor([0.0, 1001.0]), "samples up to 1001 in the stream"),
    ],
)
def test_chunks_that_are_none(chunk, match, small_model):
    with pytest.raises(ValueError, match=match):
        EmotionStream(small_model()).push(chunk)


def test_the_end_is_the_end(small_model):
    stream = EmotionStream(small_model())
    with pytest.raises(ValueError, match="received no samples"):
        stream.finish()
    assert stream.push(torch.zeros(0)) is None
    stream.push(torch.randn(8000))
    torch.testing.assert_close(stream.finish(), stream.finish())
    with pytest.raises(ValueError, match="finished"):
        stream.push(torch.zeros(5))
