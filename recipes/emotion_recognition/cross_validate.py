#!/usr/bin/env python3
"""Train all folds of one or several systems, and report the results.

> python cross_validate.py hparams/dual_level.yaml --corpus=emodb ... --jobs=2
> python cross_validate.py hparams/*.yaml --corpus=emodb ... --report=report \\
>     --protocols session random --normalizations training speaker

Options that this script does not know go to train.py; write them with "=".
Each fold is a process of its own. Finished folds are not run again and stopped
ones resume, so the same command continues wherever it was killed. A fold that
fails does not stop the others.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report import OneLineParser, add_options, make_report

from speechbrain_dslstm.corpora import Source
from speechbrain_dslstm.evaluation import format_confusion
from speechbrain_dslstm.hparams import (
    plain_settings,
    read_hparams,
    run_folder,
)
from speechbrain_dslstm.report import DIGITS, NORMALIZATIONS, gather_runs
from speechbrain_dslstm.settings import RunRecord, parse_arguments
from speechbrain_dslstm.splits import PROTOCOLS, count_folds
from speechbrain_dslstm.training.launcher import Job, run_jobs
from speechbrain_dslstm.utils.threads import count_cpus

TRAIN = Path(__file__).with_name("train.py")


def parse() -> tuple[argparse.Namespace, list[str]]:
    """Read the command line: this script's options, and those of train.py."""
    parser = OneLineParser(
        description=__doc__.split("\n")[0],
        epilog='All other options go to train.py; write them with "=".',
        allow_abbrev=False,
    )
    parser.add_argument(
        "hparams",
        nargs="+",
        help="YAMLs of systems, or names such as dual_level",
    )
    parser.add_argument(
        "--protocols",
        nargs="+",
        choices=PROTOCOLS,
        help="protocols of the split (default: the YAML's)",
    )
    parser.add_argument(
        "--normalizations",
        nargs="+",
        choices=["own", *NORMALIZATIONS],
        help="normalisations of the features (default: own, the YAML's)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        help="seeds of split and training (default: the YAML's)",
    )
    parser.add_argument(
        "--jobs", type=int, help="folds at a time (default: one per device)"
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        help="such as cuda:0 cuda:1, or cpu; each trains one fold at a time",
    )
    parser.add_argument(
        "--report",
        type=Path,
        help="folder for a report in HTML, Markdown and JSON",
    )
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="list the folds and how far they are, and train none",
    )
    add_options(parser)
    # argparse would take an unknown option with a blank for another system
    own = {f"--{name}" for name in vars(parser.parse_args(["system"]))}
    blank = [
        one
        for one in sys.argv[1:]
        if one.startswith("--") and " " in one and one.split("=")[0] not in own
    ]
    left = [one for one in sys.argv[1:] if one not in blank]
    options, arguments = parser.parse_known_args(left)
    arguments += blank
    given = {one.split("=")[0] for one in arguments}
    for name in given & {"--fold", "--output_folder"}:
        parser.error(f"{name} is set by this script")
    for name in ("protocol", "normalization", "seed", "device"):
        if getattr(options, f"{name}s") and f"--{name}" in given:
            parser.error(f"give --{name} or --{name}s, not both")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options, arguments


def plan(options: argparse.Namespace, arguments: list[str]) -> list[Job]:
    """List the folds of every system, protocol, normalisation and seed."""
    jobs, commands, corpora = [], {}, {}
    for given in variants(options, arguments):
        path, _, overrides = parse_arguments(given)
        settings = read_hparams(path, overrides)
        plain = plain_settings(path, overrides)
        source = Source(settings)
        source.check_protocol(settings["protocol"])
        entries = read_corpus(source, corpora)
        settings["corpus"] = source.name
        folds = count_folds(entries, settings["protocol"], settings["n_folds"])
        if folds > len(DIGITS):
            raise ValueError(
                f"{' '.join(given)} has {folds} folds; a report holds at most "
                f"{len(DIGITS)}"
            )
        for fold in range(folds):
            folder = Path(run_folder({**settings, "fold": fold}))
            command = " ".join([*given, f"--fold={fold}"])
            if folder in commands:
                raise ValueError(
                    f"{folder} is the folder of two runs: {command} and "
                    f"{commands[folder]}; give each system its own name"
                )
            commands[folder] = command
            last = [f"--fold={fold}", f"--output_folder={folder}"]
            last.append("--noprogressbar")
            record = RunRecord(
                *(path, f"{overrides}fold: {fold}\n", folder),
                {**plain, "fold": fold, "output_folder": str(folder)},
            )
            record.check()
            epochs = settings["number_of_epochs"]
            jobs.append(Job(TRAIN, [*given, *last], folder, epochs, record))
    return jobs


def variants(
    options: argparse.Namespace, arguments: list[str]
) -> Iterator[list[str]]:
    """Yield the arguments of train.py for each run, all but the fold."""
    for path in options.hparams:
        base = read_settings([path, *arguments])
        own = base["normalization"]
        normalizations = [
            own if one == "own" else one
            for one in options.normalizations or ["own"]
        ]
        choices = {
            "protocol": options.protocols or [base["protocol"]],
            "normalization": dict.fromkeys(normalizations),
            "seed": options.seeds or [base["seed"]],
        }
        for chosen in itertools.product(*choices.values()):
            pairs = zip(choices, chosen, strict=True)
            chosen_options = [f"--{key}={value}" for key, value in pairs]
            # A key given twice is an error of YAML
            twice = {option.split("=")[0] for option in chosen_options}
            kept = [one for one in arguments if one.split("=")[0] not in twice]
            yield [path, *kept, *chosen_options]


def read_settings(arguments: list[str]) -> dict[str, Any]:
    """Read the settings that train.py would have with these arguments."""
    path, _, overrides = parse_arguments(arguments)
    return read_hparams(path, overrides)


def read_corpus(source: Source, corpora: dict[tuple, dict]) -> dict[str, dict]:
    """Read the manifest of a corpus once, and keep it in ``corpora``.

    This also generates the synthetic corpus, before several folds would.
    """
    key = source.name, source.data_root, source.label_set, str(source.options)
    if key not in corpora:
        corpora[key] = source.prepare()
    return corpora[key]


def show(report: dict[str, Any]) -> None:
    """Print the scores of each run in a report."""
    for entry in report["runs"]:
        found = entry["rules"][entry["headline"]]
        print(
            f"{entry['system']} on {entry['corpus']}, protocol "
            f"{entry['protocol']}, {NORMALIZATIONS[entry['normalization']]}, "
            f"epoch {found['selection']}, {entry['status']}"
        )
        for note in found["warnings"]:
            print(f"NOTE: {note}")
        for name, score in found["scores"].items():
            line = f"{name.upper()}: {score['mean']:.1%}"
            if score["std"] is not None:
                line += f" +- {score['std']:.1%}"
            line += f", pooled {score['pooled']:.1%}"
            if score["pooled_low"] is not None:
                line += f" [{score['pooled_low']:.1%}, "
                line += f"{score['pooled_high']:.1%}]"
            print(line)
        print(format_confusion(found["confusion"], entry["labels"]) + "\n")
    for note in report["notes"]:
        print(f"NOTE: {note}")


def main() -> None:
    """Run the folds that are not finished, and report all that are."""
    options, arguments = parse()
    try:
        jobs = plan(options, arguments)
    except (OSError, ValueError, ImportError) as error:
        OneLineParser().error(str(error))
    if options.dry_run:
        for job in jobs:
            state = "done" if job.done else f"{job.progress:.0%}"
            print(f"{state:>5}  {job.folder}")
        return
    devices = options.devices or [None]
    slots = options.jobs or len(devices)
    devices = [devices[slot % len(devices)] for slot in range(slots)]
    threads = max(1, count_cpus() // slots)
    failed = run_jobs(jobs, devices, threads)
    finished = [job.folder for job in jobs if job.done]
    wrong = []
    if finished:
        try:
            show(make_report(gather_runs(*finished), options, options.report))
        except (OSError, ValueError) as error:
            wrong.append(f"no report: {error}")
    if failed:
        wrong += [f"{len(failed)} of {len(jobs)} folds failed:", *failed]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
