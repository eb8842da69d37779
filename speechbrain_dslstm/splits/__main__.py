"""Print what the subsets of a manifest share, or write its folds as CSV.

> python -m speechbrain_dslstm.corpora emodb EMODB emodb.json
> python -m speechbrain_dslstm.splits emodb.json
> python -m speechbrain_dslstm.splits emodb.json --protocol=session --folds=f.csv

Several manifests are taken together, such as the train.json, valid.json and
test.json that a run has written.
"""

import json
from pathlib import Path

import click

from speechbrain_dslstm.splits.leaks import (
    KINDS,
    format_leak_summary,
    identical_recordings,
    leak_summary,
)
from speechbrain_dslstm.splits.protocols import PROTOCOLS, applicable_protocols
from speechbrain_dslstm.splits.table import write_folds


def _read(paths: tuple[str, ...]) -> dict[str, dict]:
    """Read manifests as one, and check the entries that splits are made of."""
    entries = {}
    for path in paths:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        for key, entry in dict(found).items():
            for name in ("emotion", "gender", *KINDS):
                if not isinstance(dict(entry).get(name), str):
                    raise ValueError(f"{path} is no manifest: {key}: no {name}")
            if entries.setdefault(key, entry) != entry:
                raise ValueError(f"{path}: {key} differs in another manifest")
    return entries


@click.command(help="Print the leaks of each protocol on MANIFESTs.")
@click.argument(
    "manifests", metavar="MANIFEST.json...", nargs=-1, required=True
)
@click.option(
    "--protocol",
    "protocols",
    multiple=True,
    type=click.Choice(list(PROTOCOLS)),
    help="May be given several times.  [default: all that the clips allow]",
)
@click.option("--seed", default=1234, show_default=True)
@click.option("--n_folds", default=5, show_default=True)
@click.option("--valid_speakers", default=2, show_default=True)
@click.option("--folds", help="Write each clip's subsets to this CSV instead.")
def command(
    manifests: tuple[str, ...],
    protocols: tuple[str, ...],
    folds: str | None,
    **numbers: int,
) -> None:
    """Print leaks and recordings that have several names, or write folds."""
    try:
        entries = _read(manifests)
        protocols = protocols or applicable_protocols(entries)
        if folds:
            write_folds(folds, entries, protocols, **numbers)
            return
        found = leak_summary(entries, protocols, **numbers)
    except (OSError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(format_leak_summary(found))
    for ids in identical_recordings(entries):
        click.echo(f"\nidentical recordings: {', '.join(ids)}")


if __name__ == "__main__":
    command(prog_name="python -m speechbrain_dslstm.splits")
