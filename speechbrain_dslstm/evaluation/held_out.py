"""Read the predictions of a cross-validation for clips of unheard speakers.

In a cross-validation that separates speakers, every clip is predicted by a model
that did not hear its speaker. These predictions are what a temperature is fitted
on: those of a few validation speakers are too few.
"""

import csv
import json
from collections import defaultdict
from pathlib import Path

import torch

from speechbrain_dslstm.splits.protocols import speaker_caveat

__all__ = ["read_held_out"]

Group = tuple[torch.Tensor, torch.Tensor]
RUN = "system", "corpus", "protocol", "normalization"


def read_held_out(
    folder: str | Path, labels: list[str]
) -> tuple[str, list[Group]]:
    """Read the name of a run, and what each of its folds has predicted.

    The name is such as "dual_level/emodb/session/training". A fold has
    log-posteriors [n, K] and true classes [n].

    Arguments
    ---------
    folder
        Folder of a run's folds, such as runs/dual_level/emodb/session/training.
        The seeds of a fold are one group, as they test the same clips.
    labels
        The classes of the model to be calibrated. The run must have the same, or
        some of them: several corpora may share a part only.

    Raises
    ------
    FileNotFoundError
        There is no finished fold below ``folder``.
    ValueError
        The folds are of several runs, have other classes, or have test speakers
        that are also in training.
    """
    found, runs = defaultdict(list), {}
    for path in sorted(Path(folder).rglob("results.json")):
        results = json.loads(path.read_text("utf-8"))
        name = "/".join(results[key] for key in RUN)
        runs[name, *results["labels"]] = name
        protocol = results["protocol"]
        caveat = "; ".join(speaker_caveat(protocol))
        if protocol == "all":
            caveat = "no test subset"
        if caveat:
            raise ValueError(
                f"{path.parent} cannot calibrate a model: its protocol is "
                f"{protocol} ({caveat}); give a run with separate speakers, "
                "such as session"
            )
        unknown = [one for one in results["labels"] if one not in labels]
        if unknown:
            raise ValueError(
                f"{path.parent} has the classes {', '.join(results['labels'])}"
                f"; expected those of the model: {', '.join(labels)}"
            )
        group = _read_predictions(path.parent, results["labels"])
        found[results["fold"]].append(group)
    if not found:
        raise FileNotFoundError(
            f"no finished fold below {folder}; cross_validate.py writes them"
        )
    if len(runs) > 1:
        listed = "; ".join(sorted("/".join(run) for run in runs))
        raise ValueError(
            f"{folder} holds folds of several runs: {listed}; give the folder "
            "of one"
        )
    (name,) = runs.values()
    return name, [
        tuple(map(torch.cat, zip(*found[fold], strict=True)))
        for fold in sorted(found)
    ]


def _read_predictions(folder: Path, labels: list[str]) -> Group:
    """Read log-posteriors and true classes of a fold's test clips."""
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [f"logp_{name}" for name in labels]
    scores = [[float(row[name]) for name in columns] for row in rows]
    targets = [labels.index(row["emotion"]) for row in rows]
    return torch.tensor(scores), torch.tensor(targets)
