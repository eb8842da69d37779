"""What a report shows, in order: headings, tables and pictures.

``sections`` turns the structure of ``report.build_report`` into cells of text;
the templates only lay them out. A cell's line feed separates the mean over
folds from the pooled score.
"""

import re

from speechbrain_dslstm.evaluation.bootstrap import METRICS
from speechbrain_dslstm.evaluation.plots import (
    plot_confusion,
    plot_intervals,
    plot_learning_curves,
    plot_speakers,
)
from speechbrain_dslstm.report.runs import NORMALIZATIONS, RULES
from speechbrain_dslstm.splits.leaks import KINDS
from speechbrain_dslstm.splits.protocols import PROTOCOLS

__all__ = ["sections"]

NAMES = {"wa": "WA", "ua": "UA", "macro_f1": "macro-F1"}


def sections(report, pictures):
    """Headings, tables and pictures in their order.

    Arguments
    ---------
    report : dict
        What ``report.build_report`` returned.
    pictures : pathlib.Path
        Folder that the pictures are drawn into.

    Returns
    -------
    list of dict
        Each has "title", "level", "text", "tables" ("caption", "head" and
        "rows" of strings) and "pictures" ("file", "alt").

    Example
    -------
    >>> sections({"runs": []}, None)
    []
    """
    found = []
    tasks = {_task(entry): None for entry in report["runs"]}
    for task in tasks:
        entries = [one for one in report["runs"] if _task(one) == task]
        found += _corpus(report, entries, pictures)
    found += [_details(entry, pictures) for entry in report["runs"]]
    return found


def _corpus(report, entries, pictures):
    """Everything that compares the runs on one corpus."""
    task, name = _task(entries[0]), _title(entries[0])
    systems = _section(f"{name}: systems and protocols", 2)
    rows = []
    for entry in entries:
        for rule, found in entry["rules"].items():
            rows.append(
                [
                    entry["system"],
                    entry["protocol"],
                    NORMALIZATIONS[entry["normalization"]],
                    RULES[rule],
                    *(_score(found["scores"][m]) for m in METRICS),
                    _status(entry),
                    "; ".join(found["warnings"]),
                ]
            )
    head = ["system", "protocol", "normalised", "epoch", *NAMES.values()]
    head += ["folds", "note"]
    systems["tables"].append(
        {
            "caption": "Mean ± standard deviation over folds and seeds; below, "
            "pooled over all utterances with its 95 % interval by bootstrap "
            "over speakers. In per cent.",
            "head": head,
            "rows": rows,
        }
    )
    settings = {(e["protocol"], _per_speaker(e)): None for e in entries}
    for setting in settings:
        same = [
            one
            for one in entries
            if (one["protocol"], _per_speaker(one)) == setting
        ]
        systems["pictures"] += _overview(report, same, pictures)
    yardsticks = [
        [
            one["system"],
            one["protocol"],
            NORMALIZATIONS[one["normalization"]],
            _percent(one["ua"]),
            one["source"],
        ]
        for one in report["yardsticks"]
        if one["corpus"] == task[0]
    ]
    if yardsticks:
        systems["tables"].append(
            {
                "caption": "Yardsticks from elsewhere, not trained here.",
                "head": ["system", "protocol", "normalised", "UA", "source"],
                "rows": yardsticks,
            }
        )
    systems["tables"].append(_leaks(entries))
    compared = [one for one in report["comparisons"] if _task(one) == task]
    found = [systems]
    if compared:
        found.append(_compared(compared, name))
    chains = [one for one in report["chains"] if _task(one) == task]
    if chains:
        found.append(_inflation(chains, name, pictures))
    return found


def _overview(report, entries, pictures):
    """Picture of all systems in one setting, with the yardsticks."""
    first = entries[0]
    rows = []
    for entry in entries:
        label = entry["system"]
        if entry["normalization"] == "none":
            label += ", not normalised"
        found = entry["rules"][entry["headline"]]
        rows.append(_interval_row(label, found, entry["status"]))
    lines = {
        one["system"]: one["ua"]
        for one in report["yardsticks"]
        if (one["corpus"], one["protocol"], _per_speaker(one))
        == (first["corpus"], first["protocol"], _per_speaker(first))
    }
    if len(rows) + len(lines) < 2:
        return []
    warnings = first["rules"][first["headline"]]["warnings"]
    title = f"{_title(first)}, {first['protocol']}: pooled UA"
    title = "\n".join([title, *warnings])
    stem = _slug(*_task(first), first["protocol"])
    file = pictures / f"{stem}{'-speaker' * _per_speaker(first)}.png"
    plot_intervals(rows, file, title, lines)
    return [_picture(file, title.replace("\n", "; "))]


def _leaks(entries):
    """What the guard counted, for each protocol."""
    rows = {}
    for entry in entries:
        leaks = entry["leaks"]
        cells = [f"{leaks['train'][k]} / {leaks['valid'][k]}" for k in KINDS]
        rows[entry["protocol"]] = [entry["protocol"], *cells]
    return {
        "caption": "Leak guard: what the test side shares with training / "
        "validation, the most of any fold. Under paper the validation "
        "side is the test side.",
        "head": ["protocol", *KINDS.values()],
        "rows": list(rows.values()),
    }


def _compared(compared, name):
    """Each system against the reference."""
    reference = compared[0]["reference"]
    section = _section(f"{name}: compared with {reference}", 2)
    rows = []
    for one in compared:
        cells = ["-"] * 5
        if "missing" not in one:
            test = one["mcnemar"]
            counts = f"({test['first_only']} : {test['second_only']})"
            cells = _changes(one, ("wa", "ua"))
            cells.append(f"{_p(test['p'])} {counts}")
        remark = [*one["warnings"], one.get("missing", "")]
        setting = (one["protocol"], NORMALIZATIONS[one["normalization"]])
        rows.append(
            [one["system"], *setting, *cells, "; ".join(filter(None, remark))]
        )
    section["tables"].append(
        {
            "caption": f"Change of the pooled scores from {reference} to the "
            "system, in points, on the same utterances: 95 % interval and "
            "two-sided p by paired bootstrap over speakers, not corrected for "
            "the number of comparisons. McNemar: exact test of the accuracy, "
            f"which takes utterances for independent (right: {reference} only "
            ": system only).",
            "head": ["system", "protocol", "normalised", "WA", "p", "UA", "p"]
            + ["McNemar p", "note"],
            "rows": rows,
        }
    )
    return section


def _inflation(chains, name, pictures):
    """From the flattering number to the honest one, for each system."""
    section = _section(f"{name}: inflation", 2)
    rows, steps = [], []
    for chain in chains:
        for row in chain["rows"]:
            rows.append(
                [
                    chain["system"],
                    row["key"],
                    row["label"],
                    f"{row['protocol']}, {RULES[row['rule']]}",
                    *(_score(row["scores"][m]) for m in ("wa", "ua")),
                    _status(row),
                    "; ".join(row["warnings"]),
                ]
            )
        for step in chain["steps"]:
            cells = ["-"] * 4
            if "missing" not in step:
                cells = _changes(step, ("wa", "ua"))
            arrow = f"{step['from']} → {step['to']}"
            label, note = step["label"], step.get("missing", "")
            steps.append([chain["system"], arrow, label, *cells, note])
        # c' and c alone say no more in a picture
        if len(chain["rows"]) > 2:
            section["pictures"].append(_chain_picture(chain, name, pictures))
    head = ["system", "", "number", "protocol, epoch"]
    section["tables"] = [
        {
            "caption": "The same system, measured in several ways, from the "
            "number that flatters most to those that do not. a and b, and c' "
            "and c, are the same trainings.",
            "head": [*head, "WA", "UA", "folds", "note"],
            "rows": rows,
        },
        {
            "caption": "Change of the pooled scores in points, with its 95 % "
            "interval and two-sided p by paired bootstrap over speakers.",
            "head": ["system", "step", "what changes", "WA", "p", "UA", "p"]
            + ["note"],
            "rows": steps,
        },
    ]
    return section


def _chain_picture(chain, name, pictures):
    """The pooled UA of a chain's numbers."""
    drawn = [
        _interval_row(f"{row['key']}  {row['label']}", row, row["status"])
        for row in chain["rows"]
    ]
    title = f"{chain['system']} on {name}: pooled UA"
    file = pictures / f"{_slug(*_task(chain), chain['system'])}-chain.png"
    plot_intervals(drawn, file, title)
    return _picture(file, f"{title}; hollow: the note of this number applies")


def _details(entry, pictures):
    """One run: where it comes from, its confusions, speakers and curves."""
    title = f"{entry['system']}, {_title(entry)}, {entry['protocol']}, "
    title += NORMALIZATIONS[entry["normalization"]]
    section = _section(title, 3)
    found = entry["rules"][entry["headline"]]
    facts = {
        "folds": _status(entry),
        "warnings": "; ".join(found["warnings"]) or "none",
        "split": PROTOCOLS[entry["protocol"]].split,
        "epoch": entry["selection"] or RULES[entry["headline"]],
        "parameters": f"{entry['parameters']:,}",
        "calibration, mean over folds": _calibration(
            entry["calibration"], entry["headline"] == "test"
        ),
        "wall time, all folds": _time(entry["seconds"]),
        "versions": "; ".join(
            ", ".join(f"{name} {number}" for name, number in one.items())
            for one in entry["versions"]
        ),
        "command of a fold": "\n".join(entry["commands"]),
    }
    for name, one in entry["branches"].items():
        facts[f"UA of the branch {name}"] = _spread(one)
    section["tables"].append(
        {
            "caption": "",
            "head": ["", ""],
            "rows": list(map(list, facts.items())),
        }
    )
    stem = _slug(*_task(entry), entry["protocol"], entry["normalization"])
    stem = f"{stem}-{_slug(entry['system'])}"
    warnings = found["warnings"]
    warning = f" ({'; '.join(warnings)})" if warnings else ""
    short = f"{entry['system']}, {entry['protocol']}, epoch "
    short += RULES[entry["headline"]]
    file = pictures / f"{stem}-confusion.png"
    title = "\n".join([f"{entry['system']}, {entry['protocol']}", *warnings])
    plot_confusion(found["confusion"], entry["labels"], file, title)
    section["pictures"].append(_picture(file, f"Confusion of {short}{warning}"))
    file = pictures / f"{stem}-speakers.png"
    pooled = found["scores"]["ua"]["pooled"]
    plot_speakers(found["speaker_ua"], file, title, pooled)
    section["pictures"].append(
        _picture(file, f"UA by speaker, {short}{warning}")
    )
    file = pictures / f"{stem}-curves.png"
    on_test = entry["headline"] == "test"
    curves = dict(entry["curves"])
    if on_test:
        # There the validation side is the test side
        curves["valid_ua"] = {"epoch": []}
    plot_learning_curves(curves, file, title, on_test)
    section["pictures"].append(
        _picture(
            file,
            f"Learning curves, mean and range over folds, {short}{warning}",
        )
    )
    section["tables"].append(_folds(entry))
    return section


def _folds(entry):
    """The manifest of each fold."""
    rows = []
    for fold in entry["folds"]:
        clips, values = fold["clips"], fold["values"]
        rows.append(
            [
                str(fold["seed"]),
                str(fold["fold"]),
                fold["split_hash"],
                " / ".join(str(clips[s]) for s in ("train", "valid", "test")),
                str(len(fold["speakers"]["train"])),
                ", ".join(fold["speakers"]["valid"]),
                ", ".join(fold["speakers"]["test"]),
                str(fold["best_epoch"]),
                *(
                    _percent(values[rule]["ua"]) if rule in values else "-"
                    for rule in RULES
                ),
                _percent(fold["valid_ua"]) if "valid_ua" in fold else "-",
                _time(fold["seconds"]),
            ]
        )
    head = ["seed", "fold", "split hash", "clips: train / valid / test"]
    head += ["training speakers", "validation speakers", "test speakers"]
    head += ["epoch", "UA", "UA, best test epoch", "validation UA", "time"]
    return {"caption": "Folds.", "head": head, "rows": rows}


def _section(title, level):
    return {"title": title, "level": level, "tables": [], "pictures": []}


def _picture(file, text):
    return {"file": f"{file.parent.name}/{file.name}", "alt": text}


def _interval_row(label, found, status):
    """A row for ``plot_intervals``."""
    ua = found["scores"]["ua"]
    return {
        "label": f"{label}  ({status})",
        "value": ua["pooled"],
        "low": ua["pooled_low"],
        "high": ua["pooled_high"],
        "warn": bool(found["warnings"]),
    }


def _status(one):
    """How much of a run there is."""
    return one["status"] if one["complete"] else f"PARTIAL: {one['status']}"


def _per_speaker(one):
    """Whether a result uses the test speakers' unlabelled audio."""
    return one["normalization"] == "speaker"


def _task(one):
    return one["corpus"], one["label_set"]


def _title(one):
    label_set = f" ({one['label_set']})" if one["label_set"] else ""
    return f"{one['corpus']}{label_set}"


def _slug(*names):
    """A file name of several names."""
    joined = "-".join(str(name) for name in names if name is not None)
    return re.sub(r"[^\w-]+", "_", joined)


def _percent(value):
    return f"{100 * value:.1f}"


def _spread(score):
    """Mean and standard deviation over folds."""
    spread = "" if score["std"] is None else f" ± {_percent(score['std'])}"
    return f"{_percent(score['mean'])}{spread}"


def _score(score):
    """Mean over folds, and below it the pooled score with its interval."""
    ends = ""
    if score["pooled_low"] is not None:
        low, high = score["pooled_low"], score["pooled_high"]
        ends = f" [{_percent(low)}, {_percent(high)}]"
    return f"{_spread(score)}\n{_percent(score['pooled'])}{ends}"


def _changes(difference, metrics):
    """Cells with the change of each score and its p-value."""
    return [
        text
        for name in metrics
        for text in (_change(difference[name]), _p(difference[name]["p"]))
    ]


def _change(difference):
    """A difference in points with its interval."""
    text = f"{100 * difference['value']:+.1f}"
    if difference["low"] is not None:
        low, high = 100 * difference["low"], 100 * difference["high"]
        text += f" [{low:+.1f}, {high:+.1f}]"
    return text.replace("-", "−")


def _p(value):
    """A p-value with two digits."""
    if value is None:
        return "-"
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _calibration(found, on_test):
    """Expected calibration error without and with the temperature."""
    if not found:
        return "not measured"
    means = {
        name: sum(one[name] for one in found) / len(found) for name in found[0]
    }
    side = "the test fold itself" if on_test else "validation"
    return (
        f"temperature {means['temperature']:.2f}, fitted on {side}; "
        f"test ECE {means['ece_before']:.3f} → {means['ece_after']:.3f}"
    )


def _time(seconds):
    """Wall time in words."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
