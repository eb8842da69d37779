"""Reads what train.py left of each fold, and puts the folds together.

A *run* is one system on one corpus under one protocol and normalisation: all
its folds and seeds. Each fold is judged by up to two *rules*: "validation",
the epoch that was chosen on other clips than those tested, and "test", the
best epoch on the test fold, for each score apart, which flatters. A protocol
whose validation side is its test side, such as ``paper``, has the latter only.
"""

import csv
import json
import shlex
from contextlib import contextmanager
from pathlib import Path

from speechbrain_dslstm.evaluation.bootstrap import METRICS
from speechbrain_dslstm.evaluation.results import read_rows
from speechbrain_dslstm.splits.protocols import PROTOCOLS

__all__ = [
    "IDENTITY",
    "NORMALIZATIONS",
    "RULES",
    "TASK",
    "check_values",
    "fold_command",
    "read_fold",
    "read_runs",
    "shorten",
    "caveats",
]

RULES = {
    "validation": "chosen on validation",
    "test": "best on the test fold",
}
NORMALIZATIONS = {
    "training": "by training set",
    "speaker": "per speaker",
    "none": "not normalised",
}
PER_FOLD = ("fold", "seed", "output_folder", "device", "noprogressbar")
# What makes folds a run; the corpora's label sets are different tasks
IDENTITY = ("corpus", "label_set", "protocol", "normalization", "system")
# What two runs must share to be compared
TASK = IDENTITY[:2]


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


def fold_command(arguments, without=PER_FOLD):
    """A fold's command line, without what differs from fold to fold.

    Arguments
    ---------
    arguments : list of str
        The script and what it was given.
    without : tuple of str
        Options to leave out, where they are written with "=" or alone.

    Returns
    -------
    str
        To be typed, but for the machine's folders.

    Example
    -------
    >>> fold_command(["/a/train.py", "b.yaml", "--lr=0.1", "--fold=3"])
    'train.py b.yaml --lr=0.1'
    """
    kept = [
        one
        for one in arguments
        if not one.startswith("--") or one[2:].split("=")[0] not in without
    ]
    return shlex.join(map(shorten, kept))


def caveats(protocol, rule, normalization):
    """What a reader must know of a number, beside the number.

    Arguments
    ---------
    protocol : str
        A name in ``PROTOCOLS``.
    rule : str
        A name in ``RULES``.
    normalization : str
        A name in ``NORMALIZATIONS``: whose feature statistics.

    Returns
    -------
    list of str
        Empty for a speaker-independent number whose epoch was chosen on
        validation, with statistics of the training side.

    Raises
    ------
    ValueError
        An unknown name.

    Example
    -------
    >>> caveats("session", "validation", "training")
    []
    >>> caveats("paper", "test", "training")[0]
    'speakers on both sides'
    """
    for value, known in (
        (protocol, PROTOCOLS),
        (rule, RULES),
        (normalization, NORMALIZATIONS),
    ):
        if value not in known:
            raise ValueError(f"{value!r} is none of {', '.join(known)}")
    found = []
    if "speaker" not in PROTOCOLS[protocol].forbidden:
        found.append("speakers on both sides")
    if rule == "test":
        found.append("epoch chosen on the test fold, for each score apart")
    if normalization == "speaker":
        found.append("uses the unlabelled audio of each test speaker")
    return found


def read_fold(folder):
    """Read a finished fold.

    Arguments
    ---------
    folder : str or pathlib.Path
        Output folder of train.py.

    Returns
    -------
    dict
        ``results.json``, and: "speakers" and "clips" of each side;
        "values", the scores by rule; "answers", by rule and score the
        predictions, utterance id -> row; "curves", by epoch.

    Raises
    ------
    FileNotFoundError
        A file is missing; the message names it.
    ValueError
        The files contradict each other, or one lacks what it should hold.

    Example
    -------
    >>> read_fold("no/such/folder")
    Traceback (most recent call last):
        ...
    FileNotFoundError: [Errno 2] No such file or directory: ...
    """
    with _damage_named(folder):
        return _read_fold(Path(folder))


@contextmanager
def _damage_named(place):
    """Say in whose files something is missing."""
    damage = KeyError, TypeError, AttributeError, json.JSONDecodeError
    try:
        yield
    except damage as error:
        raise ValueError(
            f"{place}: a file of this fold is damaged "
            f"({type(error).__name__}: {error}); remove the folder and train "
            "the fold again"
        ) from error


def _read_fold(folder):
    fold = _read_json(folder / "results.json")
    sides = {
        side: _read_json(folder / "save" / f"{side}.json")
        for side in ("train", "valid", "test")
    }
    fold["speakers"] = {
        side: sorted({entry["speaker"] for entry in entries.values()})
        for side, entries in sides.items()
    }
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        chosen = {row["id"]: row["predicted"] for row in csv.DictReader(file)}
    epochs = _read_epochs(folder / "save" / "epochs.jsonl")
    path = folder / "save" / "test_epochs.jsonl"
    tested = _read_epochs(path)
    fold["values"], fold["answers"] = {}, {}
    truth = sides["test"]
    if sides["valid"].keys() != truth.keys():
        fold["values"]["validation"] = {name: fold[name] for name in METRICS}
        rows = _answers(truth, chosen, folder / "predictions.csv")
        fold["answers"]["validation"] = dict.fromkeys(METRICS, rows)
    elif not tested:
        raise FileNotFoundError(
            f"{path} is missing, and protocol {fold['protocol']!r} has no "
            "other rule than the best test epoch: train this fold again"
        )
    if tested:
        best = fold["test_best_epoch"]
        missing = {best[name]["epoch"] for name in METRICS} - tested.keys()
        if missing:
            raise ValueError(f"{path} lacks the best epochs {missing}")
        fold["values"]["test"] = {
            name: float(best[name]["value"]) for name in METRICS
        }
        fold["answers"]["test"] = {
            name: _answers(
                truth, tested[best[name]["epoch"]]["predicted"], path
            )
            for name in METRICS
        }
    check_values(fold, folder)
    fold["curves"] = {
        "train_loss": {e: row["train_loss"] for e, row in epochs.items()},
        "valid_ua": {e: row["valid"]["ua"] for e, row in epochs.items()},
        "test_ua": {e: row["ua"] for e, row in tested.items()},
    }
    return fold


def read_runs(*folders):
    """Find all runs below some folders.

    Arguments
    ---------
    *folders : str or pathlib.Path
        Such as ``runs``, or those of single folds; what train.py wrote,
        however deep.

    Returns
    -------
    list of dict
        For each run the ``IDENTITY``, "labels", "n_folds" and "seeds": seed ->
        fold number -> what ``read_fold`` returned. Folds that have begun and
        not ended are counted in "unfinished".

    Raises
    ------
    ValueError
        There is no finished fold, or two folders hold the same fold, or folds
        of one run do not belong together; the message names the folders.

    Example
    -------
    >>> read_runs("no/such/folder")
    Traceback (most recent call last):
        ...
    ValueError: no finished fold below no/such/folder; ...
    """
    runs, where = {}, {}
    paths = {p for one in folders for p in Path(one).rglob("save/run.json")}
    for path in sorted(paths):
        place = path.parent.parent
        done = (place / "results.json").exists()
        with _damage_named(place):
            fold = read_fold(place) if done else _read_json(path)
            key = tuple(fold[name] for name in IDENTITY)
            one = (*key, fold["seed"], fold["fold"])
            new = {
                **dict(zip(IDENTITY, key, strict=True)),
                "labels": fold["labels"],
                "n_folds": fold["n_folds"],
                "seeds": {},
                "unfinished": 0,
            }
        run = runs.setdefault(key, new)
        for name in ("labels", "n_folds"):
            if run[name] != fold[name]:
                raise ValueError(
                    f"{place}: {name} is {fold[name]}, in other folds of "
                    f"{', '.join(map(str, key))} it is {run[name]}"
                )
        if one in where:
            raise ValueError(f"{place} and {where[one]} hold the same fold")
        where[one] = place
        if done:
            run["seeds"].setdefault(fold["seed"], {})[fold["fold"]] = fold
        else:
            run["unfinished"] += 1
    found = [_checked(run) for run in runs.values() if run["seeds"]]
    if not found:
        raise ValueError(
            f"no finished fold below {', '.join(map(str, folders))}; train.py "
            "writes results.json there when a fold is done"
        )
    return found


def _checked(run):
    """Sort the folds; refuse a clip that is tested twice."""
    run["seeds"] = {
        seed: dict(sorted(folds.items()))
        for seed, folds in sorted(run["seeds"].items())
    }
    for seed, folds in run["seeds"].items():
        seen = {}
        for number, fold in folds.items():
            rows = next(iter(fold["answers"].values()))["ua"]
            twice = sorted(seen.keys() & rows.keys())
            if twice:
                raise ValueError(
                    f"{run['system']} on {run['corpus']}, protocol "
                    f"{run['protocol']}, seed {seed}: {twice[0]} is tested in "
                    f"folds {seen[twice[0]]} and {number}"
                )
            seen |= dict.fromkeys(rows, number)
    return run


def _answers(truth, predicted, path):
    """Predictions as rows, with the truth of the manifest."""
    if truth.keys() != predicted.keys():
        raise ValueError(
            f"{path} has {len(predicted)} answers that do not fit the "
            f"{len(truth)} clips of the test manifest"
        )
    return {
        key: {
            "speaker": entry["speaker"],
            "emotion": entry["emotion"],
            "predicted": predicted[key],
        }
        for key, entry in truth.items()
    }


def check_values(fold, where):
    """Hold the written accuracies to the written predictions.

    Arguments
    ---------
    fold : dict
        With "values" and "answers", as ``read_fold`` returns it.
    where : str or pathlib.Path
        Its name, for the message.

    Raises
    ------
    ValueError
        The predictions give another WA.

    Example
    -------
    >>> row = {"speaker": "s", "emotion": "sad", "predicted": "sad"}
    >>> fold = {"answers": {"test": {"wa": {"u": row}}}}
    >>> check_values({**fold, "values": {"test": {"wa": 0.5}}}, "runs/a")
    Traceback (most recent call last):
        ...
    ValueError: runs/a: WA by the rule 'test' is 0.5000, but the ... 1.0000
    """
    for rule, values in fold["values"].items():
        rows = fold["answers"][rule]["wa"].values()
        right = sum(row["emotion"] == row["predicted"] for row in rows)
        if abs(right / len(rows) - values["wa"]) > 1e-6:
            raise ValueError(
                f"{where}: WA by the rule {rule!r} is {values['wa']:.4f}, "
                f"but the predictions give {right / len(rows):.4f}"
            )


def _read_json(path):
    """A JSON file's content."""
    return json.loads(path.read_text(encoding="utf-8"))


def _read_epochs(path):
    """Epoch -> row; nothing where there is no file."""
    try:
        return {row["epoch"]: row for row in read_rows(path)}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
