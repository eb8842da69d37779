"""The command line in this process, with a small model."""

import sys

import pytest

from speechbrain_dslstm.cli.app import main
from speechbrain_dslstm.pretrained.safe_format import write_safe

LABELS = ["sadness", "anger", "neutral"]


@pytest.fixture(scope="session")
def model(small_model, tmp_path_factory):
    """A model folder without YAML."""
    folder = tmp_path_factory.mktemp("model")
    write_safe(folder, small_model(center=True), LABELS, 16000, 1.5)
    return folder


@pytest.fixture
def dslstm(model, monkeypatch, capsys):
    """Run a command line; returns status, output and errors."""

    def run(*arguments, model=model):
        if arguments[0] not in ("info", "--help", "--version"):
            arguments = (*arguments, "--model", str(model))
        monkeypatch.setattr(sys, "argv", ["dslstm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        found = capsys.readouterr()
        return stop.value.code or 0, found.out, found.err

    return run
