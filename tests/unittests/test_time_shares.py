"""Where time goes: sums, gradients, and nothing left behind."""

import time
from typing import NamedTuple

import pytest
import torch

from speechbrain_dslstm import DualLevelClassifier, time_shares
from speechbrain_dslstm.time_shares import TimeShares, model_parts


class SlowBack(torch.autograd.Function):
    """Twice as slow on the way back as forward."""

    @staticmethod
    def forward(ctx, x):
        time.sleep(0.05)
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        time.sleep(0.1)
        return grad * 2


class Slow(torch.nn.Module):
    def forward(self, x):
        return SlowBack.apply(x)


def test_gradients_belong_to_their_part():
    inner = Slow()
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), inner)
    parts = {"slow": [(inner, "forward")], "rest": [(net, "forward")]}
    net(torch.randn(2, 3)).sum().backward()
    start = time.perf_counter()
    with TimeShares(parts, outside="loading") as shares:
        time.sleep(0.07)
        net(torch.randn(2, 3)).sum().backward()
    assert list(shares.seconds) == ["loading", "slow", "rest"]
    assert 0.15 <= shares.seconds["slow"] <= shares.total - 0.07
    assert shares.seconds["loading"] >= 0.07
    assert shares.total < time.perf_counter() - start
    lines = shares.table().splitlines()
    assert [line.split()[0] for line in lines] == list(shares.seconds)
    assert all(line.endswith("%") for line in lines)


def test_nothing_is_left_behind_even_by_an_error():
    net = torch.nn.Linear(3, 3)
    with pytest.raises(ZeroDivisionError):
        with TimeShares({"net": [(net, "forward")]}):
            assert "forward" in vars(net)
            raise ZeroDivisionError
    assert "forward" not in vars(net)
    assert net(torch.randn(2, 3)).shape == (2, 3)
    with pytest.raises(AttributeError):
        with TimeShares({"net": [(net, "forward"), (net, "backwards")]}):
            pass
    assert "forward" not in vars(net)


def test_a_method_of_the_object_itself_comes_back():
    """A learning-rate schedule leaves one in its optimiser."""
    net = torch.nn.Linear(3, 3)
    net.forward = own = lambda x: 2 * x
    with TimeShares({"net": [(net, "forward")]}) as shares:
        assert net(torch.ones(1)).item() == 2
    assert vars(net)["forward"] is own
    assert shares.seconds["net"] > 0


def test_summed_up_in_pieces(monkeypatch):
    monkeypatch.setattr(time_shares, "CALLS_AT_ONCE", 2)
    inner = Slow()
    net = torch.nn.Sequential(torch.nn.Linear(3, 3), inner)
    parts = {"slow": [(inner, "forward")], "rest": [(net, "forward")]}
    with TimeShares(parts, outside="loading") as shares:
        for _ in range(5):
            with torch.no_grad():
                net(torch.randn(2, 3))
            time.sleep(0.02)
    assert shares.seconds["slow"] >= 0.25
    assert shares.seconds["loading"] >= 0.1


class Event(NamedTuple):
    """What the profiler notes of an operation."""

    name: str
    start: float
    end: float
    sequence_nr: int = -1
    thread: int = 1

    @property
    def time_range(self):
        return self


def test_a_way_back_in_another_thread():
    """As on a GPU: what waits for it is the part that is around."""
    mark, back = time_shares.MARK, time_shares.WAY_BACK
    events = [
        Event(mark + "rest", 3, 10),
        Event(mark + "cnn", 3, 5),
        Event("conv", 3, 4, 7),
        Event("conv again", 6, 7, 7, thread=2),
        Event(back, 5, 9, 7, thread=2),
        Event("relu", 5, 6, 8, thread=2),
        Event("late", 9, 10, 8),
        Event("without a gradient", 4, 5),
        Event(back, 9, 10, thread=2),
    ]
    shares = TimeShares({"cnn": [], "rest": []}, outside="loading")
    assert shares._sum(events) == {"loading": -7, "cnn": 6, "rest": 1}


def test_parts_of_a_model_and_unchanged_gradients():
    torch.manual_seed(0)
    net = DualLevelClassifier(4)
    wavs = torch.randn(2, 8000)
    normalise = [(net, "normalize")]

    def gradients():
        net.zero_grad()
        torch.manual_seed(1)
        net(wavs).sum().backward()
        return [one.grad.clone() for one in net.parameters()]

    expected = gradients()
    parts = model_parts(net)
    assert list(parts) == ["CNNs", "DS-LSTM", "LSTMs"]
    assert len(parts["CNNs"]) == 2
    with TimeShares({"normalisation": normalise, **parts}) as shares:
        found = gradients()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert all(seconds > 0 for seconds in shares.seconds.values())
