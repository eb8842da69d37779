"""Rows of answers as text, CSV or JSON Lines on standard output."""

import csv
import json
import sys
from collections.abc import Callable
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


def make_writer(
    as_json: bool, as_csv: bool, columns: list[str], places: list[str]
) -> Callable[[dict], None]:
    """Return the function that writes one row as JSON, CSV or text.

    ``columns`` of the table are the classes, then the dimensions; ``places``
    say which part of the file a row is for.
    """
    if as_json:
        return lambda row: _echo(
            json.dumps({k: v for k, v in row.items() if v is not None})
        )
    if as_csv:
        others = ["file", *places, "label", "reason", "error"]
        # Not at the top, as it loads torch
        from speechbrain_dslstm.inference.answer import column_names

        heads = column_names(columns, others)
        names = [*others[:-2], *heads.values(), *others[-2:]]
        table = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        table.writeheader()

        def write(row: dict) -> None:
            """Write one line of the table."""
            values = row.pop("posteriors", None) or {}
            values |= row.pop("dimensions", None) or {}
            values = {heads[k]: f"{v:.6f}" for k, v in values.items()}
            table.writerow({**row, **values})

        return write
    return write_text


def write_text(row: dict) -> None:
    """Write one line of text: the best three classes, or the reason."""
    where = row["file"]
    if row.get("channel") is not None:
        where += f"  channel {row['channel']}"
    if "start" in row:
        where += f"  {row['start']:8.2f} {row['end']:8.2f}"
    if not row.get("posteriors"):
        if row.get("reason"):
            _echo(f"{where}  - ({row['reason']})")
        else:
            click.echo(f"dslstm: {row['error']}", err=True)
        return
    ranked = sorted(row["posteriors"].items(), key=lambda item: -item[1])
    shown = "  ".join(f"{label} {value:.2f}" for label, value in ranked[:3])
    values = (row.get("dimensions") or {}).items()
    rest = "".join(f"  {name} {value:+.2f}" for name, value in values)
    _echo(f"{where}  {row['label']}  [{shown}]{rest}")


def _echo(text: str) -> None:
    """Print with the console's own code page; click writes UTF-8 to an ASCII one."""
    print(text, file=sys.stdout)
