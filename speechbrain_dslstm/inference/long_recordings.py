"""Classify a recording of any length window by window, in bounded memory."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace
from typing import Protocol

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_dslstm.audio.channels import Channel, check_channel
from speechbrain_dslstm.audio.inputs import AudioInput, to_source
from speechbrain_dslstm.audio.reading import read_blocks
from speechbrain_dslstm.inference.answer import Answer
from speechbrain_dslstm.inference.speech_activity import measure_activity

__all__ = ["Segment", "classify_long"]

WINDOWS_AT_ONCE = 8


class Classifier(Protocol):
    """The part of ``EmotionClassifier`` that files and windows require."""

    hparams: SimpleNamespace
    dimensions: list[str]
    device: str
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
    channel
        Index of the channel, if one or each was asked for.

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
    channel: int | None = None


def classify_long(
    classifier: Classifier,
    path: AudioInput,
    window: float = 6.0,
    hop: float | None = None,
    unknown_below: float | None = None,
    speech_only: bool = True,
    channel: Channel = "mix",
    sample_rate: float | None = None,
    longest: float | None = None,
) -> Iterator[Segment]:
    """Classify a recording of any length by windows.

    The windows come in the order of time. The file is read, resampled and
    classified piece by piece: an hour takes no more memory than minutes.

    Arguments
    ---------
    classifier
        An ``EmotionClassifier``.
    path
        A local audio file, or whatever else ``load_audio`` takes.
    window
        Length of a window in seconds; the last one may be shorter.
    hop
        Seconds from window to window; ``window`` if left out.
    unknown_below
        Label a window "unknown" if its best posterior is below this.
    speech_only
        Give a window without speech a reason instead of a label.
    channel
        "mix", an index from 0, or "each": a segment for each channel of a
        window.
    sample_rate
        Rate of an array, in Hz.
    longest
        Seconds; a longer recording is an error. None: no limit.

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
    # NaN and infinity have no whole number of samples
    finite = 0 < hop <= window < math.inf
    size, step = (round(s * rate) if finite else 0 for s in (window, hop))
    if not 0 < step <= size:
        raise ValueError(
            f"expected 0 < hop <= window, got hop {hop} and window {window} "
            "seconds"
        )
    check_threshold(unknown_below)
    channel, source = check_channel(channel), to_source(path, sample_rate)
    blocks = read_blocks(source, rate, longest=longest, channel=channel)
    windows = _channels(cut_windows(blocks, size, step), channel)
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
    held, start = None, 0
    for block in blocks:
        held = block if held is None else torch.cat([held, block], dim=-1)
        while held.shape[-1] >= size:
            yield start, held[..., :size]
            held, start = held[..., step:], start + step
    held = torch.zeros(0) if held is None else held
    # Samples beyond the last whole window
    if not start or held.shape[-1] > size - step:
        yield start, held


def _channels(windows, channel):
    """Yield (start, channel, window [samples]) of windows with all channels."""
    for start, window in windows:
        if channel == "each":
            for k, wav in enumerate(window):
                yield start, k, wav
        else:
            yield start, channel if isinstance(channel, int) else None, window


def _segments(classifier, windows, rate, unknown_below, speech_only):
    """Classify ``WINDOWS_AT_ONCE`` windows at a time."""
    while some := list(islice(windows, WINDOWS_AT_ONCE)):
        yield from _classify(classifier, some, rate, unknown_below, speech_only)


def _classify(classifier, windows, rate, unknown_below, speech_only):
    """Yield the segments of some windows, those with speech in one batch."""
    reasons, speech = [], []
    for _, _, wav in windows:
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
    for (start, channel, wav), reason in zip(windows, reasons, strict=True):
        label, log_posteriors, values = (
            (None, None, {}) if reason else next(answers)
        )
        end = (start + len(wav)) / rate
        used = () if reason else _used(classifier, wav, start, rate)
        yield Segment(
            start / rate,
            end,
            label,
            log_posteriors,
            reason,
            values,
            used,
            channel,
        )


def _used(classifier, wav, start, rate):
    """Parts of a window that the model reads, in seconds of the recording."""
    speech = getattr(classifier.mods.embedding_model, "active_speech", None)
    spans = [(0, len(wav))] if speech is None else speech.find(wav)
    return tuple(((start + a) / rate, (start + b) / rate) for a, b in spans)
