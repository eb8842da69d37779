"""Clips, batches and feature statistics of the training loop.

Functions that take ``hparams`` read them as ``hparams.load_hparams`` returns
them.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.dataio.encoder import CategoricalEncoder
from speechbrain.dataio.sampler import BalancingDataSampler, DynamicBatchSampler
from speechbrain.tokenizers.SentencePiece import SentencePiece
from speechbrain.utils.data_pipeline import DynamicItem, GeneratorDynamicItem
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.corpora import Source, vote_names
from speechbrain_dslstm.corpora.clips import load_clip
from speechbrain_dslstm.corpora.manifest import to_scale
from speechbrain_dslstm.corpora.transcripts import load_tokenizer, to_tokens
from speechbrain_dslstm.features.augment import change_speed
from speechbrain_dslstm.features.cache import (
    FeatureCache,
    FeatureMemory,
    SpeedCache,
)
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.models.losses import vote_shares
from speechbrain_dslstm.models.streams import FeatureSequence
from speechbrain_dslstm.training.signals import shield_worker
from speechbrain_dslstm.utils.progress import track

logger = get_logger(__name__)


def to_key(stream: str) -> str:
    """Name of a stream's features in a batch, where "wav" is the path of a clip."""
    return f"{stream}_features"


def open_cache(
    hparams: Mapping[str, Any], device: str = "cpu"
) -> FeatureCache | None:
    """Open the cache for the model's features, on disk or in memory.

    None where features are computed in each step: without ``feature_cache``, if
    waveforms are augmented, if a GPU computes the features, or if workers, whose
    memory ends with the epoch, read the clips.
    """
    folder, streams = hparams["feature_cache"], hparams["model"].streams
    extractors = {name: one.extractor for name, one in streams.items()}
    if folder is not None:
        if hparams["wav_augment"] is not None:
            raise ValueError(
                "wav_augment has no effect on features from feature_cache: set "
                "one of them to null"
            )
        return FeatureCache(folder, extractors, hparams["corpus"])
    on_cpu = torch.device(device).type == "cpu" and not hparams["num_workers"]
    if hparams["wav_augment"] is None and on_cpu:
        return FeatureMemory(extractors)
    return None


def open_tokenizer(hparams: Mapping[str, Any]) -> SentencePiece | None:
    """Train or load the tokenizer, if the model reads transcripts."""
    if not hparams["model"].reads_text:
        return None
    return load_tokenizer(
        Path(hparams["output_folder"], "save", "tokenizer"),
        hparams["text_vocab_size"],
        hparams["text_model_type"],
    )


class ClipMemory:
    """Keeps decoded clips in memory, up to a number of bytes.

    Decoding and resampling take a fifth of the time of an epoch. Clips that
    find no more room are read again, as in each epoch all are read once.
    """

    def __init__(self, sample_rate: int, room: int = 1 << 29) -> None:
        self.sample_rate, self.room = sample_rate, room
        self.clips: dict[str, torch.Tensor] = {}

    def load(self, wav: str) -> torch.Tensor:
        """Return a clip [samples], which must not be changed in place."""
        sig = self.clips.get(wav)
        if sig is None:
            sig = load_clip(wav, self.sample_rate)
            if sig.nbytes <= self.room:
                self.room -= sig.nbytes
                self.clips[wav] = sig
        return sig

    def __getstate__(self) -> dict[str, Any]:
        # Not to each worker that is spawned
        return self.__dict__ | {"room": 0, "clips": {}}


class ClipReader:
    """Reads clips, or their features, at speeds in per cent drawn at random.

    ``features`` needs the cache from ``open_cache``.
    """

    def __init__(
        self,
        hparams: Mapping[str, Any],
        memory: ClipMemory,
        cache: FeatureCache | None,
        speeds: Sequence[int],
    ) -> None:
        self.sample_rate = hparams["features"]["sample_rate"]
        self.memory, self.speeds = memory, speeds
        self.streams = list(hparams["model"].streams)
        if cache is not None:
            self.cache = SpeedCache(
                cache,
                self._load,
                self.sample_rate,
                hparams["model"].min_samples,
                hparams["model"].active_speech,
            )

    def waveform(self, wav: str) -> torch.Tensor:
        """Read a clip [samples] at the model's rate and a drawn speed."""
        return self._load(wav, self._draw_speed())

    def features(
        self, wav: str, audio_hash: str, duration: float
    ) -> Iterator[torch.Tensor]:
        """Yield a clip's features [frames, size] by stream from the cache."""
        speed = self._draw_speed()
        feats = self.cache.get(wav, audio_hash, duration, speed)
        yield from (feats[name] for name in self.streams)

    def _load(self, wav: str, percent: int) -> torch.Tensor:
        sig = self.memory.load(wav)
        return sig if percent == 100 else change_speed(sig, percent)

    def _draw_speed(self) -> int:
        # Evaluation, which has one speed, must not draw a random number
        several = len(self.speeds) > 1
        index = int(torch.randint(len(self.speeds), ())) if several else 0
        return self.speeds[index]


def make_datasets(
    hparams: Mapping[str, Any],
    tokenizer: SentencePiece | None = None,
    device: str = "cpu",
) -> dict[str, "ReproducibleDataset"]:
    """Make the datasets "train", "valid" and "test" from their manifests.

    Without validation clips there is no "valid". "train" draws a speed for each
    clip; "plain" holds the same clips as they are. ``tokenizer`` is that of
    ``open_tokenizer``, ``device`` that of the training. The datasets can be
    pickled, which workers need where processes are spawned.
    """
    cache = open_cache(hparams, device)
    keys = ["id", "speaker", "emotion_encoded"]
    keys += ["emotion_soft"] if hparams["soft_labels"] else []
    keys += ["dimensions"] if hparams["dimensions"] else []
    keys += ["tokens"] if tokenizer is not None else []
    keys += ["sig"] if cache is None else map(to_key, hparams["model"].streams)
    given = _label_items(hparams)
    memory = ClipMemory(hparams["features"]["sample_rate"])
    if tokenizer is not None:
        read = partial(to_tokens, tokenizer)
        given.append(DynamicItem(["text"], read, ["tokens"]))

    def dataset(subset: str, speeds: Sequence[int]) -> ReproducibleDataset:
        clips = ClipReader(hparams, memory, cache, speeds)
        items = [*given, *_audio_items(clips)]
        return ReproducibleDataset.from_json(
            Path(hparams["output_folder"], "save", f"{subset}.json"),
            replacements={"data_root": Source(hparams).data_root},
            dynamic_items=[one for one in items if {*one.provides} & {*keys}],
            output_keys=keys,
        )

    datasets = {name: dataset(name, [100]) for name in _scored(hparams)}
    datasets["plain"] = dataset("train", [100])
    datasets["train"] = dataset("train", hparams["speeds"] or [100])
    return datasets


def _scored(hparams: Mapping[str, Any]) -> list[str]:
    """Names of the subsets to score: "valid", if it has clips, and "test"."""
    path = Path(hparams["output_folder"], "save", "valid.json")
    valid = json.loads(path.read_text(encoding="utf-8"))
    return ["valid", "test"] if valid else ["test"]


def _label_items(hparams: Mapping[str, Any]) -> list[DynamicItem]:
    """Items of a clip's emotion, of its votes, and of its dimensions."""
    labels = hparams["labels"]
    encoder = CategoricalEncoder()
    for index, label in enumerate(labels):
        encoder.enforce_label(label, index)
    encoder.expect_len(len(labels))
    votes = partial(
        _share_votes,
        names=vote_names(hparams["corpus"], hparams["label_set"]),
        labels=labels,
    )
    scale = partial(_scale, scale=list(hparams["dimension_range"]))
    return [
        DynamicItem(
            ["emotion"], encoder.encode_label_torch, ["emotion_encoded"]
        ),
        DynamicItem(["votes", "emotion"], votes, ["emotion_soft"]),
        DynamicItem(
            list(hparams["dimensions"]) or ["id"], scale, ["dimensions"]
        ),
    ]


def _audio_items(clips: ClipReader) -> list[DynamicItem]:
    """Items of a clip's waveform, and of its features from the cache."""
    takes = ["wav", "audio_hash", "duration"]
    return [
        DynamicItem(["wav"], clips.waveform, ["sig"]),
        GeneratorDynamicItem(
            takes, clips.features, [*map(to_key, clips.streams)]
        ),
    ]


# Not functions inside of others, which spawned workers cannot receive
def _share_votes(
    votes: Mapping, emotion: str, names: Mapping[str, str], labels: list[str]
) -> torch.Tensor:
    """Soft labels of a clip, in the order in which items pass arguments."""
    return vote_shares(votes, names, labels, emotion)


def _scale(*ratings: float, scale: Sequence[float]) -> torch.Tensor:
    """Ratings of a clip, one argument each, on the scale of the model."""
    return to_scale(ratings, scale)


def loader_options(
    hparams: Mapping[str, Any], dataset: DynamicItemDataset
) -> dict[str, Any]:
    """Choose the training loader's options: which clips make a batch.

    Batches hold clips of similar length. With ``balanced_sampling`` clips are
    drawn so that all emotions, or all corpora, are equally frequent, whatever
    their length.
    """
    options = {"num_workers": hparams["num_workers"]}
    balanced = hparams["balanced_sampling"]
    if balanced:
        key = "emotion" if balanced is True else balanced
        if key not in ("emotion", "corpus"):
            raise ValueError(
                f"balanced_sampling is {balanced!r}; expected False, True or "
                "corpus"
            )
        if any(key not in item for item in dataset.data.values()):
            raise ValueError(
                "balanced_sampling: corpus needs several corpora, such as "
                "--corpus=emodb+ravdess"
            )
        options["batch_size"] = hparams["batch_size"]
        options["sampler"] = BalancingDataSampler(
            dataset, key, seed=hparams["seed"]
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
    clips of each speaker: all datasets but "train". A model that has
    statistics already, those of the model it starts from, keeps them.
    """
    norms = [stream.normalization for stream in model.streams.values()]
    if any(norm.count > 0 for norm in norms):
        return
    everything = [s for s in ("plain", "valid", "test") if s in datasets]
    subsets = {"training": ["plain"], "speaker": everything}
    if normalization in subsets:
        logger.info(
            f"collecting feature statistics (normalization: {normalization})"
        )
    seen = set()
    for subset in subsets.get(normalization, []):
        loader = make_dataloader(datasets[subset], batch_size=8)
        for batch in track(loader, "feature statistics"):
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
        found = {
            name: _with_counts(*batch[to_key(name)]) for name in model.streams
        }
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
    """Dataset whose items draw the same random numbers with any workers.

    The state of a generator depends on the items that its process has read
    before, which is lost when a run resumes in the middle of an epoch. So each
    item starts from a seed made of the epoch's seed and the item's number. The
    epoch's seed is the loader's, which its workers know; a process that reads
    without workers takes it from ``epoch_seed``, and its own generators keep
    their states. Where that is None, items draw from the process' generators.
    """

    epoch_seed: int | None = None

    @classmethod
    def from_json(
        cls,
        json_path: str | Path,
        replacements: Mapping[str, str] | None = None,
        dynamic_items: Sequence[Any] = (),
        output_keys: Sequence[str] = (),
    ) -> "ReproducibleDataset":
        """Read a manifest; only paths are formatted, as a class may have braces."""
        entries = json.loads(Path(json_path).read_text(encoding="utf-8"))
        for entry in entries.values():
            entry["wav"] = entry["wav"].format_map(dict(replacements or {}))
        return cls(entries, list(dynamic_items), list(output_keys))

    def __getitem__(self, index: int) -> dict[str, Any]:
        worker = torch.utils.data.get_worker_info()
        if worker is not None:
            _seed(worker.seed - worker.id, index)
        elif self.epoch_seed is not None:
            states = torch.get_rng_state(), random.getstate()
            numpy_state = np.random.get_state()
            try:
                _seed(self.epoch_seed, index)
                return super().__getitem__(index)
            finally:
                torch.set_rng_state(states[0])
                random.setstate(states[1])
                np.random.set_state(numpy_state)
        return super().__getitem__(index)


def _seed(epoch_seed: int, index: int) -> None:
    """Seed the CPU's generators for an item."""
    seeds = np.random.SeedSequence([epoch_seed, index])
    first, *others = seeds.generate_state(5).tolist()
    # Not torch.manual_seed, which would seed the GPU's generator, too
    torch.default_generator.manual_seed(first)
    random.seed(first)
    np.random.seed(others)
