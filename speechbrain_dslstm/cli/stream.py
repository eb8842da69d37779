"""The command ``dslstm stream``: answers while audio arrives."""

import sys

import click

from speechbrain_dslstm.cli.live import (
    Stoppable,
    live_options,
    open_stream,
    print_json,
    to_channel,
)
from speechbrain_dslstm.cli.options import (
    ANY_SOUND,
    JSON,
    MODEL_OF_STREAMS,
    NORMALIZATION,
    TRUST,
    command,
    load_classifier,
)
from speechbrain_dslstm.cli.rows import write_text

EXAMPLES = """
arecord -q -f S16_LE -r 16000 -c 1 | dslstm stream
ffmpeg -i talk.mp4 -f wav - | dslstm stream --json
sox call.wav -t raw -e signed -b 16 - | dslstm stream --rate 8000 --channels 2
"""


@command("stream", EXAMPLES)
@MODEL_OF_STREAMS
@TRUST
@click.option(
    "--rate",
    type=click.IntRange(4000, 384000),
    help="Samples per second of raw PCM.  [default: the model's]",
)
@click.option(
    "--channels",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="Channels of raw PCM.",
)
@live_options
@NORMALIZATION
@JSON
@ANY_SOUND
def stream(
    model,
    trusted,
    rate,
    channels,
    every,
    window,
    decay,
    whole,
    channel,
    normalization,
    as_json,
    any_sound,
):
    """Classify audio on standard input while it arrives.

    It is raw PCM of 16 bits, little-endian, or WAV, whose header counts more
    than --rate and --channels. The answer follows the speaker: it is for the
    last seconds, or with --whole for all audio so far.
    """
    from speechbrain_dslstm.cli.raw_audio import NAME, RawAudio

    channel = to_channel(channel)
    if sys.stdin is None or sys.stdin.closed:
        raise click.ClickException(f"no audio on {NAME}")
    if sys.stdin.isatty():
        raise click.UsageError(
            f"{NAME} is a terminal: pipe audio into it, or use dslstm mic"
        )
    classifier = load_classifier(model, trusted)
    live = open_stream(
        classifier, window, decay, whole, normalization, every, any_sound
    )
    with Stoppable() as stop:
        rate = rate or classifier.hparams.sample_rate
        audio = RawAudio(sys.stdin.buffer, rate, channels)
        blocks = stop.read(audio.blocks(min(every, 0.5)))
        source = audio.rate, audio.channels, channel, NAME
        for row in live.rows(blocks, *source):
            if as_json:
                print_json(row)
            else:
                write_text({"file": f"{row['seconds']:8.2f}", **row})
                sys.stdout.flush()
