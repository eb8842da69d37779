"""Receptive fields are those of the layers, and layers run on them in pieces."""

import pytest
import torch

from speechbrain_dslstm import MFCC39, DualLevelClassifier, LogMelSpectrogram
from speechbrain_dslstm.inference import EmotionStream
from speechbrain_dslstm.inference.receptive_field import (
    ReceptiveField,
    StreamedLayer,
    alignment_field,
    block_field,
    features_field,
    frame_field,
    samples_per_step,
    stream_cnn,
    stream_fields,
)
from speechbrain_dslstm.layers import (
    AveragePoolAlignment,
    LocalFeatureCNN,
    RateAlignment,
)
from speechbrain_dslstm.layers.cnn import LocalFeatureBlock
from speechbrain_dslstm.models import SpectrogramBranch

BLOCKS = [(1, 2), (2, 4), (3, 2), (4, 2), (5, 3)]  # kernel and pooling


def inputs_read(function, inputs, output):
    """First and last input frame that one output frame depends on."""
    plain = function(inputs)[output]
    changed = []
    for k in range(len(inputs)):
        other = inputs.clone()
        other[k] += 1
        if not torch.equal(function(other)[output], plain):
            changed.append(k)
    return changed[0], changed[-1]


@pytest.mark.parametrize(("kernel", "pool"), BLOCKS)
def test_block(kernel, pool):
    block = LocalFeatureBlock(1, 1, (kernel, 3), pool).eval()
    torch.nn.init.uniform_(block.conv.weight, 0.5, 1)

    def run(x):
        counts = torch.tensor([len(x)])
        # Rising inputs win the maximum only at its last frame: sum instead
        block.pool = torch.nn.AvgPool2d(pool)
        out = block.pool(block.conv(x[None, None]))
        assert out.shape[2] == block.num_frames(counts)
        return out[0, 0]

    field, j = block_field(block), 4
    assert field.stride == pool
    first, last = inputs_read(run, torch.rand(40, 5), j)
    assert first == field.stride * j - field.left
    assert last == field.stride * j + field.right


@pytest.mark.parametrize(("width", "stride"), [(3, 2), (2, 2), (5, 3)])
def test_alignment(width, stride):
    align = AveragePoolAlignment(width, stride)

    def run(x):
        counts = torch.tensor([len(x)])
        return align(x[None], x[None], counts, counts)[0][0]

    field, j = alignment_field(align), 3
    first, last = inputs_read(run, torch.rand(30, 1), j)
    assert first == stride * j == field.stride * j - field.left
    assert last == stride * j + width - 1 <= stride * j + field.right


@pytest.mark.parametrize("extractor", [MFCC39(), LogMelSpectrogram(512)])
def test_features(extractor):
    """No sample beyond the field changes a frame; those at its ends may."""
    field, j = features_field(extractor), 20
    wav = torch.randn(1, 8000) * 0.1
    plain = extractor(wav)[0, j]
    first, last = field.stride * j - field.left, field.stride * j + field.right
    for k, inside in [(first - 1, False), (last + 1, False)]:
        other = wav.clone()
        other[0, k] += 1
        assert torch.equal(extractor(other)[0, j], plain), (k, inside)
    for k in (first + 2, last - 2):
        other = wav.clone()
        other[0, k] += 1
        assert not torch.equal(extractor(other)[0, j], plain), k


def test_look_ahead_of_the_documented_model():
    """65 ms for the MFCCs, 320 ms for the spectrograms, 640 ms in common."""
    model = DualLevelClassifier()
    ahead = {
        # One sample more: a frame is complete after its last sample
        name: (field.right + 1) / 16
        for name, field in stream_fields(model).items()
    }
    assert ahead == {"mfcc": 65, "mel_x": 304, "mel_y": 320}
    assert samples_per_step(model) == 10240


def test_chained_fields():
    first, second = ReceptiveField(2, 1, 3), ReceptiveField(3, 2, 1)
    assert first.then(second) == (6, 5, 5)
    # Frame 0 of a piece reads 5 inputs before it; frame 1 begins 6 later
    assert first.then(second).context == 1


@pytest.mark.parametrize("blocks", [[2], [4, 2], [4, 3, 2]])
def test_cnn_in_pieces(blocks):
    cnn = LocalFeatureCNN(20, channels=blocks, kernel_size=(4, 2)).eval()
    x = torch.randn(1, 90, 20)
    expected, _ = cnn(x, torch.tensor([90]))
    value = []
    layers = stream_cnn(cnn)
    for k, piece in enumerate(x.split(7, dim=1)):
        for layer in layers:
            piece = layer.advance(piece, end=k == 12)
        value.append(piece)
    found = torch.cat([v for v in value if v is not None], dim=1)
    torch.testing.assert_close(found, expected)


def test_outputs_come_as_early_as_they_can():
    layer = StreamedLayer(
        lambda x: x[:, ::2] + x[:, 1::2], ReceptiveField(2, 0, 1), None
    )
    given = [layer.advance(torch.ones(1, 1), end=False) for _ in range(4)]
    assert [x is not None for x in given] == [False, True, False, True]


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: frame_field(torch.nn.Linear(1, 1)), "supports no Linear"),
        (
            lambda: EmotionStream(
                DualLevelClassifier(
                    spectrogram=SpectrogramBranch(alignment=RateAlignment(2))
                )
            ),
            "a stream supports no RateAlignment",
        ),
    ],
)
def test_unknown_layers(build, match):
    with pytest.raises(ValueError, match=match):
        build()
