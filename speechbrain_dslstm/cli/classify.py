"""The command ``dslstm classify``: answers for files and folders."""

from collections.abc import Iterator

import click

from speechbrain_dslstm.cli.options import (
    ANY_SOUND,
    JSON,
    MODEL,
    SECONDS,
    TRUST,
    Number,
    command,
    load_classifier,
)
from speechbrain_dslstm.cli.rows import make_writer, to_posteriors

EXAMPLES = """
dslstm classify speech.wav
dslstm classify recordings/ --csv > emotions.csv
dslstm classify meeting.mp3 --long --window 5 --json
dslstm classify speech.wav --unknown-below 0.5
"""


@command("classify", EXAMPLES)
@click.argument("files", nargs=-1, required=True, metavar="FILE|FOLDER...")
@MODEL
@TRUST
@JSON
@click.option("--csv", "as_csv", is_flag=True, help="A table with a header.")
@click.option(
    "--long", is_flag=True, help="Classify each window of a recording."
)
@click.option(
    "--window",
    type=SECONDS,
    default=6.0,
    show_default=True,
    help="Length of a window in seconds, with --long.",
)
@click.option(
    "--hop",
    type=SECONDS,
    help="Seconds between the starts of windows.  [default: --window]",
)
@click.option(
    "--unknown-below",
    "below",
    type=Number(0, 1),
    metavar="P",
    help='Answer "unknown" if the highest posterior is below P.',
)
@ANY_SOUND
def classify(
    files, model, trusted, as_json, as_csv, long, window, hop, below, any_sound
):
    """Classify audio files, or all audio files of a folder."""
    if as_json and as_csv:
        raise click.UsageError("choose either --json or --csv, not both")
    if not long and (hop is not None or window != 6.0):
        raise click.UsageError("--window and --hop require --long")
    classifier = load_classifier(model, trusted)
    options = {"unknown_below": below, "speech_only": not any_sound}
    if long:
        options |= {"window": window, "hop": hop}
    find_rows = _rows_of_windows if long else _rows_of_files
    rows = find_rows(classifier, files, options)
    unread = False
    write = make_writer(
        as_json, as_csv, [*classifier.labels, *classifier.dimensions], long
    )
    for row in rows:
        write(row)
        unread |= bool(row.get("error")) and not row.get("reason")
    if unread:
        click.get_current_context().exit(1)


def _rows_of_files(classifier, files, options) -> Iterator[dict]:
    """Yield a row of output for each file."""
    for result in classifier.classify_files(list(files), **options):
        yield {
            "file": str(result.path),
            "label": result.label,
            "posteriors": to_posteriors(
                classifier.labels, result.log_posteriors
            ),
            "dimensions": result.dimensions or None,
            "reason": result.reason,
            "error": result.error,
        }


def _rows_of_windows(classifier, files, options) -> Iterator[dict]:
    """Yield a row of output for each window of each file."""
    from speechbrain_dslstm.audio import AudioError
    from speechbrain_dslstm.inference.files import find_audio

    for path in find_audio(list(files)):
        try:
            for found in classifier.classify_long(path, **options):
                yield {
                    "file": str(path),
                    "start": round(found.start, 3),
                    "end": round(found.end, 3),
                    "label": found.label,
                    "posteriors": to_posteriors(
                        classifier.labels, found.log_posteriors
                    ),
                    "dimensions": found.dimensions or None,
                    "reason": found.reason,
                }
        except AudioError as error:
            yield {"file": str(path), "error": str(error)}
