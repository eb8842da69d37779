"""Targets of a batch: weights of classes, listeners' votes, mixtures."""

import pytest
import torch

from speechbrain_dslstm.corpora import get_labels, vote_names
from speechbrain_dslstm.features import mixup
from speechbrain_dslstm.models import (
    FeatureSequence,
    class_weights,
    fusion_loss,
    mix_targets,
    vote_shares,
)

LABELS = get_labels("iemocap")


def test_class_weights_make_classes_count_the_same():
    """The weighted loss of a batch is the mean of the classes' means."""
    emotions = ["anger"] * 7 + ["neutral"] * 2 + ["sadness"]
    labels = ["anger", "neutral", "sadness"]
    weights = class_weights(emotions, labels)
    assert sum(weights[labels.index(e)] for e in emotions) == pytest.approx(10)
    logits = torch.randn(10, 3)
    targets = torch.tensor([labels.index(e) for e in emotions])
    loss = fusion_loss({"mfcc": logits}, targets, 0.0, weight=weights)
    single = torch.nn.functional.cross_entropy(
        logits, targets, reduction="none"
    )
    expected = torch.stack([single[targets == k].mean() for k in range(3)])
    torch.testing.assert_close(loss, expected.mean())
    with pytest.raises(ValueError, match="no training clip of fear, joy"):
        class_weights(emotions, ["anger", "fear", "joy"])


@pytest.mark.parametrize(
    ("votes", "shares"),
    [
        ({"E1": ["Anger"], "E2": ["Anger"], "E4": ["Sadness"]}, [2, 0, 0, 1]),
        # Excitement counts as happiness; both names of neutral
        ({"E1": ["Excited"], "E2": ["Happiness"]}, [0, 2, 0, 0]),
        ({"E1": ["Neutral"], "E2": ["Neutral state"]}, [0, 0, 2, 0]),
        # Half of a vote is outside of the classes
        ({"E1": ["Frustration", "Anger"], "E2": ["Sadness"]}, [0.5, 0, 0, 1]),
        # The actor does not count, and somebody must
        ({"F1": ["Sadness"], "E1": ["Other"]}, [0, 0, 1, 0]),
        ({}, [0, 0, 1, 0]),
    ],
)
def test_votes(votes, shares):
    found = vote_shares(votes, vote_names("iemocap"), LABELS, "neutral")
    expected = torch.tensor(shares, dtype=torch.float32)
    torch.testing.assert_close(found, expected / expected.sum())


def test_targets():
    targets = torch.tensor([0, 2, 1])
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.2, 0.6, 0.2]])
    assert mix_targets(targets, 3) is targets
    found = mix_targets(targets, 3, soft, 0.5)
    expected = [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.1, 0.8, 0.1]]
    torch.testing.assert_close(found, torch.tensor(expected))
    mix = torch.tensor([2, 0, 1]), 0.9
    found = mix_targets(targets, 3, soft, 1.0, mix)
    torch.testing.assert_close(found, 0.9 * soft + 0.1 * soft[mix[0]])
    assert found.sum(1).allclose(torch.ones(3))


def test_mixture_of_losses():
    """Mixed targets give weight * loss + (1 - weight) * the partner's."""
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    partners = torch.tensor([3, 2, 0, 1])
    mixed = mix_targets(targets, 3, mix=(partners, 0.3))
    loss = fusion_loss({"text": logits}, mixed, {"text": 1.0})
    own = torch.nn.functional.cross_entropy(logits, targets)
    other = torch.nn.functional.cross_entropy(logits, targets[partners])
    torch.testing.assert_close(loss, 0.3 * own + 0.7 * other)


def test_mixup_of_features():
    streams = {
        "mfcc": FeatureSequence(torch.randn(3, 9, 2), torch.tensor([9, 4, 6])),
        "mel_x": FeatureSequence(torch.randn(3, 5, 4), torch.tensor([5, 2, 3])),
    }
    mixed, partners, weight = mixup(streams, 0.4)
    assert sorted(partners.tolist()) == [0, 1, 2] and 0 <= weight <= 1
    for name, (feats, counts) in streams.items():
        expected = weight * feats + (1 - weight) * feats[partners]
        torch.testing.assert_close(mixed[name].feats, expected)
        longer = torch.maximum(counts, counts[partners])
        assert mixed[name].counts.tolist() == longer.tolist()
    with pytest.raises(ValueError, match="must be positive, got 0"):
        mixup(streams, 0)
    with pytest.raises(ValueError, match="cannot mix token ids"):
        mixup({"text": streams["mfcc"]}, 0.4)
