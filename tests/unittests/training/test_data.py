"""Datasets in workers of every kind, and the statistics of features."""

import pickle
from pathlib import Path

import processes
import pytest
import torch
from nightly import at_night
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_dslstm import DualLevelClassifier
from speechbrain_dslstm.corpora.manifest import read_manifest, write_manifest
from speechbrain_dslstm.features import MFCC39, FeatureCache, FeatureMemory
from speechbrain_dslstm.hparams import load_hparams
from speechbrain_dslstm.models import FeatureStream
from speechbrain_dslstm.training import data as training_data
from speechbrain_dslstm.training.data import (
    ClipMemory,
    collect_statistics,
    make_datasets,
    open_cache,
    open_tokenizer,
)
from speechbrain_dslstm.training.preparation import prepare_data
from speechbrain_dslstm.training.random_states import RandomStates

HPARAMS = Path(__file__).resolve().parents[3] / "hparams"

SPEAKERS = {"plain": "ab", "valid": "c", "test": "bd"}


@pytest.fixture
def datasets():
    """Three subsets; the speaker b, and one clip of b, are in two of them."""
    found = {}
    for subset, speakers in SPEAKERS.items():
        items = {
            f"{subset}-{speaker}": {
                "sig": torch.randn(8000) * (1 + ord(speaker) % 5),
                "speaker": speaker,
            }
            for speaker in speakers
        }
        if subset == "test":
            items["plain-b"] = found["plain"].data["plain-b"]
        keys = ["id", "sig", "speaker"]
        found[subset] = DynamicItemDataset(items, [], keys)
    return found


def model(normalization):
    """A model of one stream."""
    stream = FeatureStream(MFCC39(), 39, normalization=normalization)
    return DualLevelClassifier(p=0.0, streams={"mfcc": stream})


def features(dataset, ids=None):
    """Frames of the clips, all lengths being the same."""
    clips = [dataset.data[one]["sig"] for one in ids or dataset.data_ids]
    return MFCC39()(torch.stack(clips)).flatten(0, 1).double()


def test_statistics_are_of_the_training_subset_alone(datasets):
    net = model("training")
    collect_statistics(net, datasets, "training")
    norm = net.streams["mfcc"].normalization
    frames = features(datasets["plain"])
    assert norm.count == len(frames) and not norm.speakers
    torch.testing.assert_close(norm.mean, frames.mean(0))
    torch.testing.assert_close(norm.variance, frames.var(0, correction=0))


def test_statistics_of_a_speaker_are_of_each_clip_once(datasets):
    net = model("speaker")
    collect_statistics(net, datasets, "speaker")
    norm = net.streams["mfcc"].normalization
    assert norm.count == 0 and set(norm.speakers) == set("abcd")
    frames = torch.cat(
        [
            features(datasets["plain"], ["plain-b"]),
            features(datasets["test"], ["test-b"]),
        ]
    )
    count, mean, variance = norm.speakers["b"]
    assert count == len(frames)
    torch.testing.assert_close(mean, frames.mean(0))
    torch.testing.assert_close(variance, frames.var(0, correction=0))


def test_no_statistics(datasets):
    net = model("none")
    collect_statistics(net, datasets, "none")
    assert net.streams["mfcc"].normalization.count == 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Prepare a run that reads transcripts, votes and a tokenizer."""
    folder = tmp_path_factory.mktemp("prepared")
    settings = f"""\
corpus_options: {{speakers: 6, sentences: 1}}
data_folder: {folder / "data"}
output_folder: {folder}
text_model_type: char
allow_fixed_sentences: True
soft_labels: 0.5
"""
    hparams = load_hparams(HPARAMS / "tri_level.yaml", settings)
    prepare_data(hparams)
    for name in ("train", "valid", "test"):
        path = folder / "save" / f"{name}.json"
        entries = read_manifest(path)
        # The synthetic corpus has none, so the label is the target
        write_manifest(
            path, {k: {**v, "votes": {}} for k, v in entries.items()}
        )
    return hparams


def read(hparams, **options):
    """Batches of an epoch over the training dataset, at speeds that it draws."""
    states = RandomStates()
    datasets = make_datasets(hparams, open_tokenizer(hparams))
    train = datasets["train"]
    states.start_epoch()
    train.epoch_seed = states.epoch_seed
    loader = make_dataloader(
        train, batch_size=4, generator=states.loader_generator, **options
    )
    name = "sig" if open_cache(hparams) is None else "mel_x_features"
    return [
        (
            batch.id,
            *(batch[key].data for key in ("tokens", "emotion_soft", name)),
        )
        for batch in loader
    ]


@pytest.mark.parametrize("cache", ["none", "disk", "memory"])
@pytest.mark.parametrize("method", ["fork", "forkserver", at_night("spawn")])
def test_workers_give_the_same_batches(method, cache, prepared, tmp_path):
    """Same clips, speeds and values as without workers, whatever starts them."""
    hparams = {
        **prepared,
        "feature_cache": str(tmp_path) if cache == "disk" else None,
        "num_workers": int(cache == "none"),
    }
    torch.manual_seed(1)
    expected = read(hparams)
    torch.manual_seed(1)
    context = processes.SERVER if method == "forkserver" else method
    found = read(hparams, num_workers=1, multiprocessing_context=context)
    assert len(found) == len(expected) == 2
    for one, other in zip(found, expected, strict=True):
        assert one[0] == other[0]
        for a, b in zip(one[1:], other[1:], strict=True):
            # Processes may round a spectrum differently
            torch.testing.assert_close(a, b)


def test_without_an_epoch_seed_items_draw_from_the_process(prepared):
    """And with one they leave its generators alone."""
    train = make_datasets(prepared)["train"]
    for seed, drawn in ((None, True), (7, False)):
        train.epoch_seed = seed
        before = torch.get_rng_state()
        train[0]
        assert torch.equal(before, torch.get_rng_state()) != drawn


def test_clips_are_kept_while_there_is_room(speech_files, monkeypatch):
    """The second does not fit and is read again; a worker starts with none."""
    first, second = map(str, speech_files[:2])
    loaded = [ClipMemory(16000).load(one) for one in (first, second)]
    memory = ClipMemory(16000, room=max(one.nbytes for one in loaded))
    read = []
    load = training_data.load_clip
    monkeypatch.setattr(
        training_data,
        "load_clip",
        lambda wav, rate: read.append(wav) or load(wav, rate),
    )
    for _ in range(2):
        for wav, expected in zip((first, second), loaded, strict=True):
            assert torch.equal(memory.load(wav), expected)
    assert read == [first, second, second]
    sent = pickle.loads(pickle.dumps(memory))
    assert not sent.clips and torch.equal(sent.load(first), loaded[0])
    assert list(memory.clips) == [first]


def test_where_features_are_kept(prepared, tmp_path):
    """In memory only where the next epoch can use them."""
    assert isinstance(open_cache(prepared), FeatureMemory)
    for key, value in (
        ("num_workers", 2),
        ("wav_augment", torch.nn.Identity()),
    ):
        assert open_cache({**prepared, key: value}) is None
    assert open_cache(prepared, "cuda:0") is None
    folder = {**prepared, "feature_cache": str(tmp_path)}
    assert type(open_cache(folder, "cuda:0")) is FeatureCache


def test_features_in_memory_are_those_of_the_model(prepared):
    """For every clip, first computed and then kept."""
    model = prepared["model"]
    kept = make_datasets(prepared)["plain"]
    read = make_datasets({**prepared, "num_workers": 1})["plain"]
    for _ in range(2):
        for one, other in zip(kept, read, strict=True):
            for name, found in model.extract(other["sig"][None]).items():
                kept_one = one[f"{name}_features"]
                torch.testing.assert_close(kept_one, found.feats[0])
