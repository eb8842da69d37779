"""Targets (listeners' votes, mixtures), losses of classes and of dimensions.

Run as a script, this file is one of the two processes of a distributed test.
"""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from speechbrain_dslstm.corpora import get_labels, vote_names
from speechbrain_dslstm.models import (
    class_weights,
    concordance,
    dimension_loss,
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


# Dimensions: concordance against its definition in NumPy


def definition(x, y):
    """Lin 1989, population moments."""
    covariance = np.cov(x, y, bias=True)
    between = (x.mean() - y.mean()) ** 2
    return 2 * covariance[0, 1] / (np.trace(covariance) + between)


def test_concordance():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(40, 3))
    x = 0.5 * y + rng.normal(size=(40, 3)) + 0.2
    found = concordance(torch.tensor(x), torch.tensor(y))
    expected = [definition(x[:, d], y[:, d]) for d in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_wrong_level_or_range_is_not_forgiven():
    y = torch.linspace(-1, 1, 9).unsqueeze(1)
    assert concordance(y, y).item() == pytest.approx(1)
    assert concordance(-y, y).item() == pytest.approx(-1)
    assert concordance(0.3 * y, y) < 0.6 and concordance(y + 0.5, y) < 0.8
    assert concordance(torch.zeros(9, 1), y).item() == 0


def test_a_batch_without_spread_is_no_nan():
    x = torch.full((1, 2), 0.5, requires_grad=True)
    concordance(x, torch.full((1, 2), 0.5)).sum().backward()
    assert x.grad.isfinite().all()


def test_loss_is_over_the_branches():
    truth = torch.randn(8, 2)
    outputs = {"mfcc": torch.randn(8, 6), "spectrogram": torch.randn(8, 6)}
    weights = {"mfcc": 0.25, "spectrogram": 0.75}
    found = dimension_loss(outputs, truth, weights, 4)
    expected = sum(
        weights[name] * (1 - concordance(outputs[name][:, 4:], truth).mean())
        for name in weights
    )
    torch.testing.assert_close(found, expected)


def test_it_can_be_learnt():
    truth = torch.randn(32, 2).clamp(-1, 1)
    feats = truth @ torch.randn(2, 8)
    head = torch.nn.Linear(8, 2)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = dimension_loss({"mfcc": head(feats)}, truth, {"mfcc": 1.0}, 0)
        loss.backward()
        optimizer.step()
    assert concordance(head(feats), truth).min() > 0.99


# One process and two of them, with five clips and with three
SHARES = [slice(0, 5), slice(5, 8)]


def loss_of(rows, over_ranks=False):
    """The loss of some clips and its gradient."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(8, 2, generator=generator) + 0.5
    wide = torch.randn(8, 6, generator=generator)
    wide[5:] *= 3
    outputs = {"mfcc": wide[rows].requires_grad_()}
    loss = dimension_loss(outputs, truth[rows], {"mfcc": 0.7}, 4, over_ranks)
    loss.backward()
    return loss.detach(), outputs["mfcc"].grad


def test_two_ranks_are_one_process(tmp_path):
    """DDP takes the mean of the gradients, so each rank's is twice as large."""
    command = [sys.executable, __file__, str(tmp_path)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    try:
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    loss, grad = loss_of(slice(0, 8))
    for rank, rows in enumerate(SHARES):
        found, found_grad = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(found_grad / 2, grad[rows])
        assert not torch.isclose(loss_of(rows)[0], loss)


def run_rank(folder, rank):
    """One of the two processes."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "store").resolve().as_uri(),
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    torch.save(loss_of(SHARES[rank], True), folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]), int(sys.argv[2]))
