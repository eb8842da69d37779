"""Scores of predictions: WA, UA, macro-F1, confusion matrix and concordance.

WA, weighted accuracy, is the share of utterances that are right. UA, unweighted
accuracy, is the mean of the classes' recalls, so that a rare emotion counts as
much as a frequent one; models are selected on it. SpeechBrain's own statistics
lack it. Every result is a plain float or int, because a checkpoint with NumPy
values in its meta data can be saved but not loaded.

Symbols: B batch, K classes, M metrics.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from scipy.stats import t as student_t
from sklearn.metrics import confusion_matrix
from speechbrain.utils.metric_stats import MetricStats

from speechbrain_dslstm.models.losses import concordance
from speechbrain_dslstm.utils.files import replace_file

__all__ = [
    "METRICS",
    "scores",
    "scores_from_confusion",
    "score_counts",
    "interval",
    "format_confusion",
    "EmotionStats",
    "DimensionStats",
    "to_indices",
    "name_some",
]

METRICS = ("wa", "ua", "macro_f1")
# Labels or indices of classes, and a confusion matrix
Classes = Sequence | torch.Tensor
Counts = Sequence[Sequence[int]] | np.ndarray


def scores(y_true: Classes, y_pred: Classes, labels: Sequence[str]) -> dict:
    """Score predictions against the truth, see ``scores_from_confusion``.

    Arguments
    ---------
    y_true, y_pred : [n]
        True and predicted classes, as labels or as indices into ``labels``.
    labels : [K]
        Names of the classes, in the order of their indices.

    Raises
    ------
    ValueError
        No items, unequal lengths, or an item that is no label and no index.

    Example
    -------
    >>> result = scores([0, 0, 0, 1], [0, 0, 1, 1], ["anger", "sadness"])
    >>> result["wa"], round(result["ua"], 3)
    (0.75, 0.833)
    """
    if len(y_true) != len(y_pred):
        raise ValueError(f"{len(y_true)} truths, {len(y_pred)} predictions")
    if len(y_true) == 0:
        raise ValueError("there is nothing to score: no items")
    confusion = confusion_matrix(
        to_indices(y_true, labels, "y_true"),
        to_indices(y_pred, labels, "y_pred"),
        labels=range(len(labels)),
    )
    return scores_from_confusion(confusion, labels)


def scores_from_confusion(confusion: Counts, labels: Sequence[str]) -> dict:
    """Score a confusion matrix, for instance the sum over all folds.

    The result has ``wa``, ``ua`` and ``macro_f1`` in [0, 1]; ``recall`` of each
    label; ``confusion`` as lists of int; and the number of items ``n``. UA,
    macro-F1 and recall are over the classes that occur in the truth.

    Arguments
    ---------
    confusion : [K, K]
        Counts; rows are the truth, columns the prediction.
    labels : [K]
        Names of the classes.

    Example
    -------
    >>> result = scores_from_confusion([[2, 1], [0, 1]], ["anger", "sadness"])
    >>> result["recall"]["anger"]
    0.6666666666666666
    """
    counts = _check_confusion(confusion, labels)
    return {
        **dict(zip(METRICS, score_counts(counts).tolist(), strict=True)),
        "recall": {
            label: float(row[k] / row.sum())
            for k, (label, row) in enumerate(zip(labels, counts, strict=True))
            if row.any()
        },
        "confusion": counts.tolist(),
        "n": int(counts.sum()),
    }


def score_counts(counts: np.ndarray) -> np.ndarray:
    """Score many confusion matrices [..., K, K] by ``METRICS``, [..., M].

    Rows are the truth; UA and macro-F1 are over the classes that occur in it.
    A matrix without clips scores NaN.
    """
    counts = np.asarray(counts, dtype=float)
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    truth, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    occurs = truth > 0
    with np.errstate(invalid="ignore"):
        recall = np.where(occurs, right / np.where(occurs, truth, 1), 0)
        total = np.where(occurs, truth + predicted, 1)
        f1 = np.where(occurs, 2 * right / total, 0)
        classes = occurs.sum(axis=-1)
        found = [
            right.sum(axis=-1) / truth.sum(axis=-1),
            recall.sum(axis=-1) / classes,
            f1.sum(axis=-1) / classes,
        ]
    return np.stack(found, axis=-1)


def interval(values: Sequence[float], confidence: float = 0.95) -> dict:
    """Average the scores of folds or seeds, with Student's interval of the mean.

    The result has ``mean``, sample standard deviation ``std``, the ends ``low``
    and ``high``, and ``n``. All but mean and n are None for a single value,
    which says nothing about the spread.
    """
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected finite numbers, got {values.tolist()}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    n, mean = len(values), float(values.mean())
    if n == 1:
        return {"mean": mean, "std": None, "low": None, "high": None, "n": 1}
    std = float(values.std(ddof=1))
    half = float(student_t.ppf((1 + confidence) / 2, n - 1)) * std / n**0.5
    ends = {"low": mean - half, "high": mean + half}
    return {"mean": mean, "std": std, **ends, "n": n}


def format_confusion(confusion: Counts, labels: Sequence[str]) -> str:
    """Write a confusion matrix as a plain text table.

    Each true class has a line that ends with its recall, "-" where the class
    does not occur.

    Arguments
    ---------
    confusion : [K, K]
        Counts; rows are the truth, columns the prediction.
    labels : [K]
        Names of the classes.

    Example
    -------
    >>> print(format_confusion([[2, 1], [0, 1]], ["anger", "sad"]))
    truth \\ predicted  anger  sad  recall
    anger                  2    1   66.7 %
    sad                    0    1  100.0 %
    """
    counts = _check_confusion(confusion, labels)
    corner = "truth \\ predicted"
    first = max(len(corner), *map(len, labels))
    widths = [max(len(label), len(str(counts.max()))) for label in labels]
    cells = [f"{label:>{w}}" for label, w in zip(labels, widths, strict=True)]
    lines = ["  ".join([f"{corner:<{first}}", *cells, "recall"])]
    for k, (label, row) in enumerate(zip(labels, counts, strict=True)):
        cells = [f"{count:>{w}}" for count, w in zip(row, widths, strict=True)]
        recall = f"{100 * (row[k] / row.sum()):.1f} %" if row.sum() else "-"
        lines.append("  ".join([f"{label:<{first}}", *cells, f"{recall:>7}"]))
    return "\n".join(lines)


class EmotionStats(MetricStats):
    """Collects the log-posteriors of a Brain's stage and scores them.

    The interface is that of SpeechBrain's ``MetricStats``: ``append`` a batch,
    ``summarize`` all of them, ``write_stats`` as text, ``clear``.

    Arguments
    ---------
    labels : [K]
        Names of the classes, in the order of their indices.

    Example
    -------
    >>> stats = EmotionStats(["anger", "sadness"])
    >>> log_probs = torch.tensor([[0.8, 0.2], [0.6, 0.4]]).log()
    >>> stats.append(["a", "b"], log_probs, torch.tensor([0, 1]))
    >>> stats.summarize("ua")
    0.5
    >>> stats.rows()[1]["predicted"]
    'anger'
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = list(labels)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must differ, got {self.labels}")
        self.clear()

    def clear(self) -> None:
        """Remove everything that was appended."""
        super().clear()
        self.targets = []

    def append(
        self,
        ids: Iterable[str],
        log_probs: torch.Tensor,
        targets: torch.Tensor,
        lens: torch.Tensor | None = None,
    ) -> None:
        """Add log-posteriors [B, K] and true classes [B] or [B, 1] of a batch.

        ``lens`` is not used. A ValueError names the utterances whose values are
        not finite or whose target is no class.
        """
        ids = list(ids)
        log_probs = torch.as_tensor(log_probs).detach().float().cpu()
        targets = torch.as_tensor(targets).detach().cpu()
        if targets.dim() == 2 and targets.shape[1] == 1:
            targets = targets.squeeze(1)
        shape = [len(ids), len(self.labels)]
        if list(log_probs.shape) != shape or list(targets.shape) != shape[:1]:
            raise ValueError(
                f"expected log_probs {shape} and targets {shape[:1]}, got "
                f"{list(log_probs.shape)} and {list(targets.shape)} for "
                f"{name_some(ids)}"
            )
        finite = log_probs.isfinite().all(dim=1).tolist()
        if not all(finite):
            bad = [i for i, good in zip(ids, finite, strict=True) if not good]
            raise ValueError(f"log_probs are not finite for {name_some(bad)}")
        targets = targets.tolist()
        classes = range(len(self.labels))
        bad = [i for i, k in zip(ids, targets, strict=True) if k not in classes]
        if bad:
            raise ValueError(
                f"targets must be in 0..{len(self.labels) - 1}, but are not for "
                f"{name_some(bad)}"
            )
        self.ids += ids
        self.scores += log_probs.tolist()
        self.targets += [int(k) for k in targets]
        self.summary = {}

    def summarize(self, field: str | None = None) -> dict | float:
        """Score everything that was appended: ``scores``, or one entry of it."""
        if not self.summary:
            predicted = [_argmax(row) for row in self.scores]
            self.summary = scores(self.targets, predicted, self.labels)
        return self.summary if field is None else self.summary[field]

    def rows(self) -> list[dict]:
        """List the utterances in the order of their arrival.

        Each row has ``id``, the true label ``emotion``, the label
        ``predicted``, and ``logp_<label>`` for every label.
        """
        columns = [f"logp_{label}" for label in self.labels]
        return [
            {
                "id": utterance,
                "emotion": self.labels[target],
                "predicted": self.labels[_argmax(row)],
                **dict(zip(columns, row, strict=True)),
            }
            for utterance, target, row in zip(
                self.ids, self.targets, self.scores, strict=True
            )
        ]

    def write_predictions(
        self,
        path: str | Path,
        facts: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        """Write the rows as CSV, with ``facts`` as columns after the id.

        ``facts`` maps the name of a column to utterance -> value. The nine
        digits of each log-posterior give the same float32 when read again.
        """
        facts = facts or {}
        rows = [
            {"id": row["id"]}
            | {name: values[row["id"]] for name, values in facts.items()}
            | row
            for row in self.rows()
        ]
        if not rows:
            raise ValueError(f"no predictions to write to {path}")
        cells = [
            [f"{v:.9g}" if isinstance(v, float) else v for v in row.values()]
            for row in rows
        ]
        _write_csv(path, [list(rows[0]), *cells])

    def write_stats(self, filestream: TextIO, verbose: bool = False) -> None:
        """Write the scores and the confusion matrix as text."""
        found = self.summarize()
        text = (
            f"utterances: {found['n']}\n"
            f"WA: {found['wa']:.2%}\n"
            f"UA: {found['ua']:.2%}\n"
            f"macro-F1: {found['macro_f1']:.2%}\n\n"
            f"{format_confusion(found['confusion'], self.labels)}\n"
        )
        filestream.write(text)
        if verbose:
            print(text)


class DimensionStats:
    """Collects predicted dimensions of a stage and scores their concordance.

    Arguments
    ---------
    dimensions
        Names, in the order of the columns.

    Example
    -------
    >>> stats = DimensionStats(["valence"])
    >>> stats.append(
    ...     ["a", "b"], torch.tensor([[-1.0], [1.0]]), torch.eye(2)[:, :1]
    ... )
    >>> stats.summarize()
    {'ccc_valence': -0.666667, 'ccc': -0.666667}
    """

    def __init__(self, dimensions: Sequence[str]) -> None:
        self.dimensions = list(dimensions)
        self.ids, self.predicted, self.truth = [], [], []

    def append(
        self, ids: Iterable[str], predicted: torch.Tensor, truth: torch.Tensor
    ) -> None:
        """Add predictions and ratings of a batch, both [batch, dimensions]."""
        self.ids.extend(ids)
        self.predicted.append(predicted.detach().float().cpu())
        self.truth.append(truth.float().cpu())

    def summarize(self) -> dict[str, float]:
        """Score all batches: ``ccc_NAME`` by dimension, and their mean ``ccc``."""
        found = concordance(torch.cat(self.predicted), torch.cat(self.truth))
        values = [round(value, 6) for value in found.tolist()]
        named = {
            f"ccc_{name}": value
            for name, value in zip(self.dimensions, values, strict=True)
        }
        return {**named, "ccc": sum(values) / len(values)}

    def write(self, path: str | Path) -> None:
        """Write truth and prediction of each utterance as CSV."""
        columns = [[name, f"{name}_predicted"] for name in self.dimensions]
        truth, predicted = torch.cat(self.truth), torch.cat(self.predicted)
        values = torch.stack([truth, predicted], dim=2).flatten(1).tolist()
        rows = [
            [key, *(round(value, 6) for value in row)]
            for key, row in zip(self.ids, values, strict=True)
        ]
        _write_csv(path, [["id", *sum(columns, [])], *rows])


def name_some(items: Sequence, shown: int = 5) -> str:
    """Join the first few of many items, for an error message."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(map(str, items[:shown])) + more


def to_indices(values: Classes, labels: Sequence, name: str) -> list[int]:
    """Convert labels or indices to indices; ``name`` is used in the error."""
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    index = {label: k for k, label in enumerate(labels)}
    index.update((k, k) for k in range(len(labels)))
    unknown = [v for v in values if isinstance(v, float) or v not in index]
    if unknown:
        raise ValueError(
            f"{name} holds {name_some(unknown)}, expected one of "
            f"{list(labels)} or an index in 0..{len(labels) - 1}"
        )
    return [index[v] for v in values]


def _argmax(row: list[float]) -> int:
    """Index of the largest number, the first of equal ones."""
    return max(range(len(row)), key=row.__getitem__)


def _check_confusion(confusion: Counts, labels: Sequence[str]) -> np.ndarray:
    """Convert the counts to an int64 array [K, K] that fits the labels."""
    counts = np.asarray(confusion)
    if counts.shape != (len(labels), len(labels)):
        raise ValueError(
            f"{len(labels)} labels do not fit a confusion matrix of shape "
            f"{list(counts.shape)}"
        )
    if (counts < 0).any() or not counts.any():
        raise ValueError(
            "a confusion matrix must hold counts, one of them positive"
        )
    return counts.astype(np.int64)


def _write_csv(path: str | Path, rows: list[list]) -> None:
    """Write rows as CSV; the file is replaced entirely or not at all."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    replace_file(path, text.getvalue())
