"""Classify many files in batches of similar length and bounded memory."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from speechbrain_dslstm.audio.channels import Channel, check_channel
from speechbrain_dslstm.audio.checks import LONGEST_CLIP, AudioError
from speechbrain_dslstm.audio.inputs import (
    AudioInput,
    FileSource,
    SampleSource,
    is_array,
    to_source,
)
from speechbrain_dslstm.audio.reading import load_audio, open_audio
from speechbrain_dslstm.inference.answer import Answer
from speechbrain_dslstm.inference.folders import find_audio, summarize
from speechbrain_dslstm.inference.long_recordings import (
    Classifier,
    Segment,
    check_threshold,
    classify_long,
)
from speechbrain_dslstm.inference.speech_activity import (
    NoSpeechError,
    check_speech,
)
from speechbrain_dslstm.utils.threads import (
    Workers,
    check_threads,
    count_workers,
)

__all__ = ["FileResult", "FileResults", "classify_files"]

LARGEST_BATCH = 8  # clips
LONGEST_BATCH = 120.0  # seconds, padding included
LONGEST_FILE = 2 * 3600.0  # seconds; an hour of silence takes 0.8 s

# Number of the input, and its channel if there is more than one answer
Unit = tuple[int, int | None]


@dataclass(frozen=True)
class FileResult:
    """Answer for one file: an emotion, or the reason why there is none.

    Arguments
    ---------
    path
        The file; None for bytes, a file object or an array.
    answer
        ``(out_prob, score, index, text_lab)`` as ``classify_file`` returns it.
    error
        Message that says why there is no answer.
    reason
        "too short", "silence" or "noise" if the file holds no speech.
    channel
        Index of the channel, if one or each was asked for.
    segments
        Windows of a file of more than a minute, whose mean is the answer.

    Example
    -------
    >>> FileResult(Path("a.wav"), error="cannot read a.wav").label is None
    True
    """

    path: Path | None
    answer: Answer | None = None
    error: str | None = None
    reason: str | None = None
    channel: int | None = None
    segments: tuple[Segment, ...] = ()

    @property
    def label(self) -> str | None:
        """Name of the class."""
        return self.answer[3][0] if self.answer else None

    @property
    def log_posteriors(self) -> torch.Tensor | None:
        """Log-posterior of every class, [n_classes]."""
        return self.answer[0][0] if self.answer else None

    @property
    def dimensions(self) -> dict[str, float]:
        """Value of each dimension by its name, if the model predicts any."""
        return self.answer.dimensions_of(0) if self.answer else {}


class FileResults(list):
    """List of ``FileResult`` in the order of the files.

    Arguments
    ---------
    results
        The results.
    passed_over
        Files of folders that were not classified, by the reason.

    Example
    -------
    >>> FileResults([], {"not audio": [Path("notes.txt")]}).summary
    'passed over: 1 not audio (such as notes.txt)'
    """

    def __init__(
        self,
        results: Iterable[FileResult] = (),
        passed_over: dict[str, list[Path]] | None = None,
    ) -> None:
        super().__init__(results)
        self.passed_over = passed_over or {}

    @property
    def summary(self) -> str:
        """One line with the number of files for each reason, "" for none."""
        return summarize(self.passed_over)


def classify_files(
    classifier: Classifier,
    paths: AudioInput | Iterable[AudioInput],
    unknown_below: float | None = None,
    speech_only: bool = True,
    progress: bool | None = None,
    longest: float | None = LONGEST_FILE,
    channel: Channel = "mix",
    sample_rate: float | None = None,
    threads: int | None = None,
) -> FileResults:
    """Classify many files; a file that cannot be read does not stop the others.

    The results are in the order of the files. Files of similar length share a
    batch of at most 8 clips and two minutes, and each thread takes a batch. A
    file of more than a minute gets the mean posterior of its windows with
    speech, see ``classify_long``.

    Arguments
    ---------
    classifier
        An ``EmotionClassifier``.
    paths
        Files, and folders that stand for all audio files below them but hidden
        ones; or whatever else ``load_audio`` takes.
    unknown_below
        Label a file "unknown" if its best posterior is below this.
    speech_only
        Give a file without speech a reason instead of an answer.
    progress
        Show a progress bar; if left out, only on a terminal.
    longest
        Seconds; a longer file is an error. None: no limit.
    channel
        "mix", an index from 0, or "each": a result for each channel.
    sample_rate
        Rate of the arrays among ``paths``, in Hz.
    threads
        Batches at a time; if left out, the number of CPUs, at most 4, or one
        where a GPU computes them. The answers do not depend on it.

    Returns
    -------
    results
        A list; its ``passed_over`` tells which files of the folders were not
        classified, by the reason: "not audio", "hidden" and others.

    Raises
    ------
    FileNotFoundError
        A folder holds no audio files, or ``paths`` is empty.
    ValueError
        ``threads`` is below 1.

    Example
    -------
    >>> from speechbrain_dslstm import EmotionClassifier
    >>> source = "pretrained/emotion-dslstm-emodb"
    >>> classifier = EmotionClassifier.from_hparams(source)
    >>> classify_files(classifier, ["missing.wav"])[0].error
    'cannot read audio from missing.wav: no such file'
    """
    channel = check_channel(channel)
    check_threshold(unknown_below)
    if threads is not None:
        check_threads(threads)
    found = find_audio(paths)
    if sample_rate is not None and not any(map(is_array, found)):
        raise AudioError(
            "sample_rate is the rate of arrays, and files state their own",
            "of a wrong type",
        )
    sources, results, lengths = {}, {}, {}
    for k, given in enumerate(found):
        try:
            sources[k] = _to_source(given, k, len(found), sample_rate)
            with open_audio(sources[k], longest) as file:
                length = file.frames / file.samplerate
                count = file.channels if channel == "each" else 0
        except AudioError as error:
            path = given if isinstance(given, Path) else None
            results[k, None] = _failed(path, error)
            continue
        one = channel if isinstance(channel, int) else None
        for unit in [(k, c) for c in range(count)] or [(k, one)]:
            lengths[unit] = length
    hide = None if progress is None else not progress
    rate, wavs, lock = classifier.hparams.sample_rate, {}, Lock()
    with (
        tqdm(total=len(found), unit="file", disable=hide) as bar,
        Workers(_count_threads(threads, lengths, classifier)) as workers,
    ):
        bar.update(len(results))

        def add(unit: Unit, result: FileResult) -> None:
            """Keep the result of one unit."""
            with lock:
                results[unit] = result
                bar.update(not unit[1] or channel != "each")

        def add_windowed(unit: Unit) -> None:
            """Answer a long file; a file object has one position for all."""
            if sources[unit[0]].path is None:
                answer_windows(unit)
            else:
                workers.submit(answer_windows, unit)

        def answer_windows(unit: Unit) -> None:
            result = _windowed(
                classifier,
                sources[unit[0]],
                unknown_below,
                speech_only,
                unit[1],
                longest,
            )
            add(unit, result)

        def is_usable(unit: Unit) -> bool:
            """Read a short file; return False if it needs no batch."""
            if lengths[unit] > LONGEST_CLIP:
                return True
            source = sources[unit[0]]
            try:
                wav = load_audio(source, rate, LONGEST_CLIP, _channel_of(unit))
                if speech_only:
                    check_speech(wav, rate, source)
            except AudioError as error:
                # A header may claim less than there is
                if error.kind == "too long":
                    add_windowed(unit)
                else:
                    add(unit, _failed(source.path, error, unit[1]))
                return False
            wavs[unit] = wav
            return True

        def add_batch(batch: list[Unit], some: list[torch.Tensor]) -> None:
            """Answer short files."""
            rows = _classify(classifier, some)
            for unit, (row, values) in zip(batch, rows, strict=True):
                answer = classifier.label_posteriors(row, unknown_below, values)
                path = sources[unit[0]].path
                add(unit, FileResult(path, answer, channel=unit[1]))

        for batch in _batches(lengths, is_usable):
            if lengths[batch[0]] > LONGEST_CLIP:
                for unit in batch:
                    add_windowed(unit)
            else:
                workers.submit(add_batch, batch, [wavs.pop(u) for u in batch])
    order = sorted(results, key=lambda unit: (unit[0], unit[1] or 0))
    return FileResults((results[u] for u in order), found.passed_over)


def _to_source(
    given: AudioInput, number: int, total: int, sample_rate: float | None
) -> FileSource | SampleSource:
    """Recognise an input; its number is in the name unless it is the only one."""
    if isinstance(given, Path):
        return to_source(given)
    name = f"input {number}" if total > 1 else None
    return to_source(given, sample_rate if is_array(given) else None, name)


def _count_threads(
    threads: int | None, lengths: dict[Unit, float], classifier: Classifier
) -> int:
    """Threads for the batches: those that were asked for, or that help."""
    if threads is not None:
        return threads
    if torch.device(classifier.device).type != "cpu":
        return 1
    return min(count_workers(), max(1, len(lengths)))


def _channel_of(unit):
    return "mix" if unit[1] is None else unit[1]


def _batches(
    lengths: dict[Hashable, float],
    is_usable: Callable[[Hashable], bool] = lambda k: True,
) -> Iterator[list[Hashable]]:
    """Yield indices of usable files of similar length, within a batch's limits."""
    batch = []
    for k in sorted(lengths, key=lambda k: (lengths[k], k)):
        # A refused file must not change the other batches: the last bits of an
        # answer may depend on its batch
        if not is_usable(k):
            continue
        size = len(batch) + 1
        full = size > LARGEST_BATCH or size * lengths[k] > LONGEST_BATCH
        if batch and full:
            yield batch
            batch = []
        batch.append(k)
    if batch:
        yield batch


def _failed(
    path: Path | None,
    error: AudioError,
    channel: int | None = None,
    segments: tuple[Segment, ...] = (),
) -> FileResult:
    reason = getattr(error, "reason", None)
    return FileResult(path, None, str(error), reason, channel, segments)


def _classify(classifier, wavs):
    """Log-posteriors [1, n_classes] and dimensions of each waveform of a batch."""
    counts = torch.tensor([len(wav) for wav in wavs])
    padded = pad_sequence(wavs, batch_first=True)
    answer = classifier.classify_batch(padded, counts)
    for k, row in enumerate(answer.out_prob.split(1)):
        values = {n: v[k : k + 1] for n, v in answer.dimensions.items()}
        yield row, values


def _windowed(classifier, source, unknown_below, speech_only, channel, longest):
    """Answer a long file with the mean posterior of its windows."""
    try:
        segments = tuple(
            classify_long(
                classifier,
                source,
                unknown_below=unknown_below,
                speech_only=speech_only,
                channel="mix" if channel is None else channel,
                longest=longest,
            )
        )
        total, seconds, reasons, values = 0, 0.0, [], {}
        for segment in segments:
            if segment.log_posteriors is None:
                reasons.append(segment.reason)
            else:
                weight = segment.end - segment.start
                total = total + weight * segment.log_posteriors.exp()
                for name, value in segment.dimensions.items():
                    values[name] = values.get(name, 0.0) + weight * value
                seconds += weight
    except AudioError as error:
        return _failed(source.path, error, channel)
    if not seconds:
        reason = max(reasons, key=reasons.count)
        error = NoSpeechError(reason, source)
        return _failed(source.path, error, channel, segments)
    out_prob = (total / seconds).log().unsqueeze(0)
    values = {n: torch.tensor([v / seconds]) for n, v in values.items()}
    answer = classifier.label_posteriors(out_prob, unknown_below, values)
    return FileResult(source.path, answer, channel=channel, segments=segments)
