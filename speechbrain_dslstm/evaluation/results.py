"""Write the results of a run.

``results.json`` holds the system, the split, the rule that chose the epoch and
the scores; ``predictions.csv`` holds every test clip. Logs of epochs have one
JSON object a line.
"""

import errno
import json
import math
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import speechbrain
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.corpora.manifest import read_manifest
from speechbrain_dslstm.evaluation.calibration import (
    calibration_report,
    cross_fit_temperature,
)
from speechbrain_dslstm.evaluation.held_out import read_held_out
from speechbrain_dslstm.evaluation.metrics import (
    METRICS,
    DimensionStats,
    EmotionStats,
)
from speechbrain_dslstm.evaluation.plots import plot_confusion
from speechbrain_dslstm.settings.provenance import find_provenance
from speechbrain_dslstm.settings.record import read_record
from speechbrain_dslstm.splits.protocols import speaker_caveat
from speechbrain_dslstm.utils.files import name_errors, replace_file

__all__ = [
    "LAST_EPOCH",
    "append_row",
    "criterion",
    "epoch_score",
    "headline",
    "read_rows",
    "selection_score",
    "write_results",
]

logger = get_logger(__name__)
LAST_EPOCH = "last, without validation"


def selection_score(
    ua: float, epoch: int, number_of_epochs: int, selection_start: float
) -> float:
    """Rank an epoch, from 1, by its validation UA or concordance ``ua``.

    The maximum over many epochs of a score on few speakers is mostly luck, so
    an early epoch is chosen only if there is no later one: epochs in the first
    share ``selection_start`` of all lose 1. NaN, as -2, is never the best.

    >>> selection_score(0.75, 9, 10, 0.8), selection_score(0.75, 8, 10, 0.8)
    (0.75, -0.25)
    >>> selection_score(float("nan"), 9, 10, 0.8)
    -2.0
    """
    if math.isnan(ua):
        return -2.0
    return ua if epoch > selection_start * number_of_epochs else ua - 1.0


def epoch_score(stats: Mapping[str, float], hparams: Mapping) -> float:
    """Rank an epoch by its validation statistics, which hold its "epoch".

    Without a loss of classes, the concordance selects the epoch; without
    validation, the last one is the best.

    >>> hparams = {"dimensions": [], "number_of_epochs": 4}
    >>> hparams |= {"selection_start": 0.5, "dimension_weight": 0.5}
    >>> epoch_score({"epoch": 3, "ua": 0.75}, hparams)
    0.75
    """
    name = criterion(hparams)
    if name not in stats:
        return stats["epoch"] / hparams["number_of_epochs"]
    return selection_score(
        stats[name],
        stats["epoch"],
        hparams["number_of_epochs"],
        hparams["selection_start"],
    )


def criterion(hparams: Mapping) -> str:
    """Name of the validation score that selects the epoch."""
    regression = hparams["dimensions"] and hparams["dimension_weight"] == 1
    return "ccc" if regression else "ua"


def headline(
    loss: float,
    scores: Mapping[str, EmotionStats],
    dimensions: DimensionStats | None = None,
) -> dict[str, float]:
    """Summarise an epoch's scores for the logs and for the selection.

    ``scores`` has statistics of "fused" and of each branch; the UA of a branch
    is named "ua_BRANCH". ``dimensions``, if predicted, add the concordance of
    valence, arousal and dominance.

    >>> stats = EmotionStats(["calm", "sad"])
    >>> stats.append(["a"], torch.tensor([[-0.1, -2.3]]), torch.tensor([0]))
    >>> headline(0.5, {"fused": stats, "mfcc": stats})
    {'loss': 0.5, 'wa': 1.0, 'ua': 1.0, 'macro_f1': 1.0, 'ua_mfcc': 1.0}
    """
    found = scores["fused"].summarize()
    stats = {"loss": float(loss)} | {name: found[name] for name in METRICS}
    for name, one in scores.items():
        if name != "fused":
            stats[f"ua_{name}"] = one.summarize("ua")
    if dimensions is not None:
        stats.update(dimensions.summarize())
    return stats


def append_row(path: str | Path, row: dict) -> None:
    """Add a line to a log of JSON objects; an OSError leaves it unchanged."""
    line = (json.dumps(row) + "\n").encode()
    with name_errors(path), open(path, "a+b", buffering=0) as log:
        size = log.seek(0, os.SEEK_END)
        if size:
            # Begin a new line after one that a power failure cut
            log.seek(-1, os.SEEK_END)
            line = line if log.read(1) == b"\n" else b"\n" + line
        # Unbuffered: one system call, which a kill cannot cut in two
        written = log.write(line)
        if written < len(line):
            log.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_rows(path: str | Path) -> list[dict]:
    """Read the last row of each epoch from a log, in order of the epochs.

    An incomplete line is left out with a warning; a missing file has no rows.

    >>> read_rows("nowhere.jsonl")
    []
    """
    if not Path(path).exists():
        return []
    rows = {}
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            # A cut line is the start of a row; any other text is no log
            if not line.startswith('{"epoch"'):
                raise
            logger.warning(f"{path}:{number} is incomplete, and left out")
        else:
            rows[row["epoch"]] = row
    return [rows[epoch] for epoch in sorted(rows)]


def write_results(
    hparams: Mapping,
    scores: Mapping[str, Mapping[str, EmotionStats]],
    seconds: float,
) -> dict:
    """Write results.json, predictions.csv and confusion.png of a tested run.

    ``scores`` has for "test", and for "valid" if there is validation, the
    statistics of "fused" and of each branch; ``seconds`` is the wall time of
    this process. The result is the content of results.json.
    """
    folder = Path(hparams["output_folder"])
    save = folder / "save"
    run = json.loads((save / "run.json").read_text(encoding="utf-8"))
    record = read_record(folder)
    code = record.get("code") or find_provenance()
    plain = {
        name: value
        for name, value in record.get("settings", {}).items()
        if not isinstance(value, Mapping)
    }
    epochs = read_rows(save / "epochs.jsonl")
    best = max(
        epochs,
        key=lambda row: epoch_score(
            {**row["valid"], "epoch": row["epoch"]}, hparams
        ),
    )
    test = {name: one.summarize() for name, one in scores["test"].items()}
    tested = read_rows(save / "test_epochs.jsonl")
    test_best = {name: _maximum(tested, name) for name in METRICS if tested}
    found = {name: test["fused"][name] for name in METRICS}
    selection = "best validation UA"
    if "valid" not in scores:
        selection = LAST_EPOCH
    elif hparams["selection_start"] > 0:
        first = int(hparams["selection_start"] * hparams["number_of_epochs"])
        selection += f" after epoch {first}"
    if run["protocol"] == "paper":
        # The paper's rule: the maxima of WA and of UA over the epochs
        selection = (
            "best epoch chosen on the test fold, separately for WA and UA"
        )
        rows = [{"epoch": row["epoch"], **row["valid"]} for row in epochs]
        for name in ("wa", "ua"):
            found[name] = _maximum(rows, name)["value"]
    entries = read_manifest(save / "test.json").items()
    speakers = {key: entry["speaker"] for key, entry in entries}
    names = {*speakers.values()}
    note = "; ".join(_notes(run, selection))
    results = {
        **run,
        "note": note,
        "selection": selection,
        **found,
        "test": test,
        # None: not all are known
        "test_speakers": None if "" in names else len(names),
        "test_best_epoch": test_best,
        "best_epoch": best["epoch"],
        "epochs": len(epochs),
        "valid": best["valid"],
        "calibration": _calibrate(hparams, scores),
        "init_from": _origin(hparams.get("origin")),
        "parameters": sum(p.numel() for p in hparams["model"].parameters()),
        "seconds": round(seconds, 1),
        "command": sys.argv,
        "versions": {
            "speechbrain_dslstm": code["version"],
            **({"commit": code["commit"]} if "commit" in code else {}),
            "speechbrain": speechbrain.__version__,
            "torch": torch.__version__,
        },
        "settings": plain,
        "setting_changes": record.get("changes", []),
    }
    scores["test"]["fused"].write_predictions(
        folder / "predictions.csv", {"speaker": speakers}
    )
    plot_confusion(
        test["fused"]["confusion"],
        run["labels"],
        folder / "confusion.png",
        f"{run['system']} on {run['corpus']}: {run['protocol']}, "
        f"fold {run['fold']}\n{textwrap.fill(note, 50)}".rstrip(),
    )
    # Last, because a run with results.json counts as finished
    text = json.dumps(results, indent=2) + "\n"
    replace_file(folder / "results.json", text)
    return results


def _origin(record: Mapping | None) -> dict | None:
    """The model that a run has started from, without the list of parameters."""
    if record is None:
        return None
    return {k: value for k, value in record.items() if k != "inherited"}


def _notes(run: dict, selection: str) -> list[str]:
    """List the caveats of a run, which are printed next to its scores."""
    notes = []
    notes += speaker_caveat(run["protocol"])
    if run["protocol"] == "paper":
        notes.append(selection)
    if run["protocol"] == "all":
        notes.append("no test subset: scored on the validation speakers")
    if run["normalization"] == "speaker":
        notes.append("features normalised with all audio of each test speaker")
    if run.get("text_note"):
        notes.append(run["text_note"])
    return notes


def _calibrate(
    hparams: Mapping, scores: Mapping[str, Mapping[str, EmotionStats]]
) -> dict[str, Any]:
    """Choose a temperature, and report it on the test.

    It is fitted on the validation speakers, or on the test speakers of the
    cross-validation in the folder ``calibration``; without either it is 1.
    """
    folder = hparams["calibration"]
    if folder is not None:
        name, groups = read_held_out(folder, list(hparams["labels"]))
        source = f"{len(groups)} folds of {name}"
    elif "valid" not in scores:
        tested = calibration_report(*_outputs(scores["test"]["fused"]), 1.0)
        return {**tested, "fitted_on": None}
    else:
        groups = _by_speaker(hparams, scores["valid"]["fused"])
        many = "s" if len(groups) > 1 else ""
        source = f"{len(groups)} validation speaker{many}"
    found = cross_fit_temperature(groups)
    tested = calibration_report(
        *_outputs(scores["test"]["fused"]), found["temperature"]
    )
    return {**tested, "fitted_on": source, **found}


def _by_speaker(hparams: Mapping, stats: EmotionStats) -> list[tuple]:
    """Log-posteriors and targets of each validation speaker."""
    path = Path(hparams["output_folder"]) / "save" / "valid.json"
    clips = read_manifest(path)
    speakers = [clips[key]["speaker"] for key in stats.ids]
    scores, targets = _outputs(stats)
    groups = []
    for name in sorted(set(speakers)):
        rows = [k for k, one in enumerate(speakers) if one == name]
        groups.append((scores[rows], targets[rows]))
    return groups


def _outputs(stats: EmotionStats) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-posteriors and targets as tensors."""
    return torch.tensor(stats.scores), torch.tensor(stats.targets)


def _maximum(rows: list[dict], name: str) -> dict:
    """Find the best value over the epochs, and its first epoch."""
    best = max(rows, key=lambda row: row[name])
    return {"epoch": best["epoch"], "value": best[name]}
