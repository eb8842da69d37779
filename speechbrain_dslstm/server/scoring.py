"""From an uploaded file to an answer, in a bounded queue of threads."""

import asyncio
import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from speechbrain_dslstm.audio.checks import LONGEST_CLIP
from speechbrain_dslstm.audio.reading import load_audio, open_audio
from speechbrain_dslstm.inference.classifier import EmotionClassifier
from speechbrain_dslstm.inference.explain import Explanation, explain

__all__ = ["Busy", "TooSlow", "Scorer", "score_file"]

RANGE = 80.0  # dB below the loudest point that a drawn spectrogram shows


class Busy(Exception):
    """All threads work, and as many requests wait as may."""


class TooSlow(Exception):
    """The answer took longer than the limit."""


class Scorer:
    """Runs functions in ``threads`` threads; at most ``waiting`` calls wait."""

    def __init__(self, threads: int, waiting: int, timeout: float) -> None:
        self.executor = ThreadPoolExecutor(threads, "score")
        self.most = threads + waiting
        self.timeout = timeout
        self.pending = 0

    async def run(self, function: Callable, *arguments: Any) -> Any:
        """Run a function in a thread, or raise Busy or TooSlow."""
        if self.pending >= self.most:
            raise Busy
        self.pending += 1
        work = self.executor.submit(function, *arguments)
        loop = asyncio.get_running_loop()
        # A thread cannot be stopped: its place is free when it has ended
        work.add_done_callback(
            lambda _: loop.call_soon_threadsafe(self._release)
        )
        try:
            return await asyncio.wait_for(
                asyncio.wrap_future(work), self.timeout
            )
        except TimeoutError:
            raise TooSlow from None

    def _release(self) -> None:
        self.pending -= 1

    def close(self) -> None:
        """Wait for the running calls."""
        self.executor.shutdown(cancel_futures=True)


def score_file(
    classifier: EmotionClassifier,
    path: Path,
    longest: float,
    window: float,
    detail: bool,
) -> dict[str, Any]:
    """Classify a file, whole and by windows; raise AudioError if unreadable.

    ``detail`` adds spectrograms, posteriors over time and gates of the DS-LSTM
    for a clip of at most a minute.
    """
    with open_audio(path, longest) as file:
        seconds = file.frames / file.samplerate
    found = classifier.classify_long(path, window=window)
    segments = [_describe_segment(classifier, one) for one in found]
    if len(segments) > 1:
        # Every window was read, so the file is no error
        result = classifier.classify_files([path], progress=False)[0]
        posteriors = _posteriors(classifier, result.log_posteriors)
        label, reason = result.label, result.reason
    else:
        label, posteriors, reason = (
            segments[0][name] for name in ("label", "posteriors", "reason")
        )
    answer = {
        "seconds": round(seconds, 3),
        "label": label,
        "posteriors": posteriors,
        "reason": reason,
        "segments": segments,
    }
    if detail and label and seconds <= LONGEST_CLIP:
        answer["detail"] = _detail(classifier, path)
    return answer


def _describe_segment(classifier, found) -> dict[str, Any]:
    """Write the answer for a window as numbers and text."""
    return {
        "start": round(found.start, 3),
        "end": round(found.end, 3),
        "label": found.label,
        "posteriors": _posteriors(classifier, found.log_posteriors),
        "reason": found.reason,
    }


def _posteriors(classifier, log_posteriors) -> dict[str, float] | None:
    if log_posteriors is None:
        return None
    values = log_posteriors.exp().tolist()
    rounded = [round(value, 6) for value in values]
    return dict(zip(classifier.labels, rounded, strict=True))


def _detail(classifier, path) -> dict[str, Any] | None:
    """Explanation of a clip as JSON; None for a model without a DS-LSTM."""
    rate, mods = classifier.hparams.sample_rate, classifier.mods
    wav = load_audio(path, rate, LONGEST_CLIP)
    try:
        found = explain(mods.embedding_model, wav, mods.classifier, rate)
    except ValueError:
        return None
    return describe(found)


def describe(found: Explanation) -> dict[str, Any]:
    """Write an explanation as lists and, for spectrograms, base64 bytes."""
    return {
        "seconds": found.seconds,
        "times": found.times.tolist(),
        "posteriors": found.posteriors.tolist(),
        "gate_x": found.gate_x.mean(dim=0).tolist(),
        "gate_y": found.gate_y.mean(dim=0).tolist(),
        "mel_x": _picture(found.mel_x),
        "mel_y": _picture(found.mel_y),
    }


def _picture(mel: torch.Tensor) -> dict[str, Any]:
    """Write a spectrogram [frames, bands] in dB as a byte for each point."""
    shade = ((mel - mel.max()) / RANGE + 1).clamp(0, 1) * 255
    data = shade.round().to(torch.uint8).contiguous().numpy().tobytes()
    frames, bands = mel.shape
    return {
        "frames": frames,
        "bands": bands,
        "data": base64.b64encode(data).decode(),
    }
