"""What the parts of the benchmark share: timing in turns, and table rows."""

import statistics
import time
from typing import NamedTuple

# What interleave reads: on a busy machine time.process_time is steadier, and
# with one thread it is the same
clock = time.perf_counter

__all__ = ["Row", "compare", "interleave", "training_step"]


class Row(NamedTuple):
    """One line of the table.

    Arguments
    ---------
    part : str
        The part of the benchmark.
    name : str
        What is measured, with its sizes.
    ratio : float
        Our median over the other's, or whatever ``name`` says.
    target : float or None
        The largest ratio that is wanted.
    medians : dict of str to float
        Milliseconds (or the unit that the name says) of each side.

    Example
    -------
    >>> Row("layer", "training", 1.2, 1.3, {"ours": 12, "nn.LSTM": 10}).ok
    True
    """

    part: str
    name: str
    ratio: float
    target: float | None
    medians: dict

    @property
    def ok(self):
        """Whether the target is met; None without one."""
        return None if self.target is None else self.ratio <= self.target

    def __str__(self):
        """The line itself."""
        target = "" if self.target is None else f"{self.target:.2f}"
        verdict = {None: "", True: "ok", False: "MISSED"}[self.ok]
        medians = "  ".join(f"{k} {v:.2f}" for k, v in self.medians.items())
        return (
            f"{self.part:10} {self.name:40} {self.ratio:6.2f} {target:>6} "
            f"{verdict:6} {medians}"
        )


def interleave(calls, seconds, least=3):
    """Median time of each call, timed in turns.

    Arguments
    ---------
    calls : dict of str to callable
        What is timed.
    seconds : float
        How long altogether.
    least : int
        Turns even if they take longer.

    Returns
    -------
    dict of str to float
        Medians in milliseconds.

    Example
    -------
    >>> sorted(interleave({"a": list, "b": dict}, 0))
    ['a', 'b']
    """
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    first = next(iter(times.values()))
    while len(first) < least or time.perf_counter() < end:
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def compare(part, name, calls, target, seconds):
    """Time the first call against the second.

    Arguments
    ---------
    part : str
        The part of the benchmark.
    name : str
        What is measured.
    calls : dict of str to callable
        Ours, the one it is held against, and any others.
    target : float or None
        The largest ratio that is wanted.
    seconds : float
        How long altogether.

    Returns
    -------
    Row
        With the ratio of the first two medians.
    """
    medians = interleave(calls, seconds)
    ours, other, *_ = medians.values()
    return Row(part, name, ours / other, target, medians)


def training_step(module, leaves, run):
    """Forward and backward with fresh gradients, as an optimiser sees them.

    Arguments
    ---------
    module : torch.nn.Module
        Whose parameters get gradients.
    leaves : list of torch.Tensor
        Inputs that get gradients, too.
    run : callable
        The forward pass; returns a tensor.

    Returns
    -------
    callable
        One step.
    """

    def step():
        for tensor in [*leaves, *module.parameters()]:
            tensor.grad = None
        run().sum().backward()

    return step
