"""The command ``dslstm stream``: answers while audio arrives."""

import json
import sys
from collections.abc import Iterator

import click

from speechbrain_dslstm.cli.options import (
    ANY_SOUND,
    JSON,
    MODEL,
    NORMALIZATION,
    TRUST,
    command,
    load_classifier,
)
from speechbrain_dslstm.cli.rows import to_posteriors, write_text

EXAMPLES = """
arecord -q -f S16_LE -r 16000 -c 1 | dslstm stream
ffmpeg -i talk.mp4 -f s16le -ac 1 -ar 16000 - | dslstm stream --json
"""


@command("stream", EXAMPLES)
@MODEL
@TRUST
@click.option(
    "--every",
    type=click.FloatRange(0.05),
    default=0.5,
    show_default=True,
    help="Seconds between answers.",
)
@NORMALIZATION
@JSON
@ANY_SOUND
def stream(model, trusted, every, normalization, as_json, any_sound):
    """Classify audio on standard input.

    It is raw PCM, 16-bit little-endian mono at the model's sample rate, and
    is classified while it arrives.
    """
    import torch

    from speechbrain_dslstm.inference.speech_activity import measure_activity

    classifier = load_classifier(model, trusted)
    opened = classifier.stream(normalization)
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
            row["posteriors"] = to_posteriors(classifier.labels, found)
            if classifier.dimensions:
                row["dimensions"] = opened.dimensions()
        if as_json:
            click.echo(json.dumps(row))
        else:
            write_text({"file": f"{row['seconds']:8.2f}", **row})
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
