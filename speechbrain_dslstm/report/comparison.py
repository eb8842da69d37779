"""Scores and compares runs, and gathers the content of a report in one dict.

Every score carries its protocol and the rule by which its epoch was chosen.
Pooled scores are those of all utterances of a run, with an interval by
bootstrap over speakers (``evaluation.bootstrap``).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from speechbrain_dslstm.evaluation.bootstrap import (
    RESAMPLES,
    bootstrap_scores,
    compare,
    mcnemar,
    speaker_counts,
)
from speechbrain_dslstm.evaluation.metrics import (
    METRICS,
    interval,
    score_counts,
)
from speechbrain_dslstm.hparams import PER_FOLD, SETTING, TASK, shorten_command
from speechbrain_dslstm.report.predictions import (
    encode_answers,
    list_utterances,
)
from speechbrain_dslstm.report.runs import (
    DESCRIPTION,
    RULES,
    caveats,
    name_of,
    per_speaker,
    pooled_rows,
    pooled_seeds,
    rule_in_words,
    setting_of,
    task_of,
)
from speechbrain_dslstm.splits.leaks import worst_leaks
from speechbrain_dslstm.splits.protocols import PROTOCOLS

__all__ = ["build_report"]

# Protocol, rule, whether normalised per speaker, and a label
CHAIN = {
    "a0": ("paper", "test", False, "no validation, best test epoch"),
    "a": ("random", "test", False, "random split, best test epoch"),
    "b": ("random", "validation", False, "random split"),
    "c'": ("session", "test", False, "separate speakers, best test epoch"),
    "c": ("session", "validation", False, "separate speakers"),
    "d": ("session", "validation", True, "c, normalised per speaker"),
}
STEPS = (
    ("a", "b", "choose the epoch without the test fold"),
    ("b", "c", "keep the test speakers out of training"),
    ("c", "d", "normalise features per speaker"),
    ("c'", "c", "the same, with separate speakers"),
)


def build_report(
    runs: list[dict],
    reference: str = "dual_level",
    baselines: Sequence[dict] = (),
    resamples: int = RESAMPLES,
) -> dict:
    """Score and compare runs: everything that a report shows.

    Arguments
    ---------
    runs
        From ``gather_runs``.
    reference
        The system that all others are compared with, if it is among the runs.
    baselines
        From ``read_baselines``.
    resamples
        Number of resamples of each bootstrap.

    Returns
    -------
    dict
        Content of the JSON, with numbers rounded to six digits. "runs": for
        each its identity, "status" (how many folds there are), "rules": rule ->
        "scores" (over folds and seeds ``mean``, ``std`` and Student's ``low``
        and ``high``; ``pooled`` over all utterances with its interval over
        speakers), confusion, speakers' UA, warnings; "answers", encoded, and
        more. "comparisons" with the reference; "chains", one system scored in
        several ways; "utterances", the key to the answers.

    Raises
    ------
    ValueError
        There are no runs, or they disagree on an utterance.

    Example
    -------
    >>> build_report([])
    Traceback (most recent call last):
    ValueError: there are no runs to report
    """
    if not runs:
        raise ValueError("there are no runs to report")
    runs = sorted(runs, key=_sort_key)
    utterances = list_utterances(runs)
    runs = [{**run, "rules": _score_rules(run, resamples)} for run in runs]
    entries, by_system = [], defaultdict(list)
    for run in runs:
        answers = encode_answers(run, utterances[task_of(run)]["ids"])
        entries.append({**_summarise(run), "answers": answers})
        by_system[(*task_of(run), run["system"])].append(run)
    chains = [_inflation_chain(same, resamples) for same in by_system.values()]
    corpora = {run["corpus"] for run in runs}
    report = {
        "reference": reference,
        "resamples": resamples,
        "confidence": 0.95,
        "notes": _notes(entries, reference),
        "runs": entries,
        "comparisons": _comparisons(runs, reference, resamples),
        "chains": [chain for chain in chains if len(chain["rows"]) > 1],
        "baselines": [one for one in baselines if one["corpus"] in corpora],
        "utterances": list(utterances.values()),
    }
    return _rounded(report)


def _sort_key(run: dict) -> tuple:
    """Sort by task, protocol, and normalisation (training statistics first)."""
    protocol = list(PROTOCOLS).index(run["protocol"])
    statistics = ["training", "none", "speaker"].index(run["normalization"])
    return (*map(str, task_of(run)), protocol, statistics)


def _summarise(run: dict) -> dict:
    """Scores of one run, and the settings and folds that they come from."""
    if "kept" in run:
        return {**run["kept"], "rules": run["rules"]}
    folds = run["folds"]
    first = folds[0]
    versions = [fold["versions"] for fold in folds]
    commands = [shorten_command(f["command"], PER_FOLD) for f in folds]
    return {
        **{name: run[name] for name in DESCRIPTION},
        **_progress(run),
        "selection": first.get("selection", ""),
        "parameters": first["parameters"],
        "versions": list({str(v): v for v in versions}.values()),
        "commands": list(dict.fromkeys(commands)),
        "seconds": sum(fold["seconds"] for fold in folds),
        "calibration": [f["calibration"] for f in folds if "calibration" in f],
        "rules": run["rules"],
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
        # "validation", unless validation and test are the same clips
        "headline": next(iter(run["rules"])),
    }


def _inflation_chain(runs: list[dict], resamples: int) -> dict:
    """Measure one system on one corpus in several ways, from its runs.

    "rows" are those of ``CHAIN`` that were run, with their scores; "steps",
    the change of the pooled scores between two rows, paired, with interval and
    p-value, or the reason why there is none ("missing").
    """
    # All rows but the last have the same normalisation, the most frequent
    # one, so that a step changes only one thing
    others = Counter(r["normalization"] for r in runs if not per_speaker(r))
    wanted = {"speaker", *(name for name, _ in others.most_common(1))}
    by_setting = {
        (run["protocol"], per_speaker(run)): run
        for run in runs
        if run["normalization"] in wanted
    }
    rows, answers = {}, {}
    for key, (protocol, rule, by_speaker, label) in CHAIN.items():
        run = by_setting.get((protocol, by_speaker))
        if run is None or rule not in run["rules"]:
            continue
        answers[key] = pooled_rows(run, rule)
        found = run["rules"][rule]
        rows[key] = {
            **{"key": key, "label": label, "protocol": protocol, "rule": rule},
            "normalization": run["normalization"],
            **_progress(run),
            "selection": found["selection"],
            "warnings": found["warnings"],
            "scores": found["scores"],
        }
    labels = runs[0]["labels"]
    steps = [
        {
            **{"from": one, "to": two, "label": label},
            **_difference(answers[one], answers[two], labels, resamples),
        }
        for one, two, label in STEPS
        if one in rows and two in rows
    ]
    names = {name: runs[0][name] for name in (*TASK, "system")}
    return {**names, "rows": list(rows.values()), "steps": steps}


def _score_rules(run: dict, resamples: int) -> dict:
    """Scores by each rule that all folds of a run have."""
    return {
        rule: _score_run(run, rule, resamples)
        for rule in RULES
        if all(rule in fold["values"] for fold in run["folds"])
    }


def _score_run(run: dict, rule: str, resamples: int) -> dict:
    """Scores by one rule: over folds, pooled, by speaker."""

    def score(answers: list[dict]) -> tuple:
        """Speakers, confusion matrices and pooled scores."""
        speakers, counts = speaker_counts(answers, run["labels"])
        return speakers, counts, bootstrap_scores(counts, resamples)

    rows = pooled_rows(run, rule)
    found = _for_each_metric(score, rows)
    scores = {}
    for name in METRICS:
        values = [fold["values"][rule][name] for fold in run["folds"]]
        pooled = found[name][2][name]
        scores[name] = {
            **interval(values),
            "pooled": pooled["value"],
            "pooled_low": pooled["low"],
            "pooled_high": pooled["high"],
        }
    speakers, counts, _ = found["ua"]
    by_speaker = score_counts(counts)[..., METRICS.index("ua")].mean(axis=0)
    return {
        "selection": rule_in_words(run, rule),
        "warnings": caveats(run["protocol"], rule, run["normalization"]),
        "scores": scores,
        "confusion": counts.sum(axis=(0, 1)).tolist(),
        "speaker_ua": dict(zip(speakers, by_speaker.tolist(), strict=True)),
        "utterances": len(rows["ua"][0]),
        "seeds_pooled": pooled_seeds(run),
    }


def _for_each_metric(function: Callable, *rows: dict) -> dict:
    """Call a function for each metric, once where the answers are the same.

    A bootstrap draws the same speakers for every metric, and scores them all.
    """
    found = {}
    for name in METRICS:
        own = [one[name] for one in rows]
        same = [other for other in found if [one[other] for one in rows] == own]
        found[name] = found[same[0]] if same else function(*own)
    return found


def _difference(
    first: dict, second: dict, labels: list[str], resamples: int
) -> dict:
    """Paired change of each score, or the reason why there is none."""
    if first["ua"][0].keys() != second["ua"][0].keys():
        sizes = [f"{len(rows['ua'][0])}" for rows in (first, second)]
        return {"missing": f"not the same utterances ({' and '.join(sizes)})"}
    found = _for_each_metric(
        lambda one, two: compare(one, two, labels, resamples), first, second
    )
    return {name: found[name][name] for name in METRICS}


def _comparisons(
    runs: list[dict], reference: str, resamples: int
) -> list[dict]:
    """Compare each system with the reference, in every setting it has."""
    found, references = [], [r for r in runs if r["system"] == reference]
    for run in runs:
        bases = [r for r in references if setting_of(r) == setting_of(run)]
        # If there are several, the one with the same normalisation
        bases.sort(key=lambda one: one["normalization"] != run["normalization"])
        if not bases or bases[0] is run:
            continue
        rule = next(iter(run["folds"][0]["values"]))
        first, second = (pooled_rows(r, rule) for r in (bases[0], run))
        row = {
            **{name: run[name] for name in (*SETTING, "system")},
            "reference": reference,
            "rule": rule,
            "warnings": caveats(run["protocol"], rule, run["normalization"]),
            **_difference(first, second, run["labels"], resamples),
        }
        if "missing" not in row:
            # With several seeds, the pair with the largest p
            pairs = zip(first["wa"], second["wa"], strict=False)
            tests = [mcnemar(*pair) for pair in pairs]
            row["mcnemar"] = max(tests, key=lambda test: test["p"])
        found.append(row)
    return found


def _progress(run: dict) -> dict:
    """Report whether a run has all folds ("complete") and how many ("status")."""
    seeds = Counter(fold["seed"] for fold in run["folds"])
    counts, of_total = set(seeds.values()), f"of {run['n_folds']} folds"
    status = f"{min(counts)} {of_total}"
    if len(counts) > 1:
        each = (f"seed {seed}: {n} {of_total}" for seed, n in seeds.items())
        status = ", ".join(each)
    elif len(seeds) > 1:
        status = f"{len(seeds)} seeds, {status} each"
    return {"complete": counts == {run["n_folds"]}, "status": status}


def _manifest(fold: dict) -> dict:
    """Identity, data and scores of one fold."""
    names = ("seed", "fold", "split_hash", "description", "clips", "speakers")
    row = {name: fold[name] for name in (*names, "best_epoch", "seconds")}
    row["values"] = fold["values"]
    if "validation" in fold["values"]:
        # None without validation
        row["valid_ua"] = fold["valid"].get("ua")
    if "test" in fold["values"]:
        best = fold["test_best_epoch"]
        row["test_best_epoch"] = {n: best[n]["epoch"] for n in METRICS}
    return row


def _curve(curves: list[dict]) -> dict:
    """Mean and range over the folds that have an epoch."""
    epochs = sorted({epoch for curve in curves for epoch in curve})
    values = [[c[epoch] for c in curves if epoch in c] for epoch in epochs]
    return {
        "epoch": epochs,
        "mean": [round(float(np.mean(some)), 4) for some in values],
        "low": [round(min(some), 4) for some in values],
        "high": [round(max(some), 4) for some in values],
    }


def _notes(entries: list[dict], reference: str) -> list[str]:
    """Caveats of the whole report: partial runs, splits, no reference."""
    notes = []
    hashes = defaultdict(set)
    for entry in entries:
        for fold in entry["folds"]:
            key = (*(entry[k] for k in SETTING[:3]), fold["seed"], fold["fold"])
            hashes[key].add(fold["split_hash"])
        if not entry["complete"]:
            notes.append(f"{name_of(entry)}: partial, {entry['status']}")
    notes += [
        f"{corpus}, protocol {protocol}, seed {seed}, fold {fold}: runs have "
        f"different splits ({', '.join(sorted(some))})"
        for (corpus, _, protocol, seed, fold), some in hashes.items()
        if len(some) > 1
    ]
    covered = {setting_of(e) for e in entries if e["system"] == reference}
    if not covered:
        notes.append(f"nothing is compared: there is no run of {reference}")
        return notes
    return notes + [
        f"{name_of(one)}, label set {one['label_set'] or 'default'}, "
        f"normalisation {one['normalization']}: not compared, because "
        f"{reference} has no run in this setting"
        for one in entries
        if setting_of(one) not in covered
    ]


def _rounded(value: object) -> object:
    """Round all numbers to six digits, so that the JSON stays small."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
