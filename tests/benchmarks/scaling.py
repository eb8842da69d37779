"""How the time of a training step grows with T, batch and hidden size.

One axis at a time, the others at T 50, batch 16 (along T: 4) and hidden 200;
x 496, y 1008.
The ratio of a row is the slope of a straight line through the logarithms:
1 where twice as much takes twice as long.
"""

import numpy as np
from layer import PARITY, layer_calls
from timing import Row, interleave

__all__ = ["PARITY", "plot", "rows"]

AXES = {
    "T": [50, 100, 200, 400, 800, 1600, 3000],
    "batch": [1, 2, 4, 8, 16, 32, 64, 128, 256],
    "hidden": [64, 128, 256, 512],
}
# A longer T at a smaller batch: half a minute instead of minutes
DEFAULTS = {"steps": 50, "batch": 16, "hidden": 200}
BATCH_OF_T = 4
# Where it has to be proportional: no more than this
TARGETS = {"T": 1.05, "batch": 1.05, "hidden": None}


def _sizes(axis, value):
    sizes = dict(DEFAULTS)
    if axis == "T":
        sizes["batch"] = BATCH_OF_T
    sizes["steps" if axis == "T" else axis] = value
    return sizes


def slope(values, times):
    """Slope of a line through the logarithms.

    Arguments
    ---------
    values : list of float
        Sizes.
    times : list of float
        Their times.

    Returns
    -------
    float
        Exponent of the growth.

    Example
    -------
    >>> round(slope([1, 2, 4], [3, 6, 12]), 6)
    1.0
    """
    return float(np.polyfit(np.log(values), np.log(times), 1)[0])


def rows(options):
    """Time every size, print them, and fit the slopes.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for each axis.

    Yields
    ------
    Row
        One for each axis and side; ``medians`` holds the curve.
    """
    for axis, values in AXES.items():
        curves = {}
        for value in values:
            calls = layer_calls(**_sizes(axis, value), training=True)
            seconds = options.seconds / len(values)
            for name, taken in interleave(calls, seconds).items():
                curves.setdefault(name, []).append(taken)
        for name, times in curves.items():
            target = None if name == "nn.LSTM" else TARGETS[axis]
            yield Row(
                "scaling",
                f"slope in {axis}, {name}",
                slope(values, times),
                target,
                {f"{axis} {v}:": t for v, t in zip(values, times, strict=True)},
            )


def plot(found, folder):
    """Draw the curves.

    Arguments
    ---------
    found : list of Row
        What ``rows`` gave.
    folder : pathlib.Path
        Where ``scaling.png`` goes.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(1, len(AXES), figsize=(13, 4))
    for (axis, values), place in zip(AXES.items(), plots, strict=True):
        for row in found:
            if row.name.startswith(f"slope in {axis},"):
                side = row.name.split(", ")[1]
                label = f"{side}, slope {row.ratio:.2f}"
                times = list(row.medians.values())
                place.loglog(values, times, "o-", label=label)
        rest = [f"{k} {v}" for k, v in _sizes(axis, 0).items() if v]
        rest = ", ".join(rest).replace("steps", "T")
        place.set_xlabel(f"{axis} ({rest})")
        place.set_xticks(values, [str(v) for v in values], rotation=45)
        place.minorticks_off()
        place.grid(alpha=0.3)
        place.legend()
    plots[0].set_ylabel("training step, ms")
    figure.tight_layout()
    figure.savefig(folder / "scaling.png", dpi=120)
    pyplot.close(figure)
