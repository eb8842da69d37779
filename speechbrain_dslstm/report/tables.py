"""Texts of table cells, and pictures, for the templates of a report.

``FILTERS`` turn numbers into the text of a cell, where a line feed separates
the mean over folds from the pooled score. ``group_by_task`` draws the pictures
and separates the scores that something flatters from the others.
"""

import re
from collections import defaultdict
from pathlib import Path

from speechbrain_dslstm.evaluation.plots import (
    plot_confusion,
    plot_intervals,
    plot_learning_curves,
    plot_speakers,
)
from speechbrain_dslstm.report.runs import (
    NORMALIZATIONS,
    per_speaker,
    setting_of,
    task_of,
)
from speechbrain_dslstm.splits.leaks import KINDS
from speechbrain_dslstm.splits.protocols import PROTOCOLS, speaker_caveat

__all__ = ["FILTERS", "baseline_rows", "flattered_by", "group_by_task"]


def group_by_task(report: dict, pictures: Path) -> list[dict]:
    """Group a report by corpus and label set, and draw the overview pictures.

    Of each group, "pictures" and "comparisons" are of scores without caveats,
    and "flattered" has the others by the name of what flatters them.
    """
    groups = []
    for task in dict.fromkeys(map(task_of, report["runs"])):
        runs, comparisons, chains = (
            [one for one in report[name] if task_of(one) == task]
            for name in ("runs", "comparisons", "chains")
        )
        baselines = [b for b in report["baselines"] if b["corpus"] == task[0]]
        settings = defaultdict(list)
        for run in runs:
            settings[setting_of(run)].append(run)
        group = {"title": _title(runs[0]), "pictures": [], "chains": chains}
        folds = {}
        for run in runs:
            for rule in run["rules"]:
                if name := flattered_by(run, rule):
                    fold = folds.setdefault(name, _fold(name))
                    fold["rows"].append(_score_row(run, rule))
        for some in settings.values():
            picture = _draw_setting(some, baselines, pictures)
            name = flattered_by(some[0], some[0]["headline"])
            place = folds[name] if name else group
            place["pictures"] += [picture] if picture else []
            if name:
                place["rows"] += baseline_rows(some[0], baselines)
        for fold in folds.values():
            fold["rows"].sort(key=lambda row: -row["order"])
        group["comparisons"] = [c for c in comparisons if not c["warnings"]]
        for one in comparisons:
            if one["warnings"]:
                name = flattered_by(one, one["rule"])
                folds[name]["comparisons"].append(one)
        group["flattered"] = list(folds.values())
        group["leaks"] = {
            run["protocol"]: [
                f"{run['leaks']['train'][kind]} / {run['leaks']['valid'][kind]}"
                for kind in KINDS
            ]
            for run in runs
        }
        group["chain_pictures"] = [
            _draw_chain(chain, pictures)
            for chain in chains
            # A picture of c' and c alone says no more than the table
            if len(chain["rows"]) > 2
        ]
        group["details"] = [(run, draw_run(run, pictures)) for run in runs]
        groups.append(group)
    return groups


def flattered_by(one: dict, rule: str) -> str:
    """Name of what flatters the scores of a run by a rule; "" for nothing."""
    protocol = PROTOCOLS[one["protocol"]]
    if speaker_caveat(one["protocol"]) or protocol.valid_is_test:
        return f"Protocol {one['protocol']}: {protocol.split}"
    if per_speaker(one):
        return "Normalised per speaker, with the unlabelled test audio"
    return "Best epoch on the test fold" if rule == "test" else ""


def _fold(name: str) -> dict:
    return {"title": name, "rows": [], "comparisons": [], "pictures": []}


def _score_row(run: dict, rule: str) -> dict:
    """A row of a table of scores: "cells", and the UA that it is sorted by."""
    found = run["rules"][rule]
    scores = found["scores"]
    shown = [_score(scores[name]) for name in ("ua", "wa", "macro_f1")]
    # The caveats stay with the row, wherever it is copied to
    epoch = [] if rule == "test" else [found["selection"]]
    epoch += found["warnings"]
    cells = [*_setting(run), "\n".join(epoch), *shown, _status(run)]
    return {"cells": cells, "order": scores["ua"]["mean"]}


def baseline_rows(run: dict, baselines: list[dict]) -> list[dict]:
    """Rows of the baselines in the setting of a run."""
    return [
        {
            "cells": [
                f"{one['system']}\nbaseline: {one['source']}",
                *_setting(one)[1:],
                *("-", _percent(one["ua"]), "-", "-", "-"),
            ],
            "order": one["ua"],
        }
        for one in baselines
        if one["protocol"] == run["protocol"]
        and per_speaker(one) == per_speaker(run)
    ]


def _draw_setting(
    runs: list[dict], baselines: list[dict], pictures: Path
) -> dict | None:
    """Draw the systems and baselines of one setting, if there are at least two."""
    first, rows = runs[0], []
    for run in runs:
        note = ", not normalised" * (run["normalization"] == "none")
        found = run["rules"][run["headline"]]
        rows.append(_interval_row(run["system"] + note, found, run["status"]))
    lines = {
        one["system"]: one["ua"]
        for one in baselines
        if one["protocol"] == first["protocol"]
        and per_speaker(one) == per_speaker(first)
    }
    if len(rows) + len(lines) < 2:
        return None
    warnings = first["rules"][first["headline"]]["warnings"]
    title = f"{_title(first)}, {first['protocol']}: pooled UA"
    stem = _slug(*task_of(first), first["protocol"])
    file = pictures / f"{stem}{'-speaker' * per_speaker(first)}.svg"
    plot_intervals(rows, file, "\n".join([title, *warnings]), lines)
    return _picture(file, "; ".join([title, *warnings]))


def _draw_chain(chain: dict, pictures: Path) -> dict:
    """Draw the pooled UA of a chain's rows."""
    rows = [
        _interval_row(f"{row['key']}  {row['label']}", row, row["status"])
        for row in chain["rows"]
    ]
    title = f"{chain['system']} on {_title(chain)}: pooled UA"
    file = pictures / f"{_slug(*task_of(chain), chain['system'])}-chain.svg"
    plot_intervals(rows, file, title)
    return _picture(file, f"{title}; hollow: see the row's note")


def draw_run(run: dict, pictures: Path) -> list[dict]:
    """Draw confusion matrix, speakers' UA and learning curves of a run."""
    rule, system, protocol = run["headline"], run["system"], run["protocol"]
    found, curves = run["rules"][rule], dict(run["curves"])
    warnings, pooled = found["warnings"], found["scores"]["ua"]["pooled"]
    if rule == "test":
        # The validation clips are the test clips
        curves["valid_ua"] = {"epoch": []}
    stem = _slug(*task_of(run), protocol, run["normalization"])
    stem = f"{stem}-{_slug(system)}"
    texts = {
        "confusion": "Confusion of",
        "speakers": "UA by speaker,",
        "curves": "Learning curves, mean and range over folds,",
    }
    files = [pictures / f"{stem}-{name}.svg" for name in texts]
    title = "\n".join([f"{system}, {protocol}", *warnings])
    plot_confusion(found["confusion"], run["labels"], files[0], title)
    plot_speakers(found["speaker_ua"], files[1], title, pooled)
    plot_learning_curves(curves, files[2], title, rule == "test")
    short = f"{system}, {protocol}, epoch {found['selection']}"
    short += f" ({'; '.join(warnings)})" if warnings else ""
    named = zip(files, texts.values(), strict=True)
    return [_picture(file, f"{text} {short}") for file, text in named]


def _picture(file: Path, text: str) -> dict:
    return {"file": f"{file.parent.name}/{file.name}", "alt": text}


def _interval_row(label: str, found: dict, status: str) -> dict:
    """A row for ``plot_intervals``."""
    ua = found["scores"]["ua"]
    return {
        "label": f"{label}  ({status})",
        "value": ua["pooled"],
        "low": ua["pooled_low"],
        "high": ua["pooled_high"],
        "warn": bool(found["warnings"]),
    }


def _setting(one: dict) -> list[str]:
    """Cells with system, protocol and normalisation."""
    normalization = NORMALIZATIONS[one["normalization"]]
    return [one["system"], one["protocol"], normalization]


def _status(one: dict) -> str:
    """How many folds a run has; marked if some are missing."""
    return one["status"] if one["complete"] else f"PARTIAL: {one['status']}"


def _title(one: dict) -> str:
    """Corpus, and label set if it is not the default."""
    label_set = f" ({one['label_set']})" if one["label_set"] else ""
    return f"{one['corpus']}{label_set}"


def _slug(*names: str | None) -> str:
    """Join names into a file name."""
    joined = "-".join(str(name) for name in names if name is not None)
    return re.sub(r"[^\w-]+", "_", joined)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _spread(score: dict) -> str:
    """Mean and standard deviation over folds."""
    spread = "" if score["std"] is None else f" ± {_percent(score['std'])}"
    return f"{_percent(score['mean'])}{spread}"


def _score(score: dict) -> str:
    """Mean over folds, and below it the pooled score with its interval."""
    ends = ""
    if score["pooled_low"] is not None:
        low, high = score["pooled_low"], score["pooled_high"]
        ends = f" [{_percent(low)}, {_percent(high)}]"
    return f"{_spread(score)}\n{_percent(score['pooled'])}{ends}"


def _changes(one: dict) -> list[str]:
    """Cells with the changes of WA and UA and their p-values."""
    if "missing" in one:
        return ["-"] * 4
    both = one["wa"], one["ua"]
    return [text for d in both for text in (_change(d), _p(d["p"]))]


def _change(difference: dict) -> str:
    """A difference in points with its interval."""
    text = f"{100 * difference['value']:+.1f}"
    if difference["low"] is not None:
        low, high = 100 * difference["low"], 100 * difference["high"]
        text += f" [{low:+.1f}, {high:+.1f}]"
    return text.replace("-", "−")


def _p(value: float | None) -> str:
    """A p-value with two digits."""
    if value is None:
        return "-"
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _mcnemar(one: dict) -> str:
    """p-value of McNemar's test and the counts that it compares."""
    if "missing" in one:
        return "-"
    test = one["mcnemar"]
    return f"{_p(test['p'])} ({test['first_only']} : {test['second_only']})"


def _calibration(run: dict) -> str:
    """Expected calibration error before and after temperature scaling."""
    found = run["calibration"]
    if not found:
        return "not measured"
    names = "temperature", "ece_before", "ece_after"
    means = {n: sum(one[n] for one in found) / len(found) for n in names}
    subset = found[0].get("fitted_on", "validation")
    if subset is None:
        ece = means["ece_before"]
        return f"no temperature: no clips to fit it on; test ECE {ece:.3f}"
    on_test = run["headline"] == "test"
    subset = "the test fold itself" if on_test else subset
    return (
        f"temperature {means['temperature']:.2f}, fitted on {subset}; "
        f"test ECE {means['ece_before']:.3f} → {means['ece_after']:.3f}"
    )


def _versions(one: dict) -> str:
    """Names and versions of packages."""
    return ", ".join(map(" ".join, one.items()))


def _time(seconds: float) -> str:
    """Wall time in words."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


_ALL = (
    *(_calibration, _changes, _mcnemar, _percent, _score, _setting),
    *(_spread, _status, _time, _title, _versions),
)
FILTERS = {one.__name__.removeprefix("_"): one for one in _ALL}
