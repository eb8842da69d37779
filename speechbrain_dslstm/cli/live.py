"""Answers while audio arrives, for the commands ``stream`` and ``mic``."""

import json
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import click

from speechbrain_dslstm.cli.options import SECONDS
from speechbrain_dslstm.cli.rows import to_posteriors

# The imports inside the functions keep "dslstm --help" fast
if TYPE_CHECKING:
    import numpy as np
    import torch

    from speechbrain_dslstm.inference.classifier import EmotionClassifier

DECAY = 1.0  # seconds; docs/inference.md, Streams
CELL = 0.1  # seconds of channels that are mixed in one way
OPTIONS = [
    click.option(
        "--every",
        type=SECONDS,
        default=0.5,
        show_default=True,
        help="Seconds between answers.",
    ),
    click.option(
        "--window",
        type=SECONDS,
        help="Answer for the last seconds.  [default: 4]",
    ),
    click.option(
        "--decay",
        type=SECONDS,
        help="Average the answers over time, with this time constant in "
        f"seconds.  [default: {DECAY:g}; none with --window]",
    ),
    click.option(
        "--whole",
        is_flag=True,
        help="Answer for all audio so far, as for one utterance.",
    ),
    click.option(
        "--channel",
        metavar="mix|N",
        default="mix",
        show_default=True,
        help="Mix the channels, or take channel N, from 0.",
    ),
]


def live_options(function: Callable) -> Callable:
    """Add the options of both commands."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


class Stoppable:
    """Ends a source of audio at Ctrl-C, so that the final answer still comes.

    A second Ctrl-C ends the program.
    """

    def __init__(self) -> None:
        self.stopped = self._waiting = False

    def __enter__(self) -> "Stoppable":
        self._before = signal.signal(signal.SIGINT, self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _stop(self, *_):
        again, self.stopped = self.stopped, True
        if again or self._waiting:
            raise KeyboardInterrupt

    def read(self, source: Iterable) -> Iterator:
        """Yield from a source until it ends or Ctrl-C is pressed."""
        source = iter(source)
        while not self.stopped:
            try:
                self._waiting = True
                block = next(source)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._waiting = False
            yield block


def open_stream(
    classifier: "EmotionClassifier",
    window: float | None,
    decay: float | None,
    whole: bool,
    normalization: str | None,
    every: float,
    any_sound: bool,
) -> "LiveAnswers":
    """Start a stream that the options of the command line describe."""
    if whole and (window is not None or decay is not None):
        raise click.UsageError("--whole takes no --window and no --decay")
    if normalization is not None and not whole:
        raise click.UsageError(
            "--normalization requires --whole: a window is normalised as the "
            "model was trained"
        )
    if whole:
        options = {"normalization": normalization}
    else:
        from speechbrain_dslstm.inference.windowed_stream import HOP, WINDOW

        if window is None and decay is None:
            decay = DECAY
        window = WINDOW if window is None else window
        hop = min(HOP, every)
        options = {"window": window, "decay": decay, "hop": hop}
        options["speech_only"] = not any_sound
    return LiveAnswers(classifier, options, every, any_sound)


class LiveAnswers:
    """Turns blocks of audio of any rate and channels into rows of answers."""

    def __init__(
        self,
        classifier: "EmotionClassifier",
        options: dict,
        every: float,
        any_sound: bool,
    ) -> None:
        self.classifier = classifier
        self.opened = classifier.stream(**options)
        self.rate = classifier.hparams.sample_rate
        self.size = max(1, round(every * self.rate))
        # A stream of a whole utterance does not look for speech itself
        self.missing = None if any_sound or "window" in options else "silence"
        self._recent = None  # the last three seconds

    def rows(
        self,
        blocks: Iterable["np.ndarray"],
        rate: int,
        channels: int,
        channel: int | str,
        name: str,
    ) -> Iterator[dict]:
        """Yield a row of output every few seconds, and the final one.

        ``blocks`` are float32 [samples, channels] at ``rate`` Hz, and ``name``
        is that of the source.
        """
        import torch

        from speechbrain_dslstm.audio.channels import select_channels
        from speechbrain_dslstm.audio.reading import resample

        mono = select_channels(blocks, channel, rate, channels, name, CELL)
        held = torch.zeros(0)
        for piece in resample(mono, rate, self.rate, channels=1):
            held = torch.cat([held, torch.from_numpy(piece[:, 0])])
            while len(held) >= self.size:
                yield from self._row(held[: self.size], final=False)
                held = held[self.size :]
        if not self.opened.samples and not len(held):
            raise click.ClickException(f"no audio on {name}")
        yield from self._row(held, final=True)

    def _row(self, samples, final):
        found = self.opened.push(samples)
        if final:
            found = self.opened.finish()
        seconds = round(self.opened.samples / self.rate, 3)
        row = {"seconds": seconds, "final": final}
        reason = self._reason(samples)
        if reason:
            yield {**row, "reason": reason}
        elif found is not None:
            labels = self.classifier.labels
            row["label"] = labels[int(found.argmax())]
            row["posteriors"] = to_posteriors(labels, found)
            if self.classifier.dimensions:
                row["dimensions"] = self.opened.dimensions()
            yield row

    def _reason(self, samples: "torch.Tensor") -> str | None:
        """Why there is no answer: no speech in the window, or none so far."""
        if hasattr(self.opened, "reason"):
            return self.opened.reason
        if self.missing:
            import torch

            from speechbrain_dslstm.inference.speech_activity import (
                measure_activity,
            )

            if self._recent is not None:
                samples = torch.cat([self._recent, samples])
            self._recent = samples[-3 * self.rate :]
            self.missing = measure_activity(self._recent, self.rate).reason
        return self.missing


def to_channel(text: str) -> int | str:
    """Channel of the command line: "mix", or an index from 0."""
    if text == "mix":
        return text
    if not text.isdecimal():
        raise click.BadParameter(f"{text} is not mix or an index from 0")
    return int(text)


def print_json(row: dict) -> None:
    """Write a row as one line of JSON at once."""
    print(json.dumps(row), flush=True)
