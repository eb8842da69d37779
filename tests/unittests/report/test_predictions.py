"""Reports read again: kept answers stand for the runs they came from."""

import json
from pathlib import Path

import miniature_runs as miniature
import pytest

from speechbrain_dslstm.report import (
    build_report,
    gather_runs,
    write_json,
)
from speechbrain_dslstm.report.predictions import encode_answers, read_report
from speechbrain_dslstm.report.runs import read_runs

REPOSITORY = Path(__file__).resolve().parents[3]

RESAMPLES = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs with two seeds, a partial one, and one without validation."""
    runs = tmp_path_factory.mktemp("made") / "runs"
    miniature.write(runs, "dual_level", skill=0.7)
    miniature.write(runs, "dual_level", seed=5, skill=0.6)
    miniature.write(runs, "mfcc_lstm", skill=0.4, folds=[0, 2])
    miniature.write(runs, "dual_level", "random", skill=0.9)
    miniature.write(runs, "ds_lstm", "paper", skill=0.9)
    return runs


@pytest.fixture
def kept(folder, tmp_path):
    """The JSON of their report."""
    path = tmp_path / "kept.json"
    write_json(build_report(read_runs(folder), resamples=RESAMPLES), path)
    return path


def assert_alike(one, two, where):
    """Equal, but for the sixth digit, which a kept number has not."""
    if isinstance(two, dict):
        assert list(map(str, one)) == list(two), where
        for name, value in two.items():
            assert_alike(one[name], value, f"{where} {name}")
    elif isinstance(two, list):
        assert len(one) == len(two), where
        for number, value in enumerate(two):
            assert_alike(one[number], value, f"{where} {number}")
    elif isinstance(two, float):
        assert one == pytest.approx(two, rel=1e-4, abs=2e-6), where
    else:
        assert one == two, where


def test_a_report_of_a_report_is_the_same(kept):
    again = build_report(read_report(kept), resamples=RESAMPLES)
    wanted = json.loads(kept.read_text())
    assert again.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_alike(again[name], value, name)


def test_answers_are_those_of_the_folders(folder, kept):
    def answers(runs):
        return {
            (run["system"], run["protocol"]): sorted(run["answers"])
            for run in runs
        }

    assert answers(read_report(kept)) == answers(read_runs(folder))


def test_a_new_run_is_compared_with_a_kept_one(folder, kept, tmp_path):
    both = tmp_path / "both"
    miniature.write(both, "mine", skill=0.5)
    mixed = build_report(gather_runs(both, kept), resamples=RESAMPLES)
    trained = build_report(read_runs(folder, both), resamples=RESAMPLES)
    rows = {}
    for name, report in (("mixed", mixed), ("trained", trained)):
        (row,) = [c for c in report["comparisons"] if c["system"] == "mine"]
        rows[name] = row
    assert rows["mixed"] == rows["trained"]
    assert rows["mixed"]["reference"] == "dual_level"
    assert 0 < rows["mixed"]["ua"]["p"] <= 1


def test_a_chain_goes_on_from_a_kept_run(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    miniature.write(one, "dual_level", "session", skill=0.7)
    miniature.write(two, "dual_level", "random", skill=0.9)
    path = tmp_path / "one.json"
    write_json(build_report(read_runs(one), resamples=RESAMPLES), path)
    mixed = build_report(gather_runs(two, path), resamples=RESAMPLES)
    trained = build_report(read_runs(one, two), resamples=RESAMPLES)
    (chain,) = mixed["chains"]
    (wanted,) = trained["chains"]
    assert [row["key"] for row in chain["rows"]] == ["a", "b", "c'", "c"]
    for step, other in zip(chain["steps"], wanted["steps"], strict=True):
        assert step == other


def test_a_run_in_two_places_is_refused(folder, kept, tmp_path):
    with pytest.raises(ValueError, match=r"dual_level on emodb.*kept\.json"):
        gather_runs(folder, kept)
    other = tmp_path / "other.json"
    other.write_bytes(kept.read_bytes())
    with pytest.raises(ValueError, match=r"kept\.json and in .*other\.json"):
        gather_runs(kept, other)


def test_runs_that_disagree_on_a_clip_are_refused(kept, tmp_path):
    entries = miniature.corpus()
    first = next(iter(entries.values()))
    first["speaker"] = "99"
    miniature.write(tmp_path / "new", "mine", entries=entries)
    with pytest.raises(ValueError, match="disagree on 00_0_a"):
        build_report(gather_runs(tmp_path / "new", kept), resamples=RESAMPLES)


def test_labels_in_another_order_are_refused(kept, tmp_path):
    report = json.loads(kept.read_text())
    report["runs"][0]["labels"].reverse()
    path = tmp_path / "turned.json"
    path.write_text(json.dumps(report))
    with pytest.raises(ValueError, match="disagree on the labels"):
        build_report(read_report(path), resamples=RESAMPLES)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "Expecting value"),
        ("[]", "list indices"),
        ("[" * 100_000, "recursion"),
        ('{"utterances": []}', "it has no 'runs'"),
        ('{"runs": [{}], "utterances": []}', "it has no 'complete'"),
        ("{" * 10, "Expecting property name"),
    ],
)
def test_what_is_no_report_is_named(tmp_path, text, wanted):
    path = tmp_path / "some.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"some\.json is no .*{wanted}"):
        read_report(path)


def test_a_line_that_is_too_short_is_refused(kept):
    report = json.loads(kept.read_text())
    lines = report["runs"][0]["answers"]["1234"]
    lines["fold"] = lines["fold"][:-1]
    kept.write_text(json.dumps(report))
    with pytest.raises(ValueError, match=r"kept\.json is no report"):
        read_report(kept)


def spoil(entry, key, how):
    """Damage a kept run of dual_level, seed 1234, three folds."""
    lines, folds = entry["answers"]["1234"], entry["folds"]
    if how == "answers":
        lines["validation"] = "0" * len(lines["validation"])
    elif how == "no answer":
        lines["validation"] = lines["validation"].replace("1", "-")
    elif how == "fold left out":
        lines["fold"] = lines["fold"].replace("2", "-")
    elif how == "fold moved":
        lines["fold"] = lines["fold"].replace("2", "1")
    elif how == "fold twice":
        folds.append(folds[0])
    elif how == "no such fold":
        folds[0]["fold"] = -1
    elif how == "no folds":
        folds.clear()
    elif how == "no scores":
        folds[0]["values"]["validation"].pop("ua")
    elif how == "no rules":
        folds[0]["values"].clear()
    elif how == "speaker":
        key["speaker"][0] = -1
    elif how == "utterances":
        key["label_set"] = "other"
    elif how == "curves":
        entry.pop("curves")
    else:
        entry["n_folds"] = "three"


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("answers", "seed 1234, fold 0: WA by the rule 'validation' is"),
        ("no answer", "unknown label or speaker of"),
        (
            "fold left out",
            "fold 2 has 0 answers, expected one for each of its 32 clips",
        ),
        (
            "fold moved",
            "fold 1 has 384 answers, expected one for each of its 32 clips",
        ),
        ("fold twice", "fold 0 is a duplicate"),
        ("no such fold", "fold -1 is a duplicate or not below 3"),
        ("no folds", "has no fold"),
        ("no scores", "fold 0 has the scores"),
        ("no rules", "fold 0 has 0 answers"),
        ("speaker", "unknown label or speaker of"),
        ("utterances", "no utterances, of .*emodb"),
        ("curves", "it has no 'curves'"),
        ("number", "'str' object"),
    ],
)
def test_damage_is_refused(kept, how, wanted):
    report = json.loads(kept.read_text())
    (entry,) = (
        run
        for run in report["runs"]
        if (run["system"], run["protocol"]) == ("dual_level", "session")
    )
    spoil(entry, report["utterances"][0], how)
    kept.write_text(json.dumps(report))
    with pytest.raises(ValueError, match=rf"kept\.json is no .*{wanted}"):
        read_report(kept)


def test_a_place_that_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*emodb\.json"):
        gather_runs(folder, tmp_path / "emodb.json")


def test_a_place_given_twice_counts_once(kept):
    assert len(gather_runs(kept, str(kept))) == len(read_report(kept))


def test_more_labels_than_characters_are_refused():
    run = {"labels": list(range(63)), "n_folds": 2, "answers": []}
    with pytest.raises(ValueError, match="at most 62 labels .* not 63"):
        encode_answers(run, [])
    with pytest.raises(ValueError, match="not 64"):
        encode_answers({**run, "labels": ["a"], "n_folds": 64}, [])


def test_what_is_not_compared_is_said(kept, tmp_path):
    miniature.write(tmp_path / "new", "mine", "speaker")
    runs = gather_runs(tmp_path / "new", kept)
    notes = build_report(runs, resamples=RESAMPLES)["notes"]
    (note,) = [one for one in notes if one.startswith("mine")]
    assert "protocol speaker" in note and "not compared" in note


@pytest.mark.parametrize("name", ["emodb", "ravdess"])
def test_published_results_can_be_read(name):
    path = REPOSITORY / "results" / f"{name}.json"
    published = json.loads(path.read_text())
    report = build_report(read_report(path), resamples=100)
    for one, other in zip(report["runs"], published["runs"], strict=True):
        for rule, found in other["rules"].items():
            again = one["rules"][rule]
            assert again["confusion"] == found["confusion"]
            for score in ("wa", "ua", "macro_f1"):
                assert again["scores"][score]["mean"] == pytest.approx(
                    found["scores"][score]["mean"], abs=2e-6
                )
