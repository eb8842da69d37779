"""One report of many runs: what was measured, how sure it is, what it means.

``build_report`` makes one plain structure of what ``answers.gather_runs``
found; ``write_report`` writes it as JSON, as Markdown and as one HTML file that
needs nothing else. Every number carries its protocol and the rule its epoch was
chosen by, and what is partial says so.

Symbols: S seeds, a *row* is an utterance's speaker, emotion and prediction.
"""

from collections import Counter, defaultdict

import numpy as np

from speechbrain_dslstm.evaluation.bootstrap import (
    METRICS,
    RESAMPLES,
    bootstrap_scores,
    compare,
    mcnemar,
    score_counts,
    speaker_counts,
)
from speechbrain_dslstm.evaluation.metrics import interval
from speechbrain_dslstm.report.predictions import (
    encode_answers,
    list_utterances,
)
from speechbrain_dslstm.report.runs import (
    RULES,
    TASK,
    caveats,
    fold_command,
)
from speechbrain_dslstm.splits.leaks import worst_leaks
from speechbrain_dslstm.splits.protocols import PROTOCOLS

__all__ = ["build_report", "inflation_chain"]

SETTING = (*TASK, "protocol", "normalization")
# Protocol, rule, whether normalised per speaker, and what that is in words
CHAIN = {
    "a0": ("paper", "test", False, "no validation, best test epoch"),
    "a": ("random", "test", False, "random split, best test epoch"),
    "b": ("random", "validation", False, "random split"),
    "c'": ("session", "test", False, "speakers apart, best test epoch"),
    "c": ("session", "validation", False, "speakers apart"),
    "d": ("session", "validation", True, "c, normalised per speaker"),
}
STEPS = (
    ("a", "b", "choose the epoch on validation, not on the test fold"),
    ("b", "c", "keep the test speakers out of training"),
    ("c", "d", "normalise features per speaker"),
    ("c'", "c", "choose the epoch on validation, speakers apart"),
)


def build_report(
    runs, reference="dual_level", yardsticks=(), resamples=RESAMPLES
):
    """Put everything that a report shows into one structure.

    Arguments
    ---------
    runs : list of dict
        What ``answers.gather_runs`` returned.
    reference : str
        The system that all others are compared with, where it was run.
    yardsticks : list of dict
        Results from elsewhere: "corpus", "protocol", "normalization",
        "system", "ua" in [0, 1] and "source".
    resamples : int
        Of each bootstrap.

    Returns
    -------
    dict
        Of plain lists, dicts, strings and numbers. "runs": for each its
        identity, "status" (how many folds there are), "rules": rule ->
        "scores" (over folds and seeds ``mean``, ``std`` and Student's ``low``
        and ``high``; ``pooled`` over all utterances with the ends of its
        interval over speakers), confusion, speakers' UA, warnings; branches,
        curves, leaks, "folds" and, coded, all answers. "comparisons",
        "chains" (see ``inflation_chain``), "utterances" (the key to the
        answers), "yardsticks", "notes", and how it was made.

    Raises
    ------
    ValueError
        There are no runs, or they disagree on an utterance.

    Example
    -------
    >>> build_report([])
    Traceback (most recent call last):
        ...
    ValueError: there are no runs to report
    """
    if not runs:
        raise ValueError("there are no runs to report")
    order = list(PROTOCOLS)
    runs = sorted(
        runs,
        key=lambda run: (
            *map(str, _task(run)),
            order.index(run["protocol"]),
            # Those of the training set first
            ["training", "none", "speaker"].index(run["normalization"]),
        ),
    )
    utterances = list_utterances(runs)
    entries = [_summarise(run, resamples) for run in runs]
    for run, entry in zip(runs, entries, strict=True):
        ids = utterances[_task(run)]["ids"]
        entry["answers"] = encode_answers(run, ids)
    chains = []
    for key in dict.fromkeys((*(_task(r), r["system"]),) for r in runs):
        same = [run for run in runs if (_task(run), run["system"]) == key]
        chains.append(inflation_chain(same, resamples))
    corpora = {run["corpus"] for run in runs}
    report = {
        "reference": reference,
        "resamples": resamples,
        "confidence": 0.95,
        "notes": _notes(entries, reference),
        "runs": entries,
        "comparisons": _comparisons(runs, reference, resamples),
        "chains": [chain for chain in chains if len(chain["rows"]) > 1],
        "yardsticks": [y for y in yardsticks if y["corpus"] in corpora],
        "utterances": list(utterances.values()),
    }
    return _rounded(report)


def _summarise(run, resamples=RESAMPLES):
    """Scores of one run with their intervals, and where they come from."""
    folds = list(_folds(run))
    rules = {
        rule: _score_run(run, folds, rule, resamples)
        for rule in RULES
        if all(rule in fold["values"] for fold in folds)
    }
    if "kept" in run:
        return {**run["kept"], "rules": rules}
    first = folds[0]
    settings = {name: run[name] for name in (*SETTING, "system", "labels")}
    entry = {
        **settings,
        "n_folds": run["n_folds"],
        "unfinished": run["unfinished"],
        **_progress(run),
        "selection": first.get("selection", ""),
        "parameters": first["parameters"],
        "versions": _distinct(fold["versions"] for fold in folds),
        "commands": _distinct(fold_command(fold["command"]) for fold in folds),
        "seconds": sum(fold["seconds"] for fold in folds),
        "calibration": [
            fold["calibration"] for fold in folds if "calibration" in fold
        ],
        "rules": rules,
        "branches": {
            name: interval([fold["test"][name]["ua"] for fold in folds])
            for name in first["test"]
            if name != "fused"
        },
        "curves": {
            name: _curve([fold["curves"][name] for fold in folds])
            for name in first["curves"]
        },
        "leaks": worst_leaks([fold["leaks"] for fold in folds]),
        "folds": [_manifest(fold) for fold in folds],
    }
    # Without a validation side there is the test rule only
    entry["headline"] = next(iter(entry["rules"]))
    return entry


def inflation_chain(runs, resamples=RESAMPLES):
    """From the flattering number to the honest one, step by step.

    Arguments
    ---------
    runs : list of dict
        All runs of one system on one corpus.
    resamples : int
        Of the bootstrap.

    Returns
    -------
    dict
        "rows", those of ``CHAIN`` there are, with their scores; "steps", the
        change of the pooled scores between two rows, paired, with interval
        and p-value, or why there is none ("missing").

    Example
    -------
    >>> rows = {
    ...     s + e: {"speaker": s, "emotion": e, "predicted": "a"}
    ...     for s in "xyz"
    ...     for e in "ab"
    ... }
    >>> rows, values = dict.fromkeys(METRICS, rows), dict.fromkeys(METRICS, 0.5)
    >>> fold = {"answers": dict.fromkeys(("validation", "test"), rows)}
    >>> fold["values"] = dict.fromkeys(("validation", "test"), values)
    >>> run = {"corpus": "emodb", "label_set": None, "system": "ds_lstm"}
    >>> run |= {"labels": ["a", "b"], "n_folds": 1, "seeds": {0: {0: fold}}}
    >>> run |= {"protocol": "session", "normalization": "training"}
    >>> chain = inflation_chain([run])
    >>> [row["key"] for row in chain["rows"]], chain["steps"][0]["ua"]["p"]
    (["c'", 'c'], 1.0)
    """
    # One normalisation in all rows but the last, or a step would be of two
    # things: the one of which there is most
    others = Counter(r["normalization"] for r in runs if not _per_speaker(r))
    wanted = {"speaker", *(name for name, _ in others.most_common(1))}
    by_setting = {
        (run["protocol"], _per_speaker(run)): run
        for run in runs
        if run["normalization"] in wanted
    }
    rows, answers = {}, {}
    for key, (protocol, rule, per_speaker, label) in CHAIN.items():
        run = by_setting.get((protocol, per_speaker))
        if run is None:
            continue
        folds = list(_folds(run))
        if not all(rule in fold["values"] for fold in folds):
            continue
        judged = _score_run(run, folds, rule, resamples)
        answers[key] = _pooled_rows(run, rule)
        rows[key] = {
            "key": key,
            "label": label,
            "protocol": protocol,
            "rule": rule,
            "normalization": run["normalization"],
            **_progress(run),
            "warnings": judged["warnings"],
            "scores": judged["scores"],
        }
    steps = []
    for one, two, label in STEPS:
        if one in rows and two in rows:
            step = {"from": one, "to": two, "label": label}
            labels = runs[0]["labels"]
            step |= _difference(answers[one], answers[two], labels, resamples)
            steps.append(step)
    names = {name: runs[0][name] for name in (*TASK, "system")}
    return {**names, "rows": list(rows.values()), "steps": steps}


def _score_run(run, folds, rule, resamples):
    """Scores by one rule: over folds, pooled, by speaker."""
    rows = _pooled_rows(run, rule)
    seeds = list(_pooled_seeds(run))
    scores, counts = {}, {}
    for name in METRICS:
        speakers, counts[name] = speaker_counts(rows[name], run["labels"])
        pooled = bootstrap_scores(counts[name], resamples)[name]
        scores[name] = {
            **interval([fold["values"][rule][name] for fold in folds]),
            "pooled": pooled["value"],
            "pooled_low": pooled["low"],
            "pooled_high": pooled["high"],
        }
    by_speaker = score_counts(counts["ua"])[..., METRICS.index("ua")]
    return {
        "selection": RULES[rule],
        "warnings": caveats(run["protocol"], rule, run["normalization"]),
        "scores": scores,
        "confusion": counts["ua"].sum(axis=(0, 1)).tolist(),
        "speaker_ua": dict(
            zip(speakers, by_speaker.mean(axis=0).tolist(), strict=True)
        ),
        "utterances": len(rows["ua"][0]),
        "seeds_pooled": seeds,
    }


def _pooled_seeds(run):
    """The complete seeds; where there is none, the one with most folds."""
    seeds = run["seeds"]
    whole = {s: one for s, one in seeds.items() if len(one) == run["n_folds"]}
    if whole:
        return whole
    seed = max(seeds, key=lambda seed: len(seeds[seed]))
    return {seed: seeds[seed]}


def _pooled_rows(run, rule):
    """Score -> for each pooled seed the rows of all its folds."""
    return {
        name: [
            {
                key: row
                for fold in folds.values()
                for key, row in fold["answers"][rule][name].items()
            }
            for folds in _pooled_seeds(run).values()
        ]
        for name in METRICS
    }


def _difference(one, two, labels, resamples):
    """Paired change of each score, or why it cannot be told."""
    if one["ua"][0].keys() != two["ua"][0].keys():
        few = [f"{len(rows['ua'][0])}" for rows in (one, two)]
        return {"missing": f"not the same utterances ({' and '.join(few)})"}
    return {
        name: compare(one[name], two[name], labels, resamples)[name]
        for name in METRICS
    }


def _comparisons(runs, reference, resamples):
    """Each system against the reference, in every setting it was run in."""
    found = []
    for run in runs:
        bases = [
            one
            for one in runs
            if one["system"] == reference
            and (*_task(one), one["protocol"], _per_speaker(one))
            == (*_task(run), run["protocol"], _per_speaker(run))
        ]
        # Of several the one that is normalised alike, if there is one
        bases.sort(key=lambda one: one["normalization"] != run["normalization"])
        if not bases or bases[0] is run:
            continue
        rule = next(iter(next(_folds(run))["values"]))
        one, two = (_pooled_rows(r, rule) for r in (bases[0], run))
        row = {name: run[name] for name in (*SETTING, "system")}
        row |= {
            "reference": reference,
            "rule": rule,
            "warnings": caveats(run["protocol"], rule, run["normalization"]),
        }
        row |= _difference(one, two, run["labels"], resamples)
        if "missing" not in row:
            # Several seeds: the least certain of their pairs
            pairs = zip(one["wa"], two["wa"], strict=False)
            tests = [mcnemar(*pair) for pair in pairs]
            row["mcnemar"] = max(tests, key=lambda test: test["p"])
        found.append(row)
    return found


def _per_speaker(run):
    """Whether a run uses the test speakers' unlabelled audio."""
    return run["normalization"] == "speaker"


def _folds(run):
    """All folds of a run, seed by seed."""
    return (fold for one in run["seeds"].values() for fold in one.values())


def _task(run):
    """What two runs must share to be compared."""
    return tuple(run[name] for name in TASK)


def _progress(run):
    """Whether all folds are there, and in words how many."""
    seeds, total = run["seeds"], run["n_folds"]
    counts = {len(folds) for folds in seeds.values()}
    if len(counts) == 1:
        status = f"{min(counts)} of {total} folds"
        if len(seeds) > 1:
            status = f"{len(seeds)} seeds, {status} each"
    else:
        status = ", ".join(
            f"seed {seed}: {len(folds)} of {total} folds"
            for seed, folds in seeds.items()
        )
    return {"complete": counts == {total}, "status": status}


def _manifest(fold):
    """What identifies a fold, and what it gave."""
    names = ("seed", "fold", "split_hash", "description", "clips", "speakers")
    row = {name: fold[name] for name in (*names, "best_epoch", "seconds")}
    row["values"] = {
        rule: {name: values[name] for name in METRICS}
        for rule, values in fold["values"].items()
    }
    if "validation" in fold["values"]:
        row["valid_ua"] = fold["valid"]["ua"]
    if "test" in fold["values"]:
        best = fold["test_best_epoch"]
        row["test_best_epoch"] = {n: best[n]["epoch"] for n in METRICS}
    return row


def _curve(curves):
    """Mean and range over the folds that have an epoch."""
    epochs = sorted({epoch for curve in curves for epoch in curve})
    values = [[c[epoch] for c in curves if epoch in c] for epoch in epochs]
    return {
        "epoch": epochs,
        "mean": [round(float(np.mean(some)), 4) for some in values],
        "low": [round(min(some), 4) for some in values],
        "high": [round(max(some), 4) for some in values],
    }


def _notes(entries, reference):
    """What a reader of the whole report must know."""
    notes = []
    hashes = defaultdict(set)
    for entry in entries:
        for fold in entry["folds"]:
            key = (*(entry[k] for k in SETTING[:3]), fold["seed"], fold["fold"])
            hashes[key].add(fold["split_hash"])
        if not entry["complete"]:
            notes.append(
                f"{entry['system']} on {entry['corpus']}, protocol "
                f"{entry['protocol']}: partial, {entry['status']}"
            )
    for key, some in hashes.items():
        if len(some) > 1:
            notes.append(
                f"{key[0]}, protocol {key[2]}, seed {key[3]}, fold {key[4]}: "
                f"runs have different splits ({', '.join(sorted(some))})"
            )
    compared = [e for e in entries if e["system"] == reference]
    if not compared:
        notes.append(f"nothing is compared: there is no run of {reference}")
        return notes
    there = {(*_task(e), e["protocol"], _per_speaker(e)) for e in compared}
    for one in entries:
        if (*_task(one), one["protocol"], _per_speaker(one)) not in there:
            notes.append(
                f"{one['system']} on {one['corpus']}, label set "
                f"{one['label_set'] or 'default'}, protocol {one['protocol']}, "
                f"normalisation {one['normalization']}: not compared, as there "
                f"is no run of {reference} like it"
            )
    return notes


def _distinct(items):
    """Those that differ, in order."""
    found = []
    for item in items:
        if item not in found:
            found.append(item)
    return found


def _rounded(value):
    """Round to six digits: a kept report stays small."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
