"""Folders of train.py read as runs; damaged or contradictory ones refused."""

import json
import shutil

import miniature_runs as miniature
import pytest

from speechbrain_dslstm.report import build_report, gather_runs
from speechbrain_dslstm.report.runs import caveats


def test_warnings():
    assert caveats("session", "validation", "training") == []
    assert "test fold" in caveats("session", "test", "training")[0]
    assert "unlabelled" in caveats("session", "validation", "speaker")[0]
    assert caveats("text", "validation", "training")
    with pytest.raises(
        ValueError, match="unknown protocol 'sessions'; expected one of speaker"
    ):
        caveats("sessions", "test", "training")


def test_a_run_without_test_epochs_has_no_test_rule(tmp_path):
    place = miniature.write(tmp_path, "ds_lstm")
    for path in place.glob("*/save/test_epochs.jsonl"):
        path.unlink()
    (entry,) = build_report(gather_runs(tmp_path), resamples=200)["runs"]
    assert list(entry["rules"]) == ["validation"]
    place = miniature.write(tmp_path, "ds_lstm", "paper")
    (place / "fold0_seed1234/save/test_epochs.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="train this fold again"):
        gather_runs(place / "fold0_seed1234")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", "{}"),
        ("results.json", "[]"),
        ("results.json", "{"),
        ("predictions.csv", None),
        ("predictions.csv", ""),
        ("save/test.json", '{"a": {}}'),
        ("save/epochs.jsonl", '{"epoch": 1}\n'),
    ],
)
def test_damaged_fold_is_named(tmp_path, name, text):
    miniature.write(tmp_path, seed=1, folds=[0])
    (results,) = tmp_path.rglob("results.json")
    file = results.parent / name
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises((ValueError, OSError), match=results.parent.name):
        gather_runs(tmp_path)


def test_damaged_run_that_has_not_ended_is_named(tmp_path):
    miniature.write(tmp_path, seed=1, folds=[0])
    (results,) = tmp_path.rglob("results.json")
    results.unlink()
    (results.parent / "save" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="is damaged .*train the fold again"):
        gather_runs(tmp_path)


def break_file(name, change):
    """A function that changes a fold's JSON file."""

    def apply(fold):
        path = fold / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return apply


@pytest.mark.parametrize(
    "spoil, message",
    [
        (
            break_file("results.json", lambda r: r | {"wa": 0.123}),
            "WA by the rule 'validation' is 0.1230, but the predictions give",
        ),
        (
            break_file("results.json", lambda r: r | {"labels": ["a", "b"]}),
            r"labels is \['a', 'b'\], in other folds",
        ),
        (
            break_file("save/test.json", lambda r: dict(list(r.items())[1:])),
            "32 predictions, which are not for the 31 clips",
        ),
        (
            break_file("results.json", lambda r: r | {"fold": 0}),
            "hold the same fold",
        ),
        (
            lambda fold: (fold / "save/test_epochs.jsonl").write_text("{\n"),
            "test_epochs.jsonl: Expecting",
        ),
    ],
)
def test_spoilt_folders_are_refused(tmp_path, spoil, message):
    place = miniature.write(tmp_path)
    spoil(place / "fold1_seed1234")
    with pytest.raises(ValueError, match=message):
        gather_runs(tmp_path)


def test_folds_that_test_the_same_clip_are_refused(tmp_path):
    place = miniature.write(tmp_path)
    one, two = (place / f"fold{k}_seed1234" for k in (0, 1))
    for name in ("save/test.json", "predictions.csv", "save/test_epochs.jsonl"):
        shutil.copy(one / name, two / name)
    results = json.loads((one / "results.json").read_text())
    (two / "results.json").write_text(json.dumps(results | {"fold": 1}))
    with pytest.raises(ValueError, match="is tested in folds 0 and 1"):
        gather_runs(tmp_path)


def test_unfinished_folds_are_counted(tmp_path):
    place = miniature.write(tmp_path)
    (place / "fold2_seed1234" / "results.json").unlink()
    (run,) = gather_runs(tmp_path)
    assert run["unfinished"] == 1
    assert [fold["fold"] for fold in run["folds"]] == [0, 1]
