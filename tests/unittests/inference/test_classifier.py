"""A saved model loads anywhere, without a network, and gives the same answers."""

import math
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import constants
from hyperpyyaml import load_hyperpyyaml
from real_speech import clips_in
from safetensors.torch import load_file
from speechbrain.inference import interfaces

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.hparams import load_hparams, resolve_hparams
from speechbrain_dslstm.pretrained import load_weights, save_pretrained

REPOSITORY = Path(__file__).resolve().parents[3]
# Neither in the order of the alphabet nor of length
LABELS = ["sadness", "anger", "neutral"]
FILES = [
    "custom_interface.py",
    "hyperparams.yaml",
    "label_encoder.ckpt",
    "model.ckpt",
    "model.json",
]
HPARAMS = """
seed: 1234
sample_rate: 16000
hidden_size: 8
data_folder: /somewhere/else
mfcc: !new:speechbrain_dslstm.models.MFCCBranch  # a comment
  n_classes: 3
  hidden_size: !ref <hidden_size>
model: !new:speechbrain_dslstm.DualLevelClassifier
  n_classes: 3
  p: 0.0
  mfcc: !ref <mfcc>
lr: 0.001
"""


@pytest.fixture(autouse=True)
def offline(reproducible, monkeypatch):
    """Forbid connections; a small LSTM needs one thread."""

    def refuse(*args, **kwargs):
        raise AssertionError("a connection to the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    torch.set_num_threads(1)


def trained_model():
    """Build a small model with random weights and with feature statistics."""
    torch.manual_seed(0)
    model = load_hyperpyyaml(HPARAMS)["model"]
    model.update_normalization(torch.randn(4, 8000) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return trained_model()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_pretrained(folder, HPARAMS, model, LABELS)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Copy of the saved model that a test may change."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture(scope="module")
def classifier(saved):
    return EmotionClassifier.from_hparams(saved)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1


def assert_same_answers(classifier, model):
    wavs, lengths = noise(3, 9000), torch.tensor([1.0, 0.5, 0.8])
    found = classifier.classify_batch(wavs, lengths)[0]
    with torch.no_grad():
        expected = model(wavs, lengths)
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.parametrize("kind", [str, Path, lambda path: f"{path}/"])
def test_round_trip(kind, saved, model):
    classifier = EmotionClassifier.from_hparams(kind(saved))
    assert isinstance(classifier, EmotionClassifier)
    assert_same_answers(classifier, model)
    assert not any(p.requires_grad for p in classifier.parameters())
    assert not any(m.training for m in classifier.mods.modules())


@pytest.mark.parametrize("source", ["model", "./model", "runs/model", "../at"])
@pytest.mark.parametrize("kind", [str, Path])
def test_relative_paths(source, kind, saved, model, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(saved, source)
    classifier = EmotionClassifier.from_hparams(kind(source))
    assert_same_answers(classifier, model)


def test_home_folder(saved, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(saved, tmp_path / "model")
    assert_same_answers(EmotionClassifier.from_hparams("~/model"), model)


def test_a_moved_folder_still_loads(saved, model, tmp_path):
    first = shutil.copytree(saved, tmp_path / "first" / "model")
    target = tmp_path / "second"
    shutil.move(first, target)
    shutil.rmtree(tmp_path / "first")
    assert_same_answers(EmotionClassifier.from_hparams(target), model)


def test_files_know_no_machine(saved):
    """The folder holds no absolute path and no setting of the training."""
    assert sorted(path.name for path in saved.iterdir()) == FILES
    for path in saved.iterdir():
        content = path.read_bytes()
        for place in (saved.parent, REPOSITORY, Path.home(), "/somewhere"):
            assert str(place).encode() not in content, (path.name, place)
    text = (saved / "hyperparams.yaml").read_text()
    assert "lr:" not in text and "seed" not in text and "#" not in text
    # Weights and nothing that could be executed
    load_file(saved / "model.ckpt")


def test_saving_again_replaces(folder):
    other = trained_model()
    torch.nn.init.zeros_(other.branches["mfcc"].head.weight)
    save_pretrained(folder, HPARAMS, other, LABELS)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert_same_answers(EmotionClassifier.from_hparams(folder), other)


def test_yaml_of_the_recipe(tmp_path):
    """A folder is written from the full YAML with its includes, as in train.py."""
    path = REPOSITORY / "hparams" / "dual_level.yaml"
    overrides = "{channels: [4, 2], hidden_size: 8, n_classes: 3}"
    text = resolve_hparams(path, overrides)
    model = load_hparams(path, overrides)["model"].eval()
    save_pretrained(tmp_path / "model", text, model, LABELS)
    classifier = EmotionClassifier.from_hparams(tmp_path / "model")
    assert classifier.hparams.sample_rate == 16000
    assert_same_answers(classifier, model)
    written = (tmp_path / "model" / "hyperparams.yaml").read_text()
    assert str(tmp_path) not in written and str(REPOSITORY) not in written


def test_batch(classifier, model):
    """The four results of a batch belong together."""
    wavs, lengths = noise(5, 9000), torch.tensor([1.0, 0.5, 0.8, 0.2, 0.9])
    wavs[2] *= 20
    out_prob, score, index, text_lab = classifier.classify_batch(wavs, lengths)
    assert list(out_prob.shape) == [5, 3] and out_prob.dtype == torch.float32
    torch.testing.assert_close(out_prob.exp().sum(1), torch.ones(5))
    torch.testing.assert_close(score, out_prob.amax(1), atol=0, rtol=0)
    torch.testing.assert_close(index, out_prob.argmax(1), atol=0, rtol=0)
    assert index.dtype == torch.int64
    assert text_lab == [LABELS[k] for k in index]
    assert not out_prob.requires_grad
    again = classifier(wavs, lengths)
    torch.testing.assert_close(again[0], out_prob, atol=0, rtol=0)
    assert again[3] == text_lab
    by_count = classifier.classify_batch(wavs, [9000, 4500, 7200, 1800, 8100])
    torch.testing.assert_close(by_count[0], out_prob, atol=0, rtol=0)
    alone = classifier.classify_batch(wavs[3, :1800])
    torch.testing.assert_close(alone[0], out_prob[3:4])


@pytest.mark.parametrize("best", range(3))
def test_order_of_the_classes_is_fixed(best, tmp_path):
    """Each index has the name that it was saved with."""
    model = trained_model()
    torch.nn.init.constant_(model.branches["mfcc"].head.bias[best], 50.0)
    save_pretrained(tmp_path, HPARAMS, model, LABELS)
    classifier = EmotionClassifier.from_hparams(tmp_path)
    _, _, index, text_lab = classifier.classify_batch(noise(2, 8000))
    assert index.tolist() == [best] * 2 and text_lab == [LABELS[best]] * 2


def test_float64_and_whole_numbers(classifier):
    """float64 is accepted; 16-bit integers, which are not in [-1, 1], are refused."""
    wavs = noise(2, 8000)
    torch.testing.assert_close(
        classifier.classify_batch(wavs.double())[0],
        classifier.classify_batch(wavs)[0],
    )
    with pytest.raises(ValueError, match="floats in .*got torch.int16"):
        classifier.classify_batch((wavs * 32767).to(torch.int16))


def vowel(rate):
    """Make a second of a rising voice with no energy above 3.5 kHz."""
    seconds = np.arange(rate) / rate
    phase = 2 * math.pi * 150 * seconds * (1 + 0.1 * seconds)
    return sum(0.1 / k * np.sin(k * phase) for k in range(1, 20))


@pytest.mark.parametrize("ending", ["wav", "flac"])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_file(classifier, model, tmp_path, rate, ending):
    """A stereo file of any rate has the answer of the mono signal at 16 kHz."""
    path = tmp_path / f"vowel.{ending}"
    left = 2 * vowel(rate)
    soundfile.write(path, np.stack([left, 0 * left], axis=1), rate)
    out_prob, score, index, text_lab = classifier.classify_file(path)
    assert list(out_prob.shape) == [1, 3] and text_lab == [LABELS[index]]
    torch.testing.assert_close(score, out_prob.amax(1), atol=0, rtol=0)
    with torch.no_grad():
        expected = model(torch.from_numpy(vowel(16000)).float()[None])
    # Half the band is silent at 8 kHz
    atol = 0.02 if rate < 16000 else 0.005
    torch.testing.assert_close(out_prob, expected, atol=atol, rtol=0)
    by_name = classifier.classify_file(str(path))[0]
    torch.testing.assert_close(by_name, out_prob, atol=0, rtol=0)


def test_file_of_real_speech(classifier, model, emodb_folder):
    path = clips_in(emodb_folder)[7]
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 16000
    with torch.no_grad():
        expected = model(torch.from_numpy(samples)[None])
    found = classifier.classify_file(path)[0]
    torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_a_file_that_is_none(classifier, tmp_path):
    path = tmp_path / "notes.wav"
    with pytest.raises(ValueError, match="notes.wav"):
        classifier.classify_file(path)
    path.write_text("no audio")
    with pytest.raises(ValueError, match="notes.wav"):
        classifier.classify_file(path)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_run_options(saved, model, device):
    options = {"device": device}
    classifier = EmotionClassifier.from_hparams(saved, run_opts=options)
    assert classifier.device == "cpu" and options == {"device": device}
    assert_same_answers(classifier, model)


def test_overrides(saved):
    classifier = EmotionClassifier.from_hparams(
        saved, overrides={"sample_rate": 8000}
    )
    assert classifier.hparams.sample_rate == 8000


def forget_hashes(folder):
    """Remove the hashes, which older folders lack."""
    path = folder / "hyperparams.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if "sha256" not in x))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda state, key: state.pop(key), "missing {key}"),
        (
            lambda state, key: state.update({"extra.bias": torch.ones(1)}),
            "unexpected extra.bias",
        ),
        (
            lambda state, key: state.update({key: torch.ones(2, 8)}),
            r"wrong shape {key} \[2, 8\] instead of \[3, 8\]",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_weights_must_fit(folder, spoil, match):
    key = "branches.mfcc.head.weight"
    # Clones, as load_file maps the file into memory
    state = load_file(folder / "model.ckpt")
    state = {name: value.clone() for name, value in state.items()}
    spoil(state, key)
    forget_hashes(folder)
    # A checkpoint that torch wrote is read, too
    torch.save(state, folder / "model.ckpt")
    match = "model.ckpt does not fit the model: " + match.format(key=key)
    with pytest.raises(ValueError, match=match):
        EmotionClassifier.from_hparams(folder)
    # And nothing was loaded in part
    model = trained_model()
    torch.nn.init.zeros_(model.branches["mfcc"].head.bias)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit"):
        load_weights(model, folder / "model.ckpt")
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0, rtol=0)


@pytest.mark.parametrize(
    "source",
    [
        "gone",
        "./gone",
        "../gone",
        "../runs/gone",
        "./user/name",
        "runs/emodb/gone",
        "runs/gone/",
        "/runs/gone",
        "~/gone",
        "runs\\gone",
        "C:\\runs\\gone",
        "my runs/gone",
        "user//name",
        ".hidden/gone",
        "",
        Path("gone"),
        Path("user/name"),
    ],
)
def test_a_mistyped_path_fails_at_once(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(interfaces, "fetch", None)
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match="no model folder"):
        EmotionClassifier.from_hparams(source)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("source", ["user/name", "some-lab/ds_lstm-emo.v2"])
def test_an_id_of_the_hub_goes_there(source, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def fetch(filename, source, savedir, **kwargs):
        asked.append((filename, source, savedir))
        raise ConnectionError("no hub here")

    monkeypatch.setattr(interfaces, "fetch", fetch)
    with pytest.raises(ConnectionError, match="no hub here"):
        EmotionClassifier.from_hparams(source, savedir=tmp_path)
    assert asked == [("hyperparams.yaml", source, str(tmp_path))]


@pytest.mark.parametrize("why", ["parent", "pretrained", "offline"])
def test_a_mistyped_path_in_the_form_of_an_id(why, tmp_path, monkeypatch):
    """Signs of a mistyped path are an existing parent, our prefix, or no network."""
    online = why != "offline"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not online)
    monkeypatch.setattr(interfaces, "fetch", None)
    monkeypatch.chdir(tmp_path)
    source = "pretrained/gone" if why == "pretrained" else "runs/gone"
    if why == "parent":
        (tmp_path / "runs").mkdir()
    started = time.monotonic()
    with pytest.raises(FileNotFoundError, match=f"no model folder {source}"):
        EmotionClassifier.from_hparams(source)
    assert time.monotonic() - started < 1


def test_what_was_fetched_before_loads_offline(
    saved, model, tmp_path, monkeypatch
):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept = shutil.copytree(saved, tmp_path / "kept")
    (kept / ".model_source.json").write_text(
        '{"source": "user/name", "revision": null}'
    )
    classifier = EmotionClassifier.from_hparams("user/name", savedir=kept)
    assert_same_answers(classifier, model)


def test_a_folder_without_yaml(folder):
    (folder / "hyperparams.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="no hyperparams.yaml in .*mod"):
        EmotionClassifier.from_hparams(folder)


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(FileNotFoundError, match="no model folder .*yaml"):
        EmotionClassifier.from_hparams(str(folder / "hyperparams.yaml"))


@pytest.mark.parametrize("name", ["label_encoder.ckpt", "model.ckpt"])
def test_a_folder_without_weights_or_classes(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        EmotionClassifier.from_hparams(folder)


def test_a_yaml_without_the_model(folder):
    path = folder / "hyperparams.yaml"
    text = path.read_text()
    path.write_text(text.replace("  embedding_model:", "  other:"))
    with pytest.raises(ValueError, match=r"no modules\[embedding_model\]"):
        EmotionClassifier.from_hparams(folder)
    for modules in (None, {}):
        with pytest.raises(ValueError, match=r"no modules\[embedding_mod"):
            EmotionClassifier(modules, {"sample_rate": 16000})


def test_savedir_is_for_the_hub_only(saved, model, tmp_path):
    """Two local models with one savedir stay two models."""
    other = trained_model()
    torch.nn.init.constant_(other.branches["mfcc"].head.bias[1], 3.0)
    save_pretrained(tmp_path / "other", HPARAMS, other, LABELS)
    for source, expected in [(saved, model), (tmp_path / "other", other)]:
        classifier = EmotionClassifier.from_hparams(
            source, savedir=tmp_path / "cache"
        )
        assert_same_answers(classifier, expected)


def test_labels_of_any_spelling(tmp_path):
    labels = ["très heureux", "sad, low", "=> 'neutral'"]
    save_pretrained(tmp_path, HPARAMS, trained_model(), labels)
    encoder = EmotionClassifier.from_hparams(tmp_path).hparams.label_encoder
    assert [encoder.ind2lab[k] for k in range(3)] == labels
