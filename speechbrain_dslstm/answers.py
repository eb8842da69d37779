"""What each run answered on each utterance, kept in a report and read again.

A report's JSON holds every prediction as one character. ``read_report`` turns
it back into runs, so that a new run can be compared with published ones, clip
by clip, without training those again.
"""

import json
import string
from collections import defaultdict
from pathlib import Path

from speechbrain_dslstm.runs import IDENTITY, RULES, TASK, read_runs
from speechbrain_dslstm.statistics import METRICS

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
        Two runs disagree on the speaker or the emotion of an utterance.

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
        index = {label: DIGITS[k] for k, label in enumerate(truths["labels"])}
        ids = sorted(truth)
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

    Example
    -------
    >>> row = {"speaker": "s", "emotion": "sad", "predicted": "glad"}
    >>> fold = {"answers": {"validation": dict.fromkeys(METRICS, {"u": row})}}
    >>> run = {"labels": ["glad", "sad"], "seeds": {1: {4: fold}}}
    >>> encode_answers(run, ["t", "u"])
    {'1': {'validation': '-0', 'fold': '-4'}}
    """
    index = {label: DIGITS[k] for k, label in enumerate(run["labels"])}
    coded = {}
    for seed, folds in run["seeds"].items():
        lines = defaultdict(lambda: [NONE] * len(ids))
        place = {key: number for number, key in enumerate(ids)}
        for number, fold in folds.items():
            for rule, by_score in fold["answers"].items():
                for name, label in _lines_of(rule).items():
                    for key, row in by_score[name].items():
                        lines[label][place[key]] = index[row["predicted"]]
                        lines["fold"][place[key]] = DIGITS[number]
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
        As of both, and where two places hold the same run.

    Example
    -------
    >>> gather_runs("no/such/folder")
    Traceback (most recent call last):
        ...
    ValueError: no finished fold below no/such/folder; ...
    """
    files = [one for one in places if Path(one).is_file()]
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
                f"{run['protocol']}, is in {where[key]} and in {place}; give "
                "one of them, or another name to one system (--system)"
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
        The file is no report; the message names it and what is wrong.

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
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        reason = str(error)
    raise ValueError(f"{path} is no report of report.py: {reason}")


def _decode(entry, keys):
    """A run from what a report holds of it."""
    key = keys[tuple(entry[name] for name in TASK)]
    labels = entry["labels"]
    rows = {
        one: {
            "speaker": key["speakers"][speaker],
            "emotion": labels[DIGITS.index(truth)],
        }
        for one, speaker, truth in zip(
            key["ids"], key["speaker"], key["truth"], strict=True
        )
    }
    seeds = {}
    for one in entry["folds"]:
        lines = entry["answers"][str(one["seed"])]
        number = DIGITS[one["fold"]]
        answers = {}
        for rule in one["values"]:
            for name, label in _lines_of(rule).items():
                answers.setdefault(rule, {})[name] = {
                    utterance: {**row, "predicted": labels[DIGITS.index(digit)]}
                    for (utterance, row), digit, place in zip(
                        rows.items(), lines[label], lines["fold"], strict=True
                    )
                    if place == number
                }
        fold = {"values": one["values"], "answers": answers}
        seeds.setdefault(one["seed"], {})[one["fold"]] = fold
    return {
        **{name: entry[name] for name in IDENTITY},
        "labels": labels,
        "n_folds": entry["n_folds"],
        "unfinished": entry["unfinished"],
        "seeds": seeds,
        "kept": entry,
    }


def _lines_of(rule):
    """Score -> the name of the line that holds its predictions."""
    if rule not in RULES:
        raise ValueError(f"{rule!r} is none of {', '.join(RULES)}")
    # By validation all scores have the same predictions
    return {n: f"{rule} {n}" if rule == "test" else rule for n in METRICS}


def _any_rows(fold):
    """Answers of a fold by one of its rules: all have the same utterances."""
    return next(iter(fold["answers"].values()))["ua"]
