"""What a run is judged by: WA, UA, macro-F1, confusion and calibration.

WA, weighted accuracy, is the share of utterances that are right. UA,
unweighted accuracy, is the mean of the classes' recalls, so that a frequent
emotion counts no more than a rare one; it is what models are selected on.
SpeechBrain's own statistics lack it. Every number is a plain float or int: a
checkpoint whose meta data hold a numpy value saves, and never loads again.

Symbols: B batch, K classes.
"""

import csv
import io

import numpy as np
import torch
from scipy.stats import t as student_t
from sklearn.metrics import confusion_matrix
from speechbrain.utils.metric_stats import MetricStats

from speechbrain_dslstm.models.losses import concordance
from speechbrain_dslstm.utils.files import replace_file

__all__ = [
    "scores",
    "scores_from_confusion",
    "interval",
    "format_confusion",
    "EmotionStats",
    "DimensionStats",
]


def scores(y_true, y_pred, labels):
    """Score predictions against the truth.

    Arguments
    ---------
    y_true : list or torch.Tensor, [n]
        The true classes, as labels or as indices into ``labels``.
    y_pred : list or torch.Tensor, [n]
        The predicted classes, likewise.
    labels : list of str, [K]
        Names of the classes, in the order of their indices.

    Returns
    -------
    dict
        See ``scores_from_confusion``.

    Raises
    ------
    ValueError
        There are no items, ``y_true`` and ``y_pred`` differ in length, or an
        item is none of the labels.

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
        _to_indices(y_true, labels, "y_true"),
        _to_indices(y_pred, labels, "y_pred"),
        labels=range(len(labels)),
    )
    return scores_from_confusion(confusion, labels)


def scores_from_confusion(confusion, labels):
    """Score a confusion matrix, for instance the sum over all folds.

    Arguments
    ---------
    confusion : list of lists or numpy.ndarray, [K, K]
        Counts; rows are the truth, columns the prediction.
    labels : list of str, [K]
        Names of the classes.

    Returns
    -------
    dict
        ``wa``, ``ua`` and ``macro_f1`` as floats in [0, 1]; ``recall``, a
        float for each label; ``confusion``, a list of lists of int; and the
        number of items ``n``. UA, macro-F1 and recall are over the classes
        that occur in the truth.

    Raises
    ------
    ValueError
        The matrix does not fit the labels, is negative, or is all zero.

    Example
    -------
    >>> result = scores_from_confusion([[2, 1], [0, 1]], ["anger", "sadness"])
    >>> result["recall"]["anger"]
    0.6666666666666666
    """
    counts = _check_confusion(confusion, labels)
    right = counts.diagonal()
    truth, predicted = counts.sum(axis=1), counts.sum(axis=0)
    occurs = np.flatnonzero(truth)
    recall = right[occurs] / truth[occurs]
    f1 = 2 * right[occurs] / (truth[occurs] + predicted[occurs])
    return {
        "wa": float(right.sum() / counts.sum()),
        "ua": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "recall": {
            labels[k]: float(r) for k, r in zip(occurs, recall, strict=True)
        },
        "confusion": counts.tolist(),
        "n": int(counts.sum()),
    }


def interval(values, confidence=0.95):
    """Mean of repeated runs, with Student's confidence interval.

    Arguments
    ---------
    values : list of float, [n]
        One score for each fold or seed.
    confidence : float
        Coverage of the interval, in (0, 1).

    Returns
    -------
    dict
        ``mean``, the sample standard deviation ``std`` (n - 1 degrees of
        freedom), the ends ``low`` and ``high`` of the mean's interval, and
        ``n``. With one value ``std``, ``low`` and ``high`` are None: one run
        says nothing about the spread.

    Raises
    ------
    ValueError
        There is no value, or one is not finite.

    Example
    -------
    >>> result = interval([0.60, 0.70, 0.80])
    >>> round(result["mean"], 3), round(result["low"], 3)
    (0.7, 0.452)
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
    return {
        "mean": mean,
        "std": std,
        "low": mean - half,
        "high": mean + half,
        "n": n,
    }


def format_confusion(confusion, labels):
    """Write a confusion matrix as a plain text table.

    Arguments
    ---------
    confusion : list of lists or numpy.ndarray, [K, K]
        Counts; rows are the truth, columns the prediction.
    labels : list of str, [K]
        Names of the classes.

    Returns
    -------
    str
        One line for each true class, its recall at the end ("-" where the
        class does not occur).

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
        recall = f"{row[k] / row.sum():.1%}" if row.sum() else "-"
        recall = f"{recall.replace('%', ' %'):>7}"
        lines.append("  ".join([f"{label:<{first}}", *cells, recall]))
    return "\n".join(lines)


class EmotionStats(MetricStats):
    """Collects a stage's posteriors, to be used in a Brain.

    It has the interface of SpeechBrain's ``MetricStats``.

    Arguments
    ---------
    labels : list of str, [K]
        Names of the classes, in the order of their indices.

    Raises
    ------
    ValueError
        There are no labels, or a label stands there twice.

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

    def __init__(self, labels):
        self.labels = list(labels)
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must differ, got {self.labels}")
        self.clear()

    def clear(self):
        """Forget everything that was appended."""
        super().clear()
        self.targets = []

    def append(self, ids, log_probs, targets, lens=None):
        """Add one batch.

        Arguments
        ---------
        ids : list of str, [B]
            The utterances.
        log_probs : torch.Tensor, [B, K]
            Log-posteriors.
        targets : torch.Tensor, int64, [B] or [B, 1]
            Indices of the true classes.
        lens : torch.Tensor, optional
            Not used, there is one label for an utterance; other statistics
            of SpeechBrain are given it.

        Raises
        ------
        ValueError
            The shapes do not fit, a log-posterior is not finite, or a target
            is no class; the message names the utterances.
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
                f"{_some(ids)}"
            )
        finite = log_probs.isfinite().all(dim=1).tolist()
        if not all(finite):
            bad = [i for i, good in zip(ids, finite, strict=True) if not good]
            raise ValueError(f"log_probs are not finite for {_some(bad)}")
        targets = targets.tolist()
        classes = range(len(self.labels))
        bad = [i for i, k in zip(ids, targets, strict=True) if k not in classes]
        if bad:
            raise ValueError(
                f"targets must be in 0..{len(self.labels) - 1}, "
                f"which is not so for {_some(bad)}"
            )
        self.ids += ids
        self.scores += log_probs.tolist()
        self.targets += [int(k) for k in targets]
        self.summary = {}

    def summarize(self, field=None):
        """Score everything that was appended.

        Arguments
        ---------
        field : str, optional
            The one number wanted, such as "ua".

        Returns
        -------
        dict or float
            What ``scores`` returns, or its entry ``field``.

        Raises
        ------
        ValueError
            Nothing was appended.
        """
        if not self.summary:
            predicted = [_argmax(row) for row in self.scores]
            self.summary = scores(self.targets, predicted, self.labels)
        return self.summary if field is None else self.summary[field]

    def rows(self):
        """List the utterances in the order they came in.

        Returns
        -------
        list of dict
            For each: ``id``, the true label ``emotion``, the label
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

    def write_predictions(self, path, facts=None):
        """Write the rows as CSV.

        Arguments
        ---------
        path : str or pathlib.Path
            The file, replaced where it exists. Nine digits of each
            log-posterior bring back the same float32.
        facts : dict of str to dict, optional
            More columns, behind the id: name -> utterance -> value.

        Raises
        ------
        ValueError
            Nothing was appended.
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
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(rows[0])
        for row in rows:
            writer.writerow(
                f"{value:.9g}" if isinstance(value, float) else value
                for value in row.values()
            )
        replace_file(path, stream.getvalue())

    def write_stats(self, filestream, verbose=False):
        """Write the scores and the confusion matrix as text.

        Arguments
        ---------
        filestream : file-like object
            Open for writing text.
        verbose : bool
            Whether to write to the terminal, too.
        """
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


def _argmax(row):
    """Index of the largest number, the first of equal ones."""
    return max(range(len(row)), key=row.__getitem__)


def _some(items, shown=5):
    """Name a few of many items."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return ", ".join(map(str, items[:shown])) + more


def _to_indices(values, labels, name):
    """Turn labels or indices into indices; refuse everything else."""
    if isinstance(values, torch.Tensor):
        values = values.tolist()
    index = {label: k for k, label in enumerate(labels)}
    index.update((k, k) for k in range(len(labels)))
    unknown = [v for v in values if isinstance(v, float) or v not in index]
    if unknown:
        raise ValueError(
            f"{name} holds {_some(unknown)}, expected one of {list(labels)} "
            f"or an index in 0..{len(labels) - 1}"
        )
    return [index[v] for v in values]


def _check_confusion(confusion, labels):
    """Return the counts as an integer array [K, K]."""
    counts = np.asarray(confusion)
    if counts.shape != (len(labels), len(labels)):
        raise ValueError(
            f"{len(labels)} labels do not fit a confusion matrix of shape "
            f"{list(counts.shape)}"
        )
    if (counts < 0).any() or not counts.any():
        raise ValueError("a confusion matrix holds counts, one at least")
    return counts.astype(np.int64)


class DimensionStats:
    """Predictions of a stage, and their concordance with the truth.

    Arguments
    ---------
    dimensions : list of str
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

    def __init__(self, dimensions):
        self.dimensions = list(dimensions)
        self.ids, self.predicted, self.truth = [], [], []

    def append(self, ids, predicted, truth):
        """Add a batch.

        Arguments
        ---------
        ids : list of str
            Utterances.
        predicted : torch.Tensor, [batch, dimensions]
            Predictions.
        truth : torch.Tensor, [batch, dimensions]
            Ratings on the same scale.
        """
        self.ids.extend(ids)
        self.predicted.append(predicted.detach().float().cpu())
        self.truth.append(truth.float().cpu())

    def summarize(self):
        """Scores of all batches together.

        Returns
        -------
        dict of str to float
            ``ccc_NAME`` of each dimension, and their mean ``ccc``.
        """
        found = concordance(torch.cat(self.predicted), torch.cat(self.truth))
        values = [round(value, 6) for value in found.tolist()]
        scores = {
            f"ccc_{name}": value
            for name, value in zip(self.dimensions, values, strict=True)
        }
        return {**scores, "ccc": sum(values) / len(values)}

    def write(self, path):
        """Write truth and prediction of each utterance.

        Arguments
        ---------
        path : str or pathlib.Path
            The csv file.
        """
        columns = ["id"]
        for name in self.dimensions:
            columns += [name, f"{name}_predicted"]
        truth, predicted = torch.cat(self.truth), torch.cat(self.predicted)
        values = torch.stack([truth, predicted], dim=2).flatten(1).tolist()
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for key, row in zip(self.ids, values, strict=True):
                writer.writerow([key, *(round(value, 6) for value in row)])
