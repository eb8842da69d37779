"""Exported graphs equal the torch model at sizes they were not traced with."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from nightly import at_night

import speechbrain_dslstm
from speechbrain_dslstm import (
    EmotionClassifier,
)
from speechbrain_dslstm.export import (
    export_onnx,
    export_torch,
    quantize_onnx,
)
from speechbrain_dslstm.models import MFCCBranch
from speechbrain_dslstm.pretrained import make_label_encoder

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

INT8 = onnx.TensorProto.INT8
# Each takes a while to trace
CONFIGURATIONS = {
    "dual_level": {"center": True},
    "ds_lstm": {"output_norm": "batch", "p": 1.0, "num_layers": 1},
    "mfcc_lstm": {"p": 0.0},
}


def classifier_of(model):
    return EmotionClassifier.from_model(
        model, make_label_encoder(["a", "b", "c"]), 16000, temperature=1.5
    )


def batch_of(clips):
    counts = torch.tensor([len(clip) for clip in clips])
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), counts


def open_session(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def run(session, wavs, counts):
    inputs = {"wavs": wavs.numpy(), "counts": counts.numpy()}
    return torch.from_numpy(session.run(None, inputs)[0])


@pytest.fixture(
    scope="module",
    params=["dual_level", *map(at_night, ("ds_lstm", "mfcc_lstm"))],
)
def exported(request, small_model, tmp_path_factory):
    """A classifier, and its exported file."""
    made = classifier_of(small_model(**CONFIGURATIONS[request.param]))
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return made, export_onnx(made, path)


def test_any_batch_and_length(exported, speech_clips):
    """Clips last from one sample, padded to the shortest input, to thirty seconds."""
    made, path = exported
    session = open_session(path)
    batches = [speech_clips[:1], speech_clips[1:4], speech_clips[4:11]]
    batches += [[torch.cat(speech_clips[:12])]]
    for samples in (1, 400, 5000, 10239, 10240, 10241, 33333):
        batches.append([clip[:samples] for clip in speech_clips[:2]])
    answers = []
    for clips in batches:
        wavs, counts = batch_of(clips)
        expected = made.classify_batch(wavs, counts)[0]
        found = run(session, wavs, counts)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
        answers.append(found[0])
    assert torch.stack(answers[:3]).std(0).max() > 1e-3


def test_padding_changes_nothing(exported, clips_of_both):
    """Samples after the end of an utterance may even be NaN."""
    made, path = exported
    wavs, counts = batch_of(clips_of_both[:3])
    spoiled = wavs.clone()
    for row, count in zip(spoiled, counts, strict=True):
        row[count:] = float("nan")
    session = open_session(path)
    torch.testing.assert_close(
        run(session, spoiled, counts),
        run(session, wavs, counts),
        atol=0,
        rtol=0,
    )


def test_the_file(exported):
    """It is one file with one operator for each recurrent layer, independent of time."""
    made, path = exported
    assert os.listdir(path.parent) == [path.name]
    model = onnx.load(path)
    onnx.checker.check_model(model)
    operators = Counter(node.op_type for node in model.graph.node)
    expected = {"Scan": 0, "LSTM": 0}
    for branch in made.mods.embedding_model.branches.values():
        if isinstance(branch, MFCCBranch):
            expected["LSTM"] += branch.lstm.num_layers
        else:
            expected["Scan"] += branch.ds_lstm.num_layers
    assert {name: operators[name] for name in expected} == expected
    assert sum(operators.values()) < 700
    assert {node.domain for node in model.graph.node} == {""}
    found = {prop.key: prop.value for prop in model.metadata_props}
    assert json.loads(found["labels"]) == ["a", "b", "c"]
    assert found["sample_rate"] == "16000"
    # Not where it was made
    place = str(Path(speechbrain_dslstm.__file__).parent).encode()
    assert place not in path.read_bytes()
    names = [value.name for value in model.graph.input]
    assert names == ["wavs", "counts"]
    assert [v.name for v in model.graph.output] == ["log_posteriors"]


def test_int8(exported, speech_clips):
    """All learnt matrices become integers, and the answers stay close."""
    made, path = exported
    small = quantize_onnx(path, path.parent / "int8.onnx")
    try:
        wavs, counts = batch_of(speech_clips[:6])
        expected = made.classify_batch(wavs, counts)[0]
        found = run(open_session(small), wavs, counts)
        assert 0 < (found.exp() - expected.exp()).abs().max() < 0.1
        stored = onnx.load(small).graph.initializer
        quantized = sum(
            np.prod(t.dims)
            for t in stored
            if t.data_type == INT8 and len(t.dims) > 1
        )
        model = made.mods.embedding_model
        parameters = model.named_parameters()
        # Every matrix that was learnt, and none of the features'
        assert quantized == sum(
            p.numel() for n, p in parameters if "weight" in n and p.dim() == 2
        )
    finally:
        small.unlink()


def test_torch_export(small_model, speech_clips, tmp_path):
    made = classifier_of(small_model(p=1.0))
    file = tmp_path / "model.pt2"
    torch.export.save(export_torch(made), file)
    module = torch.export.load(file).module(check_guards=False)
    for clips in (speech_clips[:1], speech_clips[2:5]):
        wavs, counts = batch_of(clips)
        expected = made.classify_batch(wavs, counts)[0]
        with torch.no_grad():
            found = module(wavs, counts)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
