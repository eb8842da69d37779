"""Augmentation: the named streams, in order, and never the padding."""

import pytest
import torch
from speechbrain.augment.freq_domain import SpectrogramDrop

from speechbrain_dslstm.features import StreamAugment, mixup
from speechbrain_dslstm.lengths import length_mask
from speechbrain_dslstm.models import FeatureSequence


class Add(torch.nn.Module):
    """Adds a constant, in padding, too."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x + self.value


class Double(torch.nn.Module):
    def forward(self, x):
        return 2 * x


def streams():
    """Ones, of different length in each stream."""
    counts = {"mfcc": [9, 4], "mel_x": [6, 3]}
    return {
        name: FeatureSequence(
            length_mask(torch.tensor(n), max(n))
            .float()[..., None]
            .repeat(1, 1, 5),
            torch.tensor(n),
        )
        for name, n in counts.items()
    }


def test_only_the_named_streams():
    given = streams()
    out = StreamAugment({"mel_x": [Add(1)]})(given)
    assert list(out) == list(given)
    assert out["mfcc"] is given["mfcc"]
    torch.testing.assert_close(out["mel_x"].feats, 2 * streams()["mel_x"].feats)
    assert out["mel_x"].counts is given["mel_x"].counts


def test_one_after_the_other():
    out = StreamAugment({"mfcc": [Add(1), Double()]})(streams())
    assert out["mfcc"].feats.max() == 4
    out = StreamAugment({"mfcc": [Double(), Add(1)]})(streams())
    assert out["mfcc"].feats.max() == 3
    out = StreamAugment({"mfcc": []})(streams())
    torch.testing.assert_close(out["mfcc"], streams()["mfcc"])


def test_padding_stays_zero():
    out = StreamAugment({"mfcc": [Add(float("nan"))], "mel_x": [Add(7)]})
    for name, (feats, counts) in out(streams()).items():
        padded = ~length_mask(counts, feats.shape[1])
        assert padded.any() and feats[padded].abs().max() == 0, name


def test_a_stream_that_the_model_does_not_use():
    """One YAML block of augmentations serves the baselines, too."""
    out = StreamAugment({"mel_y": [Add(1)], "mfcc": [Add(1)]})(streams())
    assert set(out) == {"mfcc", "mel_x"}
    assert out["mfcc"].feats.max() == 2


def test_what_was_given_is_left_alone():
    """SpecAugment of SpeechBrain: whole frames, whole bands, a copy."""
    given = streams()
    drops = [SpectrogramDrop(2, 3, 1, 1, dim=dim) for dim in (1, 2)]
    out = StreamAugment({"mfcc": drops})(given)["mfcc"].feats
    torch.testing.assert_close(given, streams())
    kept = out[0] != 0
    # Two of nine frames and two of five bands, or one at the edge
    frames, bands = kept.any(dim=1).sum(), kept.any(dim=0).sum()
    assert frames in (7, 8) and bands in (3, 4)
    torch.testing.assert_close(out[0][kept], torch.ones(int(frames * bands)))


def test_mixup_of_features():
    streams = {
        "mfcc": FeatureSequence(torch.randn(3, 9, 2), torch.tensor([9, 4, 6])),
        "mel_x": FeatureSequence(torch.randn(3, 5, 4), torch.tensor([5, 2, 3])),
    }
    mixed, partners, weight = mixup(streams, 0.4)
    assert sorted(partners.tolist()) == [0, 1, 2] and 0 <= weight <= 1
    for name, (feats, counts) in streams.items():
        expected = weight * feats + (1 - weight) * feats[partners]
        torch.testing.assert_close(mixed[name].feats, expected)
        longer = torch.maximum(counts, counts[partners])
        assert mixed[name].counts.tolist() == longer.tolist()
    with pytest.raises(ValueError, match="must be positive, got 0"):
        mixup(streams, 0)
    with pytest.raises(ValueError, match="cannot mix token ids"):
        mixup({"text": streams["mfcc"]}, 0.4)
