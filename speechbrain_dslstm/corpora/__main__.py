"""Write the manifest of a corpus as one JSON file.

> python -m speechbrain_dslstm.corpora emodb EMODB emodb.json
> python -m speechbrain_dslstm.corpora iemocap IEMOCAP iemocap.json \\
>     --label_set=5class --options='{"improvised_only": true}'
"""

import json

import click

from speechbrain_dslstm.corpora import CORPORA, prepare
from speechbrain_dslstm.corpora.manifest import write_manifest


@click.command(help="Read CORPUS in DATA_FOLDER and write its MANIFEST.json.")
@click.argument("corpus", type=click.Choice(CORPORA))
@click.argument("data_folder")
@click.argument("manifest", metavar="MANIFEST.json")
@click.option("--label_set", help="Default: the corpus' own.")
@click.option(
    "--options", default="{}", help="Options of the corpus as a JSON object."
)
def command(
    corpus: str,
    data_folder: str,
    manifest: str,
    label_set: str | None,
    options: str,
) -> None:
    """Read a corpus and write its manifest."""
    try:
        options = json.loads(options)
        entries, labels = prepare(corpus, data_folder, label_set, **options)
        write_manifest(manifest, entries)
    except (OSError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{manifest}: {len(entries)} clips of {', '.join(labels)}")


if __name__ == "__main__":
    command(prog_name="python -m speechbrain_dslstm.corpora")
