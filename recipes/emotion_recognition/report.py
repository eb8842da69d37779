#!/usr/bin/env python3
"""Report of finished runs: HTML, Markdown and JSON, as of cross_validate.py.

> python report.py runs --output=report

> python report.py runs/mine/emodb ../../results/emodb.json --output=report

Reads everything below the given folders, of whatever system, corpus and
protocol, and what earlier reports hold (JSON); nothing is trained.
"""

import argparse
import shlex
import sys
from pathlib import Path

from speechbrain_dslstm.report import (
    build_report,
    gather_runs,
    read_yardsticks,
    shorten,
    write_json,
    write_report,
)

RESULTS = Path(__file__).resolve().parents[2] / "results"


def add_options(parser):
    """Add what every report can be told.

    Arguments
    ---------
    parser : argparse.ArgumentParser
        Of this script or another one.
    """
    parser.add_argument(
        "--results", type=Path, help="write the report to this JSON file"
    )
    parser.add_argument(
        "--reference",
        default="dual_level",
        help="system that the others are compared with (default dual_level)",
    )
    parser.add_argument(
        "--yardsticks",
        type=Path,
        help="YAML with results from elsewhere, shown beside ours (default: "
        "results/yardsticks.yaml, where it is there)",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=10_000,
        help="of each bootstrap over speakers (default 10000)",
    )


def make_report(runs, options, folder):
    """Build a report and write what was asked for.

    Arguments
    ---------
    runs : list of dict
        What ``gather_runs`` or ``read_runs`` returned.
    options : argparse.Namespace
        With those of ``add_options``.
    folder : pathlib.Path, optional
        For the HTML file and its company; None: none of them.

    Returns
    -------
    dict
        The report.
    """
    yardsticks, path = [], options.yardsticks
    if path is None and (RESULTS / "yardsticks.yaml").exists():
        path = RESULTS / "yardsticks.yaml"
    if path is not None:
        yardsticks = read_yardsticks(path)
    report = build_report(
        runs, options.reference, yardsticks, options.resamples
    )
    report["command"] = shlex.join(map(shorten, sys.argv))
    if options.results is not None:
        kept = dict(report)
        if len(report["runs"]) == 1:
            kept = {**headline(report["runs"][0]), **report}
        write_json(kept, options.results)
    if folder is not None:
        print(f"report: {write_report(report, folder)}")
    return report


def headline(entry):
    """Scores of a run, for the top of a report that has no other run.

    Arguments
    ---------
    entry : dict
        One of the report's "runs".

    Returns
    -------
    dict
        "wa", "ua" and "macro_f1" over the folds, the "warnings" that go with
        them, "pooled" with the scores over all utterances and the confusion
        matrix, and "folds".
    """
    found = entry["rules"][entry["headline"]]
    pooled = {name: one["pooled"] for name, one in found["scores"].items()}
    pooled["confusion"] = found["confusion"]
    return {
        "warnings": found["warnings"],
        **found["scores"],
        "pooled": pooled,
        "folds": entry["folds"],
    }


def main():
    """Read the runs and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        help="folders with runs of train.py, JSON files of earlier reports",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the report"
    )
    add_options(parser)
    options = parser.parse_args()
    try:
        make_report(gather_runs(*options.runs), options, options.output)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
