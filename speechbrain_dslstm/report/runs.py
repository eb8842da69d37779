"""Reads the folders of finished folds and groups the folds into runs.

A *run* is one system on one corpus under one protocol and one normalisation,
with all its folds and seeds. Its predictions are one table, a list of
``Prediction``. A fold is scored by up to two *rules*: "validation" scores the epoch
that was chosen on the validation subset; "test" scores the best epoch on the
test subset, chosen separately for each metric, which flatters. Without
validation clips, "validation" scores the last epoch. A protocol whose
validation subset is its test subset, such as ``paper``, has only "test".
"""

import csv
import json
from collections import Counter
from collections.abc import Mapping
from json import JSONDecodeError
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from speechbrain_dslstm.evaluation.metrics import METRICS
from speechbrain_dslstm.evaluation.results import LAST_EPOCH, read_rows
from speechbrain_dslstm.hparams import IDENTITY, TASK
from speechbrain_dslstm.splits.protocols import PROTOCOLS, speaker_caveat

__all__ = ["NORMALIZATIONS", "RULES"]

RULES = {"validation": "chosen on validation", "test": "best on the test fold"}
NORMALIZATIONS = {
    "training": "training statistics",
    "speaker": "per-speaker statistics",
    "none": "not normalised",
}
# Keys of a run beside its folds and answers
DESCRIPTION = (*IDENTITY, "labels", "n_folds", "unfinished")


class Prediction(NamedTuple):
    """The prediction for one test utterance by the epoch that a rule chose.

    The rule "test" chooses an epoch for each metric. By "validation" all
    metrics have the same epoch, so their answers are equal.
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
    """Task, protocol and ``per_speaker``; these are equal for comparable runs."""
    return (*task_of(one), one["protocol"], per_speaker(one))


def name_of(one: Mapping) -> str:
    """System, corpus and protocol, for messages."""
    return f"{one['system']} on {one['corpus']}, protocol {one['protocol']}"


def check_known(kind: str, name: str, known: Mapping) -> None:
    """Raise ValueError for a protocol, rule or other kind that is not known."""
    if name not in known:
        names = ", ".join(known)
        raise ValueError(f"unknown {kind} {name!r}; expected one of {names}")


def rule_in_words(run: Mapping, rule: str) -> str:
    """Say how a rule chooses the epoch of a run, which may have no validation."""
    first = run["kept"] if "kept" in run else run["folds"][0]
    selection = first.get("selection")
    if rule == "validation" and selection == LAST_EPOCH:
        return selection
    return RULES[rule]


def caveats(protocol: str, rule: str, normalization: str) -> list[str]:
    """Caveats to print next to a score.

    There are none if test speakers do not occur in training, no test clip chose
    the epoch, and training statistics normalise the features.
    """
    check_known("protocol", protocol, PROTOCOLS)
    check_known("rule", rule, RULES)
    check_known("normalization", normalization, NORMALIZATIONS)
    found = speaker_caveat(protocol)
    if rule == "test":
        found.append("epoch chosen on the test fold, separately for each score")
    if normalization == "speaker":
        found.append("uses the unlabelled audio of each test speaker")
    return found


def read_runs(*folders: str | Path) -> list[dict]:
    """Read all runs below some folders, in the form of ``gather_runs``."""
    runs, where = {}, {}
    paths = {p for one in folders for p in Path(one).rglob("save/run.json")}
    for path in sorted(paths):
        place = path.parent.parent
        done = (place / "results.json").exists()
        try:
            fold = _read_fold(place) if done else _read_json(path)
            key = tuple(fold[name] for name in IDENTITY)
            identity = (*key, fold["seed"], fold["fold"])
            settings = {name: fold[name] for name in ("labels", "n_folds")}
        except (KeyError, TypeError, AttributeError, JSONDecodeError) as error:
            raise ValueError(
                f"{place}: a file of this fold is damaged "
                f"({type(error).__name__}: {error}); remove the folder and "
                "train the fold again"
            ) from error
        new = {**dict(zip(IDENTITY, key, strict=True)), **settings}
        new |= {"unfinished": 0, "folds": [], "answers": []}
        run = runs.setdefault(key, new)
        for name, value in settings.items():
            if run[name] != value:
                raise ValueError(
                    f"{place}: {name} is {value}, in other folds of "
                    f"{', '.join(map(str, key))} it is {run[name]}"
                )
        if identity in where:
            other = where[identity]
            raise ValueError(f"{place} and {other} hold the same fold")
        where[identity] = place
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


def _read_fold(folder: Path) -> dict:
    """Read a finished fold in the form of ``gather_runs``, with its answers."""
    fold, save = _read_json(folder / "results.json"), folder / "save"
    subsets = "train", "valid", "test"
    clips = {name: _read_json(save / f"{name}.json") for name in subsets}
    fold["speakers"] = {
        name: sorted({entry["speaker"] for entry in entries.values()})
        for name, entries in clips.items()
    }
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        chosen = {row["id"]: row["predicted"] for row in csv.DictReader(file)}
    epochs = _read_epochs(save / "epochs.jsonl")
    path = save / "test_epochs.jsonl"
    tested = _read_epochs(path)
    test, values, predicted = clips["test"], {}, {}
    if clips["valid"].keys() != test.keys():
        values["validation"] = {name: fold[name] for name in METRICS}
        predicted["validation"] = dict.fromkeys(METRICS, chosen)
    elif not tested:
        raise FileNotFoundError(
            f"{path} is missing, and under protocol {fold['protocol']!r} only "
            "the best test epoch can be scored: train this fold again"
        )
    if tested:
        best = {name: fold["test_best_epoch"][name] for name in METRICS}
        missing = {one["epoch"] for one in best.values()} - tested.keys()
        if missing:
            raise ValueError(f"{path} lacks the best epochs {missing}")
        values["test"] = {n: float(one["value"]) for n, one in best.items()}
        predicted["test"] = {
            name: tested[one["epoch"]]["predicted"]
            for name, one in best.items()
        }
    answers = []
    for rule, by_metric in predicted.items():
        for metric, labels in by_metric.items():
            if labels.keys() != test.keys():
                raise ValueError(
                    f"{folder}: the rule {rule!r} has {len(labels)} "
                    f"predictions, which are not for the {len(test)} clips of "
                    "test.json"
                )
            answers += [
                Prediction(
                    *(fold["seed"], fold["fold"], rule, metric, key),
                    *(entry["speaker"], entry["emotion"], labels[key]),
                )
                for key, entry in test.items()
            ]
    check_accuracy(values, answers, folder)
    curves = {
        "train_loss": {e: row["train_loss"] for e, row in epochs.items()},
        "valid_ua": {
            e: row["valid"]["ua"] for e, row in epochs.items() if row["valid"]
        },
        "test_ua": {e: row["ua"] for e, row in tested.items()},
    }
    return {**fold, "values": values, "answers": answers, "curves": curves}


def check_accuracy(
    values: dict, answers: list[Prediction], where: str | Path
) -> None:
    """Raise if a fold's answers do not give the WA of its scores by rule."""
    for rule, stated in values.items():
        own = [a for a in answers if (a.rule, a.metric) == (rule, "wa")]
        wa = sum(a.emotion == a.predicted for a in own) / len(own)
        if abs(wa - stated["wa"]) > 1e-6:
            raise ValueError(
                f"{where}: WA by the rule {rule!r} is {stated['wa']:.4f}, "
                f"but the predictions give {wa:.4f}"
            )


def _check_tested_once(run: dict) -> None:
    """Refuse an utterance that two folds of a seed test."""
    seen = {}
    for answer in run["answers"]:
        key = answer.seed, answer.utterance
        if seen.setdefault(key, answer.fold) != answer.fold:
            raise ValueError(
                f"{name_of(run)}, seed {answer.seed}: {answer.utterance} is "
                f"tested in folds {seen[key]} and {answer.fold}"
            )


def pooled_seeds(run: dict) -> list[int]:
    """The seeds with all folds; if there is none, the one with most folds."""
    counts = Counter(fold["seed"] for fold in run["folds"])
    whole = [seed for seed, n in counts.items() if n == run["n_folds"]]
    return whole or [max(counts, key=counts.get)]


def pooled_rows(run: dict, rule: str) -> dict[str, list[dict]]:
    """Group the answers of all folds: metric -> for each seed, utterance -> row.

    A row has the speaker, emotion and prediction that ``speaker_counts`` reads.
    """
    names = "speaker", "emotion", "predicted"
    found = {name: {seed: {} for seed in pooled_seeds(run)} for name in METRICS}
    for answer in run["answers"]:
        if answer.rule == rule and answer.seed in found[answer.metric]:
            row = {name: getattr(answer, name) for name in names}
            found[answer.metric][answer.seed][answer.utterance] = row
    return {name: list(seeds.values()) for name, seeds in found.items()}


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _read_epochs(path: Path) -> dict[int, dict]:
    """Read a log as epoch -> row; empty if there is no file."""
    try:
        return {row["epoch"]: row for row in read_rows(path)}
    except JSONDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
