"""Write folders of runs as train.py does, without a training.

Splits, leak tables and scores are the package's own; the answers are drawn,
better with every epoch, and differently well for each speaker.
"""

import csv
import json

import numpy as np

from speechbrain_dslstm.evaluation import scores
from speechbrain_dslstm.evaluation.results import LAST_EPOCH
from speechbrain_dslstm.splits import check_leaks, count_folds, make_split
from speechbrain_dslstm.splits.protocols import split_hash

LABELS = ["anger", "happiness", "neutral", "sadness"]
METRICS = ("wa", "ua", "macro_f1")


def corpus(speakers=6, sentences=4, labels=LABELS):
    """Manifest entries; two speakers a session."""
    return {
        f"{s:02}_{t}_{label[0]}": {
            "wav": f"{{data_root}}/{s:02}_{t}_{label[0]}.wav",
            "duration": 2.0,
            "emotion": label,
            "speaker": f"{s:02}",
            "gender": "FM"[s % 2],
            "session": f"S{s // 2}",
            "dialogue": "",
            "text_id": f"t{t}",
            "audio_hash": f"{s}-{t}-{label}",
            "corpus": f"C{s // 2 % 2}",
            "split": {0: "test", 1: "valid"}.get(t, "train"),
        }
        for s in range(speakers)
        for t in range(sentences)
        for label in labels
    }


def answer(entries, ids, skill, rng):
    """Draw a label for each clip; speakers differ."""
    chance = rng.random(len(ids))
    other = rng.choice(LABELS, len(ids)).tolist()
    drawn = {}
    for key, draw, label in zip(ids, chance, other, strict=True):
        entry = entries[key]
        ease = 0.2 * np.sin(7.0 * int(entry["speaker"]) + 1)
        right = draw < np.clip(skill + ease, 0.05, 0.98)
        drawn[key] = entry["emotion"] if right else label
    return drawn


def score(entries, drawn):
    """WA, UA and macro-F1 of the answers."""
    truth = [entries[key]["emotion"] for key in drawn]
    found = scores(truth, list(drawn.values()), LABELS)
    return found, {name: found[name] for name in METRICS}


def write(
    runs,
    system="dual_level",
    protocol="session",
    normalization="training",
    seed=1234,
    folds=None,
    skill=0.6,
    epochs=6,
    entries=None,
    corpus_name="emodb",
    valid_speakers=2,
):
    """Write the folds of a run, and return its folder."""
    entries = corpus() if entries is None else entries
    total = count_folds(entries, protocol, 3)
    place = runs / system / corpus_name / protocol / normalization
    for fold in range(total) if folds is None else folds:
        rng = np.random.default_rng([seed, fold, sum(map(ord, system))])
        folder = place / f"fold{fold}_seed{seed}"
        save = folder / "save"
        save.mkdir(parents=True)
        split = make_split(entries, protocol, fold, seed, 3, valid_speakers)
        for subset in ("train", "valid", "test"):
            some = {key: entries[key] for key in getattr(split, subset)}
            (save / f"{subset}.json").write_text(json.dumps(some))
        run = {
            "corpus": corpus_name,
            "label_set": None,
            "protocol": protocol,
            "fold": fold,
            "seed": seed,
            "system": system,
            "normalization": normalization,
            "n_folds": total,
            "labels": LABELS,
            "description": split.description,
            "split_hash": split_hash(split),
            "clips": {
                "train": len(split.train),
                "valid": len(split.valid),
                "test": len(split.test),
                "dropped": split.dropped,
            },
            "leaks": check_leaks(split, entries),
        }
        (save / "run.json").write_text(json.dumps(run))
        rows, tested = [], []
        for epoch in range(1, epochs + 1):
            now = skill * epoch / epochs
            answers = answer(entries, split.test, now, rng)
            found = score(entries, answers)[1]
            tested.append(
                {"epoch": epoch, "loss": 1.0, **found, "predicted": answers}
            )
            valid = found
            if split.valid and split.valid != split.test:
                drawn = answer(entries, split.valid, now, rng)
                valid = score(entries, drawn)[1]
            valid = {**valid, "loss": 1.0, "ua_mfcc": valid["ua"] / 2}
            row = {"epoch": epoch, "lr": 0.001, "train_loss": 2 / epoch}
            row |= {"score": valid["ua"], "valid": valid}
            if not split.valid:
                row |= {"score": epoch / epochs, "valid": {}}
            rows.append(row)
        for name, lines in (("epochs", rows), ("test_epochs", tested)):
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (save / f"{name}.jsonl").write_text(text)
        best = max(rows, key=lambda row: row["score"])
        chosen = tested[best["epoch"] - 1]
        fused, headline = score(entries, chosen["predicted"])
        tops = {
            name: max(tested, key=lambda row: row[name]) for name in METRICS
        }
        tops = {
            name: {"epoch": row["epoch"], "value": row[name]}
            for name, row in tops.items()
        }
        if split.valid == split.test:
            headline = {name: tops[name]["value"] for name in METRICS}
        results = {
            **run,
            "note": "",
            **headline,
            "test": {"fused": fused, "mfcc": fused},
            "selection": "highest validation UA" if split.valid else LAST_EPOCH,
            "best_epoch": best["epoch"],
            "test_best_epoch": tops,
            "epochs": epochs,
            "valid": best["valid"],
            "parameters": 1000,
            "seconds": 60.0,
            "command": [
                "/somewhere/train.py",
                f"/somewhere/hparams/{system}.yaml",
                "--corpus=emodb",
                "--data_folder=/corpora/emodb",
                f"--fold={fold}",
                f"--output_folder={folder}",
            ],
            "versions": {"speechbrain": "1.1.2", "torch": "2.11.0"},
        }
        (folder / "results.json").write_text(json.dumps(results))
        with open(folder / "predictions.csv", "w", newline="") as stream:
            columns = ["id", "speaker", "emotion", "predicted"]
            columns += [f"logp_{label}" for label in LABELS]
            writer = csv.writer(stream)
            writer.writerow(columns)
            for key, label in chosen["predicted"].items():
                entry = entries[key]
                logp = [-0.1 if one == label else -3.4 for one in LABELS]
                row = [key, entry["speaker"], entry["emotion"], label, *logp]
                writer.writerow(row)
    return place
