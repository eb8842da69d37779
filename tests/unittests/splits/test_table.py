"""The table of folds: every clip, every subset, and the split's own hash."""

import csv
import json
from pathlib import Path

import miniature_runs as miniature
import pytest

from speechbrain_dslstm.splits import PROTOCOLS, make_split, write_folds
from speechbrain_dslstm.splits.protocols import split_hash

REPOSITORY = Path(__file__).resolve().parents[3]


def read(path):
    """The rows of the table."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_subsets_are_those_of_the_split(tmp_path, protocol):
    entries = miniature.corpus()
    path = tmp_path / "folds.csv"
    write_folds(path, entries, [protocol], 7, 3, 1)
    rows = read(path)
    assert [row["id"] for row in rows] == sorted(entries)
    for row in rows:
        assert row["speaker"] == entries[row["id"]]["speaker"]
    columns = list(rows[0])[3:]
    for fold, column in enumerate(columns):
        split = make_split(entries, protocol, fold, 7, 3, 1)
        assert column == f"{protocol} {fold} {split_hash(split)}"
        for subset in ("train", "valid", "test"):
            found = [r["id"] for r in rows if subset in r[column].split("+")]
            assert found == sorted(getattr(split, subset))
    tested = [row["id"] for row in rows for c in columns if "test" in row[c]]
    if protocol not in ("all", "split"):
        assert sorted(tested) == sorted(entries)


@pytest.mark.parametrize("name", ["emodb", "ravdess"])
def test_published_folds_are_those_of_the_results(name):
    folder = REPOSITORY / "results"
    report = json.loads((folder / f"{name}.json").read_text())
    rows = {row["id"]: row for row in read(folder / f"{name}_folds.csv")}
    (key,) = report["utterances"]
    assert list(rows) == key["ids"]
    for run in report["runs"]:
        for fold in run["folds"]:
            column = f"{run['protocol']} {fold['fold']} {fold['split_hash']}"
            subsets = [row[column] for row in rows.values()]
            for subset in ("train", "valid", "test"):
                assert subsets.count(subset) == fold["clips"][subset]
                said = {
                    row["speaker"]
                    for row in rows.values()
                    if row[column] == subset
                }
                assert sorted(said) == fold["speakers"][subset]


def test_no_such_protocol(tmp_path):
    with pytest.raises(ValueError, match="casino"):
        write_folds(tmp_path / "folds.csv", miniature.corpus(), ["casino"])
    assert not list(tmp_path.iterdir())
