"""The command ``dslstm shards``: a corpus as tar files for training."""

import click

from speechbrain_dslstm.cli.options import command

EXAMPLES = """
dslstm shards runs/mine/save/train.json -o shards --data-root recordings
dslstm shards runs/mine/save/train.json -o shards --clips 5000
"""


@command("shards", EXAMPLES)
@click.argument("manifest", metavar="MANIFEST")
@click.option("-o", "--output", required=True, help="New folder.")
@click.option(
    "--data-root",
    help="Folder of the corpus, which a manifest calls {data_root}.",
)
@click.option(
    "--clips",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    help="Clips in a shard.",
)
@click.option("--seed", type=int, default=0, help="Of the order of the clips.")
def shards(manifest, output, data_root, clips, seed):
    """Write the clips of a manifest as shards in WebDataset's layout.

    A run of the recipe writes manifests: save/train.json and others.
    """
    from speechbrain_dslstm.training.shards import write_shards

    paths = write_shards(manifest, output, data_root, clips, seed)
    size = sum(path.stat().st_size for path in paths) / 1e6
    click.echo(f"{output}: {len(paths)} shards, {size:.1f} MB")
