"""Where the time of an epoch goes: loading, features, CNNs, recurrences.

torch's profiler lists every operation; here their times are summed for each
part of the system. An operation of the backward pass belongs to the part whose
forward operation it differentiates.
"""

import functools
import math
import time
from contextlib import ExitStack

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from speechbrain_dslstm.ds_lstm import DSLSTM
from speechbrain_dslstm.layers import LocalFeatureCNN
from speechbrain_dslstm.models import SelfSupervisedFrames

__all__ = ["TimeShares", "model_parts"]

MARK = "speechbrain_dslstm: "
# Calls of parts that are in no other part, until their notes are summed up
CALLS_AT_ONCE = 20
BACKWARD = "autograd::engine::evaluate_function"
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

    The times are the processor's: on a GPU, what it takes to start the work,
    not the work. Now and then the profiler's notes are summed up and thrown
    away, which takes longer than what they are of; that time is not counted,
    but waited for. torch.compile compiles again what is measured.

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
        self.seconds = dict.fromkeys([outside, *parts], 0.0)
        self._open = self._done = 0
        self._restore = self._profiler = self._started = None

    @property
    def total(self):
        """Seconds altogether."""
        return sum(self.seconds.values())

    def __enter__(self):
        with ExitStack() as restore:
            for part, methods in self.parts.items():
                for owner, name in methods:
                    before = vars(owner).get(name)
                    marked = self._marked(part, getattr(owner, name))
                    setattr(owner, name, marked)
                    restore.callback(_put_back, owner, name, before)
            self._start()
            self._restore = restore.pop_all()
        return self

    def __exit__(self, kind, error, trace):
        with self._restore:
            self._stop()

    def _start(self):
        self._profiler = profile(
            activities=[ProfilerActivity.CPU], acc_events=True
        )
        self._profiler.__enter__()
        self._started = time.perf_counter()

    def _stop(self):
        """Add what has been noted."""
        taken = time.perf_counter() - self._started
        self._profiler.__exit__(None, None, None)
        micro = self._sum(self._profiler.events())
        micro[self.outside] += 1e6 * taken
        for part, more in micro.items():
            self.seconds[part] += more / 1e6

    def _marked(self, part, method):
        """A method that the profiler sees as a part."""

        @functools.wraps(method)
        def run(*args, **kwargs):
            """The method itself."""
            self._open += 1
            try:
                with record_function(MARK + part):
                    return method(*args, **kwargs)
            finally:
                self._open -= 1
                self._done += not self._open
                if not self._open and self._done % CALLS_AT_ONCE == 0:
                    self._stop()
                    self._start()

        return run

    def _sum(self, events):
        """Microseconds of each part, without those of the parts in it."""
        micro = dict.fromkeys(self.seconds, 0.0)
        # Parts that have begun, with their ends, innermost last
        around = [(self.outside, math.inf)]
        owners, way_back = {}, {}
        for one in sorted(events, key=_outermost_first):
            start, end = one.time_range.start, one.time_range.end
            while around[-1][1] <= start:
                around.pop()
            inner, _ = around[-1]
            if one.name.startswith(MARK):
                part = one.name.removeprefix(MARK)
                around.append((part, end))
            elif one.name.startswith(BACKWARD):
                # A GPU's has a thread of its own, while this one waits
                part = owners.get(one.sequence_nr, inner)
                way_back[one.thread] = end
            else:
                forward = start >= way_back.get(one.thread, 0)
                if forward and one.sequence_nr >= 0:
                    # The last one with a number is what has that gradient
                    owners[one.sequence_nr] = inner
                continue
            micro[part] += end - start
            micro[inner] -= end - start
        return micro

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


def _outermost_first(event):
    return event.time_range.start, -event.time_range.end


def _put_back(owner, name, before):
    """Undo a setattr: what was there before, or the class's own."""
    if before is None:
        delattr(owner, name)
    else:
        setattr(owner, name, before)
