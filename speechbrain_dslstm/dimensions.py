"""Valence, arousal and dominance as regression, by concordance.

The concordance correlation coefficient (Lin 1989) of predictions x and truth
y is 2 cov(x, y) / (var x + var y + (mean x - mean y)^2): 1 only where they
are equal, unlike a correlation, which forgives a wrong level or range.

Symbols: B batch, D dimensions.
"""

import csv

import torch

from speechbrain_dslstm.ranks import sum_over_ranks

__all__ = [
    "DimensionStats",
    "check_dimensions",
    "concordance",
    "count_outputs",
    "dimension_loss",
    "to_scale",
]

# IEMOCAP's ratings, whose middle becomes 0 and whose ends +-1
MIDDLE, HALF_RANGE = 3.0, 2.0


def count_outputs(n_classes, dimensions):
    """Outputs of a branch: a logit for each class, a value a dimension.

    Arguments
    ---------
    n_classes : int
        Classes.
    dimensions : list of str
        Such as ["valence", "arousal"].

    Returns
    -------
    int
        Their sum.

    Example
    -------
    >>> count_outputs(4, ["valence"])
    5
    """
    return n_classes + len(dimensions)


def check_dimensions(entries, dimensions, corpus):
    """See that every utterance has the dimensions to be learnt.

    Arguments
    ---------
    entries : dict
        Utterance id -> manifest entry.
    dimensions : list of str
        Those wanted.
    corpus : str
        Its name, for the message.

    Raises
    ------
    ValueError
        Names the first utterance and dimension that is missing.

    Example
    -------
    >>> check_dimensions({"a": {"emotion": "anger"}}, ["valence"], "emodb")
    Traceback (most recent call last):
    ValueError: emodb has no valence (utterance a): set dimensions to []
    """
    for key, entry in entries.items():
        for name in dimensions:
            if name not in entry:
                raise ValueError(
                    f"{corpus} has no {name} (utterance {key}): set "
                    "dimensions to []"
                )


def to_scale(values):
    """Bring ratings of 1 to 5 to -1 to 1.

    Arguments
    ---------
    values : list of float
        Ratings.

    Returns
    -------
    torch.Tensor, [values]
        On the new scale.

    Example
    -------
    >>> to_scale([1.0, 3.0, 4.5])
    tensor([-1.0000,  0.0000,  0.7500])
    """
    return (torch.tensor(values) - MIDDLE) / HALF_RANGE


def concordance(predicted, truth, eps=1e-8, over_ranks=False):
    """Concordance correlation coefficient of each dimension.

    Arguments
    ---------
    predicted : torch.Tensor, [batch, dimensions]
        Predictions.
    truth : torch.Tensor, [batch, dimensions]
        Ratings on the same scale.
    eps : float
        Added below the line, for a batch without any spread.
    over_ranks : bool
        Over the batches of all ranks of a distributed run, each of which must
        make this call; the gradient is that of the ranks' mean.

    Returns
    -------
    torch.Tensor, [dimensions]
        In [-1, 1].

    Example
    -------
    >>> truth = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> concordance(truth, truth), concordance(truth + 1, truth)
    (tensor([1.]), tensor([0.5714]))
    """
    total = sum_over_ranks if over_ranks else lambda sums: sums
    x, y = predicted.float(), truth.float()
    count = total(x.new_tensor(len(x)))
    mean_x, mean_y = total(torch.stack([x.sum(0), y.sum(0)])) / count
    x, y = x - mean_x, y - mean_y
    sums = torch.stack([x * y, x.square() + y.square()]).sum(1)
    covariance, spread = total(sums) / count
    return 2 * covariance / (spread + (mean_x - mean_y).square() + eps)


def dimension_loss(outputs, truth, weights, n_classes, over_ranks=False):
    """Weighted sum over the branches of 1 - mean concordance.

    Arguments
    ---------
    outputs : dict of str to torch.Tensor, [batch, n_classes + dimensions]
        What the model gives with ``return_branches``.
    truth : torch.Tensor, [batch, dimensions]
        Ratings as ``to_scale`` gives them.
    weights : dict of str to float
        Of the branches.
    n_classes : int
        Columns to pass over.
    over_ranks : bool
        As in ``concordance``.

    Returns
    -------
    torch.Tensor, []
        In [0, 2]. It is over a batch: the larger, the truer.

    Example
    -------
    >>> truth = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> outputs = {"mfcc": torch.cat([torch.zeros(3, 4), truth], dim=1)}
    >>> dimension_loss(outputs, truth, {"mfcc": 1.0}, 4).item() < 1e-6
    True
    """
    found = {
        name: concordance(value[:, n_classes:], truth, over_ranks=over_ranks)
        for name, value in outputs.items()
    }
    return sum(weights[name] * (1 - one.mean()) for name, one in found.items())


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
