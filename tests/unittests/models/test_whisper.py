"""The Whisper encoder: equal to transformers', the same in any batch."""

import json
import shutil

import pytest
import tiny_encoder
import torch
import transformers
from safetensors.torch import load_file, save_file

from speechbrain_dslstm.models import (
    EncoderLayers,
    FeatureStream,
    WhisperEncoder,
    WhisperFrames,
)
from speechbrain_dslstm.models.branches import LinearBranch
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.pretrained import save_pretrained
from speechbrain_dslstm.training.optimization import split_parameters

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SMALL = {
    "n_mels": 80,
    "size": 8,
    "heads": 2,
    "ffn_size": 16,
    "num_layers": 3,
    "max_frames": 30,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Whisper as transformers writes it."""
    folder = tmp_path_factory.mktemp("whisper")
    tiny_encoder.write_whisper(folder)
    return folder


def batch(*counts):
    """Waveforms of different level, NaN in the padding."""
    torch.manual_seed(0)
    wavs = torch.full((len(counts), max(counts) + 500), float("nan"))
    for row, n in enumerate(counts):
        wavs[row, :n] = 0.1**row * torch.randn(n)
    return wavs, torch.tensor(counts)


def randomize(module):
    """Weights large enough that an error shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "positions" not in name:
                value.normal_(std=0.3)
    return module.eval()


def test_window_of_30_seconds_equals_transformers(folder):
    """All hidden states; the last one after the final normalisation."""
    wav = 0.1 * torch.randn(480000)
    model = transformers.WhisperModel.from_pretrained(folder).eval()
    extract = transformers.WhisperFeatureExtractor()
    mel = extract(wav.numpy(), sampling_rate=16000, return_tensors="pt")
    with torch.no_grad():
        theirs = model.encoder(mel.input_features, output_hidden_states=True)
    frames = WhisperFrames([1, 2, 3], source=folder, pool=1)
    ours = frames(wav.unsqueeze(0)).split(16, dim=2)
    for mine, layer in zip(ours, theirs.hidden_states[1:], strict=True):
        torch.testing.assert_close(mine, layer, atol=1e-4, rtol=0)


# 30 frames of the table last 0.6 s: no window, one, two and many
@pytest.mark.parametrize(
    "counts", [(9000, 400, 5003, 1), (9600, 9601), (48000, 17600, 9000, 25001)]
)
@pytest.mark.parametrize("trained", [0, 1, 3])
def test_batch_changes_nothing(counts, trained):
    frames = randomize(WhisperFrames([1, 3], SMALL, trained_layers=trained))
    stream = FeatureStream(frames, frames.output_size, normalization="none")
    wavs, counts = batch(*counts)
    with torch.no_grad():
        together, found = stream(wavs, counts)
        for row, n in enumerate(counts.tolist()):
            alone, m = stream(wavs[row : row + 1, :n], counts[row, None])
            assert alone.shape[1] == m == found[row]
            # Two layers, 25 frames a second
            assert alone.shape[2] == 16 and m == max(1, -(-(n // 160) // 4))
            torch.testing.assert_close(together[row, :m], alone[0], **CLOSE)
            assert not together[row, m:].any()


@pytest.mark.parametrize("trained", [1, 2, 3])
def test_trained_layers_give_the_same_frames(trained):
    """However the encoder is divided; and only those layers have gradients."""
    torch.manual_seed(0)
    wavs, counts = batch(9000, 4000)
    frozen = randomize(WhisperFrames([1, 3], SMALL))
    frames = WhisperFrames([1, 3], SMALL, trained_layers=trained)
    frames.load_state_dict(frozen.state_dict())
    stream = FeatureStream(frames, frames.output_size, normalization="none")
    feats, found = stream.refine(
        *stream.normalize(*stream.extract(wavs, counts))
    )
    torch.testing.assert_close(feats, frozen(wavs, counts), **CLOSE)
    assert torch.equal(found, frozen.num_frames(counts))
    feats.square().sum().backward()
    moved = {
        name.split(".")[1] if name.startswith("layers") else name.split(".")[0]
        for name, value in frames.encoder.named_parameters()
        if value.grad is not None and value.grad.any()
    }
    expected = {str(k) for k in range(3 - trained, 3)} | {"layer_norm"}
    if trained == 3:
        expected |= {"conv1", "conv2"}
    assert moved == expected
    encoder, others = split_parameters(stream, WhisperFrames)
    assert encoder and not others
    assert not split_parameters(frozen, WhisperFrames)[0]


def test_long_clip_is_read_in_overlapping_windows():
    """Frames up to the middle of an overlap are those of the earlier window."""
    encoder = randomize(WhisperEncoder(SMALL))
    hidden = torch.randn(1, 50, 8)
    (_, _, out) = encoder.run(hidden, torch.tensor([50]))
    # Windows of 30 frames, 25 apart, which share 5
    first = encoder.run(hidden[:, :30], torch.tensor([30]))[2]
    second = encoder.run(hidden[:, 25:], torch.tensor([25]))[2]
    expected = torch.cat([first[:, :27], second[:, 2:]], dim=1)
    torch.testing.assert_close(out, expected, **CLOSE)


def test_statistics_of_a_trained_encoder_are_those_before_training():
    frames = randomize(WhisperFrames([2], SMALL, trained_layers=1))
    stream = FeatureStream(frames, 8)
    wavs, counts = batch(9000, 8000)
    stream.update_statistics(*stream.extract(wavs, counts))
    feats, found = stream(wavs, counts)
    valid = torch.cat([f[:n] for f, n in zip(feats, found, strict=True)])
    torch.testing.assert_close(valid.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="use trained_layers 0"):
        FeatureStream(frames, 8, normalization="speaker")


def test_cache_key_follows_the_frozen_weights():
    """Other weights of frozen layers, or another division, are other features."""
    one = randomize(WhisperFrames([1, 2], SMALL, trained_layers=1))
    before = one.get_config()
    with torch.no_grad():
        one.encoder.layers[1].fc1.weight.add_(1)
    assert one.get_config() == before
    with torch.no_grad():
        one.encoder.layers[0].fc1.weight.add_(1)
    assert one.get_config() != before
    assert WhisperFrames([1, 2], SMALL).get_config() != before


@pytest.mark.parametrize(
    ("layer", "expected"), [(2, [2.0]), (None, [1.5]), ("all", [1.0, 2.0])]
)
def test_choice_of_layers(layer, expected):
    mix = EncoderLayers([1, 2], 1, layer)
    feats, counts = mix(torch.tensor([[[1.0, 2.0]]]), torch.tensor([1]))
    assert feats.flatten().tolist() == expected and counts.item() == 1
    assert mix.output_size == len(expected)
    assert EncoderLayers([1, 2], 4, layer, 3).output_size == 3
    with pytest.raises(ValueError, match=r"one of \[1, 2\]"):
        EncoderLayers([1, 2], 1, 3)


def test_sources_agree(folder, tmp_path):
    """Weights in one file, in several, and in a model folder of ours."""
    wavs = 0.1 * torch.randn(1, 8000)
    frames = WhisperFrames([1, 3], source=folder)
    expected = frames(wavs)
    parts = tmp_path / "parts"
    model = transformers.WhisperModel.from_pretrained(folder)
    model.save_pretrained(parts, max_shard_size="10KB")
    assert not (parts / "model.safetensors").exists()
    assert torch.equal(WhisperFrames([1, 3], source=parts)(wavs), expected)
    stream = FeatureStream(frames, frames.output_size)
    branch = LinearBranch(2, {"encoder": EncoderLayers([1, 3], 16)})
    classifier = DualLevelClassifier(2, {"encoder": stream}, branch, p=1.0)
    yaml = "sample_rate: 16000\nmodel: null"
    save_pretrained(tmp_path / "ours", yaml, classifier, ["a", "b"])
    ours = WhisperFrames([1, 3], source=tmp_path / "ours")
    assert torch.equal(ours(wavs), expected)
    assert ours.encoder.sizes == frames.encoder.sizes


def damaged(folder, tmp_path, name):
    """A copy of the tiny Whisper with one defect."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    config, weights = copy / "config.json", copy / "model.safetensors"
    facts = json.loads(config.read_text())
    state = load_file(weights)
    if name == "type":
        facts["model_type"] = "wav2vec2"
    elif name == "sizes":
        facts["d_model"] = None
    elif name == "missing":
        del state["encoder.layers.1.fc1.weight"]
    elif name == "shape":
        state["encoder.conv1.weight"] = torch.zeros(16, 80, 5)
    elif name == "nan":
        state["encoder.conv1.bias"][0] = float("nan")
    elif name == "no encoder":
        state = {"x": torch.zeros(1)}
    config.write_text("{" if name == "json" else json.dumps(facts))
    save_file(state, weights)
    if name == "truncated":
        weights.write_bytes(weights.read_bytes()[:-50])
    return copy


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("type", "type 'wav2vec2', expected 'whisper'"),
        ("sizes", "expected positive sizes"),
        ("missing", "no weights encoder.layers.1.fc1.weight"),
        ("shape", r"of shape \[16, 80, 3\]"),
        ("nan", "must be finite"),
        ("no encoder", "found 0"),
        ("json", "not valid JSON"),
        ("truncated", "damaged"),
    ],
)
def test_defect_is_named(folder, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        WhisperFrames([1, 2], source=damaged(folder, tmp_path, name))


def test_missing_source_is_named(tmp_path, folder):
    for source, message in (
        (tmp_path, "holds no encoder"),
        (tmp_path / "nowhere", "neither a folder nor a hub id"),
        ("nowhere", "neither a folder nor a hub id"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            WhisperFrames([1], source=source)
    with pytest.raises(ValueError, match="but the encoder was built with"):
        WhisperFrames([1], SMALL, source=folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2, 1]}, "ascending"),
        ({"layers": []}, "ascending"),
        ({"layers": [0, 1]}, "from 1"),
        ({"layers": [4]}, r"in 1..3"),
        ({"layers": [2], "trained_layers": 3}, r"in 0..2"),
        ({"layers": [2], "pool": 0}, "pool"),
        ({"layers": [1], "sizes": {**SMALL, "heads": 3}}, "multiple of heads"),
        ({"layers": [1], "sizes": {"width": 3}}, "unknown size 'width'"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(ValueError, match=message):
        WhisperFrames(**{"sizes": SMALL, **options})
