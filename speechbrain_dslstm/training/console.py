"""The console of a training run: a line for each epoch, and a bar on a terminal.

All log lines go to the run's log.txt; warnings are shown on the console as well
(``LOG_CONFIG``). In a job of several processes only the main one prints.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm

__all__ = ["LOG_CONFIG", "Progress", "make_loggers"]

# The form of SpeechBrain's own log-config.yaml
LOG_CONFIG = str(Path(__file__).with_name("log.yaml"))
COUNT = "{desc}: {n_fmt} batches [{elapsed}]"
BAR = "{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed} < {remaining}{postfix}]"


def make_loggers(folder: str | Path, tensorboard: bool = False) -> list:
    """Make SpeechBrain's loggers of epochs: train_log.txt, TensorBoard."""
    # At its import it warns of pictures that are never drawn
    name = "speechbrain.utils.train_logger"
    logging.getLogger(name).addFilter(
        lambda record: "torchvision" not in str(record.msg)
    )
    from speechbrain.utils.train_logger import (
        FileTrainLogger,
        TensorboardLogger,
    )

    loggers = [FileTrainLogger(str(Path(folder, "train_log.txt")))]
    if tensorboard:
        loggers.append(TensorboardLogger(str(Path(folder, "tensorboard"))))
    return loggers


class Progress:
    """Shows how far a training is.

    On a terminal, a bar stands on standard error until the epoch ends. Lines go
    to standard output.

    Arguments
    ---------
    bar
        Whether to show a bar on a terminal.

    Example
    -------
    >>> progress = Progress()
    >>> progress.start_epoch(9, 30, batches=20)
    >>> progress.end_epoch(1.2345, {"wa": 0.613, "ua": 0.5871})
    epoch  9/30  train loss 1.234  valid WA 61.3%  UA 58.7%  0 s
    >>> progress.start_epoch(10, 30, batches=20)
    >>> progress.end_epoch(1.2, {})
    epoch 10/30  train loss 1.200  0 s
    """

    def __init__(self, bar: bool = True) -> None:
        # None: only on a terminal
        self.hidden = None if bar and if_main_process() else True
        self.bar: tqdm | None = None
        self.title, self.started = "", 0.0

    def start_epoch(
        self, epoch: int, epochs: int, batches: int, done: int = 0
    ) -> None:
        """Open the bar of an epoch, of whose batches some may be done."""
        self.started = time.monotonic()
        self.title = f"epoch {epoch:>{len(str(epochs))}}/{epochs}"
        self._open(self.title, batches, done, BAR)

    def start_scoring(self) -> None:
        """Open a bar of batches that are evaluated."""
        self._open(f"{self.title} scoring".strip(), None, 0, COUNT)

    def _open(
        self, title: str, total: int | None, done: int, form: str
    ) -> None:
        self.stop()
        self.bar = tqdm(
            desc=title,
            total=total,
            initial=done,
            leave=False,
            dynamic_ncols=True,
            disable=self.hidden,
            bar_format=form,
        )

    def step(self, loss: float | None = None) -> None:
        """Count a batch, and show its loss."""
        if self.bar is not None:
            if loss is not None:
                self.bar.set_postfix_str(f"loss {loss:.2f}", refresh=False)
            self.bar.update()

    def stop(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if if_main_process():
            with tqdm.external_write_mode():
                print(line, flush=True)

    def end_epoch(self, loss: float, valid: Mapping[str, float]) -> None:
        """Remove the bar, and print the line of the epoch.

        ``valid`` has the validation scores, and is empty without validation.
        """
        self.stop()
        parts = [f"{self.title}  train loss {loss:.3f}"]
        if valid:
            parts.append(f"valid WA {valid['wa']:.1%}  UA {valid['ua']:.1%}")
        if "ccc" in valid:
            parts.append(f"CCC {valid['ccc']:.3f}")
        parts.append(f"{time.monotonic() - self.started:.0f} s")
        self.say("  ".join(parts))
        self.title = ""
