"""The command ``dslstm classify``: answers for files and folders."""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from speechbrain_dslstm.cli.options import (
    ANY_SOUND,
    CHANNEL,
    JSON,
    MODEL,
    SECONDS,
    THREADS,
    TRUST,
    UNKNOWN_BELOW,
    command,
    load_classifier,
)
from speechbrain_dslstm.cli.rows import (
    make_format,
    make_writer,
    to_posteriors,
    write_out,
)

if TYPE_CHECKING:
    from speechbrain_dslstm.inference.classifier import EmotionClassifier

TOGETHER = 32  # files
ENOUGH = 8_000_000  # bytes of the files of a group
# So few files are done before the compiled loops would be loaded
FEW = 32
EXAMPLES = """
dslstm classify speech.wav
dslstm classify recordings/ --output emotions.csv
dslstm classify recordings/ --output emotions.csv --resume
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
@UNKNOWN_BELOW
@CHANNEL
@ANY_SOUND
@THREADS
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A new file, .csv or .jsonl, written row by row.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the --output file of a run that was stopped.",
)
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
    threads,
    output,
    resume,
):
    """Classify audio files, or all audio files of a folder."""
    kind = _kind(as_json, as_csv, output, resume)
    if not long and (hop is not None or window != 6.0):
        raise click.UsageError("--window and --hop require --long")
    if long and threads is not None:
        raise click.UsageError("--threads has no effect with --long")
    options = {
        "unknown_below": below,
        "speech_only": not any_sound,
        "channel": channel,
    }
    places = [] if channel == "mix" else ["channel"]
    if long:
        options |= {"window": window, "hop": hop}
        places += ["start", "end"]
    else:
        options["threads"] = threads
    paths = _find(files, output, resume)
    with ExitStack() as stack:
        if len(paths) <= FEW and not long:
            from speechbrain_dslstm.utils.loops import use_loops

            stack.enter_context(use_loops(False))
        classifier = load_classifier(model, trusted)
        columns = [*classifier.labels, *classifier.dimensions]
        form = make_format(kind, columns, places)
        if output is None:
            write, done = make_writer(form), {}
        else:
            from speechbrain_dslstm.cli.row_file import RowFile

            settings = {
                "--model": _digest(model),
                "--any-sound": any_sound,
                "--unknown-below": below,
                "--channel": channel,
                "--window": window if long else None,
                "--hop": hop,
            }
            file = stack.enter_context(RowFile(output, form, settings))
            write, done = file.write, file.done
        unread = _classify(classifier, paths, long, options, done, write)
    if output is not None:
        problem = f", {unread} could not be read" if unread else ""
        write_out(f"{output}  {len(paths)} files{problem}\n")
    if unread:
        click.get_current_context().exit(1)


def _kind(as_json, as_csv, output, resume):
    """Check the options of the output; return "text", "csv" or "json"."""
    if as_json and as_csv:
        raise click.UsageError("choose either --json or --csv, not both")
    given = "json" if as_json else "csv" if as_csv else None
    if output is None:
        if resume:
            raise click.UsageError("--resume requires --output")
        return given or "text"
    from speechbrain_dslstm.cli.row_file import ENDINGS

    kind = given or ENDINGS.get(output.suffix.lower())
    if kind is None:
        raise click.UsageError(
            f"--output {output} must end in .csv or .jsonl, or add --csv or "
            "--json"
        )
    return kind


def _find(files, output, resume) -> list[Path]:
    """List the files, each of them once if they go to a file."""
    if output is not None:
        from speechbrain_dslstm.cli.row_file import check_row_file

        check_row_file(output, resume)
    from speechbrain_dslstm.inference.folders import find_audio

    found = find_audio(list(files))
    if found.summary:
        click.echo(f"dslstm: {found.summary}", err=True)
    if output is None:
        return found
    return list({os.path.abspath(path): path for path in found}.values())


def _digest(model: str) -> str:
    """SHA-256 of a model's weights, or its name on a hub."""
    from speechbrain_dslstm.pretrained.sources import find_folder

    folder = find_folder(model)
    path = folder and folder / "model.ckpt"
    if not path or not path.is_file():
        return model
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _classify(
    classifier: "EmotionClassifier",
    paths: list[Path],
    long: bool,
    options: dict,
    done: dict[str, bool],
    write: Callable[[dict], None],
) -> int:
    """Write the rows of all files but those done; count the unread ones.

    A progress bar with the time left is shown on standard error if that is a
    terminal.
    """
    from tqdm import tqdm

    left = [path for path in paths if os.path.abspath(path) not in done]
    names = {os.path.abspath(path) for path in paths}
    unread = {name for name in names if not done.get(name, True)}
    total = round(sum(map(_seconds, left))) if long else len(paths)
    unit = " s of audio" if long else "file"
    with tqdm(total=total, unit=unit, disable=None) as bar:
        if long:
            rows = _rows_of_windows(classifier, left, options, bar)
        else:
            rows = _rows_of_files(classifier, paths, options, bar, done)
        for row in rows:
            write(row)
            if row.get("error") and not row.get("reason"):
                unread.add(os.path.abspath(row["file"]))
    return len(unread)


def _groups(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Yield files that are classified together.

    They depend on the order of all files alone, so that a run which was stopped
    gives the same answers to the last bit.
    """
    group, size = [], 0
    for path in paths:
        group.append(path)
        size += os.path.getsize(path) if os.path.exists(path) else 0
        if size > ENOUGH or len(group) == TOGETHER:
            yield group
            group, size = [], 0
    if group:
        yield group


def _rows_of_files(classifier, paths, options, bar, done) -> Iterator[dict]:
    """Yield a row of output for each file, or each channel of it."""
    for group in _groups(paths):
        left = {p for p in group if os.path.abspath(p) not in done}
        if left:
            for result in classifier.classify_files(
                group, progress=False, **options
            ):
                if result.path in left:
                    yield _row(classifier.labels, result)
        bar.update(len(group))


def _row(labels, result):
    return {
        "file": str(result.path),
        **_channel(result.channel),
        "label": result.label,
        "posteriors": to_posteriors(labels, result.log_posteriors),
        "dimensions": result.dimensions or None,
        "reason": result.reason,
        "error": result.error,
    }


def _channel(index):
    return {} if index is None else {"channel": index}


def _rows_of_windows(classifier, paths, options, bar) -> Iterator[dict]:
    """Yield a row of output for each window of each file."""
    from speechbrain_dslstm.audio.checks import AudioError

    before = 0.0
    for path in paths:
        end = 0.0
        try:
            for segment in classifier.classify_long(path, **options):
                end = segment.end
                yield {
                    "file": str(path),
                    **_channel(segment.channel),
                    "start": round(segment.start, 3),
                    "end": round(end, 3),
                    "label": segment.label,
                    "posteriors": to_posteriors(
                        classifier.labels, segment.log_posteriors
                    ),
                    "dimensions": segment.dimensions or None,
                    "reason": segment.reason,
                }
                bar.update(round(before + end) - bar.n)
        except AudioError as error:
            yield {"file": str(path), "error": str(error)}
        before += end


def _seconds(path):
    """Length of a file as its header says, 0 if it cannot be read."""
    from speechbrain_dslstm.audio.checks import AudioError
    from speechbrain_dslstm.audio.inputs import to_source
    from speechbrain_dslstm.audio.reading import open_audio

    try:
        with open_audio(to_source(path)) as file:
            return file.frames / file.samplerate
    except AudioError:
        return 0.0
