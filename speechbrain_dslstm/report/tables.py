"""The sections of a report in order: headings, tables and pictures.

``sections`` turns what ``build_report`` returned into cells of text, and the
templates only lay them out. A line feed in a cell separates the mean over folds
from the pooled score.
"""

import re
from collections import defaultdict
from pathlib import Path

from speechbrain_dslstm.evaluation.bootstrap import METRICS
from speechbrain_dslstm.evaluation.plots import (
    plot_confusion,
    plot_intervals,
    plot_learning_curves,
    plot_speakers,
)
from speechbrain_dslstm.report.runs import (
    NORMALIZATIONS,
    RULES,
    per_speaker,
    setting_of,
    task_of,
)
from speechbrain_dslstm.splits.leaks import KINDS
from speechbrain_dslstm.splits.protocols import PROTOCOLS

__all__ = ["sections"]

SETTING = ("system", "protocol", "normalisation")
CHANGES = ("WA", "p", "UA", "p")
HEADS = {
    "systems": (*SETTING, "epoch", "WA", "UA", "macro-F1", "folds", "note"),
    "baselines": (*SETTING, "UA", "source"),
    "compared": (*SETTING, *CHANGES, "McNemar p", "note"),
    "chain": ("system", "", "score", "protocol, epoch")
    + ("WA", "UA", "folds", "note"),
    "steps": ("system", "step", "what changes", *CHANGES, "note"),
    "folds": ("seed", "fold", "split hash", "clips: train / valid / test")
    + ("training speakers", "validation speakers", "test speakers")
    + ("epoch", "UA", "UA, best test epoch", "validation UA", "time"),
}
CAPTIONS = {
    "systems": "In per cent. Above: mean ± standard deviation over folds and "
    "seeds. Below: score of all utterances pooled, with its 95 % interval by "
    "bootstrap over speakers.",
    "baselines": "Baselines: results of systems that were not trained here.",
    "leaks": "Leak guard: how many values the test fold shares with training / "
    "validation, the largest count of any fold. Under the protocol paper the "
    "validation clips are the test clips.",
    "compared": "Change of the pooled scores from {0} to the system, in points, "
    "on the same utterances: 95 % interval and two-sided p by paired bootstrap "
    "over speakers, not corrected for the number of comparisons. McNemar: exact "
    "test of the accuracy, which treats utterances as independent (in brackets: "
    "utterances that only {0} : only the system gets right).",
    "chain": "The same system, measured in several ways, from the most "
    "flattering score to the fairest. Rows a and b are the same trainings, and "
    "so are rows c' and c.",
    "steps": "Change of the pooled scores in points, with its 95 % interval and "
    "two-sided p by paired bootstrap over speakers.",
    "folds": "Folds.",
}


def sections(report: dict, pictures: Path) -> list[dict]:
    """The headings, tables and pictures of a report; draws the pictures.

    Each section has "title", "level", "tables" ("caption", "head" and "rows" of
    strings) and "pictures" ("file" and "alt"); ``pictures`` is their folder.
    """
    found = []
    for task in dict.fromkeys(map(task_of, report["runs"])):
        entries, compared, chains = (
            [one for one in report[name] if task_of(one) == task]
            for name in ("runs", "comparisons", "chains")
        )
        found.append(_systems(report, entries, pictures))
        if compared:
            found.append(_compared(compared))
        if chains:
            found.append(_inflation(chains, pictures))
    return found + [_details(entry, pictures) for entry in report["runs"]]


def _systems(report: dict, entries: list[dict], pictures: Path) -> dict:
    """All runs on one corpus, the baselines and the leak guard's counts."""
    rows, leaks, settings = [], {}, defaultdict(list)
    for entry in entries:
        settings[setting_of(entry)].append(entry)
        for rule, found in entry["rules"].items():
            scores = [_score(found["scores"][name]) for name in METRICS]
            note = "; ".join(found["warnings"])
            rows.append(
                [*_setting(entry), RULES[rule], *scores, _status(entry), note]
            )
        of = entry["leaks"]
        leaks[entry["protocol"]] = [
            entry["protocol"],
            *(f"{of['train'][k]} / {of['valid'][k]}" for k in KINDS),
        ]
    baselines = [
        [*_setting(one), _percent(one["ua"]), one["source"]]
        for one in report["baselines"]
        if one["corpus"] == entries[0]["corpus"]
    ]
    return {
        "title": f"{_title(entries[0])}: systems and protocols",
        "level": 2,
        "tables": [
            _table("systems", rows),
            *([_table("baselines", baselines)] if baselines else []),
            {
                "caption": CAPTIONS["leaks"],
                "head": ["protocol", *KINDS.values()],
                "rows": list(leaks.values()),
            },
        ],
        "pictures": [
            picture
            for same in settings.values()
            for picture in _overview(report["baselines"], same, pictures)
        ],
    }


def _overview(
    baselines: list[dict], entries: list[dict], pictures: Path
) -> list[dict]:
    """Draw all systems in one setting with the baselines, if two or more."""
    first, rows = entries[0], []
    for entry in entries:
        label = entry["system"]
        if entry["normalization"] == "none":
            label += ", not normalised"
        found = entry["rules"][entry["headline"]]
        rows.append(_interval_row(label, found, entry["status"]))
    setting = (first["corpus"], first["protocol"], per_speaker(first))
    lines = {
        one["system"]: one["ua"]
        for one in baselines
        if (one["corpus"], one["protocol"], per_speaker(one)) == setting
    }
    if len(rows) + len(lines) < 2:
        return []
    warnings = first["rules"][first["headline"]]["warnings"]
    title = f"{_title(first)}, {first['protocol']}: pooled UA"
    title = "\n".join([title, *warnings])
    stem = _slug(*task_of(first), first["protocol"])
    file = pictures / f"{stem}{'-speaker' * per_speaker(first)}.png"
    plot_intervals(rows, file, title, lines)
    return [_picture(file, title.replace("\n", "; "))]


def _compared(compared: list[dict]) -> dict:
    """Each system against the reference."""
    reference, rows = compared[0]["reference"], []
    for one in compared:
        cells = [*_changes(one), "-"]
        if "missing" not in one:
            test = one["mcnemar"]
            counts = f"({test['first_only']} : {test['second_only']})"
            cells[-1] = f"{_p(test['p'])} {counts}"
        note = "; ".join(filter(None, [*one["warnings"], one.get("missing")]))
        rows.append([*_setting(one), *cells, note])
    return {
        "title": f"{_title(compared[0])}: compared with {reference}",
        "level": 2,
        "tables": [_table("compared", rows, reference)],
        "pictures": [],
    }


def _inflation(chains: list[dict], pictures: Path) -> dict:
    """From the most flattering score to the fairest, for each system."""
    rows, steps, drawn = [], [], []
    name = _title(chains[0])
    for chain in chains:
        for row in chain["rows"]:
            rule = f"{row['protocol']}, {RULES[row['rule']]}"
            scores = [_score(row["scores"][metric]) for metric in ("wa", "ua")]
            note = "; ".join(row["warnings"])
            rows.append(
                [chain["system"], row["key"], row["label"], rule]
                + [*scores, _status(row), note]
            )
        for step in chain["steps"]:
            arrow, note = f"{step['from']} → {step['to']}", step.get("missing")
            cells = [arrow, step["label"], *_changes(step), note or ""]
            steps.append([chain["system"], *cells])
        # A picture of c' and c alone says no more than the table
        if len(chain["rows"]) > 2:
            lines = [
                _interval_row(
                    f"{row['key']}  {row['label']}", row, row["status"]
                )
                for row in chain["rows"]
            ]
            title = f"{chain['system']} on {name}: pooled UA"
            stem = _slug(*task_of(chain), chain["system"])
            file = pictures / f"{stem}-chain.png"
            plot_intervals(lines, file, title)
            drawn.append(_picture(file, f"{title}; hollow: see the row's note"))
    return {
        "title": f"{name}: inflation by protocol and choice of the epoch",
        "level": 2,
        "tables": [_table("chain", rows), _table("steps", steps)],
        "pictures": drawn,
    }


def _details(entry: dict, pictures: Path) -> dict:
    """One run: where it comes from, its confusions, speakers and curves."""
    found = entry["rules"][entry["headline"]]
    on_test, warnings = entry["headline"] == "test", found["warnings"]
    facts = {
        "folds": _status(entry),
        "warnings": "; ".join(warnings) or "none",
        "split": PROTOCOLS[entry["protocol"]].split,
        "epoch": entry["selection"] or RULES[entry["headline"]],
        "parameters": f"{entry['parameters']:,}",
        "calibration, mean over folds": _calibration(
            entry["calibration"], on_test
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
    stem = _slug(*task_of(entry), entry["protocol"], entry["normalization"])
    stem = f"{stem}-{_slug(entry['system'])}"
    title = "\n".join([f"{entry['system']}, {entry['protocol']}", *warnings])
    files = [
        pictures / f"{stem}-{name}.png"
        for name in ("confusion", "speakers", "curves")
    ]
    plot_confusion(found["confusion"], entry["labels"], files[0], title)
    pooled = found["scores"]["ua"]["pooled"]
    plot_speakers(found["speaker_ua"], files[1], title, pooled)
    curves = dict(entry["curves"])
    if on_test:
        # The validation clips are the test clips
        curves["valid_ua"] = {"epoch": []}
    plot_learning_curves(curves, files[2], title, on_test)
    short = f"{entry['system']}, {entry['protocol']}, epoch "
    short += RULES[entry["headline"]]
    short += f" ({'; '.join(warnings)})" if warnings else ""
    texts = (
        f"Confusion of {short}",
        f"UA by speaker, {short}",
        f"Learning curves, mean and range over folds, {short}",
    )
    return {
        "title": f"{entry['system']}, {_title(entry)}, {entry['protocol']}, "
        f"{NORMALIZATIONS[entry['normalization']]}",
        "level": 3,
        "tables": [
            {
                "caption": "",
                "head": ["", ""],
                "rows": list(map(list, facts.items())),
            },
            _table("folds", map(_fold, entry["folds"])),
        ],
        "pictures": list(map(_picture, files, texts)),
    }


def _fold(fold: dict) -> list[str]:
    """Row of one fold: its split and scores."""
    clips, speakers, values = fold["clips"], fold["speakers"], fold["values"]
    ua = (_percent(values[r]["ua"]) if r in values else "-" for r in RULES)
    return [
        str(fold["seed"]),
        str(fold["fold"]),
        fold["split_hash"],
        " / ".join(str(clips[name]) for name in ("train", "valid", "test")),
        str(len(speakers["train"])),
        ", ".join(speakers["valid"]),
        ", ".join(speakers["test"]),
        str(fold["best_epoch"]),
        *ua,
        _percent(fold["valid_ua"]) if "valid_ua" in fold else "-",
        _time(fold["seconds"]),
    ]


def _table(name: str, rows: list, *names: str) -> dict:
    """A table of ``HEADS``; its caption mentions the names."""
    caption = CAPTIONS[name].format(*names)
    return {"caption": caption, "head": list(HEADS[name]), "rows": list(rows)}


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
    names = one["system"], one["protocol"]
    return [*names, NORMALIZATIONS[one["normalization"]]]


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


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


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


def _calibration(found: list[dict], on_test: bool) -> str:
    """Expected calibration error before and after temperature scaling."""
    if not found:
        return "not measured"
    means = {
        name: sum(one[name] for one in found) / len(found) for name in found[0]
    }
    subset = "the test fold itself" if on_test else "validation"
    return (
        f"temperature {means['temperature']:.2f}, fitted on {subset}; "
        f"test ECE {means['ece_before']:.3f} → {means['ece_after']:.3f}"
    )


def _time(seconds: float) -> str:
    """Wall time in words."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
