"""The training loop's helpers, through SpeechBrain's real Checkpointer."""

import functools

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.training import (
    AtomicCheckpointer,
    EarlyStoppingEpochCounter,
    WeightAverage,
    warmup_cosine,
)
from speechbrain_dslstm.training.optimization import (
    make_optimizer,
    make_schedule,
)


def epochs(counter, scores):
    """Epochs that a run with these validation scores goes through."""
    found = []
    for epoch in counter:
        counter.update_score(scores[epoch - 1])
        found.append(epoch)
    return found


@pytest.mark.parametrize(
    ("options", "scores", "last"),
    [
        # A plateau, from the start and after progress
        ({"patience": 2}, [0.5] * 9, 3),
        ({"patience": 3}, [0.1, 0.2, 0.3] + [0.3] * 6, 6),
        # A score that falls, and one that comes back too late or in time
        ({"patience": 2}, [0.5, 0.4, 0.3, 0.9] + [0.9] * 5, 3),
        ({"patience": 3}, [0.5, 0.4, 0.3, 0.9] + [0.8] * 5, 7),
        # Ever better
        ({"patience": 1}, [k / 10 for k in range(9)], 9),
        ({"patience": 1}, [1.0] * 9, 2),
        ({"patience": None}, [0.5] * 9, 9),
        ({"patience": None}, [0.9 - k / 10 for k in range(9)], 9),
        # What happens while it warms up does not count
        ({"patience": 2, "warmup": 4}, [0.9] * 4 + [0.1] * 5, 7),
    ],
)
def test_when_it_stops(options, scores, last):
    counter = EarlyStoppingEpochCounter(9, **options)
    assert epochs(counter, scores) == list(range(1, last + 1))


def test_scores_of_any_kind():
    counter = EarlyStoppingEpochCounter(5, patience=1)
    next(counter)
    counter.update_score(torch.tensor(0.5))
    assert not counter.should_stop and type(counter.best_score) is float


def test_bad_patience():
    with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
        EarlyStoppingEpochCounter(5, patience=0)


CHECKPOINTERS = [Checkpointer, AtomicCheckpointer]


def recovered(tmp_path, **recoverables):
    """Load what a checkpointer of another run has saved."""
    checkpointer = AtomicCheckpointer(tmp_path, recoverables)
    assert checkpointer.recover_if_possible() is not None


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", CHECKPOINTERS)
def test_counter_survives_a_checkpoint(tmp_path, kind, stop_at):
    """Interrupted after any epoch, the rest is what it would have been."""
    scores = [0.1, 0.4, 0.4, 0.3, 0.9, 0.9]
    first = EarlyStoppingEpochCounter(6, patience=2)
    checkpointer = kind(tmp_path, {"counter": first})
    for epoch in first:
        first.update_score(scores[epoch - 1])
        checkpointer.save_checkpoint()
        if epoch == stop_at:
            break
    second = EarlyStoppingEpochCounter(6, patience=2)
    recovered(tmp_path, counter=second)
    # The run without a break ends after epoch 4
    assert epochs(second, scores) == list(range(stop_at + 1, 5))
    assert second.should_stop


def test_counter_repeats_an_unfinished_epoch(tmp_path):
    first = EarlyStoppingEpochCounter(6, patience=2)
    next(first), first.update_score(0.5), next(first)
    Checkpointer(tmp_path, {"counter": first}).save_checkpoint(
        end_of_epoch=False
    )
    second = EarlyStoppingEpochCounter(6, patience=2)
    recovered(tmp_path, counter=second)
    assert next(second) == 2 and second.best_score == 0.5


def network(value, statistics=0.0):
    """A layer with a float buffer and, in its gate norms, an integer one."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(1))
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, value)
    net[1].running_mean.fill_(statistics)
    return net


def test_average_is_exponential():
    """The first step counts in full, each later one 1 - decay."""
    average = WeightAverage(network(7.0, 7.0), decay=0.75)
    expected = None
    for value in [1.0, 3.0, -2.0, 0.5]:
        average.update(network(value, 10 * value))
        if expected is None:
            expected = value
        else:
            expected = 0.75 * expected + 0.25 * value
        for parameter in average.model.parameters():
            torch.testing.assert_close(
                parameter.data, torch.full_like(parameter, expected)
            )
        statistics = average.model[1].running_mean
        torch.testing.assert_close(
            statistics, torch.full_like(statistics, 10 * expected)
        )


def test_average_of_counters_is_the_newest():
    """A mean of integers is cut off: 27 steps would decay to none."""
    net = DSLSTM(2, 2, 3, gate_norm="batch").train()
    average = WeightAverage(net)
    for time in [5, 5, 5, 9, 9, 7]:
        net(torch.randn(4, time, 2), torch.randn(4, time, 2))
        average.update(net)
        for key, value in net.state_dict().items():
            if not value.is_floating_point():
                assert average.model.state_dict()[key] == value, key
    assert average.model.gate_norms["l0"].steps_seen == 9


def test_average_is_a_copy():
    """Training goes on without it, and evaluation without training."""
    net = network(1.0)
    average = WeightAverage(net, decay=0.5)
    average.update(net)
    torch.nn.init.constant_(net[0].weight, 5.0)
    torch.testing.assert_close(average.model[0].weight.data, torch.ones(1, 2))
    average.model.eval()
    assert net.training
    average.update(net)
    torch.testing.assert_close(net[0].weight.data, torch.full((1, 2), 5.0))


def test_average_survives_a_checkpoint(tmp_path):
    first = WeightAverage(network(0.0), decay=0.75)
    for value in (1.0, 3.0):
        first.update(network(value, value))
    Checkpointer(tmp_path, {"average": first}).save_checkpoint()
    second = WeightAverage(network(9.0), decay=0.75)
    recovered(tmp_path, average=second)
    for average in (first, second):
        average.update(network(-1.0, -1.0))
    torch.testing.assert_close(
        dict(second.state_dict()), dict(first.state_dict()), atol=0, rtol=0
    )
    # Not as if its first step were yet to come
    expected = 0.75 * (0.75 * 1.0 + 0.25 * 3.0) - 0.25
    torch.testing.assert_close(
        second.model[0].bias.data, torch.tensor([expected])
    )


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match=rf"in \[0, 1\), got {decay}"):
        WeightAverage(network(0.0), decay)


@pytest.mark.parametrize(
    "schedule",
    [
        functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.5),
        functools.partial(warmup_cosine, warmup=0.5),
        functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2),
    ],
)
def test_inherited_weights_learn_more_slowly_all_the_way(schedule):
    old, new = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = make_optimizer(
        functools.partial(torch.optim.SGD, lr=0.5), [old, new], [old], 0.1
    )
    assert [group["params"] for group in optimizer.param_groups] == [
        [new],
        [old],
    ]
    scheduler = make_schedule(schedule, optimizer, total_steps=6)
    rates = []
    for _ in range(5):
        fast, slow = (group["lr"] for group in optimizer.param_groups)
        assert slow == pytest.approx(0.1 * fast)
        rates.append(fast)
        optimizer.step()
        scheduler.step()
    assert max(rates) == pytest.approx(0.5, abs=0.01) and min(rates) < 0.3


def test_one_group_has_the_rate_of_the_options():
    weight = torch.nn.Parameter(torch.ones(1))
    for slower, expected in ([], 0.5), ([weight], 0.05):
        optimizer = make_optimizer(
            functools.partial(torch.optim.SGD, lr=0.5), [weight], slower, 0.1
        )
        assert [g["lr"] for g in optimizer.param_groups] == [expected]
