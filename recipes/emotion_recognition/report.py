#!/usr/bin/env python3
"""Report finished runs as HTML, Markdown and JSON.

> python report.py runs --output=report
> python report.py runs/mine/emodb ../../results/emodb.json --output=report

Reads all runs below the given folders, and those in the JSON files of earlier
reports; nothing is trained. cross_validate.py writes the same report.
"""

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from speechbrain_dslstm.hparams import recipe_root, shorten_command
from speechbrain_dslstm.report import (
    build_report,
    gather_runs,
    read_baselines,
    write_json,
    write_report,
)

BASELINES = recipe_root() / "results" / "baselines.yaml"


class OneLineParser(argparse.ArgumentParser):
    """Parser whose errors are one line; the exit status is 2."""

    def error(self, message: str) -> NoReturn:
        """Print the error without the usage, which ``--help`` shows."""
        line = " ".join(message.split())
        self.exit(2, f"{self.prog}: {line} (see {self.prog} --help)\n")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a report to a script's parser."""
    parser.add_argument(
        "--results", type=Path, help="write the report to this JSON file"
    )
    parser.add_argument(
        "--reference",
        default="dual_level",
        help="system that the others are compared with (default dual_level)",
    )
    parser.add_argument(
        "--baselines",
        type=Path,
        help="YAML with results of other systems, shown beside the runs "
        "(default: results/baselines.yaml, if it exists)",
    )
    parser.add_argument(
        "--resamples",
        type=int,
        default=10_000,
        help="resamples of each bootstrap over speakers (default 10000)",
    )


def make_report(
    runs: list[dict], options: argparse.Namespace, folder: Path | None
) -> dict:
    """Build a report and write it; ``options`` are those of ``add_options``.

    HTML, Markdown and pictures are written only if there is a folder for them.
    """
    path = options.baselines
    if path is None and BASELINES.exists():
        path = BASELINES
    baselines = [] if path is None else read_baselines(path)
    report = build_report(runs, options.reference, baselines, options.resamples)
    report["command"] = shorten_command(sys.argv)
    if options.results is not None:
        kept = dict(report)
        if len(report["runs"]) == 1:
            kept = {**top_scores(report["runs"][0]), **report}
        write_json(kept, options.results)
    if folder is not None:
        print(f"report: {write_report(report, folder)}")
    return report


def top_scores(entry: dict) -> dict:
    """Select the scores for the top of a report with a single run, ``entry``.

    "wa", "ua" and "macro_f1" over the folds and their "warnings"; "pooled", the
    scores of all utterances and their confusion matrix; and "folds".
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


def main() -> None:
    """Read the runs and write the report."""
    parser = OneLineParser(description=__doc__.split("\n")[0])
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
