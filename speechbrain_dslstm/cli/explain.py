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
    type=click.Path(dir_okay=False),
    help="Figure: .png, .svg or .pdf.  [default: FILE.png in this folder]",
)
def explain(file, model, trusted, output):
    """Draw a figure of FILE.

    It shows both spectrograms, the posteriors and the input gates of the
    DS-LSTM over time.
    """
    from speechbrain_dslstm.audio import LONGEST_CLIP, load_audio
    from speechbrain_dslstm.inference.explain import explain, plot_explanation
    from speechbrain_dslstm.inference.speech_activity import check_speech

    classifier = load_classifier(model, trusted, "cpu")
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
