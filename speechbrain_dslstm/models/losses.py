"""Training targets and losses: classes, soft labels, dimensions."""

from collections import Counter

import torch

from speechbrain_dslstm.utils.distributed import sum_over_ranks

__all__ = [
    "fusion_loss",
    "class_weights",
    "vote_shares",
    "mix_targets",
    "count_outputs",
    "concordance",
    "dimension_loss",
]


def fusion_loss(logits, targets, p=0.5, label_smoothing=0.0, weight=None):
    """Loss of the paper: p * CE(spectrogram) + (1 - p) * CE(MFCC).

    Arguments
    ---------
    logits : dict of str to torch.Tensor, [batch, classes]
        Logits of the branches "spectrogram" and "mfcc", or of one of them.
    targets : torch.Tensor, int64, [batch]
        True classes; or probabilities, [batch, classes], for soft labels.
    p : float or dict of str to float
        Weight of the spectrogram branch, or of each branch by its name.
    label_smoothing : float
        Probability spread evenly over the classes.
    weight : torch.Tensor, [classes], optional
        Weight of each class.

    Returns
    -------
    torch.Tensor, []
        Mean loss of the batch.

    Example
    -------
    >>> logits = {"mfcc": torch.zeros(1, 4), "spectrogram": torch.zeros(1, 4)}
    >>> fusion_loss(logits, torch.tensor([2]))
    tensor(1.3863)
    """
    weights = p if isinstance(p, dict) else {"spectrogram": p, "mfcc": 1 - p}
    return sum(
        weights[name]
        * torch.nn.functional.cross_entropy(
            value, targets, weight=weight, label_smoothing=label_smoothing
        )
        for name, value in logits.items()
    )


def class_weights(emotions, labels):
    """Weights that make each class count the same.

    Arguments
    ---------
    emotions : iterable of str
        Of every clip of the training side.
    labels : list of str, [K]
        The classes in their order.

    Returns
    -------
    torch.Tensor, [K]
        Inverse frequencies whose mean over the clips is 1.

    Raises
    ------
    ValueError
        A class without a clip.

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


def vote_shares(votes, names, labels, emotion):
    """How an utterance's listeners voted, as probabilities of the classes.

    Each listener has one vote and spreads it over what was ticked; what is
    outside the classes is left out. The actors' own votes do not count.

    Arguments
    ---------
    votes : dict of str to list of str
        For each rater, "E1" a listener, what was ticked.
    names : dict of str to str
        Names in the votes -> classes; others are outside.
    labels : list of str, [K]
        The classes in their order.
    emotion : str
        The class of the utterance, where no vote is left.

    Returns
    -------
    torch.Tensor, [K]
        Probabilities.

    Example
    -------
    >>> names = {"Anger": "anger", "Sadness": "sadness"}
    >>> votes = {"E1": ["Anger"], "E2": ["Sadness", "Anger"], "F1": ["Sadness"]}
    >>> vote_shares(votes, names, ["anger", "sadness"], "anger")
    tensor([0.7500, 0.2500])
    >>> vote_shares({"E1": ["Other"]}, names, ["anger", "sadness"], "anger")
    tensor([1., 0.])
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


def mix_targets(targets, n_classes, soft=None, share=0.0, mix=None):
    """Targets of a batch as the loss takes them.

    Arguments
    ---------
    targets : torch.Tensor, int64, [batch]
        True classes.
    n_classes : int
        Classes K.
    soft : torch.Tensor, [batch, n_classes], optional
        Probabilities from votes.
    share : float
        Share of them in the targets; the rest is the true class.
    mix : tuple of (torch.Tensor, float), optional
        Partners and weight of ``augment.mixup``.

    Returns
    -------
    torch.Tensor
        The classes, [batch], or their probabilities, [batch, n_classes].

    Example
    -------
    >>> targets = torch.tensor([0, 1])
    >>> mix_targets(targets, 2)
    tensor([0, 1])
    >>> mix_targets(targets, 2, mix=(torch.tensor([1, 0]), 0.75))
    tensor([[0.7500, 0.2500],
            [0.2500, 0.7500]])
    """
    if soft is None and mix is None:
        return targets
    probabilities = torch.nn.functional.one_hot(targets, n_classes).float()
    if soft is not None:
        probabilities = torch.lerp(probabilities, soft, share)
    if mix is not None:
        partners, weight = mix
        other = probabilities[partners]
        probabilities = torch.lerp(other, probabilities, weight)
    return probabilities


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
