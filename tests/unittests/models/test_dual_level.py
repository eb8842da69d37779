"""The model: one result per utterance whatever the batch, and the paper's."""

import io
import math
from pathlib import Path

import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from hypothesis import given, settings, strategies as st
from real_speech import clips_in
from ruamel.yaml import YAML

from speechbrain_dslstm import DSLSTM, DualLevelClassifier
from speechbrain_dslstm.features import MFCC39, LogMelSpectrogram
from speechbrain_dslstm.hparams import load_hparams
from speechbrain_dslstm.layers import AveragePoolAlignment, LocalFeatureCNN
from speechbrain_dslstm.lengths import to_relative
from speechbrain_dslstm.models import (
    CNNLSTMBranch,
    FeatureSequence,
    FeatureStream,
    MFCCBranch,
    SpectrogramBranch,
    fusion_loss,
)

HPARAMS = Path(__file__).parents[3] / "hparams"
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BATCH_NORMS = {"gate_norm": "batch", "output_norm": "batch"}


@pytest.fixture(autouse=True)
def one_thread(reproducible):
    """Two threads wait for each other at every step of a small LSTM."""
    torch.set_num_threads(1)


def small(p=0.5, resize=None, n_classes=3, **options):
    """The whole model with few channels and units, its statistics set."""
    torch.manual_seed(0)
    cnn_x = LocalFeatureCNN(128, (4, 2), (2, 4))
    cnn_y = LocalFeatureCNN(256, (4, 2), (4, 2))
    sizes = cnn_x.output_size, cnn_y.output_size
    model = DualLevelClassifier(
        n_classes,
        streams={
            "mfcc": FeatureStream(MFCC39(), 39),
            "mel_x": FeatureStream(LogMelSpectrogram(512), 128),
            "mel_y": FeatureStream(LogMelSpectrogram(1024), 256),
        },
        spectrogram=SpectrogramBranch(
            n_classes, cnn_x, cnn_y, None, DSLSTM(*sizes, 8, 2, **options)
        ),
        mfcc=MFCCBranch(n_classes, hidden_size=8),
        p=p,
        resize=resize,
    )
    model.update_normalization(noise(4, 9000))
    return model.eval()


def noise(batch, samples):
    """Noise of a different level and colour for each item."""
    generator = torch.Generator().manual_seed(batch + samples)
    wavs = torch.randn(batch, samples, generator=generator) * 0.1
    return wavs * torch.linspace(0.3, 2, batch).unsqueeze(1)


OPTIONS = [{}, BATCH_NORMS, {"resize": (60, 30)}]


@pytest.fixture(scope="module", params=OPTIONS)
def model(request):
    return small(**request.param)


@pytest.fixture(scope="module", params=OPTIONS)
def exact_model(request):
    """In float64: a few frames make batch statistics ill-conditioned."""
    return small(**request.param).double()


@given(
    st.lists(st.integers(1, 9000), min_size=1, max_size=4),
    st.integers(0, 3000),
    st.randoms(use_true_random=False),
)
@settings(max_examples=12)
@torch.no_grad()
def test_an_utterance_gives_one_result(model, counts, extra, random):
    """Alone, in a padded batch of garbage, and in another order."""
    wavs = noise(len(counts), max(counts) + extra)
    for row, count in enumerate(counts):
        wavs[row, count:] = float("nan")
    lengths = torch.tensor(counts)
    batch = model(wavs, lengths)
    for row, count in enumerate(counts):
        alone = model(wavs[row : row + 1, :count])
        torch.testing.assert_close(alone, batch[row : row + 1], **CLOSE)
    order = random.sample(range(len(counts)), len(counts))
    relative = to_relative(lengths, wavs.shape[1])
    shuffled = model(wavs[order], relative[order])
    torch.testing.assert_close(shuffled, batch[order], **CLOSE)


@given(
    st.lists(st.integers(1, 9000), min_size=2, max_size=4),
    st.integers(1, 5000),
)
@settings(max_examples=8)
def test_training_does_not_depend_on_padding(exact_model, counts, extra):
    """Log-posteriors, running statistics and gradients of a training step."""
    model = exact_model
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    wavs = noise(len(counts), max(counts)).double()
    lengths = torch.tensor(counts)
    targets = torch.arange(len(counts)) % 3
    found = []
    for padding in (0, extra):
        model.load_state_dict(fresh)
        model.train().zero_grad()
        padded = torch.nn.functional.pad(wavs, (0, padding))
        out, logits = model(padded, lengths, return_branches=True)
        fusion_loss(logits, targets).backward()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        grads = {k: v.grad.clone() for k, v in model.named_parameters()}
        found.append((out.detach(), state, grads))
    model.load_state_dict(fresh)
    model.eval()
    torch.testing.assert_close(found[1], found[0], atol=1e-8, rtol=1e-8)


@pytest.fixture(scope="module", params=["synthetic", "emodb"])
def speech(request):
    """Five utterances of different lengths, as a padded batch."""
    if request.param == "synthetic":
        paths = request.getfixturevalue("speech_files")[::7]
    else:
        folder = request.getfixturevalue("emodb_folder")
        paths = clips_in(folder)[::110]
    clips = [
        torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        for path in paths
    ]
    counts = torch.tensor([len(clip) for clip in clips])
    assert len(counts.unique()) == 5
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), counts


def test_speech_at_the_papers_size(speech):
    """Alone, padded and reordered; and one training step."""
    torch.manual_seed(0)
    wavs, counts = speech
    net = DualLevelClassifier(n_classes=4)
    net.update_normalization(wavs, counts)
    for k, v in net.state_dict().items():
        if k.endswith(("norm.running_mean", "norm.bias")):
            v.normal_(std=0.1)
    order = [3, 0, 4, 2, 1]
    with torch.no_grad():
        batch = net.eval()(wavs, to_relative(counts, wavs.shape[1]))
        shuffled = net(wavs[order], counts[order])
        alone = torch.cat(
            [
                net(wav[None, :n])
                for wav, n in zip(wavs, counts.tolist(), strict=True)
            ]
        )
        torch.testing.assert_close(alone, batch, **CLOSE)
        torch.testing.assert_close(shuffled, batch[order], **CLOSE)
        # Two utterances are not mistaken for one
        assert (batch[0] - batch[1]).abs().max() > 1e-3
        net.train()
        first = net(wavs[:3], counts[:3])
        padded = torch.nn.functional.pad(wavs[:3], (0, 4321))
        torch.testing.assert_close(net(padded, counts[:3]), first, **CLOSE)


@pytest.mark.parametrize("samples", [1, 399, 400, -1, 0])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_short_clips_count_as_followed_by_silence(p, samples):
    net = small(p)
    samples = samples if samples > 0 else max(1, net.min_samples + samples)
    wavs = noise(2, samples)
    out = net(wavs)
    assert out.isfinite().all()
    silence = max(0, net.min_samples - samples)
    padded = torch.nn.functional.pad(wavs, (0, silence))
    torch.testing.assert_close(net(padded), out, **CLOSE)
    net.train()(wavs).sum().backward()
    assert all(v.grad.isfinite().all() for v in net.parameters())


def test_min_samples_is_the_smallest_that_is_enough():
    """One sample less leaves the aligned sequence without a frame."""
    net = small()
    branch = net.branches["spectrogram"]

    def aligned(samples):
        frames = [
            getattr(branch, f"cnn_{k}").num_frames(
                net.streams[f"mel_{k}"].extractor.num_frames(samples)
            )
            for k in "xy"
        ]
        return AveragePoolAlignment().num_frames(*frames)

    assert aligned(net.min_samples) == 1
    assert aligned(net.min_samples - 1) == 0
    assert small(p=0.0).min_samples == small(resize=(60, 30)).min_samples == 1


@pytest.mark.parametrize("samples", [16000, 61333, 300])
def test_resize_as_in_the_paper(samples):
    """230 and 120 frames, each the nearest neighbour of its own."""
    net = small(resize=(230, 120))
    wavs = noise(2, samples)
    counts = torch.tensor([samples, samples * 2 // 3])
    streams = net.features(wavs, counts)
    for name, frames in [("mel_x", 230), ("mel_y", 120)]:
        stream = net.streams[name]
        feats, sizes = streams[name]
        assert feats.shape[1] == frames and sizes.tolist() == [frames] * 2
        native = stream.extractor(wavs, counts)
        for row, n in enumerate(stream.extractor.num_frames(counts).tolist()):
            index = [k * n // frames for k in range(frames)]
            if samples > 300:
                # On two frames float32 lets torch miss 115 * 2 / 230 = 1
                torch.testing.assert_close(
                    native[row, index].T[None],
                    torch.nn.functional.interpolate(
                        native[row, :n].T[None], size=frames, mode="nearest"
                    ),
                )
            expected = stream.normalization(
                native[row : row + 1, index], torch.tensor([frames])
            )
            torch.testing.assert_close(feats[row], expected[0])
    # Through the CNNs of the paper: 56 and 29 frames, aligned 27
    branch = net.branches["spectrogram"]
    x, counts_x = branch.cnn_x(*streams["mel_x"])
    y, counts_y = branch.cnn_y(*streams["mel_y"])
    counts = branch.alignment(x, y, counts_x, counts_y)[2]
    assert [x.shape[1], y.shape[1], counts.tolist()] == [56, 29, [27, 27]]


def test_statistics_are_those_of_the_valid_frames():
    """The batch they were taken from has zero mean and unit variance."""
    net = small()
    wavs, counts = noise(3, 8000), torch.tensor([8000, 5000, 6500])
    for stream in net.streams.values():
        stream.normalization.reset()
    net.update_normalization(wavs[:2], to_relative(counts[:2], 8000))
    net.update_normalization(wavs[2:], counts[2:])
    for feats, sizes in net.features(wavs, counts).values():
        rows = torch.cat(
            [f[:n] for f, n in zip(feats, sizes.tolist(), strict=True)]
        ).double()
        torch.testing.assert_close(
            rows.mean(0), torch.zeros_like(rows[0]), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            rows.var(0, correction=0),
            torch.ones_like(rows[0]),
            atol=1e-4,
            rtol=0,
        )


@pytest.mark.parametrize("p", [0.5, 0.3])
def test_fusion(p):
    """Logits are averaged, and so are the cross-entropies."""
    net, targets = small(p), torch.tensor([2, 0])
    out, logits = net(noise(2, 8000), return_branches=True)
    torch.testing.assert_close(net(noise(2, 8000)), out, atol=0, rtol=0)
    spectrogram, mfcc = logits["spectrogram"], logits["mfcc"]
    fused = p * spectrogram + (1 - p) * mfcc
    torch.testing.assert_close(out, fused.log_softmax(1))
    torch.testing.assert_close(out.exp().sum(1), torch.ones(2))
    cross_entropy = [
        -sum(z.log_softmax(1)[k, t] for k, t in enumerate(targets)) / 2
        for z in (spectrogram, mfcc)
    ]
    torch.testing.assert_close(
        fusion_loss(logits, targets, p),
        p * cross_entropy[0] + (1 - p) * cross_entropy[1],
    )


def test_loss_options():
    """Smoothing and class weights reach torch's cross-entropy."""
    z, targets = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    weight = torch.tensor([1.0, 2.0, 0.5])
    expected = torch.nn.functional.cross_entropy(
        z, targets, weight, label_smoothing=0.2
    )
    logits = {"spectrogram": z, "mfcc": z}
    found = fusion_loss(logits, targets, 0.3, 0.2, weight)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("p", "branch", "streams"),
    [(0, "mfcc", ["mfcc"]), (1, "spectrogram", ["mel_x", "mel_y"])],
)
def test_one_branch_only(p, branch, streams):
    """The other one is not built, nor are its features."""
    net, targets = small(p), torch.tensor([2, 0])
    assert list(net.branches) == [branch] and list(net.streams) == streams
    out, logits = net(noise(2, 8000), return_branches=True)
    assert list(logits) == [branch]
    torch.testing.assert_close(out, logits[branch].log_softmax(1))
    torch.testing.assert_close(
        fusion_loss(logits, targets, p),
        torch.nn.functional.cross_entropy(logits[branch], targets),
    )
    both = small().state_dict()
    assert net.state_dict().keys() < both.keys()


@pytest.fixture(scope="module")
def paper_size():
    return DualLevelClassifier()


def test_size_of_the_paper(paper_size):
    count = sum(p.numel() for p in paper_size.parameters())
    assert 3.7e6 <= count <= 6.4e6
    assert paper_size.n_classes == 4 and paper_size.p == 0.5
    branch = paper_size.branches["spectrogram"]
    assert [branch.cnn_x.output_size, branch.cnn_y.output_size] == [496, 1008]
    for recurrent in (branch.ds_lstm, paper_size.branches["mfcc"].lstm):
        assert [recurrent.hidden_size, recurrent.num_layers] == [200, 2]


@pytest.mark.parametrize("options", [{}, BATCH_NORMS])
def test_gradients_reach_every_parameter(options):
    net = small(**options).train()
    _, logits = net(
        noise(3, 9000), torch.tensor([9000, 5000, 7000]), return_branches=True
    )
    fusion_loss(logits, torch.tensor([0, 1, 2])).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("wavs", "lengths", "match"),
    [
        (torch.zeros(8000), None, r"\[batch, samples\], got \[8000\]"),
        (torch.zeros(2, 1, 8000), None, r"got \[2, 1, 8000\]"),
        (torch.zeros(2, 0), None, r"got \[2, 0\]"),
        (torch.zeros(0, 8000), None, r"got \[0, 8000\]"),
        (torch.zeros(2, 8000), torch.ones(3), "expected 2 lengths"),
        (torch.zeros(2, 8000), torch.ones(2, 1), "expected 2 lengths"),
        (torch.zeros(2, 8000), torch.tensor([1.0, 0.0]), r"in \(0, 1\]"),
        (torch.zeros(2, 8000), torch.tensor([1.0, math.nan]), r"in \(0, 1\]"),
        (torch.zeros(2, 8000), torch.tensor([8001, 1]), "counts in 1..8000"),
        (torch.zeros(2, 8000, dtype=torch.int16), None, "got torch.int16"),
    ],
)
def test_wrong_inputs(wavs, lengths, match):
    with pytest.raises(ValueError, match=match):
        small()(wavs, lengths)


def test_parts_that_do_not_fit():
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\], got 1.5"):
        DualLevelClassifier(p=1.5)
    with pytest.raises(ValueError, match=r"mel x and mel y, got \[230\]"):
        DualLevelClassifier(resize=[230])
    with pytest.raises(ValueError, match=r"\(496, 1008\).*\(496, 1000\)"):
        SpectrogramBranch(ds_lstm=DSLSTM(496, 1000, 8))


def test_features_instead_of_waveforms():
    """Extraction, normalisation and the rest, step by step."""
    net, wavs = small(), noise(2, 8000)
    net.update_normalization(noise(4, 9000))
    streams = net.normalize(net.extract(wavs))
    torch.testing.assert_close(streams, net.features(wavs))
    torch.testing.assert_close(net(streams=streams), net(wavs))
    halved = {
        name: FeatureSequence(feats / 2, counts)
        for name, (feats, counts) in streams.items()
    }
    logits = net(streams=halved, return_branches=True)[1]
    for name, branch in net.branches.items():
        torch.testing.assert_close(logits[name], branch(halved))


def test_normalisation_by_speaker():
    """With the statistics of a speaker, or else each item's own."""
    stream = FeatureStream(
        LogMelSpectrogram(512), 128, None, True, normalization="speaker"
    )
    feats, counts = stream.extract(noise(2, 8000), torch.tensor([8000, 4000]))
    alone = stream.normalize(feats, counts).feats
    for row, count in enumerate(counts):
        found = alone[row, :count]
        zero = torch.zeros(128)
        torch.testing.assert_close(found.mean(0), zero, atol=1e-4, rtol=0)
        spread = found.std(0, correction=0)
        torch.testing.assert_close(spread, zero + 1, atol=1e-4, rtol=0)
        assert alone[row, count:].abs().sum() == 0
    norm = stream.normalization
    norm.update(feats, counts, ["f1", "m2"])
    norm.update(feats[:1] + 1, counts[:1], ["m2"])
    given = stream.normalize(feats, counts, ["f1", "m2"]).feats
    torch.testing.assert_close(given[0], alone[0])
    frames = torch.cat([feats[1, : counts[1]], feats[0, : counts[0]] + 1])
    expected = (feats[1, 3] - frames.mean(0)) / frames.std(0, correction=0)
    torch.testing.assert_close(given[1, 3], expected)
    # They belong to the corpus: the state is that of the other sources
    assert set(norm.state_dict()) == {"count", "mean", "variance"}
    assert norm.count == 0
    with pytest.raises(ValueError, match="statistics of speaker 'm3'"):
        stream.normalize(feats, counts, ["f1", "m3"])
    norm.reset()
    assert not norm.speakers
    with pytest.raises(ValueError, match="training, speaker, none"):
        FeatureStream(LogMelSpectrogram(512), 128, normalization="all")


def test_no_normalisation():
    stream = FeatureStream(LogMelSpectrogram(512), 128, normalization="none")
    wavs, counts = noise(1, 8000), torch.tensor([8000])
    stream.normalization.update(*stream.extract(wavs, counts))
    torch.testing.assert_close(
        stream(wavs, counts).feats, stream.extract(wavs, counts).feats
    )


@pytest.mark.parametrize("names", [["mel_x"], ["mel_y"], ["mel_x", "mel_y"]])
def test_cnn_lstm_branch_ignores_padding_and_order(names):
    """Alone, in a batch of 40 in groups of like length, and reordered."""
    sizes = {"mel_x": 128, "mel_y": 256}
    cnns = {name: LocalFeatureCNN(sizes[name], (3, 2)) for name in names}
    branch = CNNLSTMBranch(3, cnns, hidden_size=5).eval()
    counts = torch.randint(20, 60, (40,))
    streams = {
        name: FeatureSequence(torch.randn(40, 60, sizes[name]), counts)
        for name in names
    }
    out = branch(streams)
    assert out.shape == (40, 3)
    order = torch.randperm(40)
    moved = {
        n: FeatureSequence(f[order], c[order]) for n, (f, c) in streams.items()
    }
    torch.testing.assert_close(branch(moved), out[order])
    for row in (0, 17, 39):
        alone = {
            name: FeatureSequence(
                feats[row : row + 1, : counts[row]], counts[[row]]
            )
            for name, (feats, _) in streams.items()
        }
        torch.testing.assert_close(branch(alone)[0], out[row])


@pytest.mark.parametrize("forget_bias", [None, 1.0])
def test_forget_gates_begin_where_they_are_told(forget_bias):
    branch = MFCCBranch(3, hidden_size=6, forget_bias=forget_bias)
    state = branch.lstm.state_dict()
    for layer in range(2):
        found = state[f"bias_ih_l{layer}"] + state[f"bias_hh_l{layer}"]
        ones = (found[6:12] == 1).all()
        assert ones == (forget_bias is not None)
        assert not (found[:6] == 1).any() and not (found[12:] == 1).any()


def test_groups_of_like_length_change_no_gradient():
    """The LSTM's mean over a ragged batch, as over the padded one."""
    counts = torch.randint(1, 50, (37,))
    feats = torch.randn(37, 50, 39)
    found = []
    for grouped in (True, False):
        torch.manual_seed(0)
        branch = MFCCBranch(3, hidden_size=6)
        x = feats.clone().requires_grad_()
        if grouped:
            out = branch({"mfcc": FeatureSequence(x, counts)})
        else:
            mean = branch.pooling(branch.lstm(x)[0], counts)
            out = branch.head(mean)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        grads = [p.grad for p in branch.parameters()]
        found.append([out.detach(), x.grad, *grads])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_compiled_branch():
    """torch.compile, in front of the code generation: values, gradients."""
    branch = small().branches["spectrogram"]
    x = FeatureSequence(torch.randn(2, 40, 128), torch.tensor([40, 23]))
    y = FeatureSequence(torch.randn(2, 20, 256), torch.tensor([20, 12]))
    found = []
    for module in (branch, torch.compile(branch, backend="aot_eager")):
        branch.zero_grad()
        out = module({"mel_x": x, "mel_y": y})
        out.square().sum().backward()
        found.append([out, *(p.grad for p in branch.parameters())])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled)


def test_dropout_of_the_branches():
    for branch in (SpectrogramBranch, MFCCBranch):
        net = branch(dropout=0.9).train()
        streams = {
            "mfcc": FeatureSequence(torch.randn(1, 9, 39), torch.tensor([9])),
            "mel_x": FeatureSequence(
                torch.randn(1, 40, 128), torch.tensor([40])
            ),
            "mel_y": FeatureSequence(
                torch.randn(1, 20, 256), torch.tensor([20])
            ),
        }
        assert not torch.equal(net(streams), net(streams))
        net.eval()
        torch.testing.assert_close(net(streams), net(streams))


def test_float64():
    """Double precision all the way, and nearly the same numbers."""
    wavs, counts = noise(2, 8000), torch.tensor([8000, 5000])
    single = small()(wavs, counts)
    double = small().double()(wavs.double(), counts)
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=0)


def test_state_dict_round_trip():
    """Weights, running and feature statistics, through a file."""
    net = small(**BATCH_NORMS).train()
    net(noise(3, 9000))
    net.eval()
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    other = small(**BATCH_NORMS)
    for parameter in other.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    other.load_state_dict(torch.load(file, weights_only=True))
    wavs = noise(2, 8000)
    torch.testing.assert_close(other(wavs), net(wavs), atol=0, rtol=0)
    extractors = {"mel", "dct", "window"}
    assert not {k.split(".")[-1] for k in net.state_dict()} & extractors


SYSTEMS = {
    "mfcc_lstm": ["mfcc"],
    "cnn_lstm_x": ["mel_x"],
    "cnn_lstm_y": ["mel_y"],
    "cnn_lstm_xy": ["mel_x", "mel_y"],
    "mfcc_cnn_lstm_xy": ["mel_x", "mel_y", "mfcc"],
    "ds_lstm": ["mel_x", "mel_y"],
    "dual_level": ["mel_x", "mel_y", "mfcc"],
    "paper": ["mel_x", "mel_y", "mfcc"],
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_yaml_of_each_system(system):
    overrides = "{channels: [4, 2], hidden_size: 8, corpus: emodb}"
    hparams = load_hparams(HPARAMS / f"{system}.yaml", overrides)
    net = hparams["model"].eval()
    assert list(net.streams) == SYSTEMS[system]
    # One object, wherever it is named
    for name, stream in net.streams.items():
        assert stream.extractor is hparams["features"][name]
    branch = net.branches["spectrogram"] if len(net.streams) != 1 else None
    if hasattr(branch, "ds_lstm"):
        assert branch.cnn_y is hparams["cnn_y"]
        assert branch is hparams["ds_lstm_branch"]
    out = net(noise(2, 8000), torch.tensor([1.0, 0.6]))
    assert list(out.shape) == [2, 7]
    if hparams["fea_augment"] is not None:
        streams = hparams["fea_augment"](net.features(noise(2, 8000)))
        assert net(streams=streams).isfinite().all()
    assert hparams["system"] == system


def test_each_yaml_states_only_what_differs():
    """No setting of a system's YAML repeats that of recipe.yaml."""
    yaml = YAML()
    shared = yaml.load((HPARAMS / "recipe.yaml").read_text("utf-8"))
    for system in SYSTEMS:
        own = yaml.load((HPARAMS / f"{system}.yaml").read_text("utf-8"))
        # Those two the reader looks for first
        kept = {"fusion_weight", "num_layers"}
        same = [
            key
            for key, value in own["recipe"].items()
            if shared[key] == value and key not in kept
        ]
        assert not same, f"{system}.yaml repeats {same}"


def test_yaml_of_another_system():
    """The parts alone: a DS-LSTM on two features of SpeechBrain."""
    hparams = load_hyperpyyaml(
        """
        fine_time: !new:speechbrain.lobes.features.Fbank
            n_mels: 20
        fine_frequency: !new:speechbrain_dslstm.LogMelSpectrogram
            n_fft: 1024
            hop_length: 320
        align: !new:speechbrain_dslstm.layers.AveragePoolAlignment
        norm: !new:speechbrain_dslstm.layers.MaskedBatchNorm [256]
        ds_lstm: !new:speechbrain_dslstm.DSLSTM
            input_size_x: 20
            input_size_y: 256
            hidden_size: 6
            num_layers: 2
            bidirectional: True
        pool: !new:speechbrain_dslstm.layers.MaskedMeanPooling
        """
    )
    wavs = noise(2, 8000)
    x = hparams["fine_time"](wavs)
    y = hparams["fine_frequency"](wavs)
    full = torch.tensor([x.shape[1]] * 2), torch.tensor([y.shape[1]] * 2)
    y = hparams["norm"](y, full[1])
    x, y, counts = hparams["align"](x, y, *full)
    out, (h, _) = hparams["ds_lstm"](x, y, to_relative(counts, x.shape[1]))
    assert hparams["pool"](out, counts).shape == (2, 12)
    assert h.shape == (4, 2, 6)
