"""Features on disk: computed once, read by all epochs, folds and seeds.

There is one file for each utterance and extractor. Its name is a hash of all
that decides what is in it: the corpus, the extractor and its settings, the
audio, and the variant. So an entry is never out of date, and any number of
processes may share a folder.

Nothing is thrown out. The three features of the paper take 80 KB for each
second of speech (EMO-DB 0.12 GB, IEMOCAP 2 GB), and as much again for each
variant. A folder can be deleted at any time. A killed process may leave a
hidden ``.tmp`` file, which nobody reads.
"""

import copy
import hashlib
import json
import os
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.features.extractor import FEATURES_VERSION
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["FeatureCache", "SpeedCache"]

logger = get_logger(__name__)


class FeatureCache:
    """Gives the features of an utterance, from disk if they are there.

    It computes what is missing on the CPU, with copies of the extractors. It
    holds no open files, and goes to the workers of a ``DataLoader`` as it is.

    Arguments
    ---------
    folder : str or pathlib.Path
        Where the entries are; made if needed.
    extractors : dict of str to torch.nn.Module
        Name of a feature -> its extractor, such as ``MFCC39()``. Features
        with the same settings share their entries, whatever their names.
    corpus : str
        Name of the corpus, which is also that of a sub-folder.

    Raises
    ------
    ValueError
        No extractors, one without ``get_config()`` or with values that are
        not numbers and texts, a corpus that cannot be the name of a folder, or a
        folder that cannot be made.

    Example
    -------
    >>> from speechbrain_dslstm.features import MFCC39, LogMelSpectrogram
    >>> extractors = {"mfcc": MFCC39(), "mel_x": LogMelSpectrogram(n_fft=512)}
    >>> folder = getfixture("tmp_path")
    >>> cache = FeatureCache(folder, extractors, "tones")
    >>> feats = cache.get(lambda: torch.rand(16000), audio_hash="a0")
    >>> {name: list(value.shape) for name, value in feats.items()}
    {'mfcc': [98, 39], 'mel_x': [63, 128]}
    >>> again = cache.get(lambda: 1 / 0, audio_hash="a0")
    >>> torch.equal(feats["mfcc"], again["mfcc"])
    True
    """

    def __init__(self, folder, extractors, corpus):
        if not extractors:
            raise ValueError("a feature cache needs at least one extractor")
        if corpus in ("", "..") or corpus != Path(corpus).name:
            raise ValueError(
                f"the corpus must be the name of a folder, got {corpus!r}"
            )
        self.folder = Path(folder)
        self.extractors = {}
        self.entries = {}
        for name, extractor in extractors.items():
            # The model moves its own ones to its device
            self.extractors[name] = copy.deepcopy(extractor).cpu().float()
            kind = f"{type(extractor).__name__}-{_key(extractor, corpus)}"
            self.entries[name] = self.folder / corpus / kind
        self.known_files = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error) from error

    def get(self, load_wav, path=None, audio_hash=None, variant=""):
        """Get the features of one utterance.

        Arguments
        ---------
        load_wav : callable
            Returns the waveform, [samples]; called only where a feature is
            missing.
        path : str or pathlib.Path, optional
            The audio file, told by its content. It is read once in the life
            of the process (and again if its size or time changes).
        audio_hash : str, optional
            A hash of the audio, such as a manifest's ``audio_hash``, instead
            of ``path``: then no file is opened but the cache's own.
        variant : str
            What ``load_wav`` does to the audio, such as "speed 0.9".

        Returns
        -------
        dict of str to torch.Tensor, float32, [frames, output_size]
            Name of a feature -> the feature.

        Raises
        ------
        ValueError
            Both or none of ``path`` and ``audio_hash``, a waveform that is
            not [samples], or a folder that cannot be written to.

        Example
        -------
        >>> from speechbrain_dslstm.features import MFCC39
        >>> cache = FeatureCache(
        ...     getfixture("tmp_path"), {"mfcc": MFCC39()}, "tones"
        ... )
        >>> cache.get(lambda: torch.rand(8000))
        Traceback (most recent call last):
            ...
        ValueError: expected either a path or an audio_hash, got neither
        """
        files = self._files(self._content(path, audio_hash), variant)
        feats = {feature: _read(file) for feature, file in files.items()}
        missing = [feature for feature in feats if feats[feature] is None]
        if missing:
            wavs = load_wav().detach().unsqueeze(0)
        for feature in missing:
            with torch.no_grad():
                feats[feature] = self.extractors[feature](wavs)[0].float()
            self._write(files[feature], feats[feature])
        return feats

    def has(self, audio_hash, variant=""):
        """Whether ``get`` would find all features, if none is damaged.

        Arguments
        ---------
        audio_hash : str
            As of ``get``.
        variant : str
            As of ``get``.

        Returns
        -------
        bool
            Whether there are such files.

        Example
        -------
        >>> from speechbrain_dslstm.features import MFCC39
        >>> folder, extractors = getfixture("tmp_path"), {"mfcc": MFCC39()}
        >>> cache = FeatureCache(folder, extractors, "tones")
        >>> _ = cache.get(lambda: torch.rand(8000), audio_hash="a0")
        >>> cache.has("a0"), cache.has("a0", "speed 90")
        (True, False)
        """
        files = self._files(self._content(None, audio_hash), variant)
        return all(file.exists() for file in files.values())

    def _files(self, content, variant):
        """Where an utterance's features are: feature -> path."""
        name = hashlib.sha256(f"{content}\n{variant}".encode()).hexdigest()
        return {
            feature: folder / f"{name[:32]}.safetensors"
            for feature, folder in self.entries.items()
        }

    def _content(self, path, audio_hash):
        """What tells an utterance's audio from all others."""
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

    def _write(self, file, feats):
        """Write an entry whole or not at all."""
        tensors = {"feats": feats.contiguous(), "check": _check(feats)}
        try:
            try:
                replace_file(file, save(tensors), durable=False)
            except FileNotFoundError:
                # The folder has been deleted meanwhile
                replace_file(file, save(tensors), durable=False)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _cannot_write(self, error):
        return ValueError(
            f"cannot write to the feature cache {self.folder}: "
            f"{error.strerror or error}; choose another folder, or do without "
            "a cache"
        )


def _key(extractor, corpus):
    """Hash of what decides the features of given audio."""
    # Without the module: moving a class must not throw away its entries
    kind = type(extractor).__qualname__
    if not hasattr(extractor, "get_config"):
        raise ValueError(
            f"{kind} has no method get_config() that returns its settings, so "
            "its features cannot be told from those of other extractors"
        )
    settings = extractor.get_config()
    facts = [FEATURES_VERSION, corpus, kind, settings]
    try:
        text = json.dumps(facts, sort_keys=True)
    except TypeError as error:
        raise ValueError(f"the settings of {kind}: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _check(feats):
    """Checksum of the values and the number of frames, as a tensor."""
    return torch.tensor(zlib.crc32(feats.contiguous().numpy(), len(feats)))


def _read(file):
    """An entry's features; None where there is none or it is damaged."""
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
    logger.warning(
        "%s of the feature cache is damaged (%s): computed again",
        file,
        trouble,
    )
    return None


class SpeedCache:
    """Features of clips at several speeds, from a cache.

    A clip that is used gets entries for all its speeds, so that from the
    second epoch on no audio is read, whatever speed is drawn.

    Arguments
    ---------
    cache : FeatureCache
        Where the features are.
    load : callable
        Takes a clip's path and a speed in per cent, returns the waveform,
        [samples], at ``sample_rate``.
    speeds : list of int
        In per cent.
    sample_rate : int
        In Hz.
    min_samples : int
        A waveform that is shorter gets silence behind it, as the model does.

    Example
    -------
    >>> from speechbrain_dslstm.features import MFCC39
    >>> extractors = {"mfcc": MFCC39()}
    >>> cache = FeatureCache(getfixture("tmp_path"), extractors, "tones")
    >>> def load(path, percent):
    ...     print("loads", path, percent)
    ...     return torch.rand(1600 * percent)
    >>> clips = SpeedCache(cache, load, [90, 100], 16000, 400)
    >>> for percent in (90, 100, 90):
    ...     _ = clips.get("a.wav", "a0", 10.0, percent)
    loads a.wav 90
    loads a.wav 100
    """

    def __init__(self, cache, load, speeds, sample_rate, min_samples):
        self.cache = cache
        self.load = load
        self.speeds = speeds
        self.sample_rate = sample_rate
        self.min_samples = min_samples

    def get(self, path, audio_hash, duration, percent):
        """Features of a clip at one speed.

        Arguments
        ---------
        path : str
            The audio, read only where it must be.
        audio_hash : str
            Hash of its samples.
        duration : float
            In seconds.
        percent : int
            The speed.

        Returns
        -------
        dict of str to torch.Tensor, [frames, size]
            Features by name.
        """
        feats = self._at(path, audio_hash, duration, percent)
        for speed in self.speeds:
            variant = self._variant(duration, speed)
            if speed != percent and not self.cache.has(audio_hash, variant):
                self._at(path, audio_hash, duration, speed)
        return feats

    def _at(self, path, audio_hash, duration, percent):
        def load_wav():
            """The waveform, once it is known to be needed."""
            wav = self.load(path, percent)
            missing = max(0, self.min_samples - len(wav))
            return torch.nn.functional.pad(wav, (0, missing))

        variant = self._variant(duration, percent)
        return self.cache.get(load_wav, audio_hash=audio_hash, variant=variant)

    def _variant(self, duration, percent):
        """What decides the waveform besides the samples of the audio."""
        # The hash does not know their rate
        variant = f"speed {percent}, {duration} s to {self.sample_rate} Hz"
        samples = duration * self.sample_rate * 100 / percent
        # Other systems have other limits, and share the longer clips
        if samples < 1.02 * self.min_samples:
            variant += f", {self.min_samples} samples"
        return variant
