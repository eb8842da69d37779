"""Adapt a classifier to a user's own recordings, without labels.

The features of a model are standardised by the mean and deviation of its
training set. Another microphone, room or language has others. ``adapt``
measures them on unlabelled recordings, and puts them in the place of those of
the training set, or between both. No weight changes.
"""

import copy
import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from speechbrain_dslstm.audio.checks import (
    LONGEST_CLIP,
    AudioError,
    check_samples,
)
from speechbrain_dslstm.audio.reading import open_audio, read_blocks
from speechbrain_dslstm.features.active_speech import ActiveSpeech
from speechbrain_dslstm.features.normalization import FeatureNormalization
from speechbrain_dslstm.inference.folders import find_audio
from speechbrain_dslstm.inference.long_recordings import cut_windows
from speechbrain_dslstm.inference.speech_activity import (
    NoSpeechError,
    check_speech,
    measure_activity,
)

if TYPE_CHECKING:
    from speechbrain_dslstm.inference.classifier import EmotionClassifier

__all__ = ["Adaptation", "adapt"]

Recording = str | Path | torch.Tensor | np.ndarray
WINDOW = 6.0  # seconds of a long recording that are read as one utterance
LEAST_SECONDS = 60.0


@dataclass(frozen=True)
class Adaptation:
    """The recordings that a classifier was adapted to.

    Arguments
    ---------
    seconds
        Seconds of speech in them, without pauses.
    recordings
        Number of recordings that were used.
    skipped
        Reason by the name of each recording that was not.
    blend
        Weight of their statistics; the rest is that of the training set.

    Example
    -------
    >>> Adaptation(75.0, 12, {"a.wav": "cannot read audio from a.wav"}, 1.0)
    Adaptation(seconds=75.0, recordings=12, skipped={...}, blend=1.0)
    """

    seconds: float
    recordings: int
    skipped: dict[str, str] = field(default_factory=dict)
    blend: float = 1.0

    def describe(self) -> str:
        """Amounts in words, for a message or a card."""
        text = f"{self.seconds:.1f} s of speech in {self.recordings} recordings"
        text += f", blend {self.blend:g}"
        return f"{text}, {len(self.skipped)} skipped" if self.skipped else text


def adapt(
    classifier: "EmotionClassifier",
    recordings: str | Path | Iterable[Recording],
    blend: float = 1.0,
    seconds: float = LEAST_SECONDS,
) -> "EmotionClassifier":
    """Adapt the feature statistics of a classifier to unlabelled recordings.

    The statistics do not depend on the order of the recordings. One that cannot
    be read or holds no speech is skipped, and named in the result's
    ``adaptation.skipped``. A model trained with the normalization "speaker" has
    no statistics of its own: it receives those of the recordings, which should
    be of one speaker, for all that it classifies.

    Arguments
    ---------
    classifier
        It stays as it is.
    recordings
        Files, folders that stand for all audio files below them, and waveforms
        [samples] in [-1, 1] at the model's rate.
    blend
        Weight of the recordings' statistics, in [0, 1]; the statistics of the
        training set have the rest. With 0 the answers stay.
    seconds
        Least amount of speech in all recordings, without pauses.

    Returns
    -------
    EmotionClassifier
        A new classifier; its ``adaptation`` is an ``Adaptation``.

    Raises
    ------
    FileNotFoundError
        A folder holds no audio files, or nothing is given.
    ValueError
        There is too little speech, the model does not standardise its
        features, ``blend`` is outside [0, 1], or ``seconds`` is no finite
        number from 0.

    Example
    -------
    >>> from speechbrain_dslstm import EmotionClassifier
    >>> source = "pretrained/emotion-dslstm-emodb"
    >>> classifier = EmotionClassifier.from_hparams(source)
    >>> adapt(classifier, [torch.zeros(16000)])
    Traceback (most recent call last):
    ValueError: none of the 1 recordings is of use, such as: ...
    """
    if not 0 <= blend <= 1:
        raise ValueError(f"blend must be in [0, 1], got {blend}")
    if not 0 <= seconds < math.inf:
        raise ValueError(
            f"seconds must be a finite number from 0, got {seconds}"
        )
    model = copy.deepcopy(classifier.mods.embedding_model)
    before = _prepare(model, blend)
    rate = classifier.hparams.sample_rate
    measure = ActiveSpeech(rate)
    used, total, skipped = 0, 0.0, {}
    norms = [stream.normalization for stream in model.streams.values()]
    for name, recording in _in_order(recordings):
        saved = [norm.statistics for norm in norms]
        try:
            found = 0.0
            for wav in _utterances(recording, rate, name):
                model.update_normalization(wav.to(classifier.device)[None])
                found += int(measure(wav[None])[1]) / rate
        except AudioError as error:
            # A damaged end leaves nothing of the file behind
            for norm, statistics in zip(norms, saved, strict=True):
                norm.restore(statistics)
            skipped[name] = str(error)
        else:
            used, total = used + 1, total + found
    if not used:
        raise ValueError(
            f"none of the {len(skipped)} recordings is of use, such as: "
            f"{next(iter(skipped.values()))}"
        )
    if total < seconds:
        raise ValueError(
            f"{total:.1f} s of speech in {used} recordings ({len(skipped)} "
            f"skipped), at least {seconds:g} s are required: add recordings, or "
            "lower the limit (seconds) at the risk of worse answers"
        )
    for name, statistics in before.items():
        model.streams[name].normalization.blend(statistics, 1 - blend)
    adapted = classifier.from_model(
        model.eval(),
        classifier.hparams.label_encoder,
        rate,
        classifier.mods.classifier.temperature,
        {"device": classifier.device},
    )
    adapted.adaptation = Adaptation(total, used, skipped, blend)
    return adapted


def _prepare(model: torch.nn.Module, blend: float) -> dict[str, tuple]:
    """Forget a model's statistics; return them, by the name of the stream."""
    streams = getattr(model, "streams", None)
    if streams is None:
        raise ValueError(
            f"expected a DualLevelClassifier, got {type(model).__name__}, whose "
            "feature statistics are unknown"
        )
    before = {}
    for name, stream in streams.items():
        norm = stream.normalization
        if norm.source == "speaker":
            if blend != 1:
                raise ValueError(
                    "blend must be 1 for a model with the normalization "
                    f"'speaker', which has no training statistics; got {blend}"
                )
            # The statistics of this one speaker serve for all utterances
            norm = FeatureNormalization(norm.num_features, norm.eps)
            stream.normalization = norm.to(stream.normalization.mean.device)
        elif norm.source == "training":
            before[name] = norm.statistics
        norm.reset()
    if all(s.normalization.source == "none" for s in streams.values()):
        raise ValueError(
            "this model does not standardise its features (normalization "
            "'none'), so there are no statistics to adapt"
        )
    return before


def _in_order(
    recordings: str | Path | Iterable[Recording],
) -> list[tuple[str, Path | torch.Tensor]]:
    """Names and recordings, none twice, in an order that is not the caller's."""
    if isinstance(recordings, str | Path | torch.Tensor | np.ndarray):
        recordings = [recordings]
    paths, wavs = [], {}
    for one in recordings:
        if isinstance(one, str | Path):
            paths.append(one)
        else:
            wav = torch.as_tensor(one).detach().cpu()
            content = wav.contiguous().numpy().tobytes()
            wavs[hashlib.sha256(content).hexdigest()] = wav
    files = {}
    for path in find_audio(paths) if paths or not wavs else []:
        files.setdefault(path.absolute(), path)
    found = [(str(files[key]), files[key]) for key in sorted(files)]
    return found + [(f"waveform {key[:8]}", wavs[key]) for key in sorted(wavs)]


def _utterances(
    recording: Path | torch.Tensor, rate: int, name: str
) -> Iterator[torch.Tensor]:
    """Yield the utterances [samples] with speech; a long recording has many.

    Raises AudioError for a recording that is invalid or holds no speech.
    """
    if isinstance(recording, torch.Tensor):
        if recording.dim() != 1 or not recording.is_floating_point():
            raise AudioError(
                f"{name}: expected floats [samples] in [-1, 1], got "
                f"{recording.dtype} {list(recording.shape)}"
            )
        check_samples(recording.float(), where=name)
        pieces, seconds = [recording.float()], len(recording) / rate
    else:
        with open_audio(recording, None) as file:
            seconds = file.frames / file.samplerate
        pieces = read_blocks(recording, rate)
    if seconds <= LONGEST_CLIP:
        wav = torch.cat(list(pieces))
        check_speech(wav, rate, name)
        yield wav
        return
    reasons, size = [], round(WINDOW * rate)
    for _, wav in cut_windows(pieces, size, size):
        reason = measure_activity(wav, rate).reason
        reasons.append(reason)
        if reason is None:
            yield wav
    if None not in reasons:
        raise NoSpeechError(max(reasons, key=reasons.count), name)
