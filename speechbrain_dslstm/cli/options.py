"""Options and helpers of several commands."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from speechbrain_dslstm.pretrained.names import DEFAULT_MODEL, STREAM_MODEL

# The imports inside the functions keep "dslstm --help" fast
if TYPE_CHECKING:
    from speechbrain_dslstm.inference.classifier import EmotionClassifier


def command(name: str, examples: str) -> Callable:
    """Make the decorator of a command.

    Its help is the function's docstring, then the examples.
    """
    lines = [f"  {line}" for line in examples.strip().splitlines()]
    epilog = "\b\nExamples:\n" + "\n".join(lines)
    return click.command(name, epilog=epilog)


class Number(click.ParamType):
    """A finite number from ``least`` to ``most``; click's own lets NaN pass."""

    name = "number"

    def __init__(self, least: float, most: float = math.inf) -> None:
        self.least, self.most = least, most

    def convert(
        self,
        value: object,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Return the number that a user typed, or refuse it."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a number", param, ctx)
        # Comparisons with NaN are false
        if not (self.least <= number <= self.most and math.isfinite(number)):
            most = "" if math.isinf(self.most) else f" to {self.most:g}"
            least = "at least " if not most else ""
            expected = f"{least}{self.least:g}{most}"
            self.fail(f"{value} is not {expected}", param, ctx)
        return number


SECONDS = Number(0.02, 86400)


def _model(default):
    """Make the option -m, with a default model."""
    return click.option(
        "-m",
        "--model",
        default=default,
        show_default=True,
        help="Model folder, or the name of a model in the package.",
    )


# Options of several commands
MODEL = _model(DEFAULT_MODEL)
MODEL_OF_STREAMS = _model(STREAM_MODEL)
TRUST = click.option(
    "--trust-yaml",
    "trusted",
    is_flag=True,
    help="Load the model by its YAML, which can run any code, instead of "
    "model.json. Required for the id of a model on a hub.",
)
THREADS = click.option(
    "--threads",
    type=click.IntRange(1),
    help="Batches at a time.  [default: number of CPUs, at most 4]",
)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object per line."
)
ANY_SOUND = click.option(
    "--any-sound", is_flag=True, help="Classify silence and noise, too."
)
UNKNOWN_BELOW = click.option(
    "--unknown-below",
    "below",
    type=Number(0, 1),
    metavar="P",
    help='Answer "unknown" if the highest posterior is below P.',
)


def _check_channel(context, parameter, value):
    if value in ("mix", "each"):
        return value
    if not value.isdecimal():
        raise click.BadParameter(f"{value} is not mix, each or an index from 0")
    return int(value)


CHANNEL = click.option(
    "--channel",
    default="mix",
    show_default=True,
    metavar="mix|each|N",
    callback=_check_channel,
    help="Mix the channels, classify each, or channel N, from 0.",
)
NORMALIZATION = click.option(
    "--normalization",
    type=click.Choice(["running", "training"]),
    help="For a model that subtracts each utterance's mean, which a stream "
    "cannot know: subtract the running mean, or none.  [default of stream: "
    "running]",
)


def load_classifier(
    model: str, trusted: bool, device: str | None = None
) -> "EmotionClassifier":
    """Load a classifier; no YAML is run unless the user trusts the folder."""
    from speechbrain_dslstm.inference.classifier import (
        EmotionClassifier,
        load_safe,
    )
    from speechbrain_dslstm.pretrained.card import describe_licence
    from speechbrain_dslstm.pretrained.sources import find_folder
    from speechbrain_dslstm.utils.threads import limit_threads

    limit_threads()
    load = EmotionClassifier.from_hparams if trusted else load_safe
    folder = find_folder(model)
    licence = folder and describe_licence(folder)
    if licence:
        click.echo(licence, err=True)
    return load(model, run_opts={"device": device} if device else None)
