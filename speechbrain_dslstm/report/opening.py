"""The opening of a report: three sentences, and one table of honest scores.

A score is honest here if no test speaker occurs in training, no test clip chose
the epoch and no audio of the test speakers was used.
"""

from speechbrain_dslstm.report.runs import task_of
from speechbrain_dslstm.report.tables import (
    FILTERS,
    baseline_rows,
    flattered_by,
)
from speechbrain_dslstm.splits.protocols import PROTOCOLS

__all__ = ["open_report"]

COLUMNS = ["corpus", "protocol", "system", "UA", "WA", "macro-F1", "folds"]


def open_report(report: dict) -> dict:
    """Return the "sentences", and "rows" of cells for ``COLUMNS``.

    The rows are sorted by corpus and protocol, then by UA, the best first.
    """
    clauses, rows = [], []
    for task in dict.fromkeys(map(task_of, report["runs"])):
        runs = [run for run in report["runs"] if task_of(run) == task]
        honest = [run for run in runs if not flattered_by(run, run["headline"])]
        baselines = [b for b in report["baselines"] if b["corpus"] == task[0]]
        by_protocol = {
            name: [run for run in honest if run["protocol"] == name]
            for name in PROTOCOLS
        }
        for some in filter(None, by_protocol.values()):
            rows += _rows(some, baselines)
        main = max(by_protocol.values(), key=len)
        clauses.append(_best(runs[0], main, baselines))
    first = "; ".join(clauses)
    count = f"{report['resamples']:,} resamples of speakers"
    sentences = [
        f"{first[:1].upper()}{first[1:]}." if first else "There are no runs.",
        "UA (unweighted accuracy) is the mean of the classes' recalls; ± is the "
        "standard deviation over folds and seeds, and the line below it the "
        "score of all utterances pooled, with its "
        f"{100 * report['confidence']:.0f} % interval by {count}.",
        "Scores that something flatters are not in this table: they are folded "
        "away below, under the name of what flatters them.",
    ]
    return {"sentences": sentences, "columns": COLUMNS, "rows": rows}


def _rows(runs: list[dict], baselines: list[dict]) -> list[list[str]]:
    """Rows of the systems and baselines of one corpus and protocol."""
    title, protocol = FILTERS["title"](runs[0]), runs[0]["protocol"]
    found = []
    for run in runs:
        scores = run["rules"][run["headline"]]["scores"]
        shown = [FILTERS["score"](scores[k]) for k in ("ua", "wa", "macro_f1")]
        note = "\nnot normalised" * (run["normalization"] == "none")
        cells = [run["system"] + note, *shown, FILTERS["status"](run)]
        found.append((scores["ua"]["mean"], cells))
    for row in baseline_rows(runs[0], baselines):
        # Without normalisation and epoch, which are the same for all
        found.append((row["order"], [row["cells"][0], *row["cells"][4:]]))
    found.sort(key=lambda pair: -pair[0])
    return [[title, protocol, *cells] for _, cells in found]


def _best(run: dict, honest: list[dict], baselines: list[dict]) -> str:
    """The best system on one corpus, in words, beside the best baseline."""
    classes = len(run["labels"])
    where = f"on {FILTERS['title'](run)} ({classes} classes, chance "
    where += f"{100 / classes:.1f} %)"
    if not honest:
        return f"{where}, no system was scored on new speakers without a caveat"
    best = max([one for one in honest if one["complete"]] or honest, key=_ua)
    score = best["rules"][best["headline"]]["scores"]["ua"]
    text = f"{where}, {best['system']}"
    if len(honest) > 1:
        text += f", the best of {len(honest)} systems,"
    text += (
        " recognises the emotion of speakers that it never heard with a UA of "
    )
    text += f"{FILTERS['spread'](score)} %".replace(" ", "\N{NO-BREAK SPACE}")
    rivals = baseline_rows(best, baselines)
    if rivals:
        rival = max(rivals, key=lambda row: row["order"])
        name = rival["cells"][0].split("\n")[0]
        side = "below" if rival["order"] > _ua(best) else "above"
        text += (
            f", {side} the baseline {name} with {100 * rival['order']:.1f} %"
        )
    return text


def _ua(run: dict) -> float:
    return run["rules"][run["headline"]]["scores"]["ua"]["mean"]
