"""What a batch is trained towards: class weights, votes, mixtures.

Symbols: B batch, K classes.
"""

from collections import Counter

import torch

__all__ = ["class_weights", "mix_targets", "vote_shares"]


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
