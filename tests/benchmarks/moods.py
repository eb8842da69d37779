"""How fast and how well a stream follows a change of the speaker's mood.

    python tests/benchmarks/moods.py [--window 4] [--decay 1] [--folder data/emodb]

For each speaker and pair of emotions 60 s of the first and 30 s of the second
are streamed. The shipped model has learnt most of these clips: the numbers show
the delay of the stream, not the quality of the model.
"""

import sys
import time
from pathlib import Path

import click
import numpy as np
import torch

from speechbrain_dslstm.corpora.emodb import EMOTIONS
from speechbrain_dslstm.inference import load_safe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "helpers"))
from moods import join_clips  # noqa: E402

PAIRS = ["WT", "TW", "NW", "LW", "TF"]
SPEAKERS = ["03", "08", "09", "10", "11", "12", "13", "14", "15", "16"]


@click.command()
@click.option("--window", type=float, default=4.0)
@click.option("--decay", type=float)
@click.option("--folder", type=Path, default=Path("data/emodb"))
def main(window, decay, folder):
    """Print the delays and the shares of right answers."""
    torch.set_num_threads(1)
    classifier = load_safe("pretrained/emotion-dslstm-emodb")
    rows, spent = [], 0.0
    for speaker in SPEAKERS:
        for first, second in PAIRS:
            parts = [
                join_clips(folder, speaker, first, 60),
                join_clips(folder, speaker, second, 30),
            ]
            if any(part is None for part in parts):
                continue
            stream = classifier.stream(window=window, decay=decay)
            started, labels = time.perf_counter(), []
            for chunk in torch.cat(parts).split(8000):
                found = stream.push(chunk)
                best = None if found is None else int(found.argmax())
                labels.append(None if best is None else classifier.labels[best])
            spent += time.perf_counter() - started
            seconds = np.arange(1, len(labels) + 1) / 2
            labels = np.array(labels)
            right = labels == EMOTIONS[second]
            found = seconds[(seconds > 60) & right]
            before = (seconds >= 6) & (seconds <= 60)
            rows.append(
                (
                    found[0] - 60 if len(found) else np.inf,
                    right[seconds == 66][0],
                    (labels == EMOTIONS[first])[before].mean(),
                    right[seconds >= 66].mean(),
                )
            )
    delays, at_six, old, new = np.array(rows, dtype=float).T
    print(
        f"{len(rows)} changes: found after {np.median(delays):.1f} s (median), "
        f"{delays.max():.1f} s (longest); right after 6 s {at_six.mean():.2f}; "
        f"right before {old.mean():.3f}, from 6 s on {new.mean():.3f}; "
        f"{1000 * spent / 90 / len(rows):.0f} ms per second of audio"
    )


if __name__ == "__main__":
    main()
