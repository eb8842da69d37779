"""Valence, arousal and dominance of every way to an answer agree."""

import csv
import io
import json
import pickle
import sys

import numpy as np
import pytest
import soundfile
import torch
from nightly import nightly

from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
from speechbrain_dslstm.cli.app import main
from speechbrain_dslstm.export import (
    export_onnx,
    export_step_onnx,
    export_torch,
    load_onnx,
    quantize_onnx,
)
from speechbrain_dslstm.inference import load_safe
from speechbrain_dslstm.models import MFCCBranch, TextBranch
from speechbrain_dslstm.pretrained import make_label_encoder
from speechbrain_dslstm.pretrained.architecture import describe, schema
from speechbrain_dslstm.pretrained.safe_format import write_safe

LABELS = ["sadness", "anger"]
NAMES = ["valence", "arousal", "dominance"]


@pytest.fixture(scope="module")
def made():
    torch.manual_seed(3)
    branch = MFCCBranch(5, hidden_size=8)
    branch.head.weight.data *= 5
    model = DualLevelClassifier(2, mfcc=branch, p=0.0, dimensions=NAMES)
    labels = make_label_encoder(LABELS)
    return EmotionClassifier.from_model(model.eval(), labels, 16000, 1.5)


@pytest.fixture(scope="module")
def expected(made, speech_clips):
    """Values of the first clip, computed from the branch's own outputs."""
    model = made.mods.embedding_model
    with torch.no_grad():
        wav = speech_clips[0].unsqueeze(0)
        values = model(wav, return_branches=True)[1]["mfcc"][0, 2:]
    assert values.std() > 1e-3
    return dict(zip(NAMES, values.tolist(), strict=True))


def test_batches_and_files(made, expected, speech_files, speech_clips):
    answer = made.classify_batch(speech_clips[0])
    out_prob, score, index, text_lab = answer
    assert len(answer) == 4 and out_prob.shape == (1, 2)
    assert answer.dimensions["valence"].shape == (1,)
    again = pickle.loads(pickle.dumps(answer))
    for found in (answer, again, made.classify_file(speech_files[0])):
        assert found.dimensions_of(0) == pytest.approx(expected, abs=1e-5)
    results = made.classify_files(speech_files[:3])
    assert results[0].dimensions == pytest.approx(expected, abs=1e-5)
    assert results[1].dimensions != results[0].dimensions
    assert made.classify_files(["gone.wav"])[0].dimensions == {}


def test_windows_are_averaged(made, speech_clips, tmp_path):
    """A file of more than a minute gets the mean of its windows with speech."""
    path = tmp_path / "long.wav"
    parts = [torch.cat(speech_clips)[: 70 * 16000], torch.zeros(12 * 16000)]
    soundfile.write(path, torch.cat(parts).numpy(), 16000)
    windows = list(made.classify_long(path))
    heard = [w for w in windows if w.reason is None]
    assert windows[-1].dimensions == {} and len(heard) > 8
    result = made.classify_files(path)[0]
    lengths = [w.end - w.start for w in heard]
    for name in NAMES:
        mean = np.average([w.dimensions[name] for w in heard], weights=lengths)
        assert result.dimensions[name] == pytest.approx(mean, abs=1e-4)


def test_streams(made, expected, speech_clips):
    stream = made.stream()
    assert stream.dimensions() == {}
    for chunk in speech_clips[0].split(3000):
        stream.push(chunk)
    stream.finish()
    assert stream.dimensions() == pytest.approx(expected, abs=1e-5)


def test_folders(made, expected, speech_clips, tmp_path):
    write_safe(tmp_path, made.mods.embedding_model, LABELS, 16000, 1.5)
    loaded = load_safe(tmp_path)
    assert loaded.dimensions == NAMES
    found = loaded.classify_batch(speech_clips[0]).dimensions_of(0)
    assert found == pytest.approx(expected, abs=1e-5)


def test_a_description_without_dimensions_is_as_before(small_model):
    """Other versions refuse arguments that they do not know."""
    assert "dimensions" not in describe(small_model())
    required = schema()["$defs"]["DualLevelClassifier"]["required"]
    assert "dimensions" not in required and "p" in required


@nightly
@pytest.mark.parametrize("int8", [False, True])
def test_onnx(int8, made, expected, speech_clips, tmp_path):
    pytest.importorskip("onnxruntime")
    path = export_onnx(made, tmp_path / "a.onnx")
    if int8:
        path = quantize_onnx(path, tmp_path / "b.onnx")
    loaded = load_onnx(path)
    answer = loaded.classify_batch(speech_clips[0])
    found = answer.dimensions_of(0)
    assert found == pytest.approx(expected, abs=0.1 if int8 else 1e-4)
    bad = torch.full((1, 9000), torch.nan)
    counts = torch.tensor([9000])
    for value in loaded.mods.embedding_model.predict(bad, counts):
        assert value.isnan().all()


@nightly
def test_steps_and_programs(made, expected, speech_clips, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = export_step_onnx(made, tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(path)
    names = [one.name for one in session.get_outputs()]
    assert names[:2] == ["log_posteriors", "dimensions"]
    meta = session.get_modelmeta().custom_metadata_map
    assert json.loads(meta["dimensions"]) == NAMES
    wav = speech_clips[0]
    program = export_torch(made).module(check_guards=False)
    _, values = program(wav.unsqueeze(0), torch.tensor([len(wav)]))
    assert values[0].tolist() == pytest.approx([*expected.values()], abs=1e-4)


def test_command_line(
    made, expected, speech_files, tmp_path, monkeypatch, capsys
):
    write_safe(tmp_path, made.mods.embedding_model, LABELS, 16000)

    def run(*options):
        argv = ["dslstm", *map(str, options), "--model", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().out

    row = json.loads(run("classify", "--json", speech_files[0]))
    assert row["dimensions"] == pytest.approx(expected, abs=1e-5)
    (row,) = csv.DictReader(
        io.StringIO(run("classify", "--csv", speech_files[0]))
    )
    assert list(row)[2:-2] == [*LABELS, *NAMES]
    found = {name: float(row[name]) for name in NAMES}
    assert found == pytest.approx(expected, abs=1e-5)
    assert f"valence {expected['valence']:+.2f}" in run(
        "classify", speech_files[0]
    )


def test_names_that_do_not_fit():
    """The branch has outputs for the classes only."""
    branch = MFCCBranch(2, hidden_size=8)
    with pytest.raises(ValueError, match='"mfcc" has 2 outputs; expected 3'):
        DualLevelClassifier(2, mfcc=branch, p=0.0, dimensions=["valence"])
    with pytest.raises(ValueError, match="a dimension twice"):
        DualLevelClassifier(2, p=0.0, dimensions=["valence", "valence"])
    text = TextBranch(2)
    with pytest.raises(ValueError, match='"text" has 2 outputs'):
        DualLevelClassifier(
            2, text=text, text_weight=1.0, dimensions=["valence"]
        )
