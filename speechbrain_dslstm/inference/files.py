"""Classify many files in batches of similar length and bounded memory."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from speechbrain_dslstm.audio import (
    LONGEST_CLIP,
    AudioError,
    load_audio,
    open_audio,
)
from speechbrain_dslstm.inference.answer import Answer
from speechbrain_dslstm.inference.long_recordings import (
    Classifier,
    classify_long,
)
from speechbrain_dslstm.inference.speech_activity import (
    NoSpeechError,
    check_speech,
)

__all__ = ["FileResult", "classify_files", "find_audio"]

ENDINGS = {".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".au"}
LARGEST_BATCH = 8  # clips
LONGEST_BATCH = 120.0  # seconds, padding included
LONGEST_FILE = 2 * 3600.0  # seconds; an hour of silence takes 0.8 s


@dataclass(frozen=True)
class FileResult:
    """Answer for one file: an emotion, or the reason why there is none.

    Arguments
    ---------
    path
        The file.
    answer
        ``(out_prob, score, index, text_lab)`` as ``classify_file`` returns it.
    error
        Message that says why there is no answer.
    reason
        "too short", "silence" or "noise" if the file holds no speech.

    Example
    -------
    >>> FileResult(Path("a.wav"), error="cannot read a.wav").label is None
    True
    """

    path: Path
    answer: Answer | None = None
    error: str | None = None
    reason: str | None = None

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


def find_audio(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """List audio files: each file as it is, and those below each folder, sorted.

    A link to nothing is listed, too, and becomes an error when it is read. A
    folder without audio files, or no path at all, raises FileNotFoundError.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    found = []
    for path in map(Path, paths):
        if not os.path.isdir(path):
            found.append(path)
            continue
        # macOS leaves files "._name.wav" on foreign disks
        inside = sorted(
            file
            for file in path.rglob("*")
            if file.suffix.lower() in ENDINGS
            and not file.name.startswith("._")
            and not os.path.isdir(file)
        )
        if not inside:
            raise FileNotFoundError(f"no audio files in {path}")
        found += inside
    if not found:
        raise FileNotFoundError("no audio files were given")
    return found


def classify_files(
    classifier: Classifier,
    paths: str | Path | Iterable[str | Path],
    unknown_below: float | None = None,
    speech_only: bool = True,
    progress: bool | None = None,
    longest: float | None = LONGEST_FILE,
) -> list[FileResult]:
    """Classify many files; a file that cannot be read does not stop the others.

    The results are in the order of the files. Files of similar length share a
    batch of at most 8 clips and two minutes. A file of more than a minute gets
    the mean posterior of its windows with speech, see ``classify_long``.

    Arguments
    ---------
    classifier
        An ``EmotionClassifier``.
    paths
        Files, and folders that stand for all audio files below them.
    unknown_below
        Label a file "unknown" if its best posterior is below this.
    speech_only
        Give a file without speech a reason instead of an answer.
    progress
        Show a progress bar; if left out, only on a terminal.
    longest
        Seconds; a longer file is an error. None: no limit.

    Raises
    ------
    FileNotFoundError
        A folder holds no audio files, or ``paths`` is empty.

    Example
    -------
    >>> from speechbrain_dslstm import EmotionClassifier
    >>> source = "pretrained/emotion-dslstm-emodb"
    >>> classifier = EmotionClassifier.from_hparams(source)
    >>> classify_files(classifier, ["missing.wav"])[0].error
    'cannot read audio from missing.wav: no such file'
    """
    files = find_audio(paths)
    results, lengths = [None] * len(files), {}
    for k, path in enumerate(files):
        try:
            with open_audio(path, longest) as file:
                lengths[k] = file.frames / file.samplerate
        except AudioError as error:
            results[k] = _failed(path, error)
    hide = None if progress is None else not progress
    rate, wavs = classifier.hparams.sample_rate, {}
    with tqdm(total=len(files), unit="file", disable=hide) as bar:
        bar.update(len(files) - len(lengths))

        def is_usable(k: int) -> bool:
            """Read a short file; return False if it is refused."""
            if lengths[k] > LONGEST_CLIP:
                return True
            try:
                wav = load_audio(files[k], rate, LONGEST_CLIP)
                if speech_only:
                    check_speech(wav, rate, files[k])
            except AudioError as error:
                results[k] = _failed(files[k], error)
                bar.update()
                return False
            wavs[k] = wav
            return True

        for batch in _batches(lengths, is_usable):
            if lengths[batch[0]] > LONGEST_CLIP:
                for k in batch:
                    results[k] = _windowed(
                        classifier, files[k], unknown_below, speech_only
                    )
            else:
                some = _classify(classifier, [wavs.pop(k) for k in batch])
                for k, (row, values) in zip(batch, some, strict=True):
                    answer = classifier.label_posteriors(
                        row, unknown_below, values
                    )
                    results[k] = FileResult(files[k], answer)
            bar.update(len(batch))
    return results


def _batches(
    lengths: dict[int, float],
    is_usable: Callable[[int], bool] = lambda k: True,
) -> Iterator[list[int]]:
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


def _failed(path: Path, error: AudioError) -> FileResult:
    return FileResult(path, None, str(error), getattr(error, "reason", None))


def _classify(classifier, wavs):
    """Log-posteriors [1, n_classes] and dimensions of each waveform of a batch."""
    counts = torch.tensor([len(wav) for wav in wavs])
    padded = pad_sequence(wavs, batch_first=True)
    answer = classifier.classify_batch(padded, counts)
    for k, row in enumerate(answer.out_prob.split(1)):
        values = {n: v[k : k + 1] for n, v in answer.dimensions.items()}
        yield row, values


def _windowed(classifier, path, unknown_below, speech_only):
    """Answer a long file with the mean posterior of its windows."""
    try:
        segments = classify_long(classifier, path, speech_only=speech_only)
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
        return _failed(path, error)
    if not seconds:
        reason = max(reasons, key=reasons.count)
        return _failed(path, NoSpeechError(reason, path))
    out_prob = (total / seconds).log().unsqueeze(0)
    values = {n: torch.tensor([v / seconds]) for n, v in values.items()}
    answer = classifier.label_posteriors(out_prob, unknown_below, values)
    return FileResult(path, answer)
