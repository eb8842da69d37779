"""The console of a training: the bar of a terminal, and which logs reach it."""

import io
import logging
import sys

import pytest
from speechbrain.utils.logger import setup_logging

from speechbrain_dslstm.training import console
from speechbrain_dslstm.training.console import LOG_CONFIG, Progress


# In the tests capsys comes before monkeypatch, which must be undone first
class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self):
        return True


def run_epoch(progress):
    """An epoch of two batches."""
    progress.start_epoch(3, 30, batches=2)
    progress.step(1.5)
    progress.bar.refresh()
    progress.start_scoring()
    progress.step()
    progress.bar.refresh()
    progress.end_epoch(1.25, {"wa": 0.5, "ua": 0.25, "ccc": 0.125})


def test_the_bar_of_a_terminal_is_removed(capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run_epoch(Progress())
    shown = terminal.getvalue()
    assert "epoch  3/30 |" in shown and "1/2 [" in shown
    assert "loss 1.50" in shown and "scoring: 1 batches" in shown
    # Each bar is overwritten in its line, none is left
    assert "\n" not in shown
    assert capsys.readouterr().out == (
        "epoch  3/30  train loss 1.250  valid WA 50.0%  UA 25.0%  CCC 0.125  "
        "0 s\n"
    )


@pytest.mark.parametrize(
    ("stream", "bar"), [(io.StringIO(), True), (Terminal(), False)]
)
def test_a_pipe_or_an_option_leaves_the_line_alone(
    stream, bar, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "stderr", stream)
    run_epoch(Progress(bar))
    assert stream.getvalue() == ""
    assert capsys.readouterr().out.startswith("epoch  3/30  train loss")


def test_other_ranks_are_silent(capsys, monkeypatch):
    monkeypatch.setattr(console, "if_main_process", lambda: False)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    run_epoch(Progress())
    assert terminal.getvalue() == capsys.readouterr().out == ""


@pytest.fixture
def root(monkeypatch):
    """The root logger, which is set back."""
    monkeypatch.setenv("SB_LOG_LEVEL", "INFO")
    logger = logging.getLogger()
    before = logger.handlers, logger.level
    yield logger
    for handler in logger.handlers:
        handler.close()
    logger.handlers, level = before
    logger.setLevel(level)


def test_warnings_alone_reach_the_console(root, tmp_path, capsys):
    path = tmp_path / "log.txt"
    setup_logging(
        LOG_CONFIG, {"handlers": {"file_handler": {"filename": path}}}
    )
    for name in ("speechbrain.core", "speechbrain_dslstm.audio", "matplotlib"):
        logging.getLogger(name).warning("seen %s", name)
        logging.getLogger(name).info("unseen %s", name)
    logging.getLogger("numba.core.ssa").debug("too much")
    logging.getLogger("speechbrain_dslstm.cli.scripts").debug("a traceback")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "WARNING: seen speechbrain.core",
        "WARNING: seen speechbrain_dslstm.audio",
        "WARNING: seen matplotlib",
    ]
    text = path.read_text()
    assert text.count("unseen") == 3 and text.count("WARNING - seen") == 3
    assert "a traceback" in text and "too much" not in text
