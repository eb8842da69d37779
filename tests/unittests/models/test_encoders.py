"""Self-supervised frames: SpeechBrain's wrapper around tiny random encoders.

No hub is reached for: the encoders are built from a configuration and saved
into a folder, which the wrapper loads as it would load one of the hub.
"""

from pathlib import Path

import pytest
import tiny_encoder
import torch
from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2
from speechbrain.integrations.huggingface.whisper import Whisper

from speechbrain_dslstm import DSLSTM, LogMelSpectrogram
from speechbrain_dslstm.layers import LocalFeatureCNN, RateAlignment
from speechbrain_dslstm.models import (
    DualLevelClassifier,
    FeatureStream,
    SelfSupervisedFrames,
    SpectrogramBranch,
    Waveform,
    WhisperFrames,
    open_encoder,
)

SCRIPT = Path(__file__).parents[1] / "recipes" / "setup" / "tiny_encoder.py"

KINDS = [
    (kind, norm)
    for kind in ("wav2vec2", "hubert", "wavlm")
    for norm in ("layer", "group")
]
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folder of each kind of encoder."""
    root = tmp_path_factory.mktemp("encoders")
    for kind, norm in KINDS:
        tiny_encoder.write_encoder(root / f"{kind}_{norm}", kind, norm)
    return root


def build(folders, kind="wav2vec2", norm="layer", freeze=True, **options):
    """The wrapper in ours."""
    encoder = Wav2Vec2(
        str(folders / f"{kind}_{norm}"),
        str(folders / "kept"),
        freeze=freeze,
        output_all_hiddens=True,
    )
    torch.manual_seed(0)
    return SelfSupervisedFrames(encoder, **options)


def clips(*counts):
    """Noise with an offset, of different level, NaN in the padding."""
    wavs = torch.full((len(counts), max(counts) + 700, 1), float("nan"))
    for row, n in enumerate(counts):
        wavs[row, :n] = 0.1 * (row + 1) * torch.randn(n, 1) + 0.05
    return wavs, torch.tensor(counts)


@pytest.mark.parametrize(("kind", "norm"), KINDS)
def test_padding_changes_no_frame(folders, kind, norm):
    """Alone and in a batch, in any order, whichever the encoder."""
    frames = build(folders, kind, norm).eval()
    wavs, counts = clips(8000, 400, 5003, 5003)
    out, out_counts = frames(wavs, counts)
    assert out.shape[2] == frames.output_size == 16
    for row, n in enumerate(counts.tolist()):
        alone, alone_counts = frames(wavs[row : row + 1, :n], counts[row, None])
        m = frames.num_frames(n)
        assert m == alone_counts.item() == out_counts[row] == alone.shape[1]
        torch.testing.assert_close(out[row, :m], alone[0], **CLOSE)
        assert out[row, m:].abs().sum() == 0
    order = torch.tensor([2, 0, 3, 1])
    turned, _ = frames(wavs[order], counts[order])
    torch.testing.assert_close(turned, out[order], **CLOSE)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_frames_are_those_of_the_encoder(folders, norm):
    """Against transformers itself, with the normalisation of its own."""
    frames = build(folders, "hubert", norm).eval()
    wav = 0.3 * torch.randn(1, 4000) + 0.1
    model = frames.encoder.model
    given = wav
    if norm == "layer":
        given = (wav - wav.mean()) / (wav.var(correction=0) + 1e-7).sqrt()
    with torch.no_grad():
        layers = model(given, output_hidden_states=True).hidden_states
    out, counts = frames(wav.unsqueeze(-1), torch.tensor([4000]))
    torch.testing.assert_close(out, sum(layers) / 4, **CLOSE)
    assert counts.item() == layers[0].shape[1] == 12
    with torch.no_grad():
        frames.layer_weights.copy_(torch.tensor([-99.0, -99.0, 9.0, -99.0]))
    out, _ = frames(wav.unsqueeze(-1), torch.tensor([4000]))
    torch.testing.assert_close(out, layers[2], **CLOSE)
    one = build(folders, "hubert", norm, layer=2).eval()
    out, _ = one(wav.unsqueeze(-1), torch.tensor([4000]))
    torch.testing.assert_close(out, layers[2], **CLOSE)


@pytest.mark.parametrize("samples", [1, 399, 400, 719, 720, 16000])
def test_num_frames(folders, samples):
    frames = build(folders)
    n = frames.num_frames(samples)
    theirs = frames.encoder.model._get_feat_extract_output_lengths(samples)
    assert n == max(0, int(theirs)) == frames.num_frames(torch.tensor(samples))
    for wanted in (1, 2, 49):
        needed = frames.min_frames(wanted)
        assert frames.num_frames(needed) == wanted
        assert frames.num_frames(needed - 1) == wanted - 1


def test_frozen_stays_in_evaluation(folders):
    """Dropout of a frozen encoder would only add noise."""
    frames = build(folders).train()
    assert frames.training and not frames.encoder.model.training
    wavs, counts = clips(3000)
    torch.testing.assert_close(frames(wavs, counts), frames(wavs, counts))
    frames(wavs, counts).feats.sum().backward()
    assert frames.layer_weights.grad.abs().max() > 0
    assert all(p.grad is None for p in frames.encoder.parameters())
    assert build(folders, freeze=False).train().encoder.model.training


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_checkpointing_changes_no_gradient(folders, norm):
    found = []
    wavs, counts = clips(3000, 2000)
    for option in (False, True):
        frames = build(
            folders, "wav2vec2", norm, False, gradient_checkpointing=option
        )
        # Dropout would draw other numbers
        for module in frames.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        frames.encoder.model.config.layerdrop = 0.0
        frames.train()
        assert frames.encoder.model.is_gradient_checkpointing == option
        frames(wavs, counts).feats.square().sum().backward()
        found.append(
            {
                name: p.grad
                for name, p in frames.named_parameters()
                if p.grad is not None
            }
        )
    assert found[0].keys() == found[1].keys() and len(found[0]) > 50
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], msg=name)


def model(folders, norm="layer"):
    """Mel x with the encoder's frames, as in ssl_ds_lstm.yaml."""
    frames = build(folders, "wavlm", norm)
    cnn = LocalFeatureCNN(128, (2, 2), (2, 4))
    branch = SpectrogramBranch(
        3,
        cnn,
        frames,
        RateAlignment(15.625, 50),
        DSLSTM(cnn.output_size, 16, 8),
        inputs=("mel_x", "wav"),
    )
    streams = {
        "mel_x": FeatureStream(LogMelSpectrogram(512), 128),
        "wav": FeatureStream(Waveform(), 1, normalization="none"),
    }
    return DualLevelClassifier(3, streams, branch, p=1.0)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_utterance_gives_one_result(folders, norm):
    net = model(folders, norm).eval()
    wavs, counts = clips(9000, 300, 5100)
    wavs = wavs.squeeze(-1)
    assert net.min_samples > 300
    out = net(wavs.nan_to_num(0.3), counts)
    for row, n in enumerate(counts.tolist()):
        alone = net(wavs[row : row + 1, :n])
        torch.testing.assert_close(out[row : row + 1], alone, **CLOSE)


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_no_layer_is_left_out(folders, kind):
    """Layer drop of training would take layers out of the weighted sum."""
    encoder = Wav2Vec2(
        str(folders / f"{kind}_layer"),
        str(folders / "kept"),
        output_all_hiddens=True,
    )
    encoder.model.config.layerdrop = 1.0
    frames = SelfSupervisedFrames(encoder).train()
    frames(*clips(2000)).feats.sum().backward()
    layers = encoder.model.encoder.layers
    for layer in layers:
        assert layer.feed_forward.output_dense.weight.grad.abs().max() > 0


def test_bad_encoders(folders):
    with pytest.raises(ValueError, match="layer must be in 0..3, got 4"):
        build(folders, layer=4)
    encoder = Wav2Vec2(str(folders / "hubert_layer"), str(folders / "kept"))
    with pytest.raises(ValueError, match="output_all_hiddens=True"):
        SelfSupervisedFrames(encoder)


@pytest.fixture(scope="module")
def whisper(folders):
    """Folder of a tiny Whisper."""
    tiny_encoder.write_whisper(folders / "whisper")
    return str(folders / "whisper")


def test_wrapper_is_chosen_by_the_model(folders, whisper):
    opened = open_encoder(whisper, str(folders / "kept"))
    assert type(opened) is Whisper and opened.freeze
    for kind in ("wav2vec2", "wavlm"):
        source = str(folders / f"{kind}_layer")
        opened = open_encoder(source, str(folders / "kept"), freeze=False)
        assert type(opened) is Wav2Vec2 and not opened.freeze
        assert opened.model.config.model_type == kind


@pytest.mark.parametrize("freeze", [True, False])
def test_whisper_frames(folders, whisper, freeze):
    """Alone and in a batch; with gradients only if it is trained."""
    encoder = open_encoder(whisper, str(folders / "kept"), freeze)
    frames = SelfSupervisedFrames(encoder).eval()
    wavs, counts = clips(8000, 400, 5003, 160)
    out, out_counts = frames(wavs, counts)
    for row, n in enumerate(counts.tolist()):
        alone, _ = frames(wavs[row : row + 1, :n], counts[row, None])
        m = frames.num_frames(n)
        assert m == out_counts[row] == alone.shape[1]
        torch.testing.assert_close(out[row, :m], alone[0], **CLOSE)
        assert not out[row, m:].any()
        assert frames.num_frames(frames.min_frames(m)) == m
        assert frames.num_frames(frames.min_frames(m) - 1) == m - 1
    out.sum().backward()
    moved = [p.grad is not None for p in encoder.model.encoder.parameters()]
    assert frames.layer_weights.grad is not None
    assert any(moved) is not freeze


def test_whisper_equals_ours_on_30_seconds(folders, whisper):
    """And a longer clip is two windows, the second with silence after it."""
    encoder = open_encoder(whisper, str(folders / "kept"))
    theirs = SelfSupervisedFrames(encoder, layer=2).eval()
    ours = WhisperFrames([2], source=whisper, pool=1)
    wav = 0.1 * torch.randn(1, 480000 + 8000)
    out, counts = theirs(wav.unsqueeze(-1), torch.tensor([488000]))
    assert counts.item() == out.shape[1] == 1500 + 25
    first = ours(wav[:, :480000])
    rest = ours(torch.nn.functional.pad(wav[:, 480000:], (0, 472000)))
    for mine, its in ((first, out[:, :1500]), (rest[:, :25], out[:, 1500:])):
        torch.testing.assert_close(its, mine, atol=1e-4, rtol=0)
