"""The graph of one step equals a stream, in torch and in onnxruntime."""

import numpy as np
import pytest
import torch

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.export import export_step_onnx
from speechbrain_dslstm.export.stream_graph import ExportableStep
from speechbrain_dslstm.inference import EmotionStream
from speechbrain_dslstm.inference.streaming import with_normalization
from speechbrain_dslstm.pretrained import make_label_encoder

onnxruntime = pytest.importorskip("onnxruntime")

STREAMS = {
    "dual_level": {},
    "running": {"center": True},
    "ds_lstm": {"p": 1.0},
    "mfcc_lstm": {"p": 0.0},
    "statistics": {"pooling": "statistics"},
}


@pytest.fixture(scope="module", params=STREAMS)
def stream_model(request, small_model):
    made = small_model(**STREAMS[request.param])
    if request.param == "running":
        made = with_normalization(made, "running")
    return made


def steps_of(clips, samples):
    """Cut clips into whole steps, as many as the shortest clip has."""
    steps = min(len(clip) for clip in clips) // samples
    both = torch.stack([clip[: steps * samples] for clip in clips])
    return both.split(samples, dim=1)


def test_step_equals_the_stream(stream_model, speech_clips):
    """They agree after every step of a batch, and the state has a constant size."""
    module = ExportableStep(stream_model)
    states = module.initial_state(batch=2)
    streams = [EmotionStream(stream_model) for _ in range(2)]
    clips = [torch.cat(speech_clips[:3]), torch.cat(speech_clips[3:6])]
    kinds = [(state.shape, state.dtype) for state in states]
    compared = 0
    for t, chunk in enumerate(steps_of(clips, module.samples)):
        with torch.no_grad():
            found, *states = module(chunk, torch.tensor(t), tuple(states))
        assert [(state.shape, state.dtype) for state in states] == kinds
        for row, stream, piece in zip(found, streams, chunk, strict=True):
            expected = stream.push(piece)
            if expected is None:
                assert not row.isfinite().any()
            else:
                compared += 1
                torch.testing.assert_close(row, expected, atol=1e-5, rtol=0)
    assert compared > 5


def test_step_onnx(small_model, speech_clips, tmp_path):
    """The graph was traced for two streams, and runs for one and three."""
    made = EmotionClassifier.from_model(
        with_normalization(small_model(), "running"),
        make_label_encoder(["a", "b", "c"]),
        16000,
        temperature=1.5,
    )
    session = onnxruntime.InferenceSession(
        export_step_onnx(made, tmp_path / "step.onnx")
    )
    meta = session.get_modelmeta().custom_metadata_map
    samples = int(meta["samples_per_step"])
    names = [value.name for value in session.get_inputs()][2:]
    outputs = [value.name for value in session.get_outputs()][1:]
    assert outputs == [f"{name}_out" for name in names]
    types = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    for batch in (1, 3):
        states = {
            value.name: np.zeros(
                [n if isinstance(n, int) else batch for n in value.shape],
                types[value.type],
            )
            for value in session.get_inputs()[2:]
        }
        clips = [torch.cat(speech_clips[k : k + 2]) for k in range(batch)]
        streams = [made.stream() for _ in clips]
        for t, chunk in enumerate(steps_of(clips, samples)):
            inputs = {"chunk": chunk.numpy(), "step": np.array(t), **states}
            found, *new = session.run(None, inputs)
            states = dict(zip(names, new, strict=True))
            for row, stream, piece in zip(found, streams, chunk, strict=True):
                torch.testing.assert_close(
                    torch.from_numpy(row), stream.push(piece), atol=1e-4, rtol=0
                )
        assert t > 3
