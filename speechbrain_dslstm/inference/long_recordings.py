"""Classify a recording of any length window by window, in bounded memory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_dslstm.audio import read_blocks
from speechbrain_dslstm.inference.answer import Answer
from speechbrain_dslstm.inference.speech_activity import measure_activity

__all__ = ["Segment", "classify_long"]

WINDOWS_AT_ONCE = 8


class Classifier(Protocol):
    """The part of ``EmotionClassifier`` that files and windows require."""

    hparams: SimpleNamespace
    dimensions: list[str]
    classify_batch: Callable[..., Answer]
    label_posteriors: Callable[..., Answer]


@dataclass(frozen=True)
class Segment:
    """Answer for one window of a recording.

    Arguments
    ---------
    start
        Seconds from the beginning of the recording.
    end
        Seconds from the beginning of the recording.
    label
        Name of the class; None for a window without speech.
    log_posteriors : [n_classes]
        Log-posterior of every class; None for a window without speech.
    reason
        Why there is no label: "too short", "silence" or "noise".
    dimensions
        Value of each dimension by its name, if the model predicts any.
    speech
        Start and end, in seconds from the beginning of the recording, of each
        part that the answer is based on.

    Example
    -------
    >>> Segment(0.0, 6.0, reason="silence").label is None
    True
    """

    start: float
    end: float
    label: str | None = None
    log_posteriors: torch.Tensor | None = None
    reason: str | None = None
    dimensions: dict[str, float] = field(default_factory=dict)
    speech: tuple[tuple[float, float], ...] = ()


def classify_long(
    classifier: Classifier,
    path: str | Path,
    window: float = 6.0,
    hop: float | None = None,
    unknown_below: float | None = None,
    speech_only: bool = True,
) -> Iterator[Segment]:
    """Classify a recording of any length by windows.

    The windows come in the order of time. The file is read, resampled and
    classified piece by piece: an hour takes no more memory than minutes.

    Arguments
    ---------
    classifier
        An ``EmotionClassifier``.
    path
        A local audio file.
    window
        Length of a window in seconds; the last one may be shorter.
    hop
        Seconds from window to window; ``window`` if left out.
    unknown_below
        Label a window "unknown" if its best posterior is below this.
    speech_only
        Give a window without speech a reason instead of a label.

    Raises
    ------
    AudioError, ValueError
        The file cannot be read; not 0 < hop <= window; or ``unknown_below`` is
        no probability.

    Example
    -------
    >>> import soundfile
    >>> from speechbrain_dslstm import EmotionClassifier
    >>> source = "pretrained/emotion-dslstm-emodb"
    >>> classifier = EmotionClassifier.from_hparams(source)
    >>> path = getfixture("tmp_path") / "silence.wav"
    >>> soundfile.write(path, torch.zeros(16000 * 9).numpy(), 16000)
    >>> for found in classify_long(classifier, path):
    ...     print(found.start, found.end, found.label, found.reason)
    0.0 6.0 None silence
    6.0 9.0 None silence
    """
    rate = classifier.hparams.sample_rate
    hop = window if hop is None else hop
    size, step = round(window * rate), round(hop * rate)
    if not 0 < step <= size:
        raise ValueError(
            f"expected 0 < hop <= window, got hop {hop} and window {window} "
            "seconds"
        )
    check_threshold(unknown_below)
    windows = cut_windows(read_blocks(path, rate), size, step)
    return _segments(classifier, windows, rate, unknown_below, speech_only)


def check_threshold(unknown_below: float | None) -> None:
    """Refuse an ``unknown_below`` that is no probability."""
    if unknown_below is not None and not 0 <= unknown_below <= 1:
        raise ValueError(
            f"unknown_below must be in [0, 1], got {unknown_below}"
        )


def cut_windows(
    blocks: Iterable[torch.Tensor], size: int, step: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (start in samples, window); the last window may be shorter."""
    held, start = torch.zeros(0), 0
    for block in blocks:
        held = torch.cat([held, block])
        while len(held) >= size:
            yield start, held[:size]
            held, start = held[step:], start + step
    # Samples beyond the last whole window
    if not start or len(held) > size - step:
        yield start, held


def _segments(classifier, windows, rate, unknown_below, speech_only):
    """Classify ``WINDOWS_AT_ONCE`` windows at a time."""
    while some := list(islice(windows, WINDOWS_AT_ONCE)):
        yield from _classify(classifier, some, rate, unknown_below, speech_only)


def _classify(classifier, windows, rate, unknown_below, speech_only):
    """Yield the segments of some windows, those with speech in one batch."""
    reasons, speech = [], []
    for _, wav in windows:
        reason = measure_activity(wav, rate).reason if speech_only else None
        reasons.append(reason)
        if reason is None:
            speech.append(wav)
    answers = iter(())
    if speech:
        counts = torch.tensor([len(wav) for wav in speech])
        padded = pad_sequence(speech, batch_first=True)
        answer = classifier.classify_batch(padded, counts, unknown_below)
        rows = [answer.dimensions_of(k) for k in range(len(speech))]
        answers = zip(answer.text_lab, answer.out_prob.cpu(), rows, strict=True)
    for (start, wav), reason in zip(windows, reasons, strict=True):
        label, log_posteriors, values = (
            (None, None, {}) if reason else next(answers)
        )
        end = (start + len(wav)) / rate
        used = () if reason else _used(classifier, wav, start, rate)
        yield Segment(
            start / rate, end, label, log_posteriors, reason, values, used
        )


def _used(classifier, wav, start, rate):
    """Parts of a window that the model reads, in seconds of the recording."""
    speech = getattr(classifier.mods.embedding_model, "active_speech", None)
    spans = [(0, len(wav))] if speech is None else speech.find(wav)
    return tuple(((start + a) / rate, (start + b) / rate) for a, b in spans)
