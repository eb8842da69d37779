"""The command ``dslstm explain``: a figure of one file."""

from pathlib import Path

import click

from speechbrain_dslstm.cli.options import (
    MODEL,
    TRUST,
    command,
    load_classifier,
)

EXAMPLES = """
dslstm explain speech.wav
dslstm explain speech.wav --output gates.pdf
"""


@command("explain", EXAMPLES)
@click.argument("file")
@MODEL
@TRUST
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="Figure: .png, .svg or .pdf.  [default: FILE.png in this folder]",
)
@click.option("--force", is_flag=True, help="Overwrite the figure.")
def explain(file, model, trusted, output, force):
    """Draw a figure of FILE.

    It shows both spectrograms, the posteriors and the input gates of the
    DS-LSTM over time.
    """
    from speechbrain_dslstm.audio.checks import LONGEST_CLIP
    from speechbrain_dslstm.audio.reading import load_audio
    from speechbrain_dslstm.inference.explain import explain, plot_explanation
    from speechbrain_dslstm.inference.speech_activity import check_speech
    from speechbrain_dslstm.utils.files import check_output

    output = Path(output or f"{Path(file).stem}.png")
    if output.suffix not in (".png", ".svg", ".pdf"):
        raise click.UsageError(f"{output} must end in .png, .svg or .pdf")
    check_output(output, force)
    classifier = load_classifier(model, trusted, "cpu")
    rate = classifier.hparams.sample_rate
    wav = load_audio(file, rate, LONGEST_CLIP)
    check_speech(wav, rate, file)
    mods = classifier.mods
    found = explain(mods.embedding_model, wav, mods.classifier, rate)
    best = found.posteriors[-1].argmax().item()
    label = classifier.labels[best]
    title = f"{Path(file).name}: {label} {found.posteriors[-1, best]:.2f}"
    plot_explanation(found, classifier.labels, output, title, force)
    click.echo(f"{output}  {label}")
