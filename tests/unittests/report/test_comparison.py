"""Reports: from run folders to tables that say what they are worth."""

import csv
import json
import re

import miniature_runs as miniature
import pytest

from speechbrain_dslstm.evaluation import METRICS, scores
from speechbrain_dslstm.evaluation.bootstrap import bootstrap_scores
from speechbrain_dslstm.evaluation.results import LAST_EPOCH
from speechbrain_dslstm.report import (
    DIGITS,
    build_report,
    comparison,
    gather_runs,
    write_report,
)


def find(report, system, protocol="session", normalization="training"):
    """The entry of a run."""
    wanted = (system, protocol, normalization)
    (entry,) = (
        one
        for one in report["runs"]
        if (one["system"], one["protocol"], one["normalization"]) == wanted
    )
    return entry


def fold_results(folder, place):
    """results.json of the folds of a run."""
    return [
        json.loads(path.read_text())
        for path in sorted((folder / place).glob("*/results.json"))
    ]


def test_scores_are_those_of_the_folds(folder, report):
    entry = find(report, "dual_level")
    results = fold_results(folder, "dual_level/emodb/session/training")
    rules = entry["rules"]
    for name in METRICS:
        mean = sum(one[name] for one in results) / 3
        found = rules["validation"]["scores"][name]
        assert found["mean"] == pytest.approx(mean, abs=1e-5)
        assert found["n"] == 3 and found["std"] > 0
        assert found["pooled_low"] <= found["pooled"] <= found["pooled_high"]
        best = [one["test_best_epoch"][name]["value"] for one in results]
        found = rules["test"]["scores"][name]
        assert found["mean"] == pytest.approx(sum(best) / 3, abs=1e-5)
    confusion = sum(
        sum(map(sum, one["test"]["fused"]["confusion"])) for one in results
    )
    assert sum(map(sum, rules["validation"]["confusion"])) == confusion == 96
    assert set(rules["validation"]["speaker_ua"]) == {
        f"{speaker:02}" for speaker in range(6)
    }


def test_without_validation_the_last_epoch_is_scored(tmp_path):
    """The same from the JSON of a report."""
    miniature.write(tmp_path / "runs", valid_speakers=0)
    miniature.write(tmp_path / "runs", "ds_lstm")
    report = build_report(gather_runs(tmp_path / "runs"), resamples=200)
    write_report(report, tmp_path / "report")
    kept = gather_runs(tmp_path / "report" / "report.json")
    for one in (report, build_report(kept, resamples=200)):
        entry = find(one, "dual_level")
        found = entry["rules"]["validation"]
        assert entry["selection"] == found["selection"] == LAST_EPOCH
        assert entry["curves"]["valid_ua"]["epoch"] == []
        assert {fold["best_epoch"] for fold in entry["folds"]} == {6}
        assert {fold["valid_ua"] for fold in entry["folds"]} == {None}
        chosen = find(one, "ds_lstm")["rules"]["validation"]["selection"]
        assert chosen == "chosen on validation"
        assert "different splits" in " ".join(one["notes"])
    page = (tmp_path / "report" / "report.md").read_text()
    assert f"| epoch | {LAST_EPOCH} |" in page


def test_pooled_score_is_that_of_all_predictions(folder, report):
    truth, predicted = [], []
    place = folder / "dual_level/emodb/session/training"
    for path in place.glob("*/predictions.csv"):
        with open(path, newline="") as stream:
            for row in csv.DictReader(stream):
                truth.append(row["emotion"])
                predicted.append(row["predicted"])
    wanted = scores(truth, predicted, miniature.LABELS)
    found = find(report, "dual_level")["rules"]["validation"]
    for name in METRICS:
        pooled = found["scores"][name]["pooled"]
        assert pooled == pytest.approx(wanted[name], abs=1e-5)
    assert found["confusion"] == wanted["confusion"]


def test_answers_rebuild_the_scores(report):
    """The compact predictions of the JSON are enough to score again."""
    (key,) = report["utterances"]
    truth = [DIGITS.index(digit) for digit in key["truth"]]
    for entry in report["runs"]:
        for rule in entry["rules"]:
            for name in METRICS:
                label = rule if rule == "validation" else f"test {name}"
                found = []
                for seed in entry["rules"][rule]["seeds_pooled"]:
                    line = entry["answers"][str(seed)][label]
                    pairs = [
                        (t, DIGITS.index(digit))
                        for t, digit in zip(truth, line, strict=True)
                        if digit != "-"
                    ]
                    found.append(
                        scores(*zip(*pairs, strict=True), key["labels"])
                    )
                mean = sum(one[name] for one in found) / len(found)
                pooled = entry["rules"][rule]["scores"][name]["pooled"]
                assert pooled == pytest.approx(mean, abs=1e-5)


def test_folds_can_be_told_from_the_answers(report):
    entry = find(report, "dual_level")
    (key,) = report["utterances"]
    for fold in entry["folds"]:
        tested = {
            key["speakers"][key["speaker"][i]]
            for i, digit in enumerate(entry["answers"]["1234"]["fold"])
            if digit == DIGITS[fold["fold"]]
        }
        assert sorted(tested) == fold["speakers"]["test"]
        assert not tested & set(fold["speakers"]["train"])
        assert re.fullmatch("[0-9a-f]{12}", fold["split_hash"])
        assert fold["clips"]["test"] == 32


def test_the_paper_protocol_has_only_the_test_rule(folder, report):
    entry = find(report, "dual_level", "paper")
    assert list(entry["rules"]) == ["test"] == [entry["headline"]]
    results = fold_results(folder, "dual_level/emodb/paper/training")
    for name in METRICS:
        mean = sum(one[name] for one in results) / 3
        found = entry["rules"]["test"]["scores"][name]["mean"]
        assert found == pytest.approx(mean, abs=1e-5)


def test_partial_runs_are_called_partial(report, page):
    entry = find(report, "mfcc_lstm")
    assert not entry["complete"] and entry["status"] == "2 of 3 folds"
    assert any(
        "mfcc_lstm" in note and "2 of 3" in note for note in report["notes"]
    )
    (row,) = [c for c in report["comparisons"] if c["system"] == "mfcc_lstm"]
    assert row["missing"] == "not the same utterances (96 and 64)"
    assert "ua" not in row
    for text in (page.read_text(), page.with_name("report.md").read_text()):
        assert text.count("PARTIAL: 2 of 3 folds") >= 2


def test_seeds_count_together(report):
    entry = find(report, "ds_lstm")
    assert entry["status"] == "2 seeds, 3 of 3 folds each"
    assert entry["rules"]["validation"]["scores"]["ua"]["n"] == 6
    assert entry["rules"]["validation"]["seeds_pooled"] == [5, 1234]


def test_an_incomplete_seed_is_not_pooled(tmp_path):
    miniature.write(tmp_path, "ds_lstm")
    miniature.write(tmp_path, "ds_lstm", seed=5, folds=[1])
    report = build_report(gather_runs(tmp_path), "ds_lstm", resamples=200)
    (entry,) = report["runs"]
    assert entry["status"] == "seed 5: 1 of 3 folds, seed 1234: 3 of 3 folds"
    assert entry["rules"]["validation"]["seeds_pooled"] == [1234]
    assert entry["rules"]["validation"]["scores"]["ua"]["n"] == 4
    assert not entry["complete"]


def test_comparison_with_the_reference(report):
    (row,) = [c for c in report["comparisons"] if c["system"] == "ds_lstm"]
    one, two = (
        find(report, system)["rules"]["validation"]["scores"]["ua"]["pooled"]
        for system in ("dual_level", "ds_lstm")
    )
    assert row["ua"]["value"] == pytest.approx(two - one, abs=1e-5)
    assert row["ua"]["low"] <= row["ua"]["value"] <= row["ua"]["high"]
    assert 0 < row["ua"]["p"] <= 1 and 0 < row["mcnemar"]["p"] <= 1


def test_chain_from_flattering_to_honest(report):
    (chain,) = [c for c in report["chains"] if c["system"] == "dual_level"]
    assert [row["key"] for row in chain["rows"]] == [
        "a0",
        "a",
        "b",
        "c'",
        "c",
        "d",
    ]
    pooled = {r["key"]: r["scores"] for r in chain["rows"]}
    steps = {(s["from"], s["to"]): s for s in chain["steps"]}
    assert list(steps) == [("a", "b"), ("b", "c"), ("c", "d"), ("c'", "c")]
    for (one, two), step in steps.items():
        for name in ("wa", "ua"):
            change = pooled[two][name]["pooled"] - pooled[one][name]["pooled"]
            assert step[name]["value"] == pytest.approx(change, abs=1e-5)
            assert step[name]["low"] <= step[name]["high"]
    honest = [r["key"] for r in chain["rows"] if not r["warnings"]]
    assert honest == ["c"]
    # Best test epochs of the same trainings can only be better, fold by fold
    for one, two in (("a", "b"), ("c'", "c")):
        for name in METRICS:
            assert pooled[one][name]["mean"] >= pooled[two][name]["mean"]


def test_chain_of_partial_runs_says_what_is_missing(tmp_path):
    miniature.write(tmp_path, protocol="random")
    miniature.write(tmp_path, protocol="session", folds=[0])
    (chain,) = build_report(gather_runs(tmp_path), resamples=200)["chains"]
    steps = {s["from"] + s["to"]: s for s in chain["steps"]}
    assert steps["bc"]["missing"] == "not the same utterances (96 and 32)"
    assert "ua" in steps["ab"] and "ua" in steps["c'c"]


def test_a_chain_is_of_one_normalisation(tmp_path):
    for protocol in ("random", "session"):
        miniature.write(tmp_path, protocol=protocol, normalization="none")
    miniature.write(tmp_path, normalization="training", skill=0.1)
    miniature.write(tmp_path, normalization="speaker")
    (chain,) = build_report(gather_runs(tmp_path), resamples=200)["chains"]
    used = [row["normalization"] for row in chain["rows"]]
    assert used == ["none"] * 4 + ["speaker"]


@pytest.mark.parametrize("protocol", ["random", "paper"])
def test_leaky_numbers_say_so_in_every_output(report, page, protocol):
    entry = find(report, "dual_level", protocol)
    for found in entry["rules"].values():
        assert "same speakers in training and test" in found["warnings"]
    if protocol == "paper":
        assert any("test fold" in w for w in found["warnings"])
    lines = page.with_name("report.md").read_text().splitlines()
    rows = [
        one for one in lines if one.startswith(f"| dual_level | {protocol} |")
    ]
    assert rows and all(
        "same speakers in training and test" in row for row in rows
    )
    html = page.read_text()
    for row in re.findall("<tr>.*?</tr>", html):
        if f">{protocol}<" in row and ">dual_level<" in row:
            assert "same speakers in training and test" in row
    captions = re.findall("<figcaption>(.*?)</figcaption>", html)
    some = [one for one in captions if f", {protocol}" in one]
    assert len(some) == 3
    assert all("same speakers in training and test" in one for one in some)


def test_learning_curves_have_a_range(report):
    curves = find(report, "dual_level")["curves"]
    for name in ("train_loss", "valid_ua", "test_ua"):
        curve = curves[name]
        assert curve["epoch"] == list(range(1, 7))
        for low, mean, high in zip(
            curve["low"], curve["mean"], curve["high"], strict=True
        ):
            assert low <= mean <= high


def test_different_splits_are_noted(tmp_path):
    miniature.write(tmp_path, "dual_level")
    place = miniature.write(tmp_path, "ds_lstm")
    path = place / "fold1_seed1234" / "results.json"
    results = json.loads(path.read_text())
    path.write_text(json.dumps(results | {"split_hash": "0123456789ab"}))
    notes = build_report(gather_runs(tmp_path), resamples=200)["notes"]
    assert len(notes) == 1 and "fold 1: runs have different splits" in notes[0]


def test_without_the_reference_nothing_is_compared(tmp_path):
    miniature.write(tmp_path, "ds_lstm")
    report = build_report(gather_runs(tmp_path), resamples=200)
    assert report["comparisons"] == []
    assert "there is no run of dual_level" in report["notes"][0]


def test_runs_without_normalisation_are_compared(tmp_path):
    """`paper` normalises nothing: its own base, but no speaker's audio."""
    miniature.write(tmp_path, "dual_level")
    miniature.write(tmp_path, "paper", "session", "none")
    miniature.write(tmp_path, "paper", "session", "speaker")
    report = build_report(gather_runs(tmp_path), resamples=200)
    (row,) = report["comparisons"]
    assert row["system"] == "paper" and row["normalization"] == "none"
    (chain,) = [c for c in report["chains"] if c["system"] == "paper"]
    assert {r["key"]: r["normalization"] for r in chain["rows"]} == {
        "c'": "none",
        "c": "none",
        "d": "speaker",
    }


def test_equal_answers_share_a_bootstrap(tmp_path, monkeypatch):
    """By validation all metrics have the same answers, and chains reuse them."""
    drawn = []

    def count(counts, resamples):
        drawn.append(counts)
        return bootstrap_scores(counts, resamples)

    monkeypatch.setattr(comparison, "bootstrap_scores", count)
    place = miniature.write(tmp_path, "dual_level")
    build_report(gather_runs(tmp_path), resamples=200)
    best = [one["test_best_epoch"] for one in fold_results(place, ".")]
    epochs = {tuple(one[name]["epoch"] for one in best) for name in METRICS}
    assert len(drawn) <= 1 + len(epochs)
