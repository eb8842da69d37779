"""What feeds the recipe's training loop: loaders, features, statistics.

All read the hyperparameters as ``hparams.load_hparams`` gives them.
"""

import random

import numpy as np
import torch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import BalancingDataSampler, DynamicBatchSampler
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.features.cache import FeatureCache
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.models.streams import FeatureSequence

__all__ = [
    "open_cache",
    "loader_options",
    "collect_statistics",
    "extract_batch",
    "token_sequence",
    "ReproducibleDataset",
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


def collect_statistics(
    model: DualLevelClassifier,
    datasets: dict[str, DynamicItemDataset],
    normalization: str,
) -> None:
    """Collect the model's feature statistics; no label is looked at.

    Arguments
    ---------
    model
        Keeps them, see ``FeatureNormalization``.
    datasets
        "plain", the training subset without augmentation, "valid" and "test".
    normalization
        "training": over the training subset. "speaker": over all clips of
        each speaker, so over all three subsets. "none": nothing is collected.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> model = DualLevelClassifier(p=0.0)
    >>> items = {
    ...     str(seconds): {"sig": torch.rand(8000 * seconds), "speaker": "f1"}
    ...     for seconds in (1, 2)
    ... }
    >>> plain = DynamicItemDataset(items, [], ["id", "sig", "speaker"])
    >>> collect_statistics(model, {"plain": plain}, "training")
    >>> model.streams["mfcc"].normalization.count
    tensor(146., dtype=torch.float64)
    """
    subsets = {"training": ["plain"], "speaker": ["plain", "valid", "test"]}
    seen = set()
    for subset in subsets.get(normalization, []):
        logger.info(f"collecting feature statistics ({subset})")
        for batch in _once(datasets[subset]):
            # Under some protocols a clip is in two subsets
            rows = [row for row, key in enumerate(batch.id) if key not in seen]
            seen.update(batch.id)
            if rows:
                extracted = extract_batch(model, batch)
                model.update_statistics(
                    {
                        name: FeatureSequence(feats[rows], counts[rows])
                        for name, (feats, counts) in extracted.items()
                    },
                    [batch.speaker[row] for row in rows],
                )


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
    dict of str to FeatureSequence
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
        found[name] = FeatureSequence(feats, to_counts(lens, feats.shape[1]))
    return found


def token_sequence(batch):
    """Token ids of a batch and how many each item has.

    Arguments
    ---------
    batch : PaddedBatch
        Holds "tokens".

    Returns
    -------
    FeatureSequence
        Ids [batch, tokens] and counts.

    Example
    -------
    >>> from speechbrain.dataio.batch import PaddedBatch
    >>> items = [
    ...     {"tokens": torch.tensor([5, 2])},
    ...     {"tokens": torch.tensor([3])},
    ... ]
    >>> token_sequence(PaddedBatch(items))
    FeatureSequence(feats=tensor([[5, 2],
            [3, 0]]), counts=tensor([2, 1]))
    """
    tokens, lens = batch.tokens
    return FeatureSequence(tokens, to_counts(lens, tokens.shape[1]))


class ReproducibleDataset(DynamicItemDataset):
    """Dataset whose items draw the same numbers whichever worker reads them.

    A worker's own generator depends on what it has read before, which is
    lost when a run is resumed in the middle of an epoch. So in a worker each
    item starts from a seed made of the epoch's and its own number. Without
    workers items draw from the generators of the process.

    Arguments
    ---------
    *args : tuple
        As of ``DynamicItemDataset``.
    **kwargs : dict
        As of ``DynamicItemDataset``.

    Example
    -------
    >>> dataset = ReproducibleDataset({"a": {"text": "no"}}, [], ["id", "text"])
    >>> dataset[0]
    {'id': 'a', 'text': 'no'}
    """

    def __getitem__(self, index):
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            seeds = np.random.SeedSequence([worker.seed - worker.id, index])
            first, *others = seeds.generate_state(5).tolist()
            torch.manual_seed(first)
            random.seed(first)
            np.random.seed(others)
        return super().__getitem__(index)
