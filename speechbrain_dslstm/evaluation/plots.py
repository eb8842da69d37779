"""Figures of results, drawn without matplotlib's global state.

Each figure is a ``matplotlib.figure.Figure``: no display is needed, and figures
do not pile up in memory.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from speechbrain_dslstm.evaluation.metrics import Counts, scores_from_confusion
from speechbrain_dslstm.utils.files import replacement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "COLORS",
    "FAINT",
    "INK",
    "plot_confusion",
    "plot_intervals",
    "plot_learning_curves",
    "plot_speakers",
    "save_figure",
]

INK, FAINT = "#1f2933", "#6b7680"
BLUE, ORANGE = "#1f6fb4", "#d1632a"
# Paul Tol's bright scheme and black, which colour-blind readers can tell apart
COLORS = tuple(
    "#4477aa #ee6677 #228833 #ccbb44 #66ccee #aa3377 #bbbbbb #000000".split()
)
LEGEND = {"loc": "upper left", "frameon": False, "fontsize": 8, "ncols": 2}


def plot_confusion(
    confusion: Counts,
    labels: Sequence[str],
    path: str | Path,
    title: str | None = None,
) -> None:
    """Draw a confusion matrix [K, K], each row in per cent of its true class.

    The ending of ``path`` chooses the format (.png, .svg, .pdf). WA and UA are
    given above the matrix, below the lines of the title.
    """
    found = scores_from_confusion(confusion, labels)
    counts = np.array(found["confusion"])
    totals = counts.sum(axis=1)
    share = counts / np.maximum(totals, 1)[:, None]
    size, many = 2.0 + 0.85 * max(len(labels), 3), len(labels) > 4
    figure, axes = _axes(size, size - 0.4, None)
    axes.grid(visible=False)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        # An absent class has no shares, only zero counts
        upper = f"{100 * share[row, column]:.0f} %" if totals[row] else "-"
        strong = "white" if share[row, column] > 0.55 else INK
        axes.text(
            column,
            row,
            f"{upper}\n{count}",
            ha="center",
            va="center",
            color=strong if count else FAINT,
            fontweight="bold" if row == column else "normal",
        )
    axes.set_xticks(range(len(labels)), labels, rotation=30 * many)
    names = zip(labels, totals, strict=True)
    ticks = [f"{name}\n(n = {n})" for name, n in names]
    axes.set_yticks(range(len(labels)), ticks)
    axes.set_xlabel("predicted", color=FAINT)
    axes.set_ylabel("truth", color=FAINT)
    summary = (
        f"WA {100 * found['wa']:.1f} %    UA {100 * found['ua']:.1f} %    "
        f"{found['n']} utterances"
    )
    lines = [title, summary] if title else [summary]
    axes.set_title("\n".join(lines), color=INK, fontsize=11)
    save_figure(figure, path, title)


def plot_intervals(
    rows: Sequence[dict],
    path: str | Path,
    title: str | None = None,
    lines: Mapping[str, float] | None = None,
) -> None:
    """Draw scores with their intervals, one line for each row, the first on top.

    A row has "label"; "value", "low" and "high" in [0, 1], the ends None where
    there is no interval; and "warn", whether the number is too good for new
    speakers: such rows are drawn hollow. ``lines`` are baselines by name, drawn
    as vertical lines.
    """
    if not rows:
        raise ValueError("there are no rows to draw")
    figure, axes = _axes(7.5, 1.2 + 0.42 * len(rows), title)
    for place, row in enumerate(rows):
        color = ORANGE if row["warn"] else BLUE
        if row["low"] is not None:
            ends = [100 * row["low"], 100 * row["high"]]
            axes.plot(ends, [place] * 2, color=color, linewidth=2)
        value = 100 * row["value"]
        inside = "white" if row["warn"] else color
        axes.plot(value, place, "o", color=color, mfc=inside, markersize=8)
        _annotate(axes, f"{value:.1f}", (value, place), (0, 7), ha="center")
    for number, (name, value) in enumerate((lines or {}).items()):
        style = ("--", ":", "-.")[number % 3]
        look = {"color": FAINT, "linestyle": style, "linewidth": 1, "zorder": 0}
        axes.axvline(100 * value, label=f"{name}: {100 * value:.1f}", **look)
    if lines:
        axes.legend(bbox_to_anchor=(0, 0), borderaxespad=4.5, **LEGEND)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlabel("%", color=FAINT)
    save_figure(figure, path)


def plot_learning_curves(
    curves: Mapping[str, dict],
    path: str | Path,
    title: str | None = None,
    chosen_on_test: bool = False,
) -> None:
    """Draw training loss and UA over the epochs.

    Each of the curves "train_loss", "valid_ua" and "test_ua" has "epoch",
    "mean", "low" and "high", lists over epochs; low and high are the range over
    folds. A curve without epochs is left out. The legend says whether the epoch
    was chosen on the test curve, as under the protocol ``paper``.
    """
    use = "never used for selection"
    if chosen_on_test:
        use = "the epoch is chosen on it"
    names = {
        "valid_ua": ("validation", BLUE, "-"),
        "test_ua": (f"test ({use})", ORANGE, "--"),
    }
    figure, axes = _axes(7.5, 3.4, title)
    axes.set_ylabel("UA in %", color=FAINT)
    axes.set_xlabel("epoch", color=FAINT)
    loss = axes.twinx()
    loss.spines[:].set_visible(False)
    loss.tick_params(length=0, colors=FAINT)
    loss.set_ylabel("training loss", color=FAINT)
    drawn = []
    for name, (label, color, style) in names.items():
        curve = curves[name]
        if curve["epoch"]:
            low, high = (100 * np.array(curve[end]) for end in ("low", "high"))
            axes.fill_between(curve["epoch"], low, high, color=color, alpha=0.1)
            look = {"color": color, "linestyle": style, "label": f"UA, {label}"}
            mean = 100 * np.array(curve["mean"])
            drawn += axes.plot(curve["epoch"], mean, **look)
    curve = curves["train_loss"]
    look = {"color": FAINT, "linewidth": 1, "label": "training loss (right)"}
    drawn += loss.plot(curve["epoch"], curve["mean"], **look)
    axes.legend(handles=drawn, bbox_to_anchor=(0, -0.18), **LEGEND)
    save_figure(figure, path)


def plot_speakers(
    scores: Mapping[str, float],
    path: str | Path,
    title: str | None = None,
    mean: float | None = None,
) -> None:
    """Draw the UA of each speaker, in [0, 1], and the pooled ``mean`` as a line."""
    if not scores:
        raise ValueError("there are no speakers to draw")
    figure, axes = _axes(7.5, 2.6, title)
    values = 100 * np.array(list(scores.values()))
    axes.bar(range(len(scores)), values, color=BLUE, width=0.7)
    for place, value in enumerate(values):
        _annotate(axes, f"{value:.0f}", (place, value), (0, 2), ha="center")
    if mean is not None:
        axes.axhline(100 * mean, color=INK, linewidth=1, linestyle="--")
        edge = {"xycoords": ("axes fraction", "data"), "va": "center"}
        words = f"pooled {100 * mean:.1f}"
        _annotate(axes, words, (1, 100 * mean), (4, 0), **edge)
    many = len(scores) > 12
    axes.set_xticks(range(len(scores)), list(scores), rotation=60 * many)
    axes.set_xlim(-0.6, len(scores) - 0.4)
    axes.set_ylim(0, 105)
    axes.set_ylabel("UA in %", color=FAINT)
    axes.set_xlabel("speaker", color=FAINT)
    save_figure(figure, path)


def _axes(
    width: float, height: float, title: str | None
) -> tuple["Figure", "Axes"]:
    """Make a figure, its size in inches, and axes without a frame."""
    # Loaded here, so that a training without plots need not load it
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    axes = figure.add_subplot()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, colors=INK)
    axes.grid(color="#e4e8ec", linewidth=0.8)
    axes.set_axisbelow(True)
    if title:
        axes.set_title(title, color=INK, fontsize=11, fontweight="bold")
    return figure, axes


def _annotate(
    axes: "Axes", text: str, place: tuple, shift: tuple, **where: object
) -> None:
    """Write small text near a place in the data, shifted by points."""
    style = {"textcoords": "offset points", "fontsize": 8, "color": INK}
    axes.annotate(text, place, shift, **style, **where)


def save_figure(
    figure: "Figure", path: str | Path, title: str | None = None
) -> None:
    """Write a figure in the format of the suffix, its title as meta data."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    # A class may be named $x_1$, which is no formula
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    # Letters stay letters: small files, and any script that the reader can show
    letters = rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "dslstm",
            "font.sans-serif": ["DejaVu Sans"],
        }
    )
    with replacement(path) as temporary, letters:
        figure.savefig(
            temporary,
            format=Path(path).suffix[1:],
            dpi=160,
            facecolor="white",
            bbox_inches="tight",
            pad_inches=0.15,
            metadata={"Title": title} if title else None,
        )
