"""Systems over a Whisper encoder: trained by the recipe, saved, used everywhere."""

import json
from pathlib import Path

import processes
import pytest
import tiny_encoder
import torch
from nightly import nightly
from safetensors.torch import load_file

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.export import export_onnx, load_onnx, quantize_onnx
from speechbrain_dslstm.hparams import load_hparams
from speechbrain_dslstm.inference import load_safe
from speechbrain_dslstm.inference.explain import explain, plot_explanation
from speechbrain_dslstm.pretrained import make_label_encoder

HPARAMS = Path(__file__).parents[2] / "hparams"
SYSTEMS = (
    *("encoder_ds_lstm", "encoder_lstm", "encoder_linear"),
    "encoder_mel_ds_lstm",
)
OPTIONS = [
    "--corpus_options={speakers: 6, sentences: 1}",
    *("--hidden_size=8", "--batch_size=4", "--number_of_epochs=2"),
    *("--device=cpu", "--noprogressbar"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A tiny Whisper that reads windows of 2 s."""
    folder = tmp_path_factory.mktemp("whisper")
    tiny_encoder.write_whisper(folder, positions=100)
    return folder


def train(system, root, source, name, *options):
    """Run the recipe; return the output folder."""
    processes.call(
        processes.RECIPE / "train.py",
        str(HPARAMS / f"{system}.yaml"),
        *OPTIONS,
        f"--data_folder={root / 'data'}",
        f"--output_folder={root / name}",
        f"--encoder_source={source}",
        *options,
    )
    return root / name


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of the corpus and of the runs."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def trained(root, source):
    """A run with frames from the cache."""
    cache = f"--feature_cache={root / 'cache'}"
    return train("encoder_ds_lstm", root, source, "frozen", cache)


def test_model_folder_needs_no_source(trained, root):
    """Loaded by the YAML and as data, with neither encoder nor corpus."""
    text = (trained / "model" / "hyperparams.yaml").read_text()
    assert str(root) not in text and "whisper" not in text.replace(
        "models.WhisperFrames", ""
    )
    wav = load_audio(next(root.glob("data/**/*.wav")))
    by_yaml = EmotionClassifier.from_hparams(trained / "model")
    safe = load_safe(trained / "model")
    expected = by_yaml.classify_batch(wav).out_prob
    assert torch.equal(safe.classify_batch(wav).out_prob, expected)
    assert not (safe.mods.embedding_model.streams.encoder.training)


def test_frozen_encoder_does_not_move_and_the_cache_is_16_bit(
    trained, root, source
):
    state = load_file(trained / "model" / "model.ckpt")
    fresh = load_file(source / "model.safetensors")
    place = "streams.encoder.extractor."
    kept = [name for name in state if name.startswith(place)]
    assert len(kept) > 40
    for name in kept:
        assert torch.equal(state[name], fresh[name.removeprefix(place)])
    entries = list((root / "cache").rglob("*.safetensors"))
    assert entries and load_file(entries[0])["feats"].dtype == torch.float16


def test_last_epoch_is_the_model(trained):
    """Without validation."""
    results = json.loads((trained / "results.json").read_text())
    assert results["clips"]["valid"] == 0 and results["best_epoch"] == 2
    assert results["selection"] == "last, without validation"


def test_top_of_the_encoder_is_trained_at_its_own_rate(root, source):
    options = ["--encoder_trained_layers=1", "--encoder_lr=0.01"]
    options.append(f"--feature_cache={root / 'cache'}")
    output = train("encoder_ds_lstm", root, source, "partly", *options)
    state = load_file(output / "model" / "model.ckpt")
    fresh = load_file(source / "model.safetensors")
    place = "streams.encoder.extractor."
    moved = {
        name.split(".")[1] if "layers" in name else name.split(".")[0]
        for name in fresh
        if name.startswith("encoder.")
        and not torch.equal(fresh[name], state[place + name])
        for name in [name.removeprefix("encoder.")]
    }
    assert moved == {"2", "layer_norm"}
    saved = next((output / "save").glob("CKPT*"))
    rates = [
        torch.load(saved / f"{name}.ckpt")["base_lrs"]
        for name in ("lr_schedule", "encoder_lr_schedule")
    ]
    assert rates == [[0.002], [0.01]]
    # The saved model runs both parts
    wav = load_audio(next(root.glob("data/**/*.wav")))
    found = load_safe(output / "model").classify_batch(wav).out_prob
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)


def build(system, source, **options):
    """A classifier with random weights and the statistics of noise."""
    keys = {"corpus": "emodb", "encoder_source": str(source)}
    keys |= {"hidden_size": 8, **options}
    overrides = "\n".join(f"{key}: {value}" for key, value in keys.items())
    torch.manual_seed(0)
    hparams = load_hparams(HPARAMS / f"{system}.yaml", overrides)
    model = hparams["model"].eval()
    with torch.no_grad():
        model.update_normalization(0.1 * torch.randn(4, 20000))
        model.branches["spectrogram"].head.weight.mul_(20)
    encoder = make_label_encoder(hparams["labels"])
    return EmotionClassifier.from_model(model, encoder, 16000)


@pytest.mark.parametrize(
    ("system", "trained_layers"),
    [
        ("encoder_ds_lstm", 0),
        pytest.param("encoder_ds_lstm", 3, marks=nightly),
        pytest.param("encoder_linear", 0, marks=nightly),
    ],
)
def test_onnx_of_any_length(system, trained_layers, source, tmp_path):
    """One file; clips alone and in batches, longer than the table of positions."""
    classifier = build(system, source, encoder_trained_layers=trained_layers)
    path = export_onnx(classifier, tmp_path / "model.onnx")
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    loaded = load_onnx(path)
    torch.manual_seed(1)
    for samples in (100, 16000, 40001, 100000):
        wavs = 0.1 * torch.randn(2, samples)
        counts = torch.tensor([samples, samples // 3 + 1])
        expected = classifier.classify_batch(wavs, counts).out_prob
        found = loaded.classify_batch(wavs, counts).out_prob
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    small = quantize_onnx(path, tmp_path / "int8.onnx")
    found = load_onnx(small).classify_batch(wavs, counts).out_prob
    assert found.isfinite().all() and not torch.equal(found, expected)


def test_mel_baseline_says_why_it_has_no_export(source, tmp_path):
    with pytest.raises(ValueError, match="supports no RateAlignment"):
        export_onnx(build("encoder_mel_ds_lstm", source), tmp_path / "a.onnx")


@pytest.mark.parametrize("system", SYSTEMS)
def test_stream_says_why_not_and_what_instead(system, source):
    classifier = build(system, source)
    with pytest.raises(ValueError, match="attention reads the whole utterance"):
        classifier.stream()
    stream = classifier.stream(window=1.0, speech_only=False)
    wav = 0.1 * torch.randn(32000)
    stream.push(wav)
    expected = classifier.classify_batch(wav[16000:]).out_prob[0]
    torch.testing.assert_close(stream.posterior(), expected)


@pytest.mark.parametrize("trained_layers", [0, 2])
@pytest.mark.parametrize("system", ["encoder_ds_lstm", "encoder_mel_ds_lstm"])
def test_explanation_ends_with_the_answer(
    system, trained_layers, source, tmp_path
):
    classifier = build(system, source, encoder_trained_layers=trained_layers)
    wav = 0.1 * torch.randn(24000)
    found = explain(classifier.mods.embedding_model, wav)
    expected = classifier.classify_batch(wav).out_prob[0].exp()
    torch.testing.assert_close(
        found.posteriors[-1], expected, atol=1e-5, rtol=0
    )
    assert found.mel_y.shape == (150, 80) and found.names[1] == (
        "encoder layers 2, 3"
    )
    step = 0.064 if "mel" in system else 0.04
    assert found.times[0].item() == pytest.approx(step)
    plot_explanation(found, classifier.labels, tmp_path / "gates.png")
    assert (tmp_path / "gates.png").stat().st_size > 10000
