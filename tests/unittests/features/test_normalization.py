"""Feature statistics against NumPy, standardised features, centred utterances."""

import numpy as np
import torch
from hypothesis import given, settings, strategies as st

from speechbrain_dslstm.features import FeatureNormalization
from speechbrain_dslstm.lengths import length_mask

NAN = float("nan")
EXACT = {"atol": 1e-10, "rtol": 1e-10}


def batches():
    """Batches of padded features; float32, far from zero."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for batch, time in [(3, 9), (1, 1), (4, 30), (2, 5)]:
        feats = torch.randn(batch, time, 3, generator=generator)
        feats = feats * torch.tensor([1e-3, 1.0, 50.0]) + 100
        counts = torch.randint(1, time + 1, (batch,), generator=generator)
        found.append((feats, counts))
    return found


def packed_rows(found):
    """All valid frames of batches, in float64."""
    return np.concatenate(
        [f[length_mask(n, f.shape[1])].double().numpy() for f, n in found]
    )


def test_feature_statistics_equal_numpy():
    norm, found = FeatureNormalization(3), batches()
    for feats, counts in found:
        padded = ~length_mask(counts, feats.shape[1])
        norm.update(feats.masked_fill(padded.unsqueeze(-1), NAN), counts)
    rows = packed_rows(found)
    assert norm.count == len(rows)
    torch.testing.assert_close(
        norm.mean, torch.from_numpy(rows.mean(0)), **EXACT
    )
    torch.testing.assert_close(
        norm.variance, torch.from_numpy(rows.var(0)), **EXACT
    )


@given(st.permutations(range(4)))
@settings(max_examples=10)
def test_feature_statistics_do_not_depend_on_the_order(order):
    forward, shuffled, found = (
        FeatureNormalization(3),
        FeatureNormalization(3),
        batches(),
    )
    for k in range(4):
        forward.update(*found[k])
        shuffled.update(*found[order[k]])
    torch.testing.assert_close(
        dict(shuffled.state_dict()), dict(forward.state_dict()), **EXACT
    )


def test_features_are_standardised_and_padding_is_zero():
    norm, found = FeatureNormalization(3), batches()
    for feats, counts in found:
        norm.update(feats, counts)
    rows = packed_rows(found)
    feats, counts = found[2]
    out = norm(feats, counts)
    expected = (feats.double().numpy() - rows.mean(0)) / rows.std(0)
    mask = length_mask(counts, feats.shape[1])
    assert out.dtype == torch.float32 and mask.sum() < mask.numel()
    # 100 + 0.001 * noise holds two digits in float32
    torch.testing.assert_close(
        out[mask],
        torch.from_numpy(expected).float()[mask],
        atol=2e-2,
        rtol=1e-3,
    )
    assert out[~mask].abs().max() == 0
    torch.testing.assert_close(
        norm(feats.double(), counts)[mask],
        torch.from_numpy(expected)[mask],
        **EXACT,
    )


def test_feature_statistics_travel_with_the_weights():
    norm, other = FeatureNormalization(3), FeatureNormalization(3)
    feats, counts = batches()[2]
    norm.update(feats, counts)
    other.load_state_dict(norm.state_dict())
    torch.testing.assert_close(
        other(feats, counts), norm(feats, counts), atol=0, rtol=0
    )
    # And the count with them: collecting goes on
    norm.update(*batches()[0])
    other.update(*batches()[0])
    torch.testing.assert_close(other.mean, norm.mean, atol=0, rtol=0)


def test_nothing_is_changed_before_the_first_update_and_after_reset():
    norm = FeatureNormalization(3)
    feats, counts = batches()[0]
    mask = length_mask(counts, feats.shape[1])
    untouched = torch.where(mask.unsqueeze(-1), feats, 0)
    torch.testing.assert_close(norm(feats, counts), untouched, atol=0, rtol=0)
    norm.update(feats, counts)
    assert not torch.equal(norm(feats, counts), untouched)
    norm.reset()
    torch.testing.assert_close(norm(feats, counts), untouched, atol=0, rtol=0)
    assert norm.count == 0


def test_constant_feature():
    norm = FeatureNormalization(1)
    feats, counts = torch.full((1, 4, 1), 3.0), torch.tensor([4])
    norm.update(feats, counts)
    assert norm(feats, counts).abs().max() == 0
    assert norm(feats + 1, counts).isfinite().all()


def test_centred_utterances_have_zero_mean_whatever_the_padding():
    norm = FeatureNormalization(4, center_utterances=True)
    feats, counts = torch.randn(3, 9, 4) + 5, torch.tensor([9, 4, 1])
    norm.update(feats, counts)
    for row, count in enumerate(counts):
        feats[row, count:] = float("nan")
    out = norm(feats, counts)
    for row, count in enumerate(counts):
        valid = feats[row, :count]
        expected = (valid - valid.mean(0)) / norm.variance.sqrt().float()
        torch.testing.assert_close(out[row, :count], expected)
        assert out[row, count:].abs().sum() == 0
