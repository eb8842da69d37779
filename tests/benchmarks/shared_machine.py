"""What training and bulk scoring take beside other busy processes, and alone.

An epoch of ``dual_level`` over EMO-DB with cached features, and
``classify_files`` over 128 clips, with the threads that the package chooses, in
turns with one thread and with as many as there are CPUs.
"""

import contextlib
import subprocess
import sys
import tempfile

import torch
from corpus import emodb_clips, emodb_folder
from epoch import Epoch
from timing import Row, interleave

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.utils.threads import adapted_threads, count_cpus

PARITY = ["utils/test_threads.py", "inference/test_files.py"]
MODEL = "pretrained/emotion-dslstm-whisper"
CLIPS = 128


class AdaptedEpoch(Epoch):
    """An epoch with a number of threads, or with those that are free."""

    def run(self, number):
        """Train for an epoch with ``number`` threads; None: adapted."""
        with adapted_threads(number) as self.threads:
            self.ours()

    def learn(self, extracted, targets):
        """A training step, and a look at the other processes."""
        super().learn(extracted, targets)
        self.threads.adapt()


@contextlib.contextmanager
def busy(number):
    """Keep ``number`` processes busy in the block."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def rows(options):
    """Time everything.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for each row; an epoch is timed three times at least.

    Yields
    ------
    Row
        Against one thread beside two busy processes; against the faster of one
        and all threads on an idle machine.
    """
    folder, cpus = emodb_folder(), count_cpus()
    torch.set_num_threads(cpus)
    clips = emodb_clips()
    clips = clips[:: max(1, len(clips) // CLIPS)][:CLIPS]
    classifier = EmotionClassifier.from_hparams(MODEL)

    def classify(threads):
        classifier.classify_files(clips, progress=False, threads=threads)

    with tempfile.TemporaryDirectory() as cache:
        epoch = AdaptedEpoch("dual_level", folder, cache)
        epoch.run(1)
        for name, run in (("epoch", epoch.run), ("classify_files", classify)):
            calls = {
                "chosen": lambda run=run: run(None),
                "1 thread": lambda run=run: run(1),
                f"{cpus} threads": lambda run=run: run(cpus),
            }
            for others in (cpus, 0):
                with busy(others):
                    medians = interleave(calls, options.seconds, 3)
                fixed = list(medians.values())[1:]
                against = fixed[0] if others else min(fixed)
                yield Row(
                    "shared",
                    f"{name}, beside {others} busy processes",
                    medians["chosen"] / against,
                    1.5 if others else 1.05,
                    medians,
                )
