#!/usr/bin/env python3
"""All folds of a protocol with train.py, and their mean and deviation.

> python cross_validate.py hparams/dual_level.yaml --corpus=emodb ... --jobs=2

Every option but ``--jobs`` and ``--results`` goes to train.py as it is. Folds
run as processes of their own, ``--jobs`` at a time; a fold that has its
results is not run again, and one that was stopped resumes, so the same
command goes on wherever it was killed.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml
from tqdm import tqdm

from speechbrain_dslstm.corpora import prepare
from speechbrain_dslstm.metrics import (
    format_confusion,
    interval,
    scores_from_confusion,
)
from speechbrain_dslstm.protocols import count_folds

TRAIN = Path(__file__).with_name("train.py")


def run_fold(arguments, folder, fold, threads):
    """Train and test one fold, unless that is done.

    Arguments
    ---------
    arguments : list of str
        What train.py is given.
    folder : pathlib.Path
        Output folder of this fold.
    fold : int
        From 0.
    threads : int
        CPU threads of the process.

    Returns
    -------
    dict
        The fold's results.

    Raises
    ------
    RuntimeError
        train.py failed; the message names its log.
    """
    results = folder / "results.json"
    if not results.exists():
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "console.txt"
        command = [sys.executable, str(TRAIN), *arguments]
        command += [f"--fold={fold}", f"--output_folder={folder}"]
        command += ["--noprogressbar"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with open(log, "a", encoding="utf-8") as stream:
            done = subprocess.run(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
            )
        if done.returncode or not results.exists():
            raise RuntimeError(f"fold {fold} failed, see {log}")
    return json.loads(results.read_text(encoding="utf-8"))


def shorten(argument):
    """An argument without the folders of this machine.

    Arguments
    ---------
    argument : str
        As on the command line.

    Returns
    -------
    str
        The same, an absolute path cut down to its last name.

    Example
    -------
    >>> shorten("--data_folder=/data/corpora/emodb"), shorten("--jobs=2")
    ('--data_folder=emodb', '--jobs=2')
    """
    name, equals, value = argument.rpartition("=")
    path = Path(value)
    return f"{name}{equals}{path.name}" if path.is_absolute() else argument


def summarise(folds):
    """Mean, deviation and interval over the folds, and the pooled scores.

    Arguments
    ---------
    folds : list of dict
        Results of each fold.

    Returns
    -------
    dict
        What the folds have in common, "wa", "ua", "macro_f1" and the UA of
        each branch over folds, and "pooled" over all utterances.

    Example
    -------
    >>> one = {"confusion": [[2, 0], [1, 1]], "ua": 0.75}
    >>> fold = {name: "" for name in COMMON} | {"labels": ["a", "b"]}
    >>> fold |= {"wa": 0.75, "ua": 0.75, "macro_f1": 0.73, "seconds": 1.0}
    >>> fold |= {"fold": 0, "split_hash": "", "test": {"fused": one}}
    >>> fold |= {"valid": {"ua": 0.5}, "best_epoch": 3}
    >>> summarise([fold, fold])["pooled"]["ua"]
    0.75
    """
    summary = {name: folds[0][name] for name in COMMON}
    for name in ("wa", "ua", "macro_f1"):
        summary[name] = interval([fold[name] for fold in folds])
    for branch in folds[0]["test"]:
        if branch != "fused":
            values = [fold["test"][branch]["ua"] for fold in folds]
            summary[f"ua_{branch}"] = interval(values)
    confusion = np.sum(
        [fold["test"]["fused"]["confusion"] for fold in folds], axis=0
    )
    summary["pooled"] = scores_from_confusion(confusion, summary["labels"])
    summary["folds"] = [
        {
            "fold": fold["fold"],
            "wa": fold["wa"],
            "ua": fold["ua"],
            "valid_ua": fold["valid"]["ua"],
            "best_epoch": fold["best_epoch"],
            "split_hash": fold["split_hash"],
            "seconds": fold["seconds"],
        }
        for fold in folds
    ]
    return summary


COMMON = (
    "system",
    "corpus",
    "label_set",
    "labels",
    "protocol",
    "note",
    "seed",
    "n_folds",
    "parameters",
    "versions",
)


def main():
    """Run all folds and print what they gave."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog="All other options go to train.py.",
        allow_abbrev=False,
    )
    parser.add_argument("hparams", help="YAML of the system")
    parser.add_argument(
        "--jobs", type=int, default=1, help="folds at a time (default 1)"
    )
    parser.add_argument(
        "--results", type=Path, help="also write the summary to this JSON file"
    )
    options, arguments = parser.parse_known_args()
    arguments = [options.hparams, *arguments]
    for name in ("--fold", "--output_folder"):
        if any(one.split("=")[0] == name for one in arguments):
            parser.error(f"{name} is set by this script")
    hparams_file, _, overrides = sb.parse_arguments(arguments)
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides)
    # Here, so that the folds do not generate the synthetic corpus at once
    entries, _ = prepare(
        hparams["corpus"],
        hparams["data_folder"],
        hparams["label_set"],
        **hparams["corpus_options"],
    )
    folds = range(count_folds(entries, hparams["protocol"], hparams["n_folds"]))
    parent = Path(hparams["output_folder"]).parent
    seed = hparams["seed"]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [
            pool.submit(
                run_fold,
                arguments,
                parent / f"fold{fold}_seed{seed}",
                fold,
                threads,
            )
            for fold in folds
        ]
        results = [one.result() for one in tqdm(running, unit="fold")]
    summary = summarise(results)
    # A report names no folder of the machine it was made on
    summary["command"] = shlex.join(map(shorten, sys.argv))
    text = json.dumps(summary, indent=2) + "\n"
    (parent / f"summary_seed{seed}.json").write_text(text, encoding="utf-8")
    if options.results is not None:
        options.results.parent.mkdir(parents=True, exist_ok=True)
        options.results.write_text(text, encoding="utf-8")
    print(
        f"{summary['system']} on {summary['corpus']}, "
        f"protocol {summary['protocol']}, {len(results)} folds, seed {seed}"
    )
    if summary["note"]:
        print(f"NOTE: {summary['note']}")
    for name in ("wa", "ua", "macro_f1"):
        found = summary[name]
        print(f"{name.upper()}: {found['mean']:.1%} +- {found['std']:.1%}")
    print(format_confusion(summary["pooled"]["confusion"], summary["labels"]))


if __name__ == "__main__":
    main()
