"""Frozen parts: names, and training steps that leave them as they are."""

import pytest
import torch

from speechbrain_dslstm import DSLSTM, DualLevelClassifier
from speechbrain_dslstm.layers import LocalFeatureCNN
from speechbrain_dslstm.models import MFCCBranch, SpectrogramBranch
from speechbrain_dslstm.models.freezing import (
    find_parts,
    freeze_parts,
    keep_frozen,
    to_names,
)


def build():
    """A small dual-level model with dropout."""
    cnn_x = LocalFeatureCNN(128, channels=[2, 2], kernel_size=[2, 4])
    cnn_y = LocalFeatureCNN(256, channels=[2, 2], kernel_size=[4, 2])
    sizes = cnn_x.output_size, cnn_y.output_size
    ds_lstm = DSLSTM(*sizes, hidden_size=4)
    return DualLevelClassifier(
        3,
        spectrogram=SpectrogramBranch(3, cnn_x, cnn_y, ds_lstm=ds_lstm),
        mfcc=MFCCBranch(3, hidden_size=4, dropout=0.5),
    )


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, []),
        ("", []),
        ("cnn_x", ["cnn_x"]),
        (" cnn_x , mfcc,", ["cnn_x", "mfcc"]),
        (["cnn_x", "mfcc"], ["cnn_x", "mfcc"]),
    ],
)
def test_names(given, names):
    assert to_names(given) == names


@pytest.mark.parametrize(
    ("name", "prefixes"),
    [
        ("mfcc", ["mfcc."]),
        ("cnn_x", ["spectrogram.cnn_x."]),
        ("spectrogram.ds_lstm", ["spectrogram.ds_lstm."]),
        ("head", ["spectrogram.head.", "mfcc.head."]),
        ("features", []),
    ],
)
def test_a_name_finds_its_parameters(name, prefixes):
    model = build()
    freeze_parts(model, [name])
    for key, parameter in model.branches.named_parameters():
        assert parameter.requires_grad != key.startswith(tuple(prefixes or "-"))


@pytest.mark.parametrize(
    "name", ["cnn_z", "blocks", "spectrogram.mfcc", "nn_x"]
)
def test_an_unknown_name_lists_the_known_ones(name):
    expected = f"no part '{name}'; expected one of features, spectrogram, "
    with pytest.raises(ValueError, match=expected) as caught:
        find_parts(build(), ["mfcc", name])
    assert "spectrogram.cnn_x" in str(caught.value)
    assert "mfcc.lstm" in str(caught.value)


def test_something_must_be_trained():
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze_parts(build(), ["mfcc", "spectrogram"])


def test_frozen_parts_do_not_move():
    model = build()
    frozen = freeze_parts(model, ["cnn_x", "mfcc.lstm"])
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    before = {k: v.clone() for k, v in model.branches.state_dict().items()}
    for _ in range(2):
        model.train()
        keep_frozen(frozen)
        model(torch.randn(3, 8000)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    stays = "spectrogram.cnn_x.", "mfcc.lstm."
    for name, value in model.branches.state_dict().items():
        same = torch.equal(value, before[name])
        assert same == name.startswith(stays), name
    # The statistics of the other batch norms moved
    assert not torch.equal(
        model.branches["spectrogram"].cnn_y.blocks[0].norm.running_mean,
        before["spectrogram.cnn_y.blocks.0.norm.running_mean"],
    )


def test_a_frozen_lstm_has_no_dropout_and_passes_gradients():
    branch = MFCCBranch(3, hidden_size=4, dropout=0.5)
    frozen = freeze_parts(branch, ["lstm"])
    branch.train()
    keep_frozen(frozen)
    x = torch.randn(1, 5, 39, requires_grad=True)
    first, second = (branch.lstm(x)[0] for _ in range(2))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    # cuDNN gives the gradient of the input in this mode only
    assert branch.lstm.training and branch.head_dropout.training
