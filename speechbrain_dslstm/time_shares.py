"""Where the time of an epoch goes: loading, features, CNNs, recurrences.

torch's profiler sees every operation; here they are summed by the part of the
system they belong to. An operation of the way back belongs to the part whose
operation it is the gradient of.
"""

import functools
import time

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from speechbrain_dslstm.cnn import LocalFeatureCNN
from speechbrain_dslstm.ds_lstm import DSLSTM
from speechbrain_dslstm.encoders import SelfSupervisedFrames

__all__ = ["TimeShares", "model_parts"]

MARK = "speechbrain_dslstm: "
WAY_BACK = "autograd::engine::evaluate_function"
# Part -> the modules that it consists of
KINDS = {
    "encoder": SelfSupervisedFrames,
    "CNNs": LocalFeatureCNN,
    "DS-LSTM": DSLSTM,
    "LSTMs": torch.nn.LSTM,
}


def model_parts(model):
    """The parts of a model whose time is worth telling apart.

    Arguments
    ---------
    model : torch.nn.Module
        Such as a ``DualLevelClassifier``.

    Returns
    -------
    dict of str to list of tuple
        Name of a part -> its modules, each with the name of its method, as
        ``TimeShares`` takes them.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> list(model_parts(DualLevelClassifier()))
    ['CNNs', 'DS-LSTM', 'LSTMs']
    """
    parts = {
        part: [(one, "forward") for one in model.modules() if type(one) is kind]
        for part, kind in KINDS.items()
    }
    return {part: methods for part, methods in parts.items() if methods}


class TimeShares:
    """Measures in which parts of a system the time of a block goes.

    The times are the processor's, of the thread that enters the block: on a
    GPU, what it takes to start the work, not the work. The profiler makes
    everything a little slower.

    Arguments
    ---------
    parts : dict of str to list of tuple
        Name of a part -> pairs of an object and the name of its method, which
        is that part. A part within another one counts as itself only.
    outside : str
        Name of the time that is in no part.

    Example
    -------
    >>> net = torch.nn.Sequential(torch.nn.Linear(9, 9), torch.nn.ReLU())
    >>> parts = {"linear": [(net[0], "forward")], "rest": [(net, "forward")]}
    >>> with TimeShares(parts, outside="loading") as shares:
    ...     net(torch.randn(2, 9)).sum().backward()
    >>> sorted(shares.seconds)
    ['linear', 'loading', 'rest']
    >>> print(shares.table())  # doctest: +SKIP
    loading       0.00 s   12 %
    linear        0.00 s   60 %
    rest          0.00 s   28 %
    """

    def __init__(self, parts, outside="the rest"):
        self.parts = parts
        self.outside = outside
        self.seconds = {}
        self.total = 0.0
        self._profiler = self._started = None

    def __enter__(self):
        for part, methods in self.parts.items():
            for owner, name in methods:
                setattr(owner, name, _marked(part, getattr(owner, name)))
        self._profiler = profile(
            activities=[ProfilerActivity.CPU], acc_events=True
        )
        self._profiler.__enter__()
        self._started = time.perf_counter()
        return self

    def __exit__(self, kind, error, trace):
        self.total = time.perf_counter() - self._started
        self._profiler.__exit__(kind, error, trace)
        for methods in self.parts.values():
            for owner, name in methods:
                delattr(owner, name)
        if error is None:
            self._sum(self._profiler.events())
        self._profiler = None

    def _sum(self, events):
        """Seconds of each part, without those of the parts in it."""
        events = sorted(events, key=lambda one: one.time_range.start)
        # The last operation with a number is the one with that gradient
        owners = {
            one.sequence_nr: _part_around(one)
            for one in events
            if one.sequence_nr >= 0 and not _on_the_way_back(one)
        }
        micro = dict.fromkeys([self.outside, *self.parts], 0.0)
        micro[self.outside] = 1e6 * self.total
        for one in events:
            if one.name.startswith(MARK):
                part = one.name.removeprefix(MARK)
            elif one.name.startswith(WAY_BACK):
                part = owners.get(one.sequence_nr)
            else:
                continue
            around = _part_around(one)
            taken = one.time_range.elapsed_us()
            micro[part or around or self.outside] += taken
            micro[around or self.outside] -= taken
        self.seconds = {part: max(0, t) / 1e6 for part, t in micro.items()}

    def table(self):
        """Say it in lines.

        Returns
        -------
        str
            A line for each part, with seconds and per cent.
        """
        return "\n".join(
            f"{part:12} {seconds:7.2f} s {seconds / self.total:6.0%}"
            for part, seconds in self.seconds.items()
        )


def _marked(part, method):
    """A method that the profiler sees as a part."""

    @functools.wraps(method)
    def run(*args, **kwargs):
        """The method itself."""
        with record_function(MARK + part):
            return method(*args, **kwargs)

    return run


def _part_around(event):
    """Name of the innermost part that an event is in; None if in none."""
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith(MARK):
            return parent.name.removeprefix(MARK)
        parent = parent.cpu_parent
    return None


def _on_the_way_back(event):
    while event is not None:
        if event.name.startswith(WAY_BACK):
            return True
        event = event.cpu_parent
    return False
