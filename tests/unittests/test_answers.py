"""Reports read again: kept answers stand for the runs they came from."""

import importlib.util
import json
from pathlib import Path

import pytest

from speechbrain_dslstm.answers import gather_runs, read_report
from speechbrain_dslstm.rendering import write_json
from speechbrain_dslstm.report import build_report
from speechbrain_dslstm.runs import read_runs

REPOSITORY = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location(
    "miniature_runs", REPOSITORY / "tests" / "miniature_runs.py"
)
miniature = importlib.util.module_from_spec(spec)
spec.loader.exec_module(miniature)

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
            (run["system"], run["protocol"], seed, number): fold["answers"]
            for run in runs
            for seed, folds in run["seeds"].items()
            for number, fold in folds.items()
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
        ('{"utterances": []}', "it has no 'runs'"),
        ('{"runs": [{}], "utterances": []}', "it has no 'corpus'"),
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
