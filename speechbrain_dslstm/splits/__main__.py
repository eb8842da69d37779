"""Print what the subsets of a manifest share, or write its folds.

> python -m speechbrain_dslstm.corpora emodb EMODB emodb.json
> python -m speechbrain_dslstm.splits leaks emodb.json
> python -m speechbrain_dslstm.splits folds emodb.json --protocol session \\
>     --output emodb_folds.csv

Several manifests are taken together, such as the train.json, valid.json and
test.json that a run has written.
"""

import json
from collections.abc import Callable
from pathlib import Path

import click

from speechbrain_dslstm.splits.leaks import (
    KINDS,
    format_leak_summary,
    identical_recordings,
    leak_summary,
)
from speechbrain_dslstm.splits.protocols import PROTOCOLS
from speechbrain_dslstm.splits.table import write_folds

NEEDED = ("emotion", "gender", *KINDS)


class _Commands(click.Group):
    """Commands whose expected errors are one line, without a traceback."""

    def invoke(self, context: click.Context) -> None:
        """Run a command."""
        try:
            super().invoke(context)
        except (OSError, ValueError) as error:
            raise click.ClickException(str(error)) from error


def _read(
    context: click.Context, parameter: click.Parameter, paths: tuple[str, ...]
) -> dict[str, dict]:
    """Read the manifests of the command line as one."""
    entries = {}
    for path in paths:
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            for key, entry in found.items():
                for name in NEEDED:
                    if not isinstance(entry[name], str):
                        raise TypeError(f"{name} is {entry[name]!r}")
                if entries.setdefault(key, entry) != entry:
                    raise ValueError(f"{key} differs in an earlier manifest")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise click.BadParameter(
                f"{path} is no manifest: {error!r}"
            ) from error
    return entries


def _options(function: Callable) -> Callable:
    """Add the arguments that both commands take."""
    for decorate in (
        click.option("--valid_speakers", default=2, show_default=True),
        click.option("--n_folds", default=5, show_default=True),
        click.option("--seed", default=1234, show_default=True),
        click.option(
            "--protocol",
            "protocols",
            multiple=True,
            type=click.Choice(list(PROTOCOLS)),
            help="May be given several times.  [default: all of them]",
        ),
        click.argument(
            "entries",
            metavar="MANIFEST.json...",
            nargs=-1,
            required=True,
            callback=_read,
            type=click.Path(exists=True, dir_okay=False),
        ),
    ):
        function = decorate(function)
    return function


@click.group(
    cls=_Commands, help="Leaks and folds of the protocols on a manifest."
)
def command() -> None:
    """Print leaks, or write folds."""


@command.command(help="Print what the subsets share under each protocol.")
@_options
def leaks(
    entries: dict[str, dict], protocols: tuple[str, ...], **numbers: int
) -> None:
    """Print the leak summary, and recordings that have several names."""
    found = leak_summary(entries, protocols or None, **numbers)
    click.echo(format_leak_summary(found))
    for ids in identical_recordings(entries):
        click.echo(f"\nidentical recordings: {', '.join(ids)}")


@command.command(help="Write the subset of each utterance in each fold as CSV.")
@_options
@click.option("--output", required=True, help="The CSV file.")
def folds(
    entries: dict[str, dict],
    protocols: tuple[str, ...],
    output: str,
    **numbers: int,
) -> None:
    """Write the table of folds."""
    write_folds(output, entries, protocols or list(PROTOCOLS), **numbers)


if __name__ == "__main__":
    command(prog_name="python -m speechbrain_dslstm.splits")
