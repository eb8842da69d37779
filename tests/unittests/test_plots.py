"""Plots: files that are pictures, and a table that lines up."""

import sys

import pytest

from speechbrain_dslstm.plots import format_confusion, plot_confusion

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
