"""Gates and posteriors of an explanation, and their picture."""

import pytest
import torch

from speechbrain_dslstm.inference import EmotionStream
from speechbrain_dslstm.inference.explain import explain, plot_explanation
from speechbrain_dslstm.models import TemperatureScaling

OPTIONS = [
    {},
    {"p": 1.0},
    {"gate_norm": "batch", "output_norm": "batch"},
    {"center": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_it_ends_with_the_answer(options, small_model, clips_of_both):
    model = small_model(**options)
    for wav in clips_of_both[:3]:
        found = explain(model, wav)
        with torch.no_grad():
            expected = model(wav.unsqueeze(0))[0].exp()
        torch.testing.assert_close(
            found.posteriors[-1], expected, atol=1e-5, rtol=0
        )
        ones = torch.ones(len(found.posteriors))
        torch.testing.assert_close(found.posteriors.sum(1), ones)


def test_shapes_and_times(small_model, speech_clips):
    wav = speech_clips[0]
    found = explain(small_model(), wav)
    seconds = len(wav) / 16000
    steps = len(found.times)
    assert found.seconds == seconds and found.times[-1] == seconds
    assert (found.times.diff() > 0).all()
    torch.testing.assert_close(found.times[0], torch.tensor(0.128))
    assert found.gate_x.shape == found.gate_y.shape == (2, steps)
    assert found.mel_x.shape == (1 + len(wav) // 256, 128)
    assert found.mel_y.shape == (1 + len(wav) // 512, 256)
    # In dB, as they are before normalisation
    assert -101 < found.mel_x.min() < found.mel_x.max() < 60


@pytest.mark.parametrize("gate", ["gate_x", "gate_y"])
def test_an_open_gate_is_seen(gate, small_model, speech_clips):
    """A bias that opens one input gate moves that gate, and only it."""
    model = small_model()
    plain = explain(model, speech_clips[0])
    layer = model.branches["spectrogram"].ds_lstm
    hidden = layer.hidden_size
    row = 1 if gate == "gate_x" else 2
    layer.bias_l0.data[row * hidden : (row + 1) * hidden] = 30.0
    found = explain(model, speech_clips[0])
    other = "gate_y" if gate == "gate_x" else "gate_x"
    assert (getattr(found, gate)[0] > 0.999).all()
    assert (getattr(found, other)[0] < 0.9).all()
    torch.testing.assert_close(
        getattr(found, other)[0, 0], getattr(plain, other)[0, 0]
    )


def test_the_running_posterior_is_that_of_a_stream(small_model, speech_clips):
    """Without the MFCC branch the posteriors over time are those of a stream."""
    model, wav = small_model(p=1.0), speech_clips[0]
    stream = EmotionStream(model)
    answers = []
    for chunk in wav.split(256):
        running = stream.push(chunk)
        if running is not None and (
            not answers or not torch.equal(answers[-1], running)
        ):
            answers.append(running)
    answers.append(stream.finish())
    found = explain(model, wav).posteriors
    torch.testing.assert_close(
        found[: len(answers) - 1],
        torch.stack(answers[:-1]).exp(),
        atol=1e-5,
        rtol=0,
    )


def test_temperature(small_model, speech_clips):
    model = small_model()
    plain = explain(model, speech_clips[0]).posteriors
    hot = explain(model, speech_clips[0], TemperatureScaling(5.0)).posteriors
    assert (hot.max(1).values < plain.max(1).values).all()


def test_a_short_clip(small_model, speech_clips):
    found = explain(small_model(), speech_clips[0][:1000])
    assert len(found.times) == 1


def test_models_without_gates(small_model):
    with pytest.raises(ValueError, match="this one are: MFCCBranch"):
        explain(small_model(p=0.0), torch.randn(8000))
    with pytest.raises(ValueError, match="this one are: none"):
        explain(torch.nn.Linear(1, 1), torch.randn(8000))
    with pytest.raises(ValueError, match="backwards"):
        explain(small_model(bidirectional=True), torch.randn(8000))


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_picture(ending, small_model, speech_clips, tmp_path):
    found = explain(small_model(), speech_clips[0])
    path = tmp_path / f"explained.{ending}"
    plot_explanation(found, ["sadness", "anger", "neutral"], path, "A title")
    assert path.stat().st_size > 5000
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    if ending == "svg":
        text = path.read_text()
        for part in ("A title", "fine frequency", "neutral", "layer 2"):
            assert f"<!-- {part}" in text or part in text


def test_labels_that_do_not_fit(small_model, speech_clips, tmp_path):
    found = explain(small_model(), speech_clips[0])
    with pytest.raises(ValueError, match="2 labels for 3 classes"):
        plot_explanation(found, ["a", "b"], tmp_path / "a.png")
