"""The command ``dslstm classify-dataset``: many recordings on many cores."""

import click

from speechbrain_dslstm.cli.options import (
    ANY_SOUND,
    CHANNEL,
    MODEL,
    TRUST,
    UNKNOWN_BELOW,
    Number,
    command,
)

EXAMPLES = """
dslstm classify-dataset recordings/ -o answers
dslstm classify-dataset calls.parquet -o answers --column path --workers 8
dslstm classify-dataset s3://bucket/shard-*.tar -o s3://bucket/answers --address auto
"""


@command("classify-dataset", EXAMPLES)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "-o",
    "--output",
    required=True,
    help="Folder or address of the answers, as Parquet files.",
)
@MODEL
@TRUST
@click.option(
    "--column",
    default="file",
    show_default=True,
    help="Column of a table that names the files.",
)
@UNKNOWN_BELOW
@CHANNEL
@ANY_SOUND
@click.option(
    "--workers",
    type=click.IntRange(1),
    help="Number of processes.  [default: as many as Ray has CPUs, or GPUs for]",
)
@click.option(
    "--gpus",
    type=Number(0),
    default=0,
    help="GPUs for each worker, such as 1 or 0.25.",
)
@click.option(
    "--address",
    help="Of a Ray cluster, or auto.  [default: Ray starts on this machine]",
)
@click.option(
    "--files-at-once",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Recordings in a part; a worker that dies begins its part anew.",
)
@click.option(
    "--retry",
    is_flag=True,
    help="Try the recordings again whose row is an error.",
)
def classify_dataset(sources, output, model, trusted, below, any_sound, **more):
    """Classify folders, tables and shards of recordings with Ray.

    SOURCE is an audio file, a folder, a table with a column of files (Parquet,
    CSV, JSON Lines) or a shard (.tar), on disk or at an address that fsspec
    opens. The same command goes on after a stop: no recording is answered
    twice, and none is lost.
    """
    try:
        import ray.data  # noqa: F401

        from speechbrain_dslstm.bulk.job import classify_dataset as run
    except ImportError as error:
        raise ImportError(
            f'{error}: pip install "speechbrain-dslstm[ray]"'
        ) from error
    summary = run(
        sources,
        output,
        model,
        trusted=trusted,
        unknown_below=below,
        speech_only=not any_sound,
        **more,
    )
    if summary.passed_over:
        click.echo(f"dslstm: {summary.passed_over}", err=True)
    click.echo(summary)
    if summary.workers:
        click.echo(_speed(summary))
    if summary.failed:
        click.get_current_context().exit(1)


def _speed(summary):
    """Line on the time that this start has taken."""
    done = f"{summary.seconds:.0f} s with {summary.workers} workers"
    return f"{done}, {summary.cpu_seconds:.0f} s of CPU time"
