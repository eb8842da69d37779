"""A report of runs of all kinds, and the files that it is written to."""

from pathlib import Path

import miniature_runs as miniature
import pytest

from speechbrain_dslstm.report import (
    build_report,
    gather_runs,
    read_baselines,
    write_report,
)

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="package")
def baselines():
    """The baselines in the repository."""
    return read_baselines(REPOSITORY / "results" / "baselines.yaml")


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """Runs of all kinds: five systems, three protocols, two seeds, partial."""
    runs = tmp_path_factory.mktemp("made") / "runs"
    miniature.write(runs, "dual_level", skill=0.7)
    miniature.write(runs, "ds_lstm", skill=0.6)
    miniature.write(runs, "ds_lstm", skill=0.6, seed=5)
    miniature.write(runs, "mfcc_lstm", skill=0.4, folds=[0, 2])
    miniature.write(runs, "dual_level", "random", skill=0.9)
    miniature.write(runs, "dual_level", "paper", skill=0.9)
    miniature.write(runs, "dual_level", "session", "speaker", skill=0.8)
    return runs


@pytest.fixture(scope="package")
def report(folder, baselines):
    """The report of it."""
    return build_report(gather_runs(folder), "dual_level", baselines, 500)


@pytest.fixture(scope="package")
def page(report, tmp_path_factory):
    """The written report's HTML file."""
    return write_report(report, tmp_path_factory.mktemp("report"))
