"""Features on disk, computed once for all epochs, folds and seeds, or in memory.

Each utterance and extractor has one file. Its name is a hash of everything that
its content depends on: the corpus, the extractor's class and settings, the
audio, and the variant of the audio. So an entry is never out of date, and any
number of processes may share a folder.

Values are float32, or the extractor's ``cache_dtype``: 16 bits for the frames of
an encoder. Nothing is ever removed. The three features of the paper take 80 KB per second
of speech (EMO-DB 0.12 GB, IEMOCAP 2 GB), and as much again for each variant. A
folder can be deleted at any time. A killed process may leave a hidden ``.tmp``
file, which is never read.
"""

import copy
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from speechbrain.utils.logger import get_logger
from torch import Tensor

from speechbrain_dslstm.features.active_speech import ActiveSpeech
from speechbrain_dslstm.features.extractor import FEATURES_VERSION
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["FeatureCache", "FeatureMemory", "SpeedCache"]

logger = get_logger(__name__)


class FeatureCache:
    """Features of utterances, read from disk or computed and written there.

    Missing features are computed on the CPU, by copies of the extractors. The
    cache holds no open files, so workers of a ``DataLoader`` can receive it.

    Arguments
    ---------
    folder
        Folder of the entries; created if needed.
    extractors
        Extractors by name of the feature, such as ``MFCC39()``. Features with
        the same settings share their entries, whatever their names.
    corpus
        Name of the corpus and of its sub-folder.

    Raises
    ------
    ValueError
        There are no extractors, one has no ``get_config()`` or settings other
        than numbers and texts, ``corpus`` cannot be the name of a folder, or
        the folder cannot be created.

    Example
    -------
    >>> from speechbrain_dslstm.features import MFCC39
    >>> folder = getfixture("tmp_path")
    >>> cache = FeatureCache(folder, {"mfcc": MFCC39()}, "tones")
    >>> feats = cache.get(lambda: torch.rand(16000), audio_hash="a0")
    >>> again = cache.get(lambda: 1 / 0, audio_hash="a0")
    >>> torch.equal(feats["mfcc"], again["mfcc"])
    True
    """

    def __init__(
        self,
        folder: str | Path,
        extractors: Mapping[str, torch.nn.Module],
        corpus: str,
    ) -> None:
        if not extractors:
            raise ValueError("a feature cache needs at least one extractor")
        if corpus in ("", "..") or corpus != Path(corpus).name:
            raise ValueError(
                f"the corpus must be the name of a folder, got {corpus!r}"
            )
        self.folder = Path(folder)
        self.extractors, self.entries = _copies(extractors), {}
        for name, extractor in extractors.items():
            kind = f"{type(extractor).__name__}-{_key(extractor, corpus)}"
            self.entries[name] = self.folder / corpus / kind
        self.known_files = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error

    def get(
        self,
        load_wav: Callable[[], Tensor],
        path: str | Path | None = None,
        audio_hash: str | None = None,
        variant: str = "",
    ) -> dict[str, Tensor]:
        """Features of one utterance by name, float32, [frames, output_size].

        ``load_wav`` returns the waveform, [samples], and is called only if a
        feature is missing; ``variant`` names its change of the audio, such as
        "speed 0.9". The utterance is identified either by its ``audio_hash``,
        such as a manifest's, so that only files of the cache are opened, or by
        the content of the file ``path``, which a process reads once, and again
        if its size or time changes.
        """
        files = self._files(self._content(path, audio_hash), variant)
        feats = {feature: self._read(file) for feature, file in files.items()}
        missing = [feature for feature in feats if feats[feature] is None]
        if missing:
            wavs = load_wav().detach().unsqueeze(0)
        for feature in missing:
            extractor = self.extractors[feature]
            dtype = getattr(extractor, "cache_dtype", torch.float32)
            with torch.no_grad():
                feats[feature] = extractor(wavs)[0].to(dtype)
            self._write(files[feature], feats[feature])
        return {feature: value.float() for feature, value in feats.items()}

    def _files(self, content, variant):
        """Paths of an utterance's features, by name."""
        name = hashlib.sha256(f"{content}\n{variant}".encode()).hexdigest()
        return {
            feature: folder / f"{name[:32]}.safetensors"
            for feature, folder in self.entries.items()
        }

    def _content(self, path, audio_hash):
        """Text that identifies an utterance's audio by its content."""
        if (path is None) == (audio_hash is None):
            got = "neither" if path is None else "both"
            raise ValueError(
                f"expected either a path or an audio_hash, got {got}"
            )
        if path is None:
            return f"samples {audio_hash}"
        facts = os.stat(path)
        file = (str(path), facts.st_size, facts.st_mtime_ns)
        if file not in self.known_files:
            audio = Path(path).read_bytes()
            self.known_files[file] = hashlib.sha256(audio).hexdigest()
        return f"file {self.known_files[file]}"

    def _read(self, file):
        """Features of an entry; None if it is missing or damaged."""
        return _read(file)

    def _write(self, file, feats):
        """Write an entry whole or not at all."""
        tensors = {"feats": feats.contiguous(), "check": _check(feats)}
        try:
            try:
                replace_file(file, save(tensors), durable=False)
            except FileNotFoundError:
                # The folder was deleted in between
                replace_file(file, save(tensors), durable=False)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error):
        return ValueError(
            f"cannot write to the feature cache {self.folder}: "
            f"{error.strerror or error}; choose another folder, or run "
            "without a cache"
        )


class FeatureMemory(FeatureCache):
    """A cache in the memory of the process.

    Features that find no more room are computed again at each use. A copy that
    is sent to another process is empty and stays so.

    Arguments
    ---------
    extractors
        Extractors by name of the feature, such as ``MFCC39()``.
    room
        Bytes that it may keep.

    Example
    -------
    >>> from speechbrain_dslstm.features import MFCC39
    >>> memory = FeatureMemory({"mfcc": MFCC39()})
    >>> memory.get(lambda: torch.rand(16000), audio_hash="a0")["mfcc"].shape
    torch.Size([98, 39])
    >>> memory.room
    1073726536
    """

    def __init__(
        self,
        extractors: Mapping[str, torch.nn.Module],
        room: int = 1 << 30,
    ) -> None:
        self.extractors, self.known_files = _copies(extractors), {}
        self.entries = {name: Path(name) for name in extractors}
        self.room, self.kept = room, {}

    def _read(self, file):
        return self.kept.get(file)

    def _write(self, file, feats):
        if feats.nbytes <= self.room:
            self.room -= feats.nbytes
            self.kept[file] = feats

    def __getstate__(self):
        return self.__dict__ | {"room": 0, "kept": {}}


def _copies(extractors):
    """Copies, because the model's own extractors move to its device."""
    return {
        name: copy.deepcopy(one).cpu().float()
        for name, one in extractors.items()
    }


def _key(extractor, corpus):
    """Hash of all that the features of given audio depend on."""
    # Without the module: moving a class must not throw away its entries
    kind = type(extractor).__qualname__
    if not hasattr(extractor, "get_config"):
        raise ValueError(
            f"{kind} has no method get_config() that returns its settings, so "
            "its features cannot be told from those of other extractors"
        )
    facts = [FEATURES_VERSION, corpus, kind, extractor.get_config()]
    try:
        text = json.dumps(facts, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"the settings of {kind}: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(feats):
    """Checksum of the values and the number of frames, as a tensor."""
    return torch.tensor(zlib.crc32(feats.contiguous().numpy(), len(feats)))


def _read(file):
    """Features of an entry; None if it is missing or damaged."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    try:
        tensors = load(data)
        if torch.equal(tensors["check"], _check(tensors["feats"])):
            return tensors["feats"]
        trouble = "wrong checksum"
    except (SafetensorError, KeyError, ValueError) as error:
        trouble = error
    text = "%s of the feature cache is damaged (%s); computing it again"
    logger.warning(text, file, trouble)
    return None


class SpeedCache:
    """Features of clips at several speeds, from a cache.

    ``load`` takes a clip's path and speed, and returns the waveform,
    [samples], at ``sample_rate``. As in the model, it is cut by
    ``active_speech``, if given, and padded with silence to ``min_samples``.
    """

    def __init__(
        self,
        cache: FeatureCache,
        load: Callable[[str, int], Tensor],
        sample_rate: int,
        min_samples: int,
        active_speech: ActiveSpeech | None = None,
    ) -> None:
        self.cache = cache
        self.load = load
        self.sample_rate = sample_rate
        self.min_samples = min_samples
        self.active_speech = active_speech

    def get(
        self, path: str, audio_hash: str, duration: float, percent: int
    ) -> dict[str, Tensor]:
        """Features of a clip at a speed in per cent, by name, [frames, size].

        ``path`` is read only if features are missing; ``audio_hash`` is the
        hash of its samples, ``duration`` is in seconds.
        """

        def load_wav():
            """Load the waveform, cut it, and pad it with silence."""
            wav = self.load(path, percent)
            if self.active_speech is not None:
                wav = self.active_speech.cut(wav)
            missing = max(0, self.min_samples - len(wav))
            return torch.nn.functional.pad(wav, (0, missing))

        variant = self._variant(duration, percent)
        return self.cache.get(load_wav, audio_hash=audio_hash, variant=variant)

    def _variant(self, duration, percent):
        """Text of all that the waveform depends on besides the audio's samples."""
        # The hash of the samples does not cover their rate
        variant = f"speed {percent}, {duration} s to {self.sample_rate} Hz"
        if self.active_speech is not None:
            config = json.dumps(self.active_speech.get_config())
            # The length of the cut clip is not known here
            return f"{variant}, speech {config}, {self.min_samples} samples"
        samples = duration * self.sample_rate * 100 / percent
        # Only these clips are padded; systems share the entries of longer ones
        if samples < 1.02 * self.min_samples:
            variant += f", {self.min_samples} samples"
        return variant
