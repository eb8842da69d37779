"""The tutorial notebook runs from its first to its last cell, and shows true outputs."""

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from real_speech import EMODB, clips_in

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOK = REPOSITORY / "docs" / "first-model.ipynb"
SMALL = """\
EPOCHS = 1
OPTIONS = "--channels=[2,2] --hidden_size=8 --speeds=null --device=cpu"
"""


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def texts(cell):
    """Texts that a cell has put out."""
    return "".join(
        one.get("text", one.get("data", {}).get("text/plain", ""))
        for one in cell.outputs
    )


def pictures(cell):
    """Number of pictures that a cell has put out."""
    return sum("image/png" in one.get("data", {}) for one in cell.outputs)


def codes(notebook):
    """Cells of code, without that of the imports."""
    cells = [one for one in notebook.cells if one.cell_type == "code"]
    return [one for one in cells if not one.source.startswith("import")]


def test_it_runs(notebook, tmp_path, monkeypatch):
    """On one clip of each speaker and emotion, for one epoch."""
    data = tmp_path / "data" / "emodb"
    data.mkdir(parents=True)
    clips = {(one.stem[:2], one.stem[5]): one for one in clips_in(EMODB)[::-1]}
    for clip in clips.values():
        (data / clip.name).symlink_to(clip)
    (tmp_path / "hparams").symlink_to(REPOSITORY / "hparams")
    (tmp_path / "docs").mkdir()
    # The command "dslstm", of this checkout
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    binaries = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    shown = [pictures(one) for one in codes(notebook)]
    parameters = codes(notebook)[0]
    assert parameters.metadata["tags"] == ["parameters"]
    parameters.source = SMALL
    place = {"metadata": {"path": str(tmp_path / "docs")}}
    NotebookClient(notebook, timeout=120, resources=place).execute()
    cells = codes(notebook)
    assert [pictures(one) for one in cells] == shown
    console = texts(cells[2])
    assert "epoch 1/1  train loss" in console
    assert "on 2 speakers that the model never heard" in console
    assert "truth: sadness" in "".join(map(texts, cells))


def test_its_outputs_are_those_of_a_whole_training(notebook):
    """As it stands in the repository, and without paths of a machine."""
    cells = codes(notebook)
    assert cells[0].source.startswith("EPOCHS = 30\n")
    console = texts(cells[2])
    assert len(re.findall(r"^epoch .\d/30  train loss", console, re.M)) == 30
    assert len(console.splitlines()) < 30 + 40
    ua = float(re.search(r"\nWA .* UA (.*?)%.* never heard", console)[1])
    assert ua > 40
    assert sum(map(pictures, cells)) == 5
    assert "/" + "home" not in str(notebook) and "/root" not in str(notebook)
    assert not any(
        one.output_type == "error" for c in cells for one in c.outputs
    )
    assert NOTEBOOK.stat().st_size < 400_000
