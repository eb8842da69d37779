"""The results of a run: the best epoch, the temperature, and the caveats."""

import csv
import itertools
import json
from importlib.metadata import version

import pytest
import torch

from speechbrain_dslstm.evaluation import (
    EmotionStats,
    calibration_report,
    fit_temperature,
)
from speechbrain_dslstm.evaluation.results import append_row, write_results

LABELS = ["anger", "neutral", "sadness"]
# Early epochs have 1 subtracted from their score, whatever their UA
EPOCHS = [
    {"score": -0.1, "valid": {"wa": 0.95, "ua": 0.9, "macro_f1": 0.9}},
    {"score": 0.8, "valid": {"wa": 0.8, "ua": 0.8, "macro_f1": 0.7}},
    {"score": 0.7, "valid": {"wa": 0.9, "ua": 0.7, "macro_f1": 0.8}},
    {"score": 0.8, "valid": {"wa": 0.7, "ua": 0.8, "macro_f1": 0.9}},
    {"score": 0.6, "valid": {"wa": 0.6, "ua": 0.6, "macro_f1": 0.6}},
]


def stats(temperature, n=400):
    """Log-posteriors that need this temperature to be calibrated."""
    honest = (2 * torch.randn(n, len(LABELS))).log_softmax(1)
    targets = torch.distributions.Categorical(logits=honest).sample()
    found = EmotionStats(LABELS)
    ids = [f"u{i}" for i in range(n)]
    found.append(ids, (honest * temperature).log_softmax(1), targets)
    return found


@pytest.fixture
def write(tmp_path):
    """Write the results of a run of some protocol and normalisation."""

    def write(
        protocol="session", normalization="training", validation=True, **run
    ):
        save = tmp_path / "save"
        save.mkdir()
        run |= {"protocol": protocol, "normalization": normalization}
        run |= {"system": "s", "corpus": "c", "fold": 0, "labels": LABELS}
        (save / "run.json").write_text(json.dumps(run))
        entry = dict.fromkeys(
            ("session", "text_id", "dialogue", "text", "audio_hash"), "x"
        )
        entry |= {"emotion": "anger", "speaker": "a", "gender": "F"}
        entry |= {"wav": "{data_root}/a.wav", "duration": 1.0}
        scores = {
            "valid": {"fused": stats(3.0)},
            "test": {"fused": stats(0.8)},
        }
        entries = dict.fromkeys(scores["test"]["fused"].ids, entry)
        (save / "test.json").write_text(json.dumps(entries))
        speakers = itertools.cycle(["a", "b"])
        valid = {
            key: {**entry, "speaker": next(speakers)}
            for key in scores["valid"]["fused"].ids
        }
        (save / "valid.json").write_text(json.dumps(valid))
        if not validation:
            del scores["valid"]
        for number, row in enumerate(EPOCHS, 1):
            one = {"epoch": number, **row}
            append_row(
                save / "epochs.jsonl",
                one if validation else one | {"valid": {}},
            )
            values = {"epoch": number, **row["valid"]}
            append_row(save / "test_epochs.jsonl", values)
        hparams = {
            "output_folder": tmp_path,
            "selection_start": 0.2,
            "number_of_epochs": len(EPOCHS),
            "dimensions": [],
            "labels": LABELS,
            "calibration": None,
            "model": torch.nn.Linear(2, 3),
        }
        return write_results(hparams, scores, 1.23), scores

    return write


def pair(found):
    """Log-posteriors and targets of statistics."""
    return torch.tensor(found.scores), torch.tensor(found.targets)


def test_the_temperature_is_fitted_on_validation_and_reported_on_test(write):
    results, scores = write()
    valid, test = (pair(scores[name]["fused"]) for name in ("valid", "test"))
    temperature = results["calibration"]["temperature"]
    assert temperature == pytest.approx(fit_temperature(*valid), rel=1e-4)
    assert temperature == pytest.approx(3, rel=0.2)
    assert abs(temperature - fit_temperature(*test)) > 1
    found = results["calibration"]
    report = calibration_report(*test, temperature)
    assert {name: found[name] for name in report} == report
    assert found["fitted_on"] == "2 validation speakers"
    assert found["ece_nested"] < found["ece_raw"]


def test_the_best_epoch_is_the_first_with_the_highest_score(write):
    results, _ = write()
    assert results["best_epoch"] == 2 and results["epochs"] == 5
    assert results["valid"] == EPOCHS[1]["valid"]
    assert results["selection"] == "best validation UA after epoch 1"
    # For comparison only: the test subset's own maxima
    best = {
        name: (r["epoch"], r["value"])
        for name, r in results["test_best_epoch"].items()
    }
    assert best == {"wa": (1, 0.95), "ua": (1, 0.9), "macro_f1": (1, 0.9)}


def test_without_validation_the_last_epoch_is_the_best(write):
    results, _ = write(validation=False)
    assert results["best_epoch"] == 5 and results["valid"] == {}
    assert results["selection"] == "last, without validation"
    found = results["calibration"]
    assert found["temperature"] == 1 and found["ece_after"] > 0
    assert found["fitted_on"] is None


def test_scores_and_files(write, tmp_path):
    results, scores = write()
    fused = scores["test"]["fused"].summarize()
    assert results["test"] == {"fused": fused}
    assert [results[n] for n in ("wa", "ua")] == [fused["wa"], fused["ua"]]
    assert results["parameters"] == 9 and results["seconds"] == 1.2
    assert results["versions"]["speechbrain_dslstm"] == version(
        "speechbrain-dslstm"
    )
    assert json.loads((tmp_path / "results.json").read_text()) == results
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == fused["n"] and {r["speaker"] for r in rows} == {"a"}
    assert (tmp_path / "confusion.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("run", "note"),
    [
        ({"protocol": "session"}, ""),
        ({"protocol": "random"}, "same speakers in training and test"),
        ({"protocol": "all"}, "no test subset: scored on the validation"),
        ({"normalization": "speaker"}, "with all audio of each test speaker"),
        ({"text_note": "a leak"}, "a leak"),
    ],
)
def test_caveats(write, run, note):
    found = write(**run)[0]["note"]
    assert note in found and bool(found) == bool(note)


def test_the_paper_takes_two_maxima_over_the_test_fold(write):
    results, _ = write(protocol="paper")
    assert (results["wa"], results["ua"]) == (0.95, 0.9)
    assert "test fold, separately for WA and UA" in results["selection"]
    assert results["selection"] in results["note"]
    assert "same speakers in training and test" in results["note"]
