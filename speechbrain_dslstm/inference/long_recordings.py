"""A recording of any length, window by window, in bounded memory."""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_dslstm.audio import read_blocks
from speechbrain_dslstm.inference.speech_activity import measure_activity

__all__ = ["Segment", "classify_long"]

WINDOWS_AT_ONCE = 8


@dataclass(frozen=True)
class Segment:
    """The answer for one window of a recording.

    Arguments
    ---------
    start : float
        Seconds from the beginning of the recording.
    end : float
        Seconds from the beginning of the recording.
    label : str, optional
        Name of the class; None where there is no speech.
    log_posteriors : torch.Tensor, [n_classes], optional
        Log-posterior of every class.
    reason : str, optional
        Why there is no label: "too short", "silence" or "noise".

    Example
    -------
    >>> Segment(0.0, 6.0, reason="silence").label is None
    True
    """

    start: float
    end: float
    label: str = None
    log_posteriors: torch.Tensor = None
    reason: str = None


def classify_long(
    classifier,
    path,
    window=6.0,
    hop=None,
    unknown_below=None,
    speech_only=True,
):
    """Classify a recording of any length by windows.

    The file is read, resampled and classified piece by piece: an hour takes
    no more memory than a few minutes.

    Arguments
    ---------
    classifier : EmotionClassifier
        The model.
    path : str or pathlib.Path
        A local audio file.
    window : float
        Length of a window in seconds; the last one may be shorter.
    hop : float, optional
        Seconds from window to window; ``window`` if left out.
    unknown_below : float, optional
        Where the best posterior is below it, the label is "unknown".
    speech_only : bool
        A window without speech has a reason instead of a label.

    Returns
    -------
    iterator of Segment
        In the order of time.

    Raises
    ------
    AudioError
        The file cannot be read.
    ValueError
        A window or a hop that is not above 0, or a hop above the window.

    Example
    -------
    >>> import soundfile
    >>> from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
    >>> from speechbrain_dslstm.pretrained import make_label_encoder
    >>> classifier = EmotionClassifier.from_model(
    ...     DualLevelClassifier(1), make_label_encoder(["anger"]), 16000
    ... )
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
    # A generator would raise at its first use only
    classifier.label_posteriors(
        torch.zeros(1, len(classifier.labels)), unknown_below
    )
    return _segments(
        classifier,
        _windows(read_blocks(path, rate), size, step),
        rate,
        unknown_below,
        speech_only,
    )


def _windows(blocks, size, step):
    """Yield (start in samples, window); the last window may be shorter."""
    held, start = torch.zeros(0), 0
    for block in blocks:
        held = torch.cat([held, block])
        while len(held) >= size:
            yield start, held[:size]
            held, start = held[step:], start + step
    # What the windows before have not reached yet
    if not start or len(held) > size - step:
        yield start, held


def _segments(classifier, windows, rate, unknown_below, speech_only):
    """Classify windows, some at a time."""
    waiting = []
    for item in windows:
        waiting.append(item)
        if len(waiting) == WINDOWS_AT_ONCE:
            yield from _classify(
                classifier, waiting, rate, unknown_below, speech_only
            )
            waiting = []
    if waiting:
        yield from _classify(
            classifier, waiting, rate, unknown_below, speech_only
        )


def _classify(classifier, windows, rate, unknown_below, speech_only):
    reasons = [
        measure_activity(wav, rate).reason if speech_only else None
        for _, wav in windows
    ]
    speech = [
        wav
        for (_, wav), reason in zip(windows, reasons, strict=True)
        if reason is None
    ]
    answers = iter(())
    if speech:
        counts = torch.tensor([len(wav) for wav in speech])
        padded = pad_sequence(speech, batch_first=True)
        out_prob, _, _, labels = classifier.classify_batch(
            padded, counts, unknown_below
        )
        answers = zip(labels, out_prob.cpu(), strict=True)
    for (start, wav), reason in zip(windows, reasons, strict=True):
        label, log_posteriors = (None, None) if reason else next(answers)
        yield Segment(
            start / rate,
            (start + len(wav)) / rate,
            label,
            log_posteriors,
            reason,
        )
