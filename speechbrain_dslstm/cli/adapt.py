"""The command ``dslstm adapt``: feature statistics of the user's recordings."""

import click

from speechbrain_dslstm.cli.options import (
    MODEL,
    TRUST,
    command,
    load_classifier,
)

EXAMPLES = """
dslstm adapt recordings/ -o my-model
dslstm adapt recordings/ -o my-model --blend 0.5 --seconds 120
dslstm classify speech.wav -m my-model
"""


@command("adapt", EXAMPLES)
@click.argument("recordings", nargs=-1, required=True, metavar="FILE|FOLDER...")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False),
    help="Model folder to write; it must not exist.",
)
@click.option(
    "--blend",
    type=float,
    default=1.0,
    show_default=True,
    help="Weight of the recordings' statistics in [0, 1]; those of the "
    "training set have the rest.",
)
@click.option(
    "--seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="Least amount of speech in the recordings.",
)
@MODEL
@TRUST
def adapt(recordings, output, blend, seconds, model, trusted):
    """Adapt a model to recordings without labels.

    OUTPUT is a new model folder. Mean and deviation of the features of the
    recordings take the place of those of the training set. Recordings without
    speech are skipped.
    """
    from speechbrain_dslstm.pretrained.card import write_adapted_card
    from speechbrain_dslstm.pretrained.origin import read_origin
    from speechbrain_dslstm.utils.files import new_folder

    classifier = load_classifier(model, trusted)
    with new_folder(output) as folder:
        adapted = classifier.adapt(recordings, blend=blend, seconds=seconds)
        adapted.save(folder)
        found = adapted.adaptation
        facts = read_origin(model).facts()
        write_adapted_card(folder, facts, found.describe(), adapted.labels)
    for reason in found.skipped.values():
        click.echo(f"skipped: {reason}", err=True)
    click.echo(f"{output}  adapted to {found.describe()}")
