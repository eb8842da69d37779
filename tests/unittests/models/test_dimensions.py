"""Concordance as loss and score, against its definition in numpy."""

import csv
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from speechbrain_dslstm.corpora.manifest import check_dimensions, to_scale
from speechbrain_dslstm.evaluation import DimensionStats
from speechbrain_dslstm.models import concordance, dimension_loss


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


def test_stats_are_over_all_batches(tmp_path):
    """Not the mean of the batches' concordances."""
    x, y = torch.randn(7, 2), torch.randn(7, 2)
    stats = DimensionStats(["valence", "arousal"])
    stats.append(list("abc"), x[:3], y[:3])
    stats.append(list("defg"), x[3:], y[3:])
    found = stats.summarize()
    expected = concordance(x, y)
    assert found["ccc_valence"] == pytest.approx(expected[0].item(), abs=1e-6)
    assert found["ccc"] == pytest.approx(expected.mean().item(), abs=1e-6)
    assert all(type(value) is float for value in found.values())
    stats.write(tmp_path / "dimensions.csv")
    with open(tmp_path / "dimensions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == list("abcdefg")
    assert float(rows[4]["arousal"]) == pytest.approx(y[4, 1].item(), abs=1e-6)
    predicted = float(rows[4]["arousal_predicted"])
    assert predicted == pytest.approx(x[4, 1].item(), abs=1e-6)


def test_scale_and_what_is_missing():
    assert to_scale([1.0, 5.0]).tolist() == [-1.0, 1.0]
    entries = {"a": {"valence": 3.0}, "b": {}}
    check_dimensions(entries, [], "emodb")
    with pytest.raises(ValueError, match=r"emodb has no valence \(utterance b"):
        check_dimensions(entries, ["valence"], "emodb")


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
