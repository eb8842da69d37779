"""Reads the folders of finished folds and groups the folds into runs.

A *run* is one system on one corpus under one protocol and one normalisation,
with all its folds and seeds. Its predictions are one table, a list of
``Answer``. A fold is scored by up to two *rules*: "validation" scores the epoch
that was chosen on the validation subset; "test" scores the best epoch on the
test subset, chosen separately for each metric, which flatters. A protocol whose
validation subset is its test subset, such as ``paper``, has only "test".
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from speechbrain_dslstm.evaluation.bootstrap import METRICS
from speechbrain_dslstm.evaluation.results import read_rows
from speechbrain_dslstm.hparams import IDENTITY, TASK
from speechbrain_dslstm.splits.protocols import PROTOCOLS

__all__ = [
    "NORMALIZATIONS",
    "RULES",
    "Answer",
    "caveats",
    "check_accuracy",
    "per_speaker",
    "pooled_rows",
    "pooled_seeds",
    "read_fold",
    "read_runs",
    "setting_of",
    "task_of",
]

RULES = {
    "validation": "chosen on validation",
    "test": "best on the test fold",
}
NORMALIZATIONS = {
    "training": "training statistics",
    "speaker": "per-speaker statistics",
    "none": "not normalised",
}


class Answer(NamedTuple):
    """The prediction for one test utterance by the epoch that a rule chose.

    The rule "test" chooses an epoch for each metric. By "validation" all
    metrics have the same epoch, so their answers are equal.

    Arguments
    ---------
    seed
        Seed of the training.
    fold
        Number of the test fold.
    rule
        A key of ``RULES``.
    metric
        One of ``METRICS``.
    utterance
        Id of the utterance.
    speaker
        Its speaker.
    emotion
        Its true label.
    predicted
        The label that was predicted.

    Example
    -------
    >>> Answer(1, 0, "test", "ua", "03a01Fa", "03", "happiness", "anger").fold
    0
    """

    seed: int
    fold: int
    rule: str
    metric: str
    utterance: str
    speaker: str
    emotion: str
    predicted: str


def task_of(one: Mapping) -> tuple:
    """The corpus and label set of a run or of a report's row."""
    return tuple(one[name] for name in TASK)


def per_speaker(one: Mapping) -> bool:
    """Whether a run normalises with the test speakers' unlabelled audio."""
    return one["normalization"] == "speaker"


def setting_of(one: Mapping) -> tuple:
    """Task, protocol and use of speakers' audio: equal in comparable runs."""
    return (*task_of(one), one["protocol"], per_speaker(one))


def caveats(protocol: str, rule: str, normalization: str) -> list[str]:
    """Caveats to print next to a score.

    Arguments
    ---------
    protocol
        A key of ``PROTOCOLS``.
    rule
        A key of ``RULES``.
    normalization
        A key of ``NORMALIZATIONS``.

    Returns
    -------
    list of str
        Empty if test speakers do not occur in training, the epoch was chosen
        on validation, and features are normalised by training statistics.

    Raises
    ------
    ValueError
        An argument is unknown.

    Example
    -------
    >>> caveats("session", "validation", "training")
    []
    >>> caveats("paper", "test", "training")[0]
    'same speakers in training and test'
    """
    for value, known in (
        (protocol, PROTOCOLS),
        (rule, RULES),
        (normalization, NORMALIZATIONS),
    ):
        if value not in known:
            raise ValueError(
                f"unknown {value!r}; expected one of {', '.join(known)}"
            )
    found = []
    if "speaker" not in PROTOCOLS[protocol].forbidden:
        found.append("same speakers in training and test")
    if rule == "test":
        found.append("epoch chosen on the test fold, separately for each score")
    if normalization == "speaker":
        found.append("uses the unlabelled audio of each test speaker")
    return found


def read_fold(folder: str | Path) -> dict:
    """Read a finished fold.

    Arguments
    ---------
    folder
        Output folder of train.py.

    Returns
    -------
    dict
        The content of ``results.json`` and: "speakers", those of each subset;
        "values", the scores by rule and metric; "answers", a list of
        ``Answer``; "curves", loss and UA by epoch.

    Raises
    ------
    FileNotFoundError
        A file is missing; the message names it.
    ValueError
        A file is damaged, or the files contradict each other.

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
def _damage_named(place: str | Path) -> Iterator[None]:
    """Add the fold's folder to the error of a damaged file."""
    damage = KeyError, TypeError, AttributeError, json.JSONDecodeError
    try:
        yield
    except damage as error:
        raise ValueError(
            f"{place}: a file of this fold is damaged "
            f"({type(error).__name__}: {error}); remove the folder and train "
            "the fold again"
        ) from error


def _read_fold(folder: Path) -> dict:
    fold, save = _read_json(folder / "results.json"), folder / "save"
    subsets = {
        name: _read_json(save / f"{name}.json")
        for name in ("train", "valid", "test")
    }
    fold["speakers"] = {
        name: sorted({entry["speaker"] for entry in entries.values()})
        for name, entries in subsets.items()
    }
    chosen_file = folder / "predictions.csv"
    with open(chosen_file, newline="", encoding="utf-8") as file:
        chosen = {row["id"]: row["predicted"] for row in csv.DictReader(file)}
    epochs = _read_epochs(save / "epochs.jsonl")
    tested_file = save / "test_epochs.jsonl"
    tested = _read_epochs(tested_file)
    truth = subsets["test"]
    fold["values"], fold["answers"] = {}, []
    if subsets["valid"].keys() != truth.keys():
        fold["values"]["validation"] = {name: fold[name] for name in METRICS}
        _check_clips(truth, chosen, chosen_file)
        for name in METRICS:
            fold["answers"] += _answers(fold, "validation", name, truth, chosen)
    elif not tested:
        raise FileNotFoundError(
            f"{tested_file} is missing, and under protocol "
            f"{fold['protocol']!r} only the best test epoch can be scored: "
            "train this fold again"
        )
    if tested:
        best = fold["test_best_epoch"]
        missing = {best[name]["epoch"] for name in METRICS} - tested.keys()
        if missing:
            raise ValueError(f"{tested_file} lacks the best epochs {missing}")
        fold["values"]["test"] = {
            name: float(best[name]["value"]) for name in METRICS
        }
        for name in METRICS:
            predicted = tested[best[name]["epoch"]]["predicted"]
            _check_clips(truth, predicted, tested_file)
            fold["answers"] += _answers(fold, "test", name, truth, predicted)
    check_accuracy(fold, fold["answers"], folder)
    fold["curves"] = {
        "train_loss": {e: row["train_loss"] for e, row in epochs.items()},
        "valid_ua": {e: row["valid"]["ua"] for e, row in epochs.items()},
        "test_ua": {e: row["ua"] for e, row in tested.items()},
    }
    return fold


def _check_clips(truth: dict, predicted: dict, path: Path) -> None:
    """Refuse predictions of other clips than the manifest's."""
    if truth.keys() != predicted.keys():
        raise ValueError(
            f"{path} has predictions for {len(predicted)} clips, which are "
            f"not the {len(truth)} clips of the test manifest"
        )


def _answers(
    fold: dict, rule: str, metric: str, truth: dict, predicted: dict
) -> list[Answer]:
    """Join predictions with the manifest's speakers and emotions."""
    seed, number = fold["seed"], fold["fold"]
    return [
        Answer(
            *(seed, number, rule, metric),
            *(key, entry["speaker"], entry["emotion"], predicted[key]),
        )
        for key, entry in truth.items()
    ]


def check_accuracy(
    fold: dict, answers: list[Answer], where: str | Path
) -> None:
    """Raise if a fold's answers do not give the WA that it states.

    ``fold["values"]`` holds the stated scores by rule and metric; ``where``
    names the fold in the message.
    """
    for rule, values in fold["values"].items():
        right = [
            one.emotion == one.predicted
            for one in answers
            if (one.rule, one.metric) == (rule, "wa")
        ]
        wa = sum(right) / len(right)
        if abs(wa - values["wa"]) > 1e-6:
            raise ValueError(
                f"{where}: WA by the rule {rule!r} is {values['wa']:.4f}, "
                f"but the predictions give {wa:.4f}"
            )


def read_runs(*folders: str | Path) -> list[dict]:
    """Find all runs below some folders.

    Arguments
    ---------
    *folders
        Output folders of train.py or folders above them, such as ``runs``.

    Returns
    -------
    list of dict
        For each run the ``IDENTITY``, "labels", "n_folds"; "folds", what
        ``read_fold`` returned but the answers, sorted by seed and fold;
        "answers", a list of ``Answer``; and "unfinished", the number of
        folds that have begun and not ended.

    Raises
    ------
    ValueError
        There is no finished fold, two folders hold the same fold, or the
        folds of a run do not belong together; the message names the folders.

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
                "unfinished": 0,
                "folds": [],
                "answers": [],
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
            run["answers"] += fold.pop("answers")
            run["folds"].append(fold)
        else:
            run["unfinished"] += 1
    found = [run for run in runs.values() if run["folds"]]
    if not found:
        raise ValueError(
            f"no finished fold below {', '.join(map(str, folders))}; train.py "
            "writes results.json there when a fold is done"
        )
    for run in found:
        run["folds"].sort(key=itemgetter("seed", "fold"))
        run["answers"].sort(key=lambda answer: (answer.seed, answer.fold))
        _check_tested_once(run)
    return found


def _check_tested_once(run: dict) -> None:
    """Refuse an utterance that two folds of a seed test."""
    seen = {}
    for answer in run["answers"]:
        key = answer.seed, answer.utterance
        if seen.setdefault(key, answer.fold) != answer.fold:
            raise ValueError(
                f"{run['system']} on {run['corpus']}, protocol "
                f"{run['protocol']}, seed {answer.seed}: {answer.utterance} is "
                f"tested in folds {seen[key]} and {answer.fold}"
            )


def pooled_seeds(run: dict) -> list[int]:
    """The seeds with all folds; if there is none, the one with most folds."""
    counts = Counter(fold["seed"] for fold in run["folds"])
    whole = [seed for seed, n in counts.items() if n == run["n_folds"]]
    return whole or [max(counts, key=counts.get)]


def pooled_rows(run: dict, rule: str) -> dict[str, list[dict]]:
    """Group the answers of all folds: metric -> by seed, utterance -> row.

    A row has the speaker, emotion and prediction, as ``speaker_counts`` reads.
    """
    found = {name: {seed: {} for seed in pooled_seeds(run)} for name in METRICS}
    for answer in run["answers"]:
        if answer.rule == rule and answer.seed in found[answer.metric]:
            found[answer.metric][answer.seed][answer.utterance] = {
                "speaker": answer.speaker,
                "emotion": answer.emotion,
                "predicted": answer.predicted,
            }
    return {name: list(seeds.values()) for name, seeds in found.items()}


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_epochs(path: Path) -> dict[int, dict]:
    """Read a log as epoch -> row; empty if there is no file."""
    try:
        return {row["epoch"]: row for row in read_rows(path)}
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
