"""A stream that follows the speaker: the answer for its last seconds.

A recurrence over a whole call keeps the mood of its beginning. Here every
``hop`` seconds the last ``window`` seconds are classified as a recording of
their own, with the normalisation that the model was trained with. So any
classifier can be used, and no state grows. ``decay`` averages the answers over
time. ``tests/benchmarks/moods.py`` measures how fast and how well it follows.
"""

import math

import torch

from speechbrain_dslstm.inference.long_recordings import Classifier
from speechbrain_dslstm.inference.speech_activity import measure_activity
from speechbrain_dslstm.inference.streaming import check_chunk

__all__ = ["WindowedStream"]

WINDOW = 4.0  # seconds; two thirds more than the mean clip of EMO-DB
HOP = 0.5  # seconds
WINDOWS = 0.2, 60.0  # seconds; shorter ones count as too short for speech


class WindowedStream:
    """Takes audio in chunks of any size; its posterior is that of the last seconds.

    The answers are those at whole multiples of ``hop``, however the audio was
    cut into chunks. The memory is that of one window.

    Arguments
    ---------
    classifier
        An ``EmotionClassifier``, also one of ``load_onnx``.
    window
        Seconds that are classified at a time, from 0.2 to 60.
    decay
        Time constant in seconds of the mean over the windows' posteriors, whose
        weight decays exponentially; without it only the last window counts.
    hop
        Seconds from answer to answer.
    speech_only
        Leave windows without speech out; ``reason`` then says why.

    Raises
    ------
    ValueError
        A number of seconds is not positive and finite, or out of range.

    Example
    -------
    >>> from speechbrain_dslstm.inference import load_safe
    >>> classifier = load_safe("pretrained/emotion-dslstm-emodb")
    >>> stream = WindowedStream(classifier, window=2.0, speech_only=False)
    >>> wav = 0.1 * torch.randn(5 * 16000)
    >>> for chunk in wav.split(1600):
    ...     running = stream.push(chunk)
    >>> last = classifier.classify_batch(wav[-2 * 16000 :]).out_prob[0]
    >>> torch.allclose(running, last, atol=1e-5)
    True
    """

    def __init__(
        self,
        classifier: Classifier,
        window: float = WINDOW,
        decay: float | None = None,
        hop: float = HOP,
        speech_only: bool = True,
    ) -> None:
        for name, value in (("window", window), ("decay", decay), ("hop", hop)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"expected seconds above 0 as {name}, got {value}"
                )
        if not WINDOWS[0] <= window <= WINDOWS[1]:
            raise ValueError(
                f"expected a window of {WINDOWS[0]} to {WINDOWS[1]:g} seconds, "
                f"got {window:g}"
            )
        self.classifier = classifier
        self.rate = classifier.hparams.sample_rate
        self.size = round(window * self.rate)
        self.step = max(1, round(hop * self.rate))
        self.decay = decay
        self.speech_only = speech_only
        self.samples = 0
        self.finished = False
        # Why the last window was left out: "too short", "silence" or "noise"
        self.reason: str | None = None
        self._held = torch.zeros(0, dtype=torch.float32)
        self._answered = 0  # samples at the last answer
        # Mean of posteriors and dimensions, and the weight it stands for
        self._mean, self._weight = None, 0.0

    def push(self, chunk: torch.Tensor) -> torch.Tensor | None:
        """Take the next samples, [samples] in [-1, 1] at the model's rate.

        Returns the log-posteriors [n_classes] of the last seconds, or None
        before the first answer. NaN, infinity or samples above 1000 raise
        ``AudioError`` and leave the stream as it was.
        """
        if self.finished:
            raise ValueError("the stream is finished; start a new one")
        check_chunk(chunk)
        chunk = chunk.detach().float().cpu()
        while len(chunk):
            piece = chunk[: self.step - self.samples % self.step]
            chunk = chunk[len(piece) :]
            self._held = torch.cat([self._held, piece])[-self.size :]
            self.samples += len(piece)
            if self.samples % self.step == 0:
                self._answer()
        return self.posterior()

    def finish(self) -> torch.Tensor | None:
        """End the stream; return its log-posteriors, [n_classes].

        None if no window held speech.
        """
        if not self.samples:
            raise ValueError("the stream has received no samples")
        if not self.finished and self._answered < self.samples:
            self._answer()
        self.finished = True
        return self.posterior()

    def posterior(self) -> torch.Tensor | None:
        """Log-posteriors [n_classes] of the last answer, as ``push`` returns."""
        return None if self._mean is None else self._mean[0].log().float()

    def dimensions(self) -> dict[str, float]:
        """Value of each dimension by its name, if the model predicts any."""
        if self._mean is None:
            return {}
        names = self.classifier.dimensions
        return dict(zip(names, self._mean[1].tolist(), strict=True))

    def state_size(self) -> int:
        """Count the numbers held."""
        means = self._mean or ()
        return self._held.numel() + sum(value.numel() for value in means)

    def _answer(self):
        """Classify the last window, and add it to the mean."""
        seconds = (self.samples - self._answered) / self.rate
        self._answered = self.samples
        kept = math.exp(-seconds / self.decay) if self.decay else 0.0
        kept *= self._weight
        self.reason = None
        if self.speech_only:
            self.reason = measure_activity(self._held, self.rate).reason
        if self.reason is not None:
            self._weight = kept
            return
        answer = self.classifier.classify_batch(self._held)
        values = [float(value[0]) for value in answer.dimensions.values()]
        new = (
            answer.out_prob[0].double().exp().cpu(),
            torch.tensor(values, dtype=torch.float64),
        )
        self._weight = kept + seconds
        share = seconds / self._weight
        old = self._mean or new
        self._mean = tuple(
            torch.lerp(before, now, share)
            for before, now in zip(old, new, strict=True)
        )
