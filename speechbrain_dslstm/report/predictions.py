"""What each run answered on each utterance, kept in a report and read again.

A report's JSON holds every prediction as one character. ``read_report`` turns
it back into runs, so that a new run can be compared with published ones, clip
by clip, without training those again.
"""

import json
import string
from collections import defaultdict
from pathlib import Path

from speechbrain_dslstm.evaluation.bootstrap import METRICS
from speechbrain_dslstm.report.runs import (
    IDENTITY,
    RULES,
    TASK,
    check_values,
    read_runs,
)

__all__ = [
    "DIGITS",
    "encode_answers",
    "gather_runs",
    "list_utterances",
    "read_report",
]

# One character for a class or a fold
DIGITS = string.digits + string.ascii_letters
# Where a seed lacks an utterance
NONE = "-"
# What a report says of a run beside its scores and answers
KEPT = (
    *("complete", "status", "selection", "parameters", "versions"),
    *("commands", "seconds", "calibration", "branches", "curves", "leaks"),
    "headline",
)


def list_utterances(runs):
    """For each task its utterances, with speaker and truth.

    Arguments
    ---------
    runs : list of dict
        What ``runs.read_runs`` returned.

    Returns
    -------
    dict
        Of tuples (corpus, label set): "labels", "speakers" and "ids", sorted;
        "speaker", the place of each utterance's among the speakers; "truth",
        a character each, the label's place in ``DIGITS``.

    Raises
    ------
    ValueError
        Two runs disagree on the labels, or on the speaker or the emotion of
        an utterance; an emotion is no label; more than 62 labels.

    Example
    -------
    >>> row = {"speaker": "s", "emotion": "sad", "predicted": "glad"}
    >>> fold = {"answers": {"validation": dict.fromkeys(METRICS, {"u": row})}}
    >>> run = {"corpus": "emodb", "label_set": None, "labels": ["glad", "sad"]}
    >>> run["seeds"] = {1: {0: fold}}
    >>> list_utterances([run])["emodb", None]["truth"]
    '1'
    """
    found = {}
    for run in runs:
        task = tuple(run[name] for name in TASK)
        truths = found.setdefault(task, {"labels": run["labels"], "of": {}})
        if truths["labels"] != run["labels"]:
            raise ValueError(
                f"{run['corpus']}: runs disagree on the labels, which are "
                f"{run['labels']} and {truths['labels']}"
            )
        for folds in run["seeds"].values():
            for fold in folds.values():
                for key, row in _any_rows(fold).items():
                    truth = (row["speaker"], row["emotion"])
                    other = truths["of"].setdefault(key, truth)
                    if other != truth:
                        raise ValueError(
                            f"{run['corpus']}: runs disagree on {key}, which "
                            f"is {truth} and {other}"
                        )
    listed = {}
    for task, truths in found.items():
        truth = truths["of"]
        index = _digits_of(truths["labels"])
        ids = sorted(truth)
        for key in ids:
            if truth[key][1] not in index:
                raise ValueError(
                    f"{task[0]}: {key} is {truth[key][1]!r}, which is none of "
                    f"{', '.join(index)}"
                )
        speakers = sorted({speaker for speaker, _ in truth.values()})
        listed[task] = {
            **dict(zip(TASK, task, strict=True)),
            "labels": truths["labels"],
            "speakers": speakers,
            "ids": ids,
            "speaker": [speakers.index(truth[key][0]) for key in ids],
            "truth": "".join(index[truth[key][1]] for key in ids),
        }
    return listed


def encode_answers(run, ids):
    """Predictions of each seed, a character for an utterance.

    Arguments
    ---------
    run : dict
        Of those that ``runs.read_runs`` returned.
    ids : list of str
        Of the utterances, in order.

    Returns
    -------
    dict
        Seed -> "validation", and "test" with each score's name, as the run
        has them: strings as long as ``ids``, of the predicted labels' places
        in ``DIGITS``; "fold" has the test fold in the same way.

    Raises
    ------
    ValueError
        More than 62 labels or folds.

    Example
    -------
    >>> row = {"speaker": "s", "emotion": "sad", "predicted": "glad"}
    >>> fold = {"answers": {"validation": dict.fromkeys(METRICS, {"u": row})}}
    >>> run = {"labels": ["glad", "sad"], "seeds": {1: {4: fold}}, "n_folds": 5}
    >>> encode_answers(run, ["t", "u"])
    {'1': {'validation': '-0', 'fold': '-4'}}
    """
    index = _digits_of(run["labels"])
    numbers = _digits_of(range(run["n_folds"]))
    coded = {}
    for seed, folds in run["seeds"].items():
        lines = defaultdict(lambda: [NONE] * len(ids))
        place = {key: number for number, key in enumerate(ids)}
        for number, fold in folds.items():
            for rule, by_score in fold["answers"].items():
                for name, label in _lines_of(rule).items():
                    for key, row in by_score[name].items():
                        lines[label][place[key]] = index[row["predicted"]]
                        lines["fold"][place[key]] = numbers[number]
        coded[str(seed)] = {name: "".join(c) for name, c in lines.items()}
    return coded


def gather_runs(*places):
    """Read runs from folders of train.py and from reports.

    Arguments
    ---------
    *places : str or pathlib.Path
        Folders as for ``runs.read_runs``, and files as for ``read_report``.

    Returns
    -------
    list of dict
        As of both.

    Raises
    ------
    ValueError
        As of both, where there is no such place, and where two places hold
        the same run.

    Example
    -------
    >>> gather_runs("no/such/folder")
    Traceback (most recent call last):
        ...
    ValueError: there is no no/such/folder
    """
    places = list(dict.fromkeys(map(Path, places)))
    for one in places:
        if not one.exists():
            raise ValueError(f"there is no {one}")
    files = [one for one in places if one.is_file()]
    folders = [one for one in places if one not in files]
    found = (
        [(run, "a folder") for run in read_runs(*folders)] if folders else []
    )
    found += [(run, one) for one in files for run in read_report(one)]
    where = {}
    for run, place in found:
        key = tuple(run[name] for name in IDENTITY)
        if key in where:
            raise ValueError(
                f"{run['system']} on {run['corpus']}, protocol "
                f"{run['protocol']}, is in {where[key]} and in {place}: all "
                "seeds and folds of a run must be in one place; give one of "
                "them, or train under another name (--system)"
            )
        where[key] = place
    return [run for run, _ in found]


def read_report(path):
    """Read the runs of a report's JSON file.

    Arguments
    ---------
    path : str or pathlib.Path
        What report.py or cross_validate.py wrote with ``--results``, such as
        ``results/emodb.json``, or the report.json of a report.

    Returns
    -------
    list of dict
        As of ``runs.read_runs``: its folds have "values" and "answers" only,
        and "kept" is what the report says of the run beside its scores.

    Raises
    ------
    ValueError
        The file is no report, or its answers do not give its scores; the
        message names it and what is wrong.

    Example
    -------
    >>> path = getfixture("tmp_path") / "x.json"
    >>> _ = path.write_text("{}")
    >>> read_report(path)
    Traceback (most recent call last):
        ...
    ValueError: ...x.json is no report of report.py: it has no 'utterances'
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
        keys = {
            tuple(key[name] for name in TASK): key
            for key in report["utterances"]
        }
        return [_decode(entry, keys) for entry in report["runs"]]
    except KeyError as error:
        reason = f"it has no {error}"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error)
    raise ValueError(f"{path} is no report of report.py: {reason}")


def _decode(entry, keys):
    """A run from what a report holds of it."""
    for name in KEPT:
        entry[name]
    task = tuple(entry[name] for name in TASK)
    if task not in keys:
        raise ValueError(f"it has runs, but no utterances, of {task}")
    key, labels = keys[task], entry["labels"]
    rows = {
        one: {
            "speaker": _named(speaker, key["speakers"], one),
            "emotion": _named(DIGITS.find(truth), labels, one),
        }
        for one, speaker, truth in zip(
            key["ids"], key["speaker"], key["truth"], strict=True
        )
    }
    what = f"{entry['system']}, protocol {entry['protocol']}"
    numbers = _digits_of(range(entry["n_folds"]))
    seeds = {}
    for one in entry["folds"]:
        seed, number = one["seed"], one["fold"]
        where = f"{what}, seed {seed}, fold {number}"
        folds = seeds.setdefault(seed, {})
        if number in folds or number not in numbers:
            raise ValueError(f"{where} is there twice, or is none of its folds")
        lines = entry["answers"][str(seed)]
        fold = {"values": one["values"], "answers": {}}
        for rule, scores in one["values"].items():
            if scores.keys() != set(METRICS):
                raise ValueError(f"{where} has not the scores {METRICS}")
            fold["answers"][rule] = {
                name: _rows_of(
                    *(rows, lines[label], lines["fold"], numbers[number]),
                    labels,
                )
                for name, label in _lines_of(rule).items()
            }
        counts = {
            len(some) for by in fold["answers"].values() for some in by.values()
        }
        if counts != {one["clips"]["test"]}:
            raise ValueError(
                f"{where} has not the answers of its {one['clips']['test']} "
                "clips"
            )
        check_values(fold, where)
        folds[number] = fold
    if not seeds:
        raise ValueError(f"{what} has no fold")
    return {
        **{name: entry[name] for name in IDENTITY},
        "labels": labels,
        "n_folds": entry["n_folds"],
        "unfinished": entry["unfinished"],
        "seeds": seeds,
        "kept": entry,
    }


def _rows_of(rows, line, places, number, labels):
    """Answers of one fold: the rows whose place has its number."""
    if not len(rows) == len(line) == len(places):
        raise ValueError(
            f"a line has {len(line)} answers and {len(places)} folds for "
            f"{len(rows)} utterances"
        )
    return {
        key: {**row, "predicted": _named(DIGITS.find(digit), labels, key)}
        for (key, row), digit, place in zip(
            rows.items(), line, places, strict=True
        )
        if place == number
    }


def _named(place, names, utterance):
    """The name at a place, which must be there."""
    if not 0 <= place < len(names):
        raise ValueError(
            f"{utterance} has a label or speaker that is not named"
        )
    return names[place]


def _digits_of(names):
    """Name -> its character."""
    if len(names) > len(DIGITS):
        raise ValueError(
            f"a report holds at most {len(DIGITS)} labels and as many folds, "
            f"not {len(names)}"
        )
    return dict(zip(names, DIGITS, strict=False))


def _lines_of(rule):
    """Score -> the name of the line that holds its predictions."""
    if rule not in RULES:
        raise ValueError(f"{rule!r} is none of {', '.join(RULES)}")
    # By validation all scores have the same predictions
    return {n: f"{rule} {n}" if rule == "test" else rule for n in METRICS}


def _any_rows(fold):
    """Answers of a fold by one of its rules: all have the same utterances."""
    return next(iter(fold["answers"].values()))["ua"]
