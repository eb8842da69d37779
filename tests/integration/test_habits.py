"""Options of the recipe beyond the paper, each in a real run of train.py."""

import csv
import json
import re
from pathlib import Path

import miniature_corpora as miniature
import processes
import pytest
import tiny_encoder
import torch
from nightly import nightly
from safetensors.torch import load_file

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = processes.RECIPE / "train.py"
SYNTHETIC = ["--corpus_options={speakers: 6, sentences: 1}"]
SMALL = [
    "--channels=[2, 2]",
    "--hidden_size=8",
    "--batch_size=4",
    "--number_of_epochs=2",
    "--device=cpu",
    "--noprogressbar",
]


def run(system, corpus, output, *options, fails=False):
    """Run to the end; the console of a run that is to fail, else the log."""
    yaml = str(REPOSITORY / "hparams" / f"{system}.yaml")
    given = {option.split("=")[0] for option in options}
    small = [one for one in SMALL if one.split("=")[0] not in given]
    folders = [f"--data_folder={corpus}", f"--output_folder={output}"]
    arguments = [yaml, *small, *folders, *options]
    console = processes.call(TRAIN, *arguments, code=int(fails))
    return "".join(console) if fails else (output / "log.txt").read_text()


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """A folder that the first run fills."""
    return tmp_path_factory.mktemp("synthetic")


def losses(output):
    """Training loss of each epoch."""
    lines = (output / "save" / "epochs.jsonl").read_text().splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


HABITS = {
    "weights, accumulation": [
        "--class_weights=balanced",
        "--grad_accumulation_factor=2",
    ],
    "sampling, mixup, cosine, bf16": [
        "--balanced_sampling=True",
        "--mixup=0.4",
        "--lr_schedule=!name:speechbrain_dslstm.training.warmup_cosine",
        "--precision=bf16",
    ],
}


@pytest.mark.parametrize("habit", HABITS)
def test_habits(habit, synthetic, tmp_path):
    run("dual_level", synthetic, tmp_path, *SYNTHETIC, *HABITS[habit])
    assert all(0.5 < loss < 2 for loss in losses(tmp_path))
    # Something was learnt from: the weights differ from those of no option
    assert (tmp_path / "results.json").exists()
    if "cosine" in habit:
        rows = (tmp_path / "save" / "epochs.jsonl").read_text().splitlines()
        rates = [json.loads(row)["lr"] for row in rows]
        assert rates[0] == pytest.approx(0.0015, abs=4e-4) and rates[1] == 0


@nightly
def test_compiled(synthetic, tmp_path):
    options = ["--compile", "--compile_module_keys=model"]
    run("mfcc_lstm", synthetic, tmp_path, *SYNTHETIC, *options)
    assert all(0.5 < loss < 2 for loss in losses(tmp_path))


@pytest.fixture(scope="module")
def iemocap(tmp_path_factory):
    """IEMOCAP's miniature, each turn with ratings and votes of its own."""
    root = miniature.build("iemocap", tmp_path_factory.mktemp("iemocap"))
    number = 0

    def rate(match):
        """Ratings that differ from turn to turn."""
        nonlocal number
        number += 1
        return f"[{1 + number % 5}.0000, {1 + number % 4}.5000, 2.0000]"

    for path in root.glob("Session?/dialog/EmoEvaluation/Ses*.txt"):
        text = path.read_bytes().decode("latin-1")
        text = re.sub(r"\[2\.5000, 3\.0000, 1\.5000\]", rate, text)
        path.write_bytes(text.encode("latin-1"))
    return root


def test_dimensions_beside_classes(iemocap, tmp_path):
    run(
        "dual_level",
        iemocap,
        tmp_path,
        "--corpus=iemocap",
        "--valid_speakers=1",
        "--dimensions=[valence, arousal]",
        "--soft_labels=0.5",
        "--lr_interval=batch",
    )
    with open(tmp_path / "dimensions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(rows) == results["test"]["fused"]["n"] > 1
    assert len({row["valence"] for row in rows}) > 1
    assert len({row["valence_predicted"] for row in rows}) > 1
    assert -1 <= results["valid"]["ccc_valence"] <= 1
    assert results["valid"]["ccc"] == pytest.approx(
        (results["valid"]["ccc_valence"] + results["valid"]["ccc_arousal"]) / 2
    )


def test_dimensions_instead_of_classes(iemocap, tmp_path):
    """What is selected on is the concordance."""
    options = ["--corpus=iemocap", "--valid_speakers=1", "--dimension_weight=1"]
    options += ["--dimensions=[valence]", "--selection_start=0"]
    run("mfcc_lstm", iemocap, tmp_path, *options)
    lines = (tmp_path / "save" / "epochs.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert row["score"] == row["valid"]["ccc"]


def test_dimensions_that_a_corpus_lacks(synthetic, tmp_path):
    options = [*SYNTHETIC, "--dimensions=[valence]"]
    console = run("mfcc_lstm", synthetic, tmp_path, *options, fails=True)
    assert "synthetic has no valence" in console


def test_text_of_iemocap(iemocap, tmp_path):
    """Tokens come from the training subset; nothing is said of a leak."""
    options = ["--corpus=iemocap", "--valid_speakers=1"]
    run("tri_level", iemocap, tmp_path, *options, "--text_model_type=char")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["text_note"] == ""
    assert set(results["test"]) == {"fused", "spectrogram", "mfcc", "text"}
    manifest = json.loads((tmp_path / "save" / "train.json").read_text())
    said = (tmp_path / "save" / "tokenizer" / "train.txt").read_text()
    assert len(said.splitlines()) == sum(
        bool(e["text"]) for e in manifest.values()
    )
    assert (tmp_path / "model" / "tokenizer.model").exists()


def test_text_of_fixed_sentences(synthetic, tmp_path):
    options = [*SYNTHETIC, "--text_model_type=char"]
    console = run("text_level", synthetic, tmp_path / "a", *options, fails=True)
    assert "a text model on them is a leak" in console
    options.append("--allow_fixed_sentences=True")
    log = run("text_level", synthetic, tmp_path / "b", *options)
    assert "a text model on them is a leak" in log
    results = json.loads((tmp_path / "b" / "results.json").read_text())
    assert "is a leak" in results["note"]


def test_encoder_is_trained_at_a_rate_of_its_own(synthetic, tmp_path):
    """Two optimisers, both resumed; the frozen convolutions do not move."""
    tiny_encoder.write_encoder(tmp_path / "hub")
    options = [*SYNTHETIC, f"--ssl_hub={tmp_path / 'hub'}"]
    options += ["--ssl_freeze=False", "--gradient_checkpointing=True"]
    options += ["--encoder_lr=0.0005", "--lr=0.002"]
    output = tmp_path / "run"
    run("ssl_ds_lstm", synthetic, output, *options)
    saved = next((output / "save").glob("CKPT*"))
    rates = [
        torch.load(saved / f"{name}.ckpt")["base_lrs"]
        for name in ("lr_schedule", "encoder_lr_schedule")
    ]
    assert rates == [[0.002], [0.0005]]
    state = load_file(output / "model" / "model.ckpt")
    fresh = tiny_encoder.CLASSES["wav2vec2"][1].from_pretrained(
        tmp_path / "hub"
    )
    place = "branches.spectrogram.cnn_y.encoder.model."
    moved = {
        name
        for name, value in fresh.state_dict().items()
        if not torch.equal(value, state[place + name])
    }
    assert any(name.startswith("encoder.layers.0") for name in moved)
    assert not any(name.startswith("feature_extractor") for name in moved)
    again = run(
        "ssl_ds_lstm", synthetic, output, *options, "--number_of_epochs=3"
    )
    assert "Loading a checkpoint from" in again
    assert len(losses(output)) == 3
