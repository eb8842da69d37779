"""A table through cross_validate.py to a model and a report, in real processes."""

import csv
import json

import miniature_corpora as miniature
import processes
import pytest

from speechbrain_dslstm import EmotionClassifier

YAML = str(processes.REPOSITORY / "hparams" / "dual_level.yaml")
SMALL = [
    "--channels=[2, 2]",
    "--hidden_size=8",
    "--batch_size=4",
    "--number_of_epochs=1",
    "--speeds=[90, 100]",
    "--device=cpu",
    "--noprogressbar",
]
NAMES = ["{joy} <b>", "a => b, $c$"]


@pytest.fixture
def table(tmp_path):
    """A table with its own split, parts of files, ratings and strange names."""
    rows = [["file", "emotion", "speaker", "split", "start", "end", "valence"]]
    for k in range(12):
        miniature.write_clip(tmp_path / "wav" / f"{k}.wav", k, seconds=1.2)
        subset = ("train", "train", "test")[k % 3]
        part = [0.1, 0.7] if k % 2 else ["", ""]
        label = NAMES[k // 3 % 2]
        row = [f"wav/{k}.wav", label, f"s{k % 3}", subset, *part, k * 10]
        rows.append(row)
    path = tmp_path / "my data.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    return path


def test_from_a_table_to_a_report(table, tmp_path):
    script = processes.RECIPE / "cross_validate.py"
    options = [YAML, *SMALL, "--corpus=table", f"--table={table}"]
    options += ["--protocol=split", "--report=report", "--resamples=200"]
    options += ["--feature_cache=cache", "--dimensions=[valence]"]
    options += ["--dimension_range=[0, 110]"]
    out, _ = processes.call(script, *options, cwd=tmp_path)
    [folder] = tmp_path.glob("runs/dual_level/my_data-*/split/training/fold0*")
    results = json.loads((folder / "results.json").read_text("utf-8"))
    assert results["corpus"] == folder.parents[2].name
    assert results["labels"] == sorted(NAMES)
    assert results["clips"] == {"train": 6, "valid": 2, "test": 4, "dropped": 0}
    assert "speakers may be in training and test" in results["note"]
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["emotion"] for row in rows} == set(NAMES)
    assert EmotionClassifier.from_hparams(folder / "model").labels == sorted(
        NAMES
    )
    text = (tmp_path / "report" / "report.html").read_text("utf-8")
    assert "<b></" not in text and "split" in text
    assert "dual_level on my_data-" in out
    # Nothing is trained again; another label map is another corpus
    again = ["--dry_run", *options]
    assert "done" in processes.call(script, *again, cwd=tmp_path)[0]
    (tmp_path / "map.yaml").write_text("'{joy} <b>': joy\n")
    again += [f"--label_map={tmp_path / 'map.yaml'}"]
    assert "0%" in processes.call(script, *again, cwd=tmp_path)[0]
    assert list((tmp_path / "cache" / "table").iterdir())
