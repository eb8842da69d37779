"""Names of classes with any character survive training data, folders and reports."""

import csv
import json
import subprocess
import sys

import miniature_corpora as miniature
import pytest
import torch
from nightly import nightly

from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
from speechbrain_dslstm.cli.rows import make_format
from speechbrain_dslstm.corpora import Source, synthetic
from speechbrain_dslstm.corpora.manifest import read_manifest, write_manifest
from speechbrain_dslstm.evaluation import EmotionStats
from speechbrain_dslstm.evaluation.plots import plot_confusion
from speechbrain_dslstm.inference import load_safe
from speechbrain_dslstm.pretrained import save_pretrained
from speechbrain_dslstm.training.data import ReproducibleDataset

NAMES = [
    "a b",
    "a, b",
    "a/b\\c",
    "Überraschung",
    "슬픔",
    'it\'s "so"',
    "👩\u200d💻 happy",
    "null",
    "1",
    "1.0",
    "yes",
    "- a",
    "# a",
    "a => b",
    "a: b",
    "{a} {",
    "}",
    "<b>&amp;</b>",
    "$x_1$ and $",
    "a|b",
    "=1+1",
    "!ref <seed>",
    "*a &b",
    "%s",
    "label",
    "file",
    "error",
    "================",
    "a\u00a0b",
    "..",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model folder with these classes, and a few clips in a table."""
    place = tmp_path_factory.mktemp("names")
    yaml = (
        "sample_rate: 16000\n"
        "model: !new:speechbrain_dslstm.DualLevelClassifier\n"
        f"  n_classes: {len(NAMES)}\n  p: 0.0\n"
    )
    model = DualLevelClassifier(n_classes=len(NAMES), p=0.0)
    save_pretrained(place / "model", yaml, model, NAMES)
    with open(place / "t.jsonl", "w", encoding="utf-8") as file:
        for number, name in enumerate(NAMES):
            miniature.write_clip(place / f"{number}.wav", number, 0.3)
            row = {"file": f"{number}.wav", "emotion": name, "speaker": "{s}"}
            file.write(json.dumps(row) + "\n")
    return place


def test_from_hparams_and_load_safe(folder):
    for load in (EmotionClassifier.from_hparams, load_safe):
        classifier = load(folder / "model")
        assert classifier.labels == NAMES
        wav = torch.rand(1, 16000) - 0.5
        *_, index, label = classifier.classify_batch(wav)[:4]
        assert label == [NAMES[index.item()]]


def test_names_of_several_lines_are_refused(folder):
    path = folder / "model" / "model.json"
    text = path.read_text(encoding="utf-8")
    for bad in ("a\nb", "a\u2028b", "\u202eb"):
        changed = json.loads(text)
        changed["labels"][0] = bad
        path.write_text(json.dumps(changed))
        try:
            with pytest.raises(ValueError, match="cannot be printed"):
                load_safe(folder / "model")
        finally:
            path.write_text(text, encoding="utf-8")


def test_manifest_and_dataset(folder, tmp_path):
    source = Source({"corpus": "table", "table": str(folder / "t.jsonl")})
    assert source.labels == sorted(NAMES)
    path = tmp_path / "train.json"
    write_manifest(path, source.prepare())
    found = {entry["emotion"] for entry in read_manifest(path).values()}
    assert found == set(NAMES)
    data = ReproducibleDataset.from_json(
        path, {"data_root": source.data_root}, output_keys=["wav", "emotion"]
    )
    assert {data[k]["emotion"] for k in range(len(data))} == set(NAMES)
    # In another order, given as classes
    settings = {"corpus": "table", "table": str(folder / "t.jsonl")}
    assert Source({**settings, "classes": NAMES}).labels == NAMES


def test_predictions_and_picture(tmp_path):
    stats = EmotionStats(NAMES)
    size = len(NAMES)
    ids = list(map(str, range(size)))
    stats.append(ids, torch.eye(size), torch.arange(size))
    stats.write_predictions(tmp_path / "p.csv")
    with open(tmp_path / "p.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["predicted"] for row in rows] == NAMES
    assert [row["emotion"] for row in rows] == NAMES
    assert list(rows[0])[3:] == [f"logp_{name}" for name in NAMES]
    confusion = stats.summarize()["confusion"]
    plot_confusion(confusion, NAMES, tmp_path / "c.svg", "$a_ and $")
    assert (tmp_path / "c.svg").stat().st_size > 1000


def test_table_of_answers():
    """A class named like a column gets a column of its own."""
    form = make_format("csv", NAMES, [])
    posteriors = {name: k / 100 for k, name in enumerate(NAMES)}
    answer = {"file": "a.wav", "label": "a, b", "posteriors": posteriors}
    rows = list(csv.DictReader([form.header, form.line(answer)]))
    [row] = rows
    assert row["file"] == "a.wav" and row["label"] == "a, b"
    for name, value in posteriors.items():
        head = f"class_{name}" if name in ("file", "label", "error") else name
        assert float(row[head]) == value


@nightly
def test_onnx(folder, tmp_path):
    pytest.importorskip("onnxruntime")
    from speechbrain_dslstm.export import export_onnx, load_onnx

    path = tmp_path / "model.onnx"
    export_onnx(load_safe(folder / "model"), path)
    assert load_onnx(path).labels == NAMES


def test_command_line(folder):
    synthetic.generate(folder / "speech", speakers=1, sentences=1)
    clip = folder / "speech" / "spk01_anger_s1.wav"
    command = [sys.executable, "-m", "speechbrain_dslstm.cli", "classify"]
    done = subprocess.run(
        [*command, "--json", "-m", folder / "model", clip],
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert set(row["posteriors"]) == set(NAMES) and row["label"] in NAMES
