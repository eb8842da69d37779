"""Training targets, and the losses of emotion classes and dimensions.

Classes: ``vote_shares`` and ``mix_targets`` make the targets, ``fusion_loss``
is the loss of arXiv:1910.08874, ``class_weights`` are its optional weights.
Dimensions (valence, arousal, dominance): a branch gives ``count_outputs``
outputs, first the logits, then one value per dimension, and
``dimension_loss`` is 1 - the concordance correlation coefficient (Lin 1989).

Symbols: B batch, K classes, D dimensions.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from speechbrain_dslstm.utils.distributed import sum_over_ranks

__all__ = [
    "vote_shares",
    "mix_targets",
    "class_weights",
    "fusion_loss",
    "count_outputs",
    "concordance",
    "dimension_loss",
]


def vote_shares(
    votes: Mapping[str, Sequence[str]],
    names: Mapping[str, str],
    labels: Sequence[str],
    emotion: str,
) -> Tensor:
    """Turn the votes of an utterance's listeners into K class probabilities.

    Each listener has one vote, shared equally by the labels ticked; labels
    outside the classes are dropped. The actors' own votes do not count.

    Arguments
    ---------
    votes
        Labels ticked by each rater; names of listeners begin with "E".
    names
        Labels in the votes -> classes; other labels are left out.
    labels
        The K classes in their order.
    emotion
        Class of the utterance, used where no vote is left.

    Example
    -------
    >>> names = {"Anger": "anger", "Sadness": "sadness"}
    >>> votes = {"E1": ["Anger"], "E2": ["Sadness", "Anger"], "F1": ["Sadness"]}
    >>> vote_shares(votes, names, ["anger", "sadness"], "anger")
    tensor([0.7500, 0.2500])
    """
    shares = torch.zeros(len(labels))
    for rater, ticked in votes.items():
        if rater.startswith("E"):
            for name in ticked:
                if names.get(name) in labels:
                    shares[labels.index(names[name])] += 1 / len(ticked)
    if not shares.any():
        shares[labels.index(emotion)] = 1
    return shares / shares.sum()


def mix_targets(
    targets: Tensor,
    n_classes: int,
    soft: Tensor | None = None,
    share: float = 0.0,
    mix: tuple[Tensor, float] | None = None,
) -> Tensor:
    """Targets of a batch: classes, or probabilities from votes and mixup.

    Without ``soft`` and ``mix``, ``targets`` are returned as they are, else
    probabilities, [batch, n_classes].

    Arguments
    ---------
    targets : [batch]
        True classes.
    n_classes
        Classes K.
    soft : [batch, n_classes]
        Probabilities from votes.
    share
        Weight of ``soft`` in the targets; the true class has the rest.
    mix
        Partners, [batch], and weight from ``features.mixup``.

    Example
    -------
    >>> targets = torch.tensor([0, 1])
    >>> mix_targets(targets, 2, mix=(torch.tensor([1, 0]), 0.75))
    tensor([[0.7500, 0.2500],
            [0.2500, 0.7500]])
    """
    if soft is None and mix is None:
        return targets
    mixed = torch.nn.functional.one_hot(targets, n_classes).float()
    if soft is not None:
        mixed = torch.lerp(mixed, soft, share)
    if mix is not None:
        partners, weight = mix
        mixed = torch.lerp(mixed[partners], mixed, weight)
    return mixed


def class_weights(emotions: Iterable[str], labels: Sequence[str]) -> Tensor:
    """Weights, [K], that give every class the same share of the loss.

    They are inverse frequencies, scaled so that their mean over the clips is 1.

    Arguments
    ---------
    emotions
        Emotion of every training clip.
    labels
        The K classes in their order.

    Raises
    ------
    ValueError
        A class has no clip.

    Example
    -------
    >>> class_weights(["anger", "anger", "anger", "fear"], ["anger", "fear"])
    tensor([0.6667, 2.0000])
    """
    counts = Counter(emotions)
    missing = [label for label in labels if not counts[label]]
    if missing:
        raise ValueError(f"no training clip of {', '.join(missing)}")
    total = sum(counts[label] for label in labels)
    return torch.tensor(
        [total / (len(labels) * counts[label]) for label in labels]
    )


def fusion_loss(
    logits: Mapping[str, Tensor],
    targets: Tensor,
    p: float | Mapping[str, float] = 0.5,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Loss of the paper: p * CE(spectrogram) + (1 - p) * CE(MFCC).

    Arguments
    ---------
    logits
        Logits of each branch by its name, [batch, classes].
    targets : [batch] or [batch, classes]
        True classes, or probabilities for soft labels.
    p
        Weight of the branch "spectrogram" beside "mfcc", or weights of all
        branches by name.
    label_smoothing
        Probability spread evenly over the classes.
    weight : [classes]
        Weight of each class.

    Example
    -------
    >>> logits = {"mfcc": torch.zeros(1, 4), "spectrogram": torch.zeros(1, 4)}
    >>> fusion_loss(logits, torch.tensor([2]))
    tensor(1.3863)
    """
    weights = p if isinstance(p, Mapping) else {"spectrogram": p, "mfcc": 1 - p}
    loss = torch.nn.CrossEntropyLoss(weight, label_smoothing=label_smoothing)
    return sum(weights[k] * loss(v, targets) for k, v in logits.items())


def count_outputs(n_classes: int, dimensions: Sequence[str]) -> int:
    """Outputs of a branch: a logit per class and a value per dimension.

    Arguments
    ---------
    n_classes
        Classes K.
    dimensions
        Predicted dimensions, such as ["valence", "arousal"].

    Example
    -------
    >>> count_outputs(4, ["valence"])
    5
    """
    return n_classes + len(dimensions)


def concordance(
    predicted: Tensor,
    truth: Tensor,
    eps: float = 1e-8,
    over_ranks: bool = False,
) -> Tensor:
    """Concordance correlation coefficient, in [-1, 1], of each dimension.

    Arguments
    ---------
    predicted, truth : [batch, dimensions]
        Predictions, and ratings on the same scale.
    eps
        Added to the denominator, for a batch of equal ratings.
    over_ranks
        Compute it over the batches of all ranks of a distributed run. Every
        rank must make the call; the gradient is that of the ranks' mean.

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


def dimension_loss(
    outputs: Mapping[str, Tensor],
    truth: Tensor,
    weights: Mapping[str, float],
    n_classes: int,
    over_ranks: bool = False,
) -> Tensor:
    """Weighted sum over the branches of 1 - mean concordance, in [0, 2].

    The concordance is computed over the batch, so larger batches estimate it
    better.

    Arguments
    ---------
    outputs
        Outputs of each branch by its name, [batch, n_classes + dimensions].
    truth : [batch, dimensions]
        Ratings, scaled by ``corpora.to_scale``.
    weights
        Weight of each branch.
    n_classes
        Number of logits, which precede the dimensions.
    over_ranks
        See ``concordance``.

    Example
    -------
    >>> truth = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> outputs = {"mfcc": torch.cat([torch.zeros(3, 4), truth], dim=1)}
    >>> dimension_loss(outputs, truth, {"mfcc": 1.0}, 4).item() < 1e-6
    True
    """
    loss = 0
    for name, value in outputs.items():
        ccc = concordance(value[:, n_classes:], truth, over_ranks=over_ranks)
        loss = loss + weights[name] * (1 - ccc.mean())
    return loss
