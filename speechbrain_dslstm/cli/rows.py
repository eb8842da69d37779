"""Rows of answers as text, CSV or JSON Lines."""

import csv
import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch


def to_posteriors(
    labels: list[str], log_posteriors: "torch.Tensor | None"
) -> dict[str, float] | None:
    """Posterior of each class by its name, None without an answer."""
    if log_posteriors is None:
        return None
    values = log_posteriors.exp().tolist()
    return dict(zip(labels, values, strict=True))


@dataclass(frozen=True)
class RowFormat:
    """How rows become text: the ``header``, and the ``line`` of a row.

    Both end in a line feed; text and JSON Lines have no header. ``places`` are
    the columns that say which part of a file a row is for: with any, a file may
    have several rows.
    """

    kind: str
    header: str
    line: Callable[[dict], str]
    places: list[str]


def make_format(kind: str, columns: list[str], places: list[str]) -> RowFormat:
    """Return the format "csv", "json" or "text".

    ``columns`` of a table are the classes, then the dimensions.
    """
    if kind == "json":
        return RowFormat(kind, "", _json_line, places)
    if kind == "text":
        return RowFormat(kind, "", _text_line, places)
    others = ["file", *places, "label", "reason", "error"]
    # Not at the top, as it loads torch
    from speechbrain_dslstm.inference.answer import column_names

    heads = column_names(columns, others)
    names = [*others[:-2], *heads.values(), *others[-2:]]

    def line(row: dict) -> str:
        """One line of the table."""
        values = (row.get("posteriors") or {}) | (row.get("dimensions") or {})
        cells = {heads[k]: f"{v:.6f}" for k, v in values.items()}
        cells |= {k: row[k] for k in others if k in row}
        return _csv_line([cells.get(name) for name in names])

    return RowFormat(kind, _csv_line(names), line, places)


def _csv_line(cells):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _json_line(row):
    return json.dumps({k: v for k, v in row.items() if v is not None}) + "\n"


def _text_line(row):
    """The best three classes, or the reason; "" for a file with an error."""
    where = row["file"]
    if row.get("channel") is not None:
        where += f"  channel {row['channel']}"
    if "start" in row:
        where += f"  {row['start']:8.2f} {row['end']:8.2f}"
    if not row.get("posteriors"):
        return f"{where}  - ({row['reason']})\n" if row.get("reason") else ""
    ranked = sorted(row["posteriors"].items(), key=lambda item: -item[1])
    shown = "  ".join(f"{label} {value:.2f}" for label, value in ranked[:3])
    values = (row.get("dimensions") or {}).items()
    rest = "".join(f"  {name} {value:+.2f}" for name, value in values)
    return f"{where}  {row['label']}  [{shown}]{rest}\n"


def make_writer(form: RowFormat) -> Callable[[dict], None]:
    """Write the header to standard output; return the function for each row."""
    if form.kind == "text":
        return write_text
    write_out(form.header)
    return lambda row: write_out(form.line(row))


def write_text(row: dict) -> None:
    """Write a row as text; a file that could not be read, on standard error."""
    if line := _text_line(row):
        write_out(line)
    else:
        with _beside_bars():
            click.echo(f"dslstm: {row['error']}", err=True)


def write_out(text: str) -> None:
    """Print with the console's own code page; click writes UTF-8 to an ASCII one."""
    with _beside_bars():
        print(text, end="", file=sys.stdout)


def _beside_bars():
    """Take progress bars off the terminal while something else is printed."""
    from tqdm import tqdm

    return tqdm.external_write_mode(file=sys.stdout)
