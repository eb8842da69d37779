"""Clips, batches and feature statistics of the training loop.

Functions that take ``hparams`` read them as ``hparams.load_hparams`` returns
them.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.sampler import BalancingDataSampler, DynamicBatchSampler
from speechbrain.tokenizers.SentencePiece import SentencePiece
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.audio import LONGEST_CLIP, load_audio
from speechbrain_dslstm.corpora.transcripts import load_tokenizer
from speechbrain_dslstm.features.augment import change_speed
from speechbrain_dslstm.features.cache import FeatureCache, SpeedCache
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.models.streams import FeatureSequence
from speechbrain_dslstm.training.signals import shield_worker

logger = get_logger(__name__)


def open_cache(hparams: Mapping[str, Any]) -> FeatureCache | None:
    """Open the cache for the model's features, if ``feature_cache`` is set."""
    if hparams["feature_cache"] is None:
        return None
    if hparams["wav_augment"] is not None:
        raise ValueError(
            "wav_augment has no effect on features from feature_cache: set "
            "one of them to null"
        )
    streams = hparams["model"].streams
    return FeatureCache(
        hparams["feature_cache"],
        {name: stream.extractor for name, stream in streams.items()},
        hparams["corpus"],
    )


def open_tokenizer(hparams: Mapping[str, Any]) -> SentencePiece | None:
    """Train or load the tokenizer, if the model reads transcripts."""
    if not hparams["model"].reads_text:
        return None
    return load_tokenizer(
        Path(hparams["output_folder"], "save", "tokenizer"),
        hparams["text_vocab_size"],
        hparams["text_model_type"],
    )


class ClipReader:
    """Reads clips, or their features, at speeds in per cent drawn at random.

    ``features`` needs the cache from ``open_cache``.
    """

    def __init__(
        self,
        hparams: Mapping[str, Any],
        cache: FeatureCache | None,
        speeds: Sequence[int],
    ) -> None:
        self.sample_rate = hparams["features"]["sample_rate"]
        self.speeds = speeds
        self.streams = list(hparams["model"].streams)
        if cache is not None:
            self.cache = SpeedCache(
                cache,
                self._load,
                speeds,
                self.sample_rate,
                hparams["model"].min_samples,
            )

    def waveform(self, wav: str) -> torch.Tensor:
        """Read a clip [samples] at the model's rate and a drawn speed."""
        return self._load(wav, self._draw_speed())

    def features(
        self, wav: str, audio_hash: str, duration: float
    ) -> list[torch.Tensor]:
        """Take a clip's features [frames, size] of each stream from the cache."""
        speed = self._draw_speed()
        feats = self.cache.get(wav, audio_hash, duration, speed)
        return [feats[name] for name in self.streams]

    def _load(self, wav: str, percent: int) -> torch.Tensor:
        sig = load_audio(wav, self.sample_rate, LONGEST_CLIP)
        return sig if percent == 100 else change_speed(sig, percent)

    def _draw_speed(self) -> int:
        # Evaluation, which has one speed, must not draw a random number
        several = len(self.speeds) > 1
        index = int(torch.randint(len(self.speeds), ())) if several else 0
        return self.speeds[index]


def loader_options(
    hparams: Mapping[str, Any], dataset: DynamicItemDataset
) -> dict[str, Any]:
    """Choose the training loader's options: which clips make a batch.

    Batches hold clips of similar length. With ``balanced_sampling`` clips are
    drawn so that all emotions are equally frequent, whatever their length.
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


def evaluation_options(hparams: Mapping[str, Any]) -> dict[str, Any]:
    """Choose a loader's options for validation or test.

    Do not share the dict between loaders: SpeechBrain changes it.
    """
    return {
        "batch_size": hparams["eval_batch_size"],
        "num_workers": hparams["num_workers"],
        "worker_init_fn": shield_worker,
        # Evaluation must not advance the generator that training draws from
        "generator": torch.Generator(),
    }


def collect_statistics(
    model: DualLevelClassifier,
    datasets: Mapping[str, DynamicItemDataset],
    normalization: str,
) -> None:
    """Collect the model's feature statistics; no label is read.

    With ``normalization`` "training", they come from the dataset "plain", the
    training subset without augmentation. With "speaker", they come from all
    clips of each speaker: "plain", "valid" and "test".
    """
    subsets = {"training": ["plain"], "speaker": ["plain", "valid", "test"]}
    if normalization in subsets:
        logger.info(
            f"collecting feature statistics (normalization: {normalization})"
        )
    seen = set()
    for subset in subsets.get(normalization, []):
        for batch in make_dataloader(datasets[subset], batch_size=8):
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


def extract_batch(
    model: DualLevelClassifier,
    batch: PaddedBatch,
    augment: Callable | None = None,
) -> dict[str, FeatureSequence]:
    """Compute a batch's features by stream name, or take those from the cache.

    ``augment`` is SpeechBrain's ``Augmenter`` of waveforms. Features are not
    normalised. "text" holds the tokens, if the model reads them.
    """
    if hasattr(batch, "sig"):
        sig = batch.sig if augment is None else augment(*batch.sig)
        with torch.no_grad():
            found = model.extract(*sig)
    else:
        found = {name: _with_counts(*batch[name]) for name in model.streams}
    if model.reads_text:
        text = _with_counts(*batch.tokens)
        if augment is not None:
            text = text._make(map(augment.replicate_labels, text))
        found["text"] = text
    return found


def _with_counts(data: torch.Tensor, lens: torch.Tensor) -> FeatureSequence:
    """Padded data [batch, time, ...] with counts for relative lengths."""
    return FeatureSequence(data, to_counts(lens, data.shape[1]))


class ReproducibleDataset(DynamicItemDataset):
    """Dataset whose items draw the same random numbers in any worker.

    The state of a worker's own generator depends on what it has read before,
    which is lost when a run resumes in the middle of an epoch. So each item
    that a worker reads starts from a seed made of the epoch's seed and the
    item's number. Without workers, items draw from the process' generators.
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            seeds = np.random.SeedSequence([worker.seed - worker.id, index])
            first, *others = seeds.generate_state(5).tolist()
            torch.manual_seed(first)
            random.seed(first)
            np.random.seed(others)
        return super().__getitem__(index)
