"""Options and helpers of several commands."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

# The imports inside the functions keep "dslstm --help" fast
if TYPE_CHECKING:
    from speechbrain_dslstm.inference.classifier import EmotionClassifier

DEFAULT_MODEL = "pretrained/emotion-dslstm-emodb"


def command(name: str, examples: str) -> Callable:
    """Make the decorator of a command.

    Its help is the function's docstring, then the examples.
    """
    lines = [f"  {line}" for line in examples.strip().splitlines()]
    epilog = "\b\nExamples:\n" + "\n".join(lines)
    return click.command(name, epilog=epilog)


# Options of several commands
MODEL = click.option(
    "-m",
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="Model folder, or the name of a model in the package.",
)
TRUST = click.option(
    "--trust-yaml",
    "trusted",
    is_flag=True,
    help="Load the model by its YAML, which can run any code, instead of "
    "model.json. Required for the id of a model on a hub.",
)
JSON = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object per line."
)
ANY_SOUND = click.option(
    "--any-sound", is_flag=True, help="Classify silence and noise, too."
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

    load = EmotionClassifier.from_hparams if trusted else load_safe
    return load(model, run_opts={"device": device} if device else None)
