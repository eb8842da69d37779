#!/usr/bin/env python3
"""All folds of one or several systems with train.py, and a report of them.

> python cross_validate.py hparams/dual_level.yaml --corpus=emodb ... --jobs=2
> python cross_validate.py hparams/*.yaml --corpus=emodb ... --report=report \\
>     --protocols session random --normalizations training speaker

Options that are not its own go to train.py as they are (write them with "=").
Folds run as processes of their own; a fold that has its results is not run
again, and one that was stopped resumes, so the same command goes on wherever
it was killed. A fold that fails does not stop the others.
"""

import argparse
import collections
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import speechbrain as sb
from report import add_options, make_report
from tqdm import tqdm

from speechbrain_dslstm.corpora import prepare
from speechbrain_dslstm.evaluation import format_confusion
from speechbrain_dslstm.hparams import hash_settings, read_hparams, run_folder
from speechbrain_dslstm.report import (
    DIGITS,
    NORMALIZATIONS,
    read_runs,
)
from speechbrain_dslstm.splits import (
    PROTOCOLS,
    count_folds,
    format_leak_summary,
    identical_recordings,
    leak_summary,
    write_folds,
)

TRAIN = Path(__file__).with_name("train.py")
POLL_SECONDS = 0.1
# Between two looks at how far the folds are
LOOK_SECONDS = 2
# Between SIGTERM and SIGKILL
GRACE_SECONDS = 10


@dataclass
class Job:
    """One fold to train.

    Arguments
    ---------
    name : str
        For messages.
    arguments : list of str
        What train.py is given, but the device.
    folder : pathlib.Path
        Where it writes.
    epochs : int
        The most it trains for.
    """

    name: str
    arguments: list
    folder: Path
    epochs: int

    @property
    def done(self):
        """Whether the fold has its results."""
        return (self.folder / "results.json").exists()

    @property
    def recorded(self):
        """Whether a finished fold says that it was trained by these settings."""
        path = self.folder / "save" / "run.json"
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            return run["settings"] == hash_settings(self.arguments)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    @property
    def progress(self):
        """Share of the fold that is done, in [0, 1]."""
        if self.done:
            return 1.0
        log = self.folder / "save" / "epochs.jsonl"
        if not log.exists():
            return 0.0
        # Evaluation comes after the last epoch
        passed = log.read_bytes().count(b"\n")
        return min(passed / (self.epochs + 1), 0.99)


def plan(options, arguments):
    """List the folds of everything that was asked for.

    Arguments
    ---------
    options : argparse.Namespace
        Of this script.
    arguments : list of str
        For train.py.

    Returns
    -------
    list of Job
        System by system.

    Raises
    ------
    ValueError
        Two jobs would share a folder, or there are too many folds.
    """
    jobs, folders, corpora = [], {}, {}
    for path in options.hparams:
        base = read_settings(path, arguments)
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
            given = [f"--{key}={value}" for key, value in pairs]
            given = [path, *arguments, *given]
            settings = read_settings(path, given[1:])
            entries = read_corpus(settings, corpora)
            folds = count_folds(
                entries, settings["protocol"], settings["n_folds"]
            )
            if folds > len(DIGITS):
                raise ValueError(
                    f"{' '.join(given)} has {folds} folds; a report holds at "
                    f"most {len(DIGITS)}"
                )
            for fold in range(folds):
                folder = Path(run_folder({**settings, "fold": fold}))
                name = f"{path} {' '.join(given[1:])} --fold={fold}"
                if folder in folders:
                    raise ValueError(
                        f"{folder} is the folder of two runs: {name} and "
                        f"{folders[folder]}; give each system its own name"
                    )
                folders[folder] = name
                last = [f"--fold={fold}", f"--output_folder={folder}"]
                jobs.append(
                    Job(
                        str(folder),
                        [*given, *last, "--noprogressbar"],
                        folder,
                        settings["number_of_epochs"],
                    )
                )
    return jobs


def read_settings(path, options):
    """Keys of a YAML under the options that train.py would receive."""
    path, _, overrides = sb.parse_arguments([path, *options])
    return read_hparams(path, overrides)


def read_corpus(settings, corpora):
    """The manifest entries of a corpus, read once.

    Arguments
    ---------
    settings : dict
        Of a YAML.
    corpora : dict
        What was read before; the entries are put there.

    Returns
    -------
    dict
        Utterance id -> entry. Here, so that the folds do not generate the
        synthetic corpus at the same time.
    """
    names = ("corpus", "data_folder", "label_set")
    options = dict(settings["corpus_options"])
    key = (*(settings[name] for name in names), str(options))
    if key not in corpora:
        corpora[key] = prepare(*key[:3], **options)[0]
    return corpora[key]


def start(job, device, threads):
    """Start a fold's process; it holds a lock on the folder while it lives.

    Arguments
    ---------
    job : Job
        The fold.
    device : str, optional
        Such as cuda:1; None: what the options say.
    threads : int
        CPU threads.

    Returns
    -------
    subprocess.Popen or None
        In a session of its own, so that Ctrl-C reaches this script only; None
        where another process trains this fold.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TRAIN), *job.arguments]
    command += [f"--device={device}"] if device else []
    with (
        open(job.folder / ".lock", "w") as lock,
        open(job.folder / "console.txt", "a", encoding="utf-8") as log,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )


def stop(processes):
    """End processes and their children.

    Arguments
    ---------
    processes : list of subprocess.Popen
        Each in a session of its own.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    deadline = time.monotonic() + GRACE_SECONDS
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, number)
        while any(one.poll() is None for one in processes):
            if number == signal.SIGTERM and time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)


def run(jobs, devices, threads):
    """Run all folds, as many at a time as there are devices.

    Arguments
    ---------
    jobs : list of Job
        Those that are done are passed over.
    devices : list of str or None
        One for each process at a time.
    threads : int
        CPU threads of each process.

    Returns
    -------
    list of str
        What went wrong, for each fold that failed.
    """
    waiting = collections.deque(job for job in jobs if not job.done)
    free, running, failed = list(devices), {}, []

    def leave(number, frame):
        """Turn the signal into an exit, so that the children are ended."""
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    bar = tqdm(
        total=len(jobs),
        initial=sum(job.progress for job in jobs),
        unit="fold",
        bar_format="{percentage:3.0f}% |{bar}| {n:.1f}/{total} folds "
        "[{elapsed} < {remaining}]{postfix}",
        # A log file need not hold a line for each second
        mininterval=1 if sys.stderr.isatty() else 60,
        miniters=0,
    )
    look = 0
    try:
        while waiting or running:
            while waiting and free:
                job, device = waiting.popleft(), free.pop(0)
                process = start(job, device, threads)
                if process is None:
                    free.insert(0, device)
                    failed.append(f"{job.name}: another process trains it")
                else:
                    running[process] = job, device
            for process in [one for one in running if one.poll() is not None]:
                job, device = running.pop(process)
                free.append(device)
                if process.returncode or not job.done:
                    log = job.folder / "console.txt"
                    failed.append(f"{job.name} failed, see {log}")
                    bar.write(failed[-1], file=sys.stderr)
                    bar.set_postfix_str(f"{len(failed)} failed", refresh=False)
            if time.monotonic() > look or not running:
                bar.update(sum(job.progress for job in jobs) - bar.n)
                look = time.monotonic() + LOOK_SECONDS
            time.sleep(POLL_SECONDS)
    except BaseException:
        stop(list(running))
        raise
    finally:
        bar.close()
        signal.signal(signal.SIGTERM, before)
    return failed


def show(report):
    """Print the scores of each run.

    Arguments
    ---------
    report : dict
        What ``make_report`` returned.
    """
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
            spread = ""
            if score["std"] is not None:
                spread = f" +- {score['std']:.1%}"
            ends = ""
            if score["pooled_low"] is not None:
                ends = f" [{score['pooled_low']:.1%}, "
                ends += f"{score['pooled_high']:.1%}]"
            print(
                f"{name.upper()}: {score['mean']:.1%}{spread}, pooled "
                f"{score['pooled']:.1%}{ends}"
            )
        print(format_confusion(found["confusion"], entry["labels"]) + "\n")
    for note in report["notes"]:
        print(f"NOTE: {note}")


def parse():
    """Read the command line.

    Returns
    -------
    options : argparse.Namespace
        Of this script.
    arguments : list of str
        For train.py.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        epilog='All other options go to train.py; write them with "=".',
        allow_abbrev=False,
    )
    parser.add_argument("hparams", nargs="+", help="YAMLs of the systems")
    parser.add_argument(
        "--protocols", nargs="+", choices=PROTOCOLS, help="default: the YAML's"
    )
    parser.add_argument(
        "--normalizations",
        nargs="+",
        choices=["own", *NORMALIZATIONS],
        help="whose feature statistics; default: own, the YAML's",
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, help="default: the YAML's"
    )
    parser.add_argument(
        "--jobs", type=int, help="folds at a time (default: one for a device)"
    )
    parser.add_argument(
        "--devices",
        nargs="+",
        help="such as cuda:0 cuda:1, or cpu: each runs a fold at a time",
    )
    parser.add_argument(
        "--report", type=Path, help="write HTML, Markdown and JSON to a folder"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="list the folds, run nothing"
    )
    parser.add_argument(
        "--leaks",
        action="store_true",
        help="print what the sides share under each protocol, run nothing",
    )
    parser.add_argument(
        "--folds",
        type=Path,
        help="write which utterance is on which side to a csv file, run nothing",
    )
    add_options(parser)
    options, arguments = parser.parse_known_args()
    for path in options.hparams:
        if not Path(path).is_file():
            parser.error(f'no file {path} (write options with "=")')
    given = {one.split("=")[0] for one in arguments}
    for name in given & {"--fold", "--output_folder"}:
        parser.error(f"{name} is set by this script")
    for name in ("protocol", "normalization", "seed", "device"):
        if getattr(options, f"{name}s") and f"--{name}" in given:
            parser.error(f"give --{name} or --{name}s, not both")
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    return options, arguments


def main():
    """Run all folds and report what they gave."""
    options, arguments = parse()
    if options.leaks or options.folds:
        settings = read_settings(options.hparams[0], arguments)
        entries = read_corpus(settings, {})
        names = ("seed", "n_folds", "valid_speakers")
        numbers = [settings[name] for name in names]
    if options.folds:
        protocols = options.protocols or [settings["protocol"]]
        write_folds(options.folds, entries, protocols, *numbers)
        return
    if options.leaks:
        found = leak_summary(entries, options.protocols, *numbers)
        print(format_leak_summary(found))
        for ids in identical_recordings(entries):
            print(f"\nidentical recordings: {', '.join(ids)}")
        return
    try:
        jobs = plan(options, arguments)
    except ValueError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    for job in jobs:
        if job.done and not job.recorded:
            print(
                f"NOTE: {job.name} is kept, though its save/run.json does not "
                "record the settings of this command; remove the folder to "
                "train the fold again"
            )
    if options.dry_run:
        for job in jobs:
            state = "done" if job.done else f"{job.progress:.0%}"
            print(f"{state:>5}  {job.name}")
        return
    devices = options.devices or [None]
    slots = options.jobs or len(devices)
    devices = [devices[slot % len(devices)] for slot in range(slots)]
    threads = max(1, len(os.sched_getaffinity(0)) // slots)
    failed = run(jobs, devices, threads)
    finished = [job.folder for job in jobs if job.done]
    wrong = []
    if finished:
        try:
            show(make_report(read_runs(*finished), options, options.report))
        except (OSError, ValueError) as error:
            wrong.append(f"no report: {error}")
    if failed:
        wrong += [f"{len(failed)} folds failed:", *failed]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
