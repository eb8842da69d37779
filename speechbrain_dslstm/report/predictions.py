"""Keeps each run's predictions in a report's JSON, and reads them again.

The JSON holds every prediction as one character. ``read_report`` decodes it
into runs, so that a new run can be compared with published ones, utterance by
utterance, without training those again.
"""

import json
import string
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from speechbrain_dslstm.evaluation.metrics import METRICS
from speechbrain_dslstm.hparams import IDENTITY, TASK
from speechbrain_dslstm.report.runs import (
    DESCRIPTION,
    RULES,
    Prediction,
    check_accuracy,
    check_known,
    name_of,
    read_runs,
    task_of,
)

__all__ = ["DIGITS", "gather_runs"]

# One character for a class or a fold
DIGITS = string.digits + string.ascii_letters
# A seed has no prediction for this utterance
NONE = "-"
# Keys of a report's run that are copied: rescoring does not compute them
KEPT = (
    *("complete", "status", "selection", "parameters", "versions"),
    *("commands", "seconds", "calibration", "branches", "curves", "leaks"),
    "headline",
)


def list_utterances(runs: list[dict]) -> dict[tuple, dict]:
    """List the utterances of each task, with speaker and true label.

    For each task, (corpus, label set), the dict has "labels", "speakers" and
    "ids", sorted; "speaker", for each id a place in "speakers"; and "truth", a
    string with a character of ``DIGITS`` for each id, the place in "labels".
    Runs that disagree on the labels, or on an utterance, are refused.
    """
    labels, truths = {}, {}
    for run in runs:
        task, name = task_of(run), run["corpus"]
        expected = labels.setdefault(task, run["labels"])
        if expected != run["labels"]:
            raise ValueError(
                f"{name}: runs disagree on the labels, which are "
                f"{run['labels']} and {expected}"
            )
        code, truth = _characters(expected), truths.setdefault(task, {})
        for answer in run["answers"]:
            new = answer.speaker, answer.emotion
            old = truth.setdefault(answer.utterance, new)
            if old != new:
                raise ValueError(
                    f"{name}: runs disagree on {answer.utterance}, whose "
                    f"speaker and emotion are {new} and {old}"
                )
            if answer.emotion not in code:
                raise ValueError(
                    f"{name}: unknown emotion {answer.emotion!r} of "
                    f"{answer.utterance}; expected one of {', '.join(code)}"
                )
    listed = {}
    for task, truth in truths.items():
        code, ids = _characters(labels[task]), sorted(truth)
        speakers = sorted({speaker for speaker, _ in truth.values()})
        listed[task] = {
            **dict(zip(TASK, task, strict=True)),
            "labels": labels[task],
            "speakers": speakers,
            "ids": ids,
            "speaker": [speakers.index(truth[key][0]) for key in ids],
            "truth": "".join(code[truth[key][1]] for key in ids),
        }
    return listed


def encode_answers(run: dict, ids: list[str]) -> dict[str, dict[str, str]]:
    """Encode a run's predictions as strings, one character per utterance.

    Each seed has the strings "validation", "test wa", "test ua" and
    "test macro_f1", as far as the run has these rules, and "fold" with the
    numbers of the test folds.
    """
    code = _characters(run["labels"])
    numbers = _characters(range(run["n_folds"]))
    place = {key: index for index, key in enumerate(ids)}
    lines = defaultdict(lambda: defaultdict(lambda: [NONE] * len(ids)))
    for answer in run["answers"]:
        here, of_seed = place[answer.utterance], lines[str(answer.seed)]
        line = of_seed[_line(answer.rule, answer.metric)]
        line[here] = code[answer.predicted]
        of_seed["fold"][here] = numbers[answer.fold]
    return {
        seed: {name: "".join(line) for name, line in of_seed.items()}
        for seed, of_seed in lines.items()
    }


def _decode(entry: dict, utterances: dict[tuple, dict]) -> dict:
    """Decode a report's entry into a run in the form of ``gather_runs``."""
    for name in KEPT:
        entry[name]  # a KeyError, if it is missing
    task, labels = task_of(entry), entry["labels"]
    if task not in utterances:
        raise ValueError(f"it has runs, but no utterances, of {task}")
    key = utterances[task]
    rows = []
    columns = key["ids"], key["speaker"], key["truth"]
    for utterance, place, digit in zip(*columns, strict=True):
        speaker = _named(place, key["speakers"], utterance)
        emotion = _named(DIGITS.find(digit), labels, utterance)
        rows.append((utterance, speaker, emotion))
    numbers = _characters(range(entry["n_folds"]))
    folds, answers = {}, []
    for fold in entry["folds"]:
        seed, number, values = (fold[n] for n in ("seed", "fold", "values"))
        where = f"{name_of(entry)}, seed {seed}, fold {number}"
        if (seed, number) in folds or number not in numbers:
            raise ValueError(
                f"{where} is a duplicate or not below {len(numbers)}"
            )
        lines, found = entry["answers"][str(seed)], []
        if {len(line) for line in lines.values()} != {len(rows)}:
            raise ValueError(
                f"{where} has not one character for each of {len(rows)} "
                "utterances"
            )
        for rule, scores in values.items():
            if scores.keys() != set(METRICS):
                raise ValueError(
                    f"{where} has the scores {list(scores)}, expected {METRICS}"
                )
            for metric in METRICS:
                columns = rows, lines[_line(rule, metric)], lines["fold"]
                for row, digit, place in zip(*columns, strict=True):
                    if place == numbers[number]:
                        label = _named(DIGITS.find(digit), labels, row[0])
                        one = seed, number, rule, metric, *row, label
                        found.append(Prediction(*one))
        # Each rule and metric has all of the fold's clips
        clips = fold["clips"]["test"]
        if not values or len(found) != clips * len(METRICS) * len(values):
            raise ValueError(
                f"{where} has {len(found)} answers, expected one for each of "
                f"its {clips} clips, rules and metrics"
            )
        check_accuracy(values, found, where)
        folds[seed, number] = {"seed": seed, "fold": number, "values": values}
        answers += found
    if not folds:
        raise ValueError(f"{name_of(entry)} has no fold")
    return {
        **{name: entry[name] for name in DESCRIPTION},
        "folds": list(folds.values()),
        "answers": answers,
        "kept": entry,
    }


def gather_runs(*places: str | Path) -> list[dict]:
    """Read runs from output folders of train.py and from reports.

    Arguments
    ---------
    *places
        Output folders of train.py or folders above them, such as ``runs``, and
        JSON files of reports, such as ``results/emodb.json``.

    Returns
    -------
    list of dict
        For each run its corpus, label_set, protocol, normalization, system,
        "labels" and "n_folds"; "folds", sorted by seed and number; "answers",
        a list of ``Prediction``; and "unfinished", the number of folds that have
        begun and not ended. A fold has the content of its ``results.json``,
        "speakers" of each subset, "values" by rule and metric, and "curves". In
        a run from a report, folds have only seed, number and values, and
        "kept" is the report's entry of the run.

    Raises
    ------
    FileNotFoundError
        A file of a finished fold is missing.
    ValueError
        A place has no finished fold, a file is damaged, two places hold the
        same run or fold, or a report's answers do not give its scores.

    Example
    -------
    >>> gather_runs("no/such/folder")
    Traceback (most recent call last):
    ValueError: there is no no/such/folder
    """
    places = list(dict.fromkeys(map(Path, places)))
    for one in places:
        if not one.exists():
            raise ValueError(f"there is no {one}")
    folders = [one for one in places if not one.is_file()]
    found = [("a folder", read_runs(*folders))] if folders else []
    found += [(one, read_report(one)) for one in places if one.is_file()]
    where = {}
    for place, run in ((place, run) for place, runs in found for run in runs):
        key = tuple(run[name] for name in IDENTITY)
        if key in where:
            raise ValueError(
                f"{name_of(run)}, is in {where[key]} and in {place}: all seeds "
                "and folds of a run must be in one place; give one of them, or "
                "train under another name (--system)"
            )
        where[key] = place
    return [run for _, runs in found for run in runs]


def read_report(path: str | Path) -> list[dict]:
    """Read the runs of a report's JSON file, in the form of ``gather_runs``."""
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        utterances = {task_of(one): one for one in report["utterances"]}
        return [_decode(entry, utterances) for entry in report["runs"]]
    except KeyError as error:
        reason = f"it has no {error}"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise ValueError(f"{path} is no report of report.py: {reason}")


def _named(place: int, names: list[str], utterance: str) -> str:
    """Return the name at a place, which must exist."""
    if not 0 <= place < len(names):
        raise ValueError(
            f"unknown label or speaker of {utterance}; expected one of "
            f"{', '.join(names)}"
        )
    return names[place]


def _characters(names: Sequence) -> dict:
    """Assign a character of ``DIGITS`` to each name."""
    if len(names) > len(DIGITS):
        raise ValueError(
            f"a report holds at most {len(DIGITS)} labels and as many folds, "
            f"not {len(names)}"
        )
    return dict(zip(names, DIGITS, strict=False))


def _line(rule: str, metric: str) -> str:
    """Name of the string that encodes the predictions by a rule and metric."""
    check_known("rule", rule, RULES)
    # By validation all metrics have the same predictions
    return f"{rule} {metric}" if rule == "test" else rule
