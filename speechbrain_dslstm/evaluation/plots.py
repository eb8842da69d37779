"""Pictures of results, drawn without matplotlib's global state.

A figure made here is a ``matplotlib.figure.Figure`` of its own: no display
is needed, and nothing stays open after a training of many epochs.
"""

from pathlib import Path

import numpy as np

from speechbrain_dslstm.evaluation.metrics import scores_from_confusion
from speechbrain_dslstm.utils.files import replacement

__all__ = [
    "plot_confusion",
    "plot_intervals",
    "plot_learning_curves",
    "plot_speakers",
]

INK, FAINT = "#1f2933", "#6b7680"
BLUE, ORANGE = "#1f6fb4", "#d1632a"
# Paul Tol's bright scheme and black: told apart by everyone
COLORS = (
    "#4477aa",
    "#ee6677",
    "#228833",
    "#ccbb44",
    "#66ccee",
    "#aa3377",
    "#bbbbbb",
    "#000000",
)


def plot_confusion(confusion, labels, path, title=None):
    """Draw a confusion matrix, each row in per cent of its true class.

    Arguments
    ---------
    confusion : list of lists or numpy.ndarray, [K, K]
        Counts; rows are the truth, columns the prediction.
    labels : list of str, [K]
        Names of the classes.
    path : str or pathlib.Path
        Where to; the ending chooses the format (.png, .svg, .pdf).
    title : str, optional
        The first line above the matrix. WA and UA stand below it anyway.

    Raises
    ------
    ValueError
        The matrix does not fit the labels, is negative, or is all zero.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "confusion.png")
    ...     plot_confusion([[8, 2], [1, 4]], ["anger", "sadness"], file)
    ...     file.read_bytes()[1:4]
    b'PNG'
    """
    # Here, so that a training without plots need not load it
    from matplotlib.figure import Figure

    found = scores_from_confusion(confusion, labels)
    counts = np.array(found["confusion"])
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)

    size = len(labels)
    side = 1.0 + 0.85 * max(size, 3)
    figure = Figure(figsize=(side + 1.0, side + 0.6))
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)

    for row, column in np.ndindex(counts.shape):
        count = counts[row, column]
        strong = "white" if share[row, column] > 0.55 else INK
        color = strong if count else FAINT
        # An absent class has no shares, only zero counts
        upper = f"{100 * share[row, column]:.0f} %" if totals[row] else "-"
        axes.annotate(
            upper,
            (column, row),
            xytext=(0, 1),
            textcoords="offset points",
            ha="center",
            va="bottom",
            color=color,
            fontsize=11,
            fontweight="bold" if row == column else "normal",
        )
        axes.annotate(
            str(count),
            (column, row),
            xytext=(0, -3),
            textcoords="offset points",
            ha="center",
            va="top",
            color=color,
            fontsize=8,
        )

    axes.set_xticks(range(size), labels, rotation=30 if size > 4 else 0)
    if size > 4:
        for tick in axes.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(
        range(size),
        [
            f"{name}\n(n = {n})"
            for name, n in zip(labels, totals[:, 0], strict=True)
        ],
    )
    axes.set_xlabel("predicted", color=FAINT)
    axes.set_ylabel("truth", color=FAINT)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    # White lines between the cells
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)

    summary = (
        f"WA {100 * found['wa']:.1f} %    UA {100 * found['ua']:.1f} %    "
        f"{found['n']} utterances"
    )
    above = {"xycoords": "axes fraction", "textcoords": "offset points"}
    above.update(ha="center", va="bottom", color=INK)
    axes.annotate(summary, (0.5, 1), (0, 8), fontsize=10, **above)
    if title:
        above.update(fontsize=13, fontweight="bold")
        axes.annotate(title, (0.5, 1), (0, 27), **above)

    bar = figure.colorbar(
        image, cax=axes.inset_axes([1.03, 0, 0.035, 1]), ticks=[0, 0.5, 1]
    )
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"], fontsize=8)
    bar.ax.tick_params(length=0, colors=INK)
    bar.outline.set_visible(False)
    bar.set_label("of the true class", color=FAINT, fontsize=8)
    save_figure(figure, path, title)


def plot_intervals(rows, path, title=None, lines=None):
    """Draw scores with their intervals, a line for each row.

    Arguments
    ---------
    rows : list of dict
        From top to bottom: "label"; "value", "low" and "high" in [0, 1], the
        ends None where there is no interval; and "warn", whether the number
        flatters: such rows are drawn hollow.
    path : str or pathlib.Path
        Where to; the ending chooses the format.
    title : str, optional
        The first line above the axes.
    lines : dict of str to float, optional
        Yardsticks, drawn as vertical lines with these names.

    Raises
    ------
    ValueError
        There are no rows.

    Example
    -------
    >>> import tempfile
    >>> row = {"label": "a", "value": 0.7, "low": 0.6, "high": 0.8}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "chain.png")
    ...     plot_intervals([row | {"warn": False}], file, "UA")
    ...     file.read_bytes()[1:4]
    b'PNG'
    """
    if not rows:
        raise ValueError("there are no rows to draw")
    figure, axes = _axes(7.5, 1.2 + 0.42 * len(rows), title)
    for place, row in enumerate(rows):
        color = ORANGE if row["warn"] else BLUE
        if row["low"] is not None:
            ends = [100 * row["low"], 100 * row["high"]]
            axes.plot(ends, [place] * 2, color=color, linewidth=2)
        axes.plot(
            100 * row["value"],
            place,
            "o",
            color=color,
            markerfacecolor="white" if row["warn"] else color,
            markersize=8,
        )
        axes.annotate(
            f"{100 * row['value']:.1f}",
            (100 * row["value"], place),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
    for number, (name, value) in enumerate((lines or {}).items()):
        axes.axvline(
            100 * value,
            color=FAINT,
            linestyle=("--", ":", "-.")[number % 3],
            linewidth=1,
            label=f"{name}: {100 * value:.1f}",
            zorder=0,
        )
    if lines:
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(0, 0),
            borderaxespad=4.5,
            frameon=False,
            fontsize=8,
            ncols=2,
        )
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.7)
    axes.set_xlabel("%", color=FAINT)
    save_figure(figure, path)


def plot_learning_curves(curves, path, title=None, chosen_on_test=False):
    """Draw training loss and UA over the epochs.

    Arguments
    ---------
    curves : dict
        "train_loss", "valid_ua" and "test_ua": each has "epoch", "mean",
        "low" and "high", lists over epochs; the last two the range over
        folds. A curve without epochs is left out.
    path : str or pathlib.Path
        Where to; the ending chooses the format.
    title : str, optional
        The first line above the axes.
    chosen_on_test : bool
        Whether the test curve is what the epoch was chosen on, as under the
        protocol ``paper``; its name in the picture says which.

    Example
    -------
    >>> import tempfile
    >>> one = {"epoch": [1, 2], "mean": [0.5, 0.6]}
    >>> one |= {"low": [0.4, 0.5], "high": [0.6, 0.7]}
    >>> curves = {"train_loss": one, "valid_ua": one, "test_ua": one}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "curves.png")
    ...     plot_learning_curves(curves, file)
    ...     file.read_bytes()[1:4]
    b'PNG'
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
            drawn += axes.plot(
                curve["epoch"],
                100 * np.array(curve["mean"]),
                color=color,
                linestyle=style,
                label=f"UA, {label}",
            )
    curve = curves["train_loss"]
    drawn += loss.plot(
        curve["epoch"],
        curve["mean"],
        color=FAINT,
        linewidth=1,
        label="training loss (right)",
    )
    axes.legend(
        handles=drawn,
        loc="upper left",
        bbox_to_anchor=(0, -0.18),
        frameon=False,
        fontsize=8,
        ncols=2,
    )
    save_figure(figure, path)


def plot_speakers(scores, path, title=None, mean=None):
    """Draw the UA of each speaker.

    Arguments
    ---------
    scores : dict of str to float
        Speaker -> UA in [0, 1].
    path : str or pathlib.Path
        Where to; the ending chooses the format.
    title : str, optional
        The first line above the axes.
    mean : float, optional
        Pooled UA, drawn as a line.

    Raises
    ------
    ValueError
        There are no speakers.

    Example
    -------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "speakers.png")
    ...     plot_speakers({"03": 0.7, "08": 0.8}, file, mean=0.75)
    ...     file.read_bytes()[1:4]
    b'PNG'
    """
    if not scores:
        raise ValueError("there are no speakers to draw")
    figure, axes = _axes(7.5, 2.6, title)
    values = 100 * np.array(list(scores.values()))
    axes.bar(range(len(scores)), values, color=BLUE, width=0.7)
    for place, value in enumerate(values):
        axes.annotate(
            f"{value:.0f}",
            (place, value),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=INK,
        )
    if mean is not None:
        axes.axhline(100 * mean, color=INK, linewidth=1, linestyle="--")
        axes.annotate(
            f"pooled {100 * mean:.1f}",
            (1, 100 * mean),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=INK,
        )
    many = len(scores) > 12
    axes.set_xticks(range(len(scores)), list(scores), rotation=60 * many)
    axes.set_xlim(-0.6, len(scores) - 0.4)
    axes.set_ylim(0, 105)
    axes.set_ylabel("UA in %", color=FAINT)
    axes.set_xlabel("speaker", color=FAINT)
    save_figure(figure, path)


def _axes(width, height, title):
    """A figure in inches and its quiet axes."""
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


def save_figure(figure, path, title=None):
    """Write a figure in the format that the file's suffix names."""
    with replacement(path) as temporary:
        figure.savefig(
            temporary,
            format=Path(path).suffix[1:],
            dpi=160,
            facecolor="white",
            bbox_inches="tight",
            pad_inches=0.15,
            metadata={"Title": title} if title else None,
        )
