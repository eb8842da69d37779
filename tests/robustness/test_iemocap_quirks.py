"""Real copies of IEMOCAP: which turns are used, and why others are not.

The golden file is what ``python tests/robustness/test_iemocap_quirks.py``
prints; it was read line by line against ``tests/corpora/miniature.py``.
"""

import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

import miniature_corpora as miniature
import pytest

from speechbrain_dslstm.corpora import prepare
from speechbrain_dslstm.corpora.manifest import check_entries

TESTS = Path(__file__).resolve().parents[1]
GOLDEN = TESTS / "golden" / "iemocap_quirks.json"


def read(root, label_set=None, **options):
    """Manifest and report of a tree."""
    left_out = []
    entries, _ = prepare("iemocap", root, label_set, left_out, **options)
    return entries, left_out


@pytest.fixture
def tree(tmp_path):
    """A tree with every quirk."""
    return miniature.quirky_iemocap(tmp_path)


def test_the_golden_manifest_and_report(tree):
    entries, left_out = read(tree)
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert left_out == golden["left_out"]
    assert entries == golden["manifest"]
    check_entries(entries)


def test_every_turn_is_used_or_reported(tree):
    """The report names the line of the turn."""
    entries, left_out = read(tree)
    seen = set(entries)
    for row in left_out:
        place, _, number = row["where"].rpartition(":")
        if not place:
            continue
        path = tree / place
        data = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        line = data.split(b"\n")[int(number) - 1]
        assert line.startswith(b"[") and row["id"].encode() in line
        seen.add(row["id"])
    turns = set()
    for path in tree.glob("Session?/dialog/EmoEvaluation/Ses*.txt"):
        text = path.read_bytes().decode("latin-1").replace("\r", "\n")
        rows = [line.split("\t") for line in text.split("\n")]
        turns |= {row[1] for row in rows if row[0][:1] == "[" and row[1:]}
    assert turns <= seen and len(turns) > 20


def test_all_kinds_of_reasons(tree):
    """Each turn is left out for its own fault."""
    _, left_out = read(tree)
    counts = Counter(
        row["reason"].split(":")[0].split(" (")[0] for row in left_out
    )
    assert counts == {
        "label fru is not in 4class": 1,
        "label sur is not in 4class": 1,
        "label xxx is not in 4class": 1,
        "malformed": 1,
        "not a turn of IEMOCAP": 1,
        "not the name of a dialogue": 1,
        "the session has no evaluation files": 1,
        "kept, but without valence, arousal, dominance": 4,
        "kept, but without valence, dominance": 1,
        "missing": 1,
        "named twice": 2,
        "truncated": 1,
        "unreadable": 1,
        "empty": 1,
        "with a label outside ['anger', 'happiness', 'neutral', 'sadness']": 1,
    }


def test_the_same_from_above_and_again(tree):
    """Paths may have spaces, and the order of files on disk does not matter."""
    entries, left_out = read(tree)
    assert read(tree) == (entries, left_out)
    renamed = tree.rename(tree.with_name("IEMOCAP_full_release"))
    above, above_left_out = read(renamed.parent)
    assert list(above) == list(entries)
    for key, entry in entries.items():
        inside = entry["wav"].removeprefix("{data_root}/")
        assert above[key]["wav"] == "{data_root}/IEMOCAP_full_release/" + inside
    assert len(above_left_out) == len(left_out)


def test_options_are_reasons_too(tree):
    entries, left_out = read(tree, "6class", improvised_only=True)
    reasons = {row["id"]: row["reason"] for row in left_out}
    assert reasons["Ses05M_script01_1b"] == (
        "scripted, but only improvised dialogues are wanted"
    )
    assert reasons["Ses01F_impro01_M002"] == "label xxx is not in 6class"
    assert entries["Ses01F_impro01_F002"]["emotion"] == "frustration"


def test_nothing_else_is_warned_of(tree, caplog):
    """Each kind of fault gives a warning; labels that are not used give none."""
    with caplog.at_level(logging.WARNING):
        read(tree)
    assert len(caplog.messages) == 9
    assert not any("xxx" in message for message in caplog.messages)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        found, missed = read(miniature.quirky_iemocap(Path(folder)))
    content = {"left_out": missed, "manifest": found}
    json.dump(content, sys.stdout, ensure_ascii=False, indent=1)
    print()
