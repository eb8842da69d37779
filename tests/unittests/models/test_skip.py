"""The linear layer that also reads the inputs, past the DS-LSTM."""

import pytest
import torch

from speechbrain_dslstm import DSLSTM
from speechbrain_dslstm.inference.explain import explain
from speechbrain_dslstm.inference.streaming import check_streamable
from speechbrain_dslstm.layers.alignment import AveragePoolAlignment
from speechbrain_dslstm.layers.cnn import LocalFeatureCNN
from speechbrain_dslstm.models import (
    DualLevelClassifier,
    EncoderLayers,
    FeatureSequence,
)
from speechbrain_dslstm.models.branches import SpectrogramBranch


def one_stream():
    """Both sequences are layers of one encoder."""
    return SpectrogramBranch(
        n_classes=3,
        cnn_x=EncoderLayers([1, 2], 5, layer=1, output_size=4),
        cnn_y=EncoderLayers([1, 2], 5, output_size=4),
        alignment=AveragePoolAlignment(1, 1),
        ds_lstm=DSLSTM(4, 4, hidden_size=6),
        inputs=["encoder", "encoder"],
        pooling="statistics",
        skip=True,
    ).eval()


def two_spectrograms():
    """Both spectrograms are read, each once."""
    x = LocalFeatureCNN(128, channels=[2], kernel_size=(2, 4))
    y = LocalFeatureCNN(256, channels=[2], kernel_size=(4, 2))
    lstm = DSLSTM(x.output_size, y.output_size, hidden_size=6)
    return SpectrogramBranch(3, x, y, ds_lstm=lstm, skip=True).eval()


def test_a_stream_that_both_sequences_read_is_pooled_once():
    branch = one_stream()
    assert branch.head.in_features == 2 * (6 + 10)
    frames = FeatureSequence(torch.randn(2, 9, 10), torch.tensor([9, 4]))
    with torch.no_grad():
        # Silent recurrence: only what goes past it is left
        branch.head.weight[:, : 2 * 6] = 0
    found = branch({"encoder": frames})
    mean, deviation = (
        torch.stack([pool(x[:n], 0) for x, n in zip(*frames, strict=True)])
        for pool in (torch.mean, lambda x, d: x.std(d, correction=0))
    )
    past = torch.cat([mean, deviation], dim=1)
    expected = branch.head.bias + past @ branch.head.weight[:, 2 * 6 :].T
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_last_step_of_an_explanation_is_the_answer():
    model = DualLevelClassifier(3, spectrogram=two_spectrograms(), p=1.0)
    model.eval()
    wav = 0.1 * torch.randn(24000)
    with torch.no_grad():
        answer = model(wav[None]).exp()[0]
        found = explain(model, wav).posteriors
    torch.testing.assert_close(found[-1], answer, atol=1e-5, rtol=0)
    assert (found[0] - answer).abs().max() > 1e-4


def test_a_stream_is_refused():
    model = DualLevelClassifier(3, spectrogram=two_spectrograms(), p=1.0)
    with pytest.raises(ValueError, match="branch with skip is not supported"):
        check_streamable(model.eval())
