"""Plots: files that are pictures, and a table that lines up."""

import sys

import pytest

from speechbrain_dslstm.evaluation import format_confusion
from speechbrain_dslstm.evaluation.plots import (
    plot_confusion,
    plot_intervals,
    plot_learning_curves,
    plot_speakers,
)

LABELS = ["anger", "happiness", "neutral", "sadness", "boredom"]
CONFUSION = [
    [120, 5, 1, 0, 1],
    [30, 38, 2, 0, 1],
    [0, 2, 60, 7, 10],
    [0, 0, 1, 61, 0],
    [0, 0, 0, 0, 0],
]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("title", [None, "EMO-DB, fold 1"])
def test_png(tmp_path, size, title):
    from matplotlib.image import imread

    path = tmp_path / "confusion.png"
    some = [row[:size] for row in CONFUSION[:size]]
    plot_confusion(some, LABELS[:size], path, title)
    picture = imread(path)
    height, width = picture.shape[:2]
    assert 400 < height < 2000 and 400 < width < 2000
    # White paper, and something on it
    assert picture.max() == 1 and picture[..., :3].min() < 0.3
    assert list(tmp_path.iterdir()) == [path]


def test_text_stands_in_the_picture(tmp_path):
    """SVG keeps the strings when told to: WA, UA, counts and labels."""
    import matplotlib

    path = tmp_path / "confusion.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_confusion(CONFUSION, LABELS, str(path), "A title")
    text = path.read_text()
    # 279 of 339 right; the mean recall leaves boredom out
    for words in ("A title", "WA 82.3 %", "UA 80.6 %", "339 utterances"):
        assert words in text
    for words in (*LABELS, "(n = 127)", ">94 %<", ">120<"):
        assert words in text


def test_no_global_state(tmp_path):
    """pyplot, with its display and its open figures, stays out of it."""
    before = "matplotlib.pyplot" in sys.modules
    plot_confusion(CONFUSION, LABELS, tmp_path / "confusion.png")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_bad_plots_write_nothing(tmp_path):
    path = tmp_path / "confusion.png"
    with pytest.raises(ValueError, match="do not fit"):
        plot_confusion(CONFUSION, LABELS[:3], path)
    path = tmp_path / "confusion.nonsense"
    with pytest.raises(ValueError, match="nonsense"):
        plot_confusion(CONFUSION, LABELS, path)
    assert list(tmp_path.iterdir()) == []


def test_table_lines_up():
    table = format_confusion(CONFUSION, LABELS)
    head, *lines = table.split("\n")
    assert len(lines) == len(LABELS)
    assert head.split() == ["truth", "\\", "predicted", *LABELS, "recall"]
    ends = [head.index(label) + len(label) for label in LABELS]
    for label, row, line in zip(LABELS, CONFUSION, lines, strict=True):
        assert line.startswith(label)
        counts = [int(line[:end].split()[-1]) for end in ends]
        assert counts == row
    assert lines[0].endswith("94.5 %") and lines[4].endswith(" -")


def text_of(draw, path, *args, **kwargs):
    """Strings of a picture."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(*args[:1], path, *args[1:], **kwargs)
    assert list(path.parent.iterdir()) == [path]
    return path.read_text()


def test_intervals(tmp_path):
    rows = [
        {"label": "DS-LSTM", "value": 0.7, "low": 0.6, "high": 0.8},
        {"label": "one speaker", "value": 0.651, "low": None, "high": None},
    ]
    rows = [row | {"warn": bool(place)} for place, row in enumerate(rows)]
    path = tmp_path / "intervals.svg"
    text = text_of(plot_intervals, path, rows, "UA", {"SVM": 0.74})
    for words in ("DS-LSTM", "one speaker", ">70.0<", ">65.1<", "SVM: 74.0"):
        assert words in text
    with pytest.raises(ValueError, match="no rows"):
        plot_intervals([], path)


@pytest.mark.parametrize("chosen_on_test", [False, True])
def test_learning_curves_say_what_the_test_curve_is_for(
    tmp_path, chosen_on_test
):
    one = {"epoch": [1, 2], "mean": [0.5, 0.6]}
    one |= {"low": [0.4, 0.5], "high": [0.6, 0.7]}
    none = {"epoch": [], "mean": [], "low": [], "high": []}
    curves = {"train_loss": one, "test_ua": one}
    curves["valid_ua"] = none if chosen_on_test else one
    path = tmp_path / "curves.svg"
    text = text_of(
        plot_learning_curves, path, curves, chosen_on_test=chosen_on_test
    )
    assert ("never used for selection" in text) != chosen_on_test
    assert ("the epoch is chosen on it" in text) == chosen_on_test
    assert ("UA, validation" in text) != chosen_on_test


def test_speakers(tmp_path):
    some = {f"{speaker:02}": speaker / 30 for speaker in range(24)}
    path = tmp_path / "speakers.svg"
    text = text_of(plot_speakers, path, some, "Speakers", 0.385)
    for words in (">00<", ">23<", ">77<", "pooled 38.5", "Speakers"):
        assert words in text
    with pytest.raises(ValueError, match="no speakers"):
        plot_speakers({}, path)
