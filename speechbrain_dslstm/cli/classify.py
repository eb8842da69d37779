"""The command ``dslstm classify``: answers for files and folders."""

from collections.abc import Iterator

import click

from speechbrain_dslstm.cli.options import (
    ANY_SOUND,
    CHANNEL,
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
dslstm classify call.wav --channel each
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
@CHANNEL
@ANY_SOUND
def classify(
    files,
    model,
    trusted,
    as_json,
    as_csv,
    long,
    window,
    hop,
    below,
    channel,
    any_sound,
):
    """Classify audio files, or all audio files of a folder."""
    if as_json and as_csv:
        raise click.UsageError("choose either --json or --csv, not both")
    if not long and (hop is not None or window != 6.0):
        raise click.UsageError("--window and --hop require --long")
    classifier = load_classifier(model, trusted)
    options = {
        "unknown_below": below,
        "speech_only": not any_sound,
        "channel": channel,
    }
    places = [] if channel == "mix" else ["channel"]
    if long:
        options |= {"window": window, "hop": hop}
        places += ["start", "end"]
    find_rows = _rows_of_windows if long else _rows_of_files
    rows = find_rows(classifier, files, options)
    unread = False
    write = make_writer(
        as_json, as_csv, [*classifier.labels, *classifier.dimensions], places
    )
    for row in rows:
        write(row)
        unread |= bool(row.get("error")) and not row.get("reason")
    if unread:
        click.get_current_context().exit(1)


def _rows_of_files(classifier, files, options) -> Iterator[dict]:
    """Yield a row of output for each file."""
    results = classifier.classify_files(list(files), **options)
    _report(results.summary)
    for result in results:
        yield {
            "file": str(result.path),
            **_channel(result.channel),
            "label": result.label,
            "posteriors": to_posteriors(
                classifier.labels, result.log_posteriors
            ),
            "dimensions": result.dimensions or None,
            "reason": result.reason,
            "error": result.error,
        }


def _channel(index):
    return {} if index is None else {"channel": index}


def _report(summary):
    """Print which files of folders were passed over."""
    if summary:
        click.echo(f"dslstm: {summary}", err=True)


def _rows_of_windows(classifier, files, options) -> Iterator[dict]:
    """Yield a row of output for each window of each file."""
    from speechbrain_dslstm.audio.checks import AudioError
    from speechbrain_dslstm.inference.folders import find_audio

    found = find_audio(list(files))
    _report(found.summary)
    for path in found:
        try:
            for segment in classifier.classify_long(path, **options):
                yield {
                    "file": str(path),
                    **_channel(segment.channel),
                    "start": round(segment.start, 3),
                    "end": round(segment.end, 3),
                    "label": segment.label,
                    "posteriors": to_posteriors(
                        classifier.labels, segment.log_posteriors
                    ),
                    "dimensions": segment.dimensions or None,
                    "reason": segment.reason,
                }
        except AudioError as error:
            yield {"file": str(path), "error": str(error)}
