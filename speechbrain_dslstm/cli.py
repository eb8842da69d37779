"""The command ``dslstm``: emotions of files, folders and streams.

Exit status 0: each file has an emotion, or a reason why it has none. 1: a file
could not be read, or the output was closed. 2: a wrong command line, a missing
model or another error, which is one line on standard error.
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

# The imports inside the functions keep "dslstm --help" fast
if TYPE_CHECKING:
    from speechbrain_dslstm.inference.classifier import EmotionClassifier

DEFAULT_MODEL = "pretrained/emotion-dslstm-emodb"
EXAMPLES = """\
dslstm classify speech.wav
dslstm classify recordings/ --csv > emotions.csv
dslstm classify meeting.mp3 --long --window 5 --json
dslstm classify speech.wav --unknown-below 0.5
arecord -q -f S16_LE -r 16000 -c 1 | dslstm stream
ffmpeg -i talk.mp4 -f s16le -ac 1 -ar 16000 - | dslstm stream --json
dslstm export model.onnx
dslstm export small.onnx --int8
dslstm export step.onnx --step --normalization running
dslstm export model.pt2
dslstm info runs/dual_level/emodb/session/training/fold0_seed1234/model
dslstm explain speech.wav
dslstm explain speech.wav --output gates.pdf
"""


def _command(name: str, help_text: str) -> Callable:
    """Return the decorator of a sub-command; its help ends with examples."""
    lines = [line for line in EXAMPLES.splitlines() if f"dslstm {name}" in line]
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
    return cli.command(name, help=help_text, epilog=epilog)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Each command has its own --help with examples.",
)
@click.version_option(package_name="speechbrain-dslstm")
def cli() -> None:
    """Speech emotion recognition with the Dual-Sequence LSTM."""
    # File names that are not valid UTF-8 are printed as they were given
    sys.stdout.reconfigure(errors="surrogateescape")


# Options of several commands
_MODEL = click.option(
    "-m",
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="Model folder, or the name of a model in the package.",
)
_TRUST = click.option(
    "--trust-yaml",
    "trusted",
    is_flag=True,
    help="Load the model by its YAML, which can run any code, instead of "
    "model.json. Required for the id of a model on a hub.",
)
_JSON = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object per line."
)
_ANY_SOUND = click.option(
    "--any-sound", is_flag=True, help="Classify silence and noise, too."
)
_NORMALIZATION = click.option(
    "--normalization",
    type=click.Choice(["running", "training"]),
    help="For a model that subtracts each utterance's mean, which a stream "
    "cannot know: subtract the running mean, or none.  [default of stream: "
    "running]",
)


def _load(model, trusted, device=None) -> "EmotionClassifier":
    """Load a classifier; no YAML is run unless the user trusts the folder."""
    from speechbrain_dslstm.inference.classifier import (
        EmotionClassifier,
        load_safe,
    )

    load = EmotionClassifier.from_hparams if trusted else load_safe
    return load(model, run_opts={"device": device} if device else None)


def _probability(context, parameter, value):
    if value is not None and not 0 <= value <= 1:
        raise click.BadParameter(f"{value} is not a probability in [0, 1]")
    return value


@_command("classify", "Classify audio files, or all audio files of a folder.")
@click.argument("files", nargs=-1, required=True, metavar="FILE|FOLDER...")
@_MODEL
@_TRUST
@_JSON
@click.option("--csv", "as_csv", is_flag=True, help="A table with a header.")
@click.option(
    "--long", is_flag=True, help="Classify each window of a recording."
)
@click.option(
    "--window",
    type=float,
    default=6.0,
    show_default=True,
    help="Length of a window in seconds, with --long.",
)
@click.option(
    "--hop",
    type=float,
    help="Seconds between the starts of windows.  [default: --window]",
)
@click.option(
    "--unknown-below",
    "below",
    type=float,
    metavar="P",
    callback=_probability,
    help='Answer "unknown" if the highest posterior is below P.',
)
@_ANY_SOUND
def _classify(
    files, model, trusted, as_json, as_csv, long, window, hop, below, any_sound
):
    if as_json and as_csv:
        raise click.UsageError("choose either --json or --csv, not both")
    if not long and (hop is not None or window != 6.0):
        raise click.UsageError("--window and --hop require --long")
    classifier = _load(model, trusted)
    options = {"unknown_below": below, "speech_only": not any_sound}
    if long:
        options |= {"window": window, "hop": hop}
    find_rows = _rows_of_windows if long else _rows_of_files
    rows = find_rows(classifier, files, options)
    unread = False
    write = _writer(as_json, as_csv, classifier.labels, long)
    for row in rows:
        write(row)
        unread |= bool(row.get("error")) and not row.get("reason")
    if unread:
        click.get_current_context().exit(1)


def _posteriors(labels, log_posteriors) -> dict[str, float] | None:
    if log_posteriors is None:
        return None
    values = log_posteriors.exp().tolist()
    return dict(zip(labels, values, strict=True))


def _rows_of_files(classifier, files, options) -> Iterator[dict]:
    """Yield a row of output for each file."""
    for result in classifier.classify_files(list(files), **options):
        yield {
            "file": str(result.path),
            "label": result.label,
            "posteriors": _posteriors(classifier.labels, result.log_posteriors),
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
                    "posteriors": _posteriors(
                        classifier.labels, found.log_posteriors
                    ),
                    "reason": found.reason,
                }
        except AudioError as error:
            yield {"file": str(path), "error": str(error)}


def _writer(as_json, as_csv, labels, long) -> Callable[[dict], None]:
    """Return the function that writes one row as JSON, CSV or text."""
    if as_json:
        return lambda row: click.echo(
            json.dumps({k: v for k, v in row.items() if v is not None})
        )
    if as_csv:
        times = ["start", "end"] if long else []
        names = ["file", *times, "label", *labels, "reason", "error"]
        table = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        table.writeheader()

        def write(row: dict) -> None:
            """Write one line of the table."""
            posteriors = row.pop("posteriors", None) or {}
            posteriors = {k: f"{v:.6f}" for k, v in posteriors.items()}
            table.writerow({**row, **posteriors})

        return write
    return _write_text


def _write_text(row: dict) -> None:
    where = row["file"]
    if "start" in row:
        where += f"  {row['start']:8.2f} {row['end']:8.2f}"
    if not row.get("posteriors"):
        if row.get("reason"):
            click.echo(f"{where}  - ({row['reason']})")
        else:
            click.echo(f"dslstm: {row['error']}", err=True)
        return
    ranked = sorted(row["posteriors"].items(), key=lambda item: -item[1])
    shown = "  ".join(f"{label} {value:.2f}" for label, value in ranked[:3])
    click.echo(f"{where}  {row['label']}  [{shown}]")


@_command(
    "stream",
    "Classify audio on standard input. It is raw PCM, 16-bit little-endian "
    "mono at the model's sample rate, and is classified while it arrives.",
)
@_MODEL
@_TRUST
@click.option(
    "--every",
    type=click.FloatRange(0.05),
    default=0.5,
    show_default=True,
    help="Seconds between answers.",
)
@_NORMALIZATION
@_JSON
@_ANY_SOUND
def _stream(model, trusted, every, normalization, as_json, any_sound):
    import torch

    from speechbrain_dslstm.inference.speech_activity import measure_activity

    classifier = _load(model, trusted)
    needed = "running" if _centres(classifier) else None
    opened = classifier.stream(normalization or needed)
    rate = classifier.hparams.sample_rate
    recent, reason = torch.zeros(0), None if any_sound else "silence"
    for samples, ended in _pcm(round(every * rate)):
        found = opened.push(samples)
        if ended and opened.samples:
            found = opened.finish()
        if reason:
            # Kept until the last three seconds contain speech
            recent = torch.cat([recent, samples])[-3 * rate :]
            reason = measure_activity(recent, rate).reason
        if found is None:
            continue
        row = {"seconds": round(opened.samples / rate, 3), "final": ended}
        if reason:
            row["reason"] = reason
        else:
            row["label"] = classifier.label_posteriors(found.unsqueeze(0))[3][0]
            row["posteriors"] = _posteriors(classifier.labels, found)
        if as_json:
            click.echo(json.dumps(row))
        else:
            _write_text({"file": f"{row['seconds']:8.2f}", **row})
        sys.stdout.flush()
    if not opened.samples:
        raise click.ClickException("no audio on standard input")


def _pcm(size: int) -> Iterator[tuple]:
    """Yield chunks of standard input, and whether each one is the last."""
    import numpy as np
    import torch

    ended = False
    while not ended:
        # Fewer bytes than requested mark the end
        data = sys.stdin.buffer.read(2 * size)
        ended = len(data) < 2 * size
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2") / 32768
        yield torch.from_numpy(samples.astype(np.float32)), ended


def _centres(classifier) -> bool:
    """Whether the model subtracts the mean of each whole utterance."""
    streams = classifier.mods.embedding_model.streams.values()
    return any(s.normalization.center_utterances for s in streams)


@_command(
    "export",
    "Write the model to OUTPUT. This is an ONNX file (.onnx) or a torch.export "
    "program (.pt2) from the waveform to the posteriors.",
)
@click.argument("output", type=click.Path(dir_okay=False))
@_MODEL
@_TRUST
@click.option("--int8", is_flag=True, help="Store weights as 8-bit integers.")
@click.option("--step", is_flag=True, help="Export one step of a stream.")
@_NORMALIZATION
def _export(output, model, trusted, int8, step, normalization):
    import torch

    from speechbrain_dslstm.export import onnx_export as exporter

    output = Path(output)
    if output.suffix not in (".onnx", ".pt2"):
        raise click.UsageError(f"{output} must end in .onnx or .pt2")
    if output.suffix == ".pt2" and (int8 or step):
        raise click.UsageError("--int8 and --step require a .onnx file")
    classifier = _load(model, trusted, "cpu").with_normalization(normalization)
    if output.suffix == ".pt2":
        torch.export.save(exporter.export_torch(classifier), output)
    else:
        write = exporter.export_step_onnx if step else exporter.export_onnx
        whole = output.with_suffix(".float.onnx") if int8 else output
        write(classifier, whole)
        if int8:
            exporter.quantize_onnx(whole, output)
            whole.unlink()
    click.echo(f"{output}  {output.stat().st_size / 1e6:.2f} MB")


@_command("info", "Show the classes, branches and sizes of a MODEL folder.")
@click.argument("model", default=DEFAULT_MODEL)
def _info(model):
    from speechbrain_dslstm.inference.classifier import load_safe
    from speechbrain_dslstm.pretrained.safe_format import read_description
    from speechbrain_dslstm.pretrained.sources import find_folder

    folder = find_folder(model)
    if folder is None:
        raise click.ClickException(f"no model folder {model}")
    data = read_description(folder)
    classifier = load_safe(folder)
    loaded = classifier.mods.embedding_model
    parameters = sum(p.numel() for p in loaded.parameters())
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    branches = {
        type(branch).__name__: loaded.branch_weights[name]
        for name, branch in loaded.branches.items()
    }
    rows = {
        "folder": folder,
        "classes": ", ".join(data["labels"]),
        "sample rate": f"{data['sample_rate']} Hz",
        "branches": ", ".join(f"{n} ({w:g})" for n, w in branches.items()),
        "parameters": f"{parameters:,}",
        "size": f"{size / 1e6:.1f} MB",
        "temperature": f"{data['temperature']:.3f}",
        "utterance mean": (
            "subtracted (a stream subtracts the running mean)"
            if _centres(classifier)
            else "kept"
        ),
        "shortest clip": f"{loaded.min_samples / data['sample_rate']:.2f} s",
        "sha256": data["sha256"],
    }
    for name, value in rows.items():
        click.echo(f"{name:15} {value}")


@_command(
    "explain",
    "Draw a figure of FILE. It shows both spectrograms, the posteriors and the "
    "input gates of the DS-LSTM over time.",
)
@click.argument("file")
@_MODEL
@_TRUST
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    help="Figure: .png, .svg or .pdf.  [default: FILE.png in this folder]",
)
def _explain(file, model, trusted, output):
    from speechbrain_dslstm.audio import LONGEST_CLIP, load_audio
    from speechbrain_dslstm.inference.explain import explain, plot_explanation
    from speechbrain_dslstm.inference.speech_activity import check_speech

    classifier = _load(model, trusted, "cpu")
    rate = classifier.hparams.sample_rate
    wav = load_audio(file, rate, LONGEST_CLIP)
    check_speech(wav, rate, file)
    mods = classifier.mods
    found = explain(mods.embedding_model, wav, mods.classifier, rate)
    best = found.posteriors[-1].argmax().item()
    label = classifier.labels[best]
    output = Path(output or f"{Path(file).stem}.png")
    title = f"{Path(file).name}: {label} {found.posteriors[-1, best]:.2f}"
    plot_explanation(found, classifier.labels, output, title)
    click.echo(f"{output}  {label}")


def main() -> None:
    """Run the command line, with errors as one line and without a traceback."""
    try:
        status = cli.main(prog_name="dslstm", standalone_mode=False)
    except click.exceptions.Exit as stop:
        status = stop.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "dslstm"
        status = _complain(f"{error.format_message()} (see {command} --help)")
    except click.ClickException as error:
        status = _complain(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except (ValueError, OSError, ImportError) as error:
        status = _complain(str(error))
    sys.exit(status)


def _complain(message: str) -> int:
    """Print an error as one line; return the exit status."""
    click.echo(f"dslstm: {' '.join(message.split())}", err=True)
    return 2


if __name__ == "__main__":
    main()
