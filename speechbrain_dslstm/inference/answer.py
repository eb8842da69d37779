"""The answer of a classifier for a batch of waveforms."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Answer", "column_names"]


class _FourParts(NamedTuple):
    """What SpeechBrain's classifiers return."""

    out_prob: Tensor
    score: Tensor
    index: Tensor
    text_lab: list[str]


class Answer(_FourParts):
    """Posteriors and classes of a batch: a tuple of four, as in SpeechBrain.

    A model that was trained with dimensions also predicts these. They are no
    part of the tuple, but its attribute ``dimensions``.

    Arguments
    ---------
    out_prob : [batch, n_classes]
        Log-posteriors: their exponentials sum to 1.
    score : [batch]
        Log-posterior of the best class.
    index : int64, [batch]
        The best class.
    text_lab
        Its name, for each item.
    dimensions : [batch]
        Values of each dimension by its name, on the scale of the training: -1
        stands for the rating 1 and 1 for the rating 5.

    Example
    -------
    >>> parts = torch.zeros(1, 1), torch.zeros(1), torch.tensor([0]), ["sad"]
    >>> answer = Answer(*parts, dimensions={"valence": torch.tensor([-0.5])})
    >>> out_prob, score, index, text_lab = answer
    >>> text_lab, answer.dimensions_of(0)
    (['sad'], {'valence': -0.5})
    """

    dimensions: dict[str, Tensor]

    def __new__(
        cls,
        out_prob: Tensor,
        score: Tensor,
        index: Tensor,
        text_lab: list[str],
        dimensions: dict[str, Tensor] | None = None,
    ) -> "Answer":
        """Make the tuple and set its attribute."""
        answer = super().__new__(cls, out_prob, score, index, text_lab)
        answer.dimensions = dimensions or {}
        return answer

    def dimensions_of(self, item: int) -> dict[str, float]:
        """Value of each dimension of one item by its name, as numbers."""
        return {name: float(v[item]) for name, v in self.dimensions.items()}

    def spread(self, items: list[int], count: int) -> "Answer":
        """Put the rows of some items, in order, among those of ``count`` items.

        The other rows are NaN, their index is -1 and their label None.
        """
        if len(items) == count:
            return self

        def place(rows: Tensor, fill: float) -> Tensor:
            """Rows of all items."""
            where = torch.tensor(items, device=rows.device)
            empty = rows.new_full((count, *rows.shape[1:]), fill)
            return empty.index_copy_(0, where, rows)

        nan = float("nan")
        labels = dict(zip(items, self.text_lab, strict=True))
        return Answer(
            place(self.out_prob, nan),
            place(self.score, nan),
            place(self.index, -1),
            [labels.get(k) for k in range(count)],
            {name: place(v, nan) for name, v in self.dimensions.items()},
        )


def column_names(names: Iterable[str], others: Iterable[str]) -> dict[str, str]:
    """Column of a table for each class or dimension, besides other columns.

    >>> column_names(["sad", "label"], ["file", "label"])
    {'sad': 'sad', 'label': 'class_label'}
    """
    others = set(others)
    return {n: f"class_{n}" if n in others else n for n in names}
