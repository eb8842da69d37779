"""Feature statistics: over which subsets they are collected."""

import pytest
import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_dslstm import DualLevelClassifier
from speechbrain_dslstm.features import MFCC39
from speechbrain_dslstm.models import FeatureStream
from speechbrain_dslstm.training.data import collect_statistics

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
