"""What feeds the recipe's training loop: loaders, features, statistics.

All read the hyperparameters as ``hparams.load_hparams`` gives them.
"""

import numpy as np
import torch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.sampler import (
    BalancingDataSampler,
    DynamicBatchSampler,
)
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.feature_cache import FeatureCache
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.models import Sequence
from speechbrain_dslstm.normalization import FeatureNormalization

__all__ = [
    "SpeedCache",
    "collect_statistics",
    "extract_batch",
    "loader_options",
    "open_cache",
    "token_sequence",
]

logger = get_logger(__name__)


def open_cache(hparams):
    """The cache of features, where there is to be one.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters.

    Returns
    -------
    FeatureCache or None
        With the extractors of the model.

    Raises
    ------
    ValueError
        A cache together with an augmentation of waveforms.

    Example
    -------
    >>> open_cache({"feature_cache": None}) is None
    True
    """
    if hparams["feature_cache"] is None:
        return None
    if hparams["wav_augment"] is not None:
        raise ValueError(
            "feature_cache holds features, so wav_augment would change "
            "nothing: set one of them to null"
        )
    streams = hparams["model"].streams
    return FeatureCache(
        hparams["feature_cache"],
        {name: stream.extractor for name, stream in streams.items()},
        hparams["corpus"],
    )


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


def loader_options(hparams, dataset):
    """Options of the training loader: how clips come into batches.

    Batches of clips of similar length; where ``balanced_sampling`` is set,
    clips drawn so that each emotion is as frequent, of any length.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters.
    dataset : DynamicItemDataset
        The training side.

    Returns
    -------
    dict
        For ``make_dataloader``.

    Example
    -------
    >>> hparams = {"num_workers": 0, "num_buckets": 1, "batch_size": 16}
    >>> loader_options(hparams | {"balanced_sampling": False}, dataset=[])
    {'num_workers': 0, 'batch_size': 16, 'shuffle': True}
    """
    options = {"num_workers": hparams["num_workers"]}
    if hparams["balanced_sampling"]:
        options["batch_size"] = hparams["batch_size"]
        options["sampler"] = BalancingDataSampler(
            dataset, "emotion", seed=hparams["seed"]
        )
        return options
    if hparams["num_buckets"] <= 1:
        options.update(batch_size=hparams["batch_size"], shuffle=True)
        return options
    durations = [item["duration"] for item in dataset.data.values()]
    shares = np.linspace(0, 1, hparams["num_buckets"] + 1)[1:]
    boundaries = np.unique(np.quantile(durations, shares))
    options["batch_sampler"] = DynamicBatchSampler(
        dataset,
        # Only the number of clips limits a batch
        max_batch_length=hparams["batch_size"] * max(durations),
        max_batch_ex=hparams["batch_size"],
        bucket_boundaries=boundaries.tolist(),
        seed=hparams["seed"],
    )
    return options


def collect_statistics(hparams, datasets):
    """Feature statistics, before the first epoch: of the training side.

    Those of each speaker, where ``normalization`` asks for them, are of all
    clips, the tested ones included; no label is looked at.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters; gets "moments".
    datasets : dict of str to DynamicItemDataset
        "plain" (the training side without augmentation), "valid" and "test".

    Example
    -------
    >>> hparams = {"model": None, "normalization": "none"}
    >>> collect_statistics(hparams, {})
    >>> hparams["moments"] is None
    True
    """
    model = hparams["model"]
    hparams["moments"] = None
    if hparams["normalization"] == "training":
        logger.info("collecting feature statistics of the training side")
        for batch in _once(datasets["plain"]):
            model.update_statistics(extract_batch(model, batch))
    if hparams["normalization"] == "speaker":
        logger.info("collecting feature statistics of each speaker's clips")
        found = {name: {} for name in model.streams}
        seen = set()
        for side in ("plain", "valid", "test"):
            for batch in _once(datasets[side]):
                extracted = extract_batch(model, batch)
                for row, key in enumerate(batch.id):
                    # Under some protocols a clip is on two sides
                    if key in seen:
                        continue
                    seen.add(key)
                    speaker = batch.speaker[row]
                    for name, (feats, counts) in extracted.items():
                        own = found[name].setdefault(
                            speaker, FeatureNormalization(feats.shape[2])
                        )
                        one = slice(row, row + 1)
                        own.update(feats[one], counts[one])
        hparams["moments"] = {
            name: {
                speaker: (one.mean.float(), one.variance.sqrt().float())
                for speaker, one in speakers.items()
            }
            for name, speakers in found.items()
        }


def _once(dataset):
    """Loader that passes once over a dataset, in small batches in order."""
    return make_dataloader(dataset, batch_size=8)


def extract_batch(model, batch):
    """Features of a batch: those it brings, or those of its waveforms.

    Arguments
    ---------
    model : DualLevelClassifier
        Says which streams.
    batch : PaddedBatch
        From a dataset of the recipe.

    Returns
    -------
    dict of str to Sequence
        Features by stream name.

    Example
    -------
    >>> from speechbrain.dataio.batch import PaddedBatch
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> batch = PaddedBatch([{"sig": torch.rand(8000)}])
    >>> found = extract_batch(DualLevelClassifier(p=0.0), batch)
    >>> found["mfcc"].feats.shape
    torch.Size([1, 48, 39])
    """
    if hasattr(batch, "sig"):
        with torch.no_grad():
            return model.extract(*batch.sig)
    found = {}
    for name in model.streams:
        feats, lens = batch[name]
        found[name] = Sequence(feats, to_counts(lens, feats.shape[1]))
    return found


def token_sequence(batch):
    """Token ids of a batch and how many each item has.

    Arguments
    ---------
    batch : PaddedBatch
        Holds "tokens".

    Returns
    -------
    Sequence
        Ids [batch, tokens] and counts.

    Example
    -------
    >>> from speechbrain.dataio.batch import PaddedBatch
    >>> items = [
    ...     {"tokens": torch.tensor([5, 2])},
    ...     {"tokens": torch.tensor([3])},
    ... ]
    >>> token_sequence(PaddedBatch(items))
    Sequence(feats=tensor([[5, 2],
            [3, 0]]), counts=tensor([2, 1]))
    """
    tokens, lens = batch.tokens
    return Sequence(tokens, to_counts(lens, tokens.shape[1]))
