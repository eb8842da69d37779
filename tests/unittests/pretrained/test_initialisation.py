"""Weights of another model: what is copied, what stays new, what is refused."""

import json
import logging
import shutil

import pytest
import torch

from speechbrain_dslstm import DualLevelClassifier
from speechbrain_dslstm.models import MFCCBranch
from speechbrain_dslstm.pretrained import (
    initialise,
    save_pretrained,
    write_card,
)
from speechbrain_dslstm.pretrained.initialisation import check_start
from speechbrain_dslstm.pretrained.origin import read_origin

LABELS = ["sadness", "anger", "neutral"]
SHIPPED = "pretrained/emotion-dslstm-emodb"
YAML = """
sample_rate: 16000
model: !new:speechbrain_dslstm.DualLevelClassifier
  n_classes: 3
  p: 0.0
  streams:
    mfcc: !new:speechbrain_dslstm.models.FeatureStream
      extractor: !new:speechbrain_dslstm.features.MFCC39
        sample_rate: 16000
      num_features: 39
"""


def small(n_classes=3, hidden_size=8):
    """A model of the MFCC branch alone, with random weights."""
    branch = MFCCBranch(n_classes, hidden_size=hidden_size)
    model = DualLevelClassifier(n_classes, p=0.0, mfcc=branch)
    model.update_normalization(torch.randn(2, 8000))
    return model


def settings(folder, model, labels, source, **others):
    """The hyperparameters that ``initialise`` reads."""
    return {
        "init_from": source,
        "init_lr_factor": 1.0,
        "freeze": None,
        "model": model,
        "labels": labels,
        "features": {"sample_rate": 16000},
        "normalization": "training",
        "output_folder": str(folder / "run"),
        **others,
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model folder of three classes."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("source") / "model"
    save_pretrained(folder, YAML, small(), LABELS)
    return folder


@pytest.fixture(params=["described", "yaml only"])
def either(request, source, tmp_path):
    """The model folder with and without model.json."""
    copied = shutil.copytree(source, tmp_path / "either")
    if request.param == "yaml only":
        (copied / "model.json").unlink()
    return copied


def test_classes_are_kept_by_name(either, tmp_path):
    labels = ["anger", "joy", "sadness", "fear"]
    model = small(4)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    given = read_origin(either)
    record = initialise(settings(tmp_path, model, labels, either), False)
    assert record["kept"] == ["anger", "sadness"]
    assert record["new"] == ["joy", "fear"]
    found = model.state_dict()
    for name in ("weight", "bias"):
        key = f"branches.mfcc.head.{name}"
        for row, label in enumerate(labels):
            expected = fresh[key][row]
            if label in LABELS:
                expected = given.state[key][LABELS.index(label)]
            assert torch.equal(found[key][row], expected), label
    for key, value in found.items():
        if ".head." in key:
            continue
        # The feature statistics will be those of the new training set
        other = fresh if ".normalization." in key else given.state
        assert torch.equal(value, other[key]), key
    assert set(record["inherited"]) == {
        name for name, _ in model.named_parameters() if ".head." not in name
    }


def test_the_same_classes_in_another_order(source, tmp_path):
    """The answers stay, and the linear layer counts as inherited."""
    model = small()
    hparams = settings(tmp_path, model, LABELS[::-1], source, freeze="features")
    record = initialise(hparams, False)
    other = small()
    other.load_state_dict(read_origin(source).state)
    wavs = torch.randn(2, 8000)
    torch.testing.assert_close(
        model.eval()(wavs), other.eval()(wavs).flip(1), atol=1e-6, rtol=0
    )
    assert set(record["inherited"]) == set(dict(model.named_parameters()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": small(3, 9)}, "hidden_size is 8 there and 9 here"),
        (
            {"model": DualLevelClassifier(3)},
            "model.spectrogram is None there and a part here",
        ),
        (
            {"features": {"sample_rate": 8000}},
            "at 16000 Hz, this model at 8000",
        ),
        ({"freeze": "cnn_x"}, "the model has no part 'cnn_x'; expected one of"),
        ({"init_lr_factor": 0.0}, "init_lr_factor must be positive, got 0.0"),
        (
            {"freeze": "features", "normalization": "speaker"},
            "freeze=features has no effect with normalization 'speaker'",
        ),
        (
            {"freeze": "features", "init_from": None},
            "freeze=features keeps the feature statistics of another model",
        ),
    ],
)
def test_refused_before_anything_is_copied(change, message, source, tmp_path):
    hparams = settings(tmp_path, small(), LABELS, source) | change
    before = {k: v.clone() for k, v in hparams["model"].state_dict().items()}
    with pytest.raises(ValueError, match=message):
        initialise(hparams, False)
    for key, value in hparams["model"].state_dict().items():
        assert torch.equal(value, before[key])
    assert not (tmp_path / "run").exists()


def test_checked_before_the_data_are_read(source, tmp_path):
    def check(source, size=8, **others):
        model = small(hidden_size=size)
        check_start(settings(tmp_path, model, LABELS, source, **others))

    check(None)
    check(source, freeze="features,mfcc")
    with pytest.raises(FileNotFoundError, match="no model folder nowhere"):
        check("nowhere")
    with pytest.raises(ValueError, match="hidden_size is 8 there and 9 here"):
        check(source, 9)
    with pytest.raises(ValueError, match="it works at 16000 Hz"):
        check(source, features={"sample_rate": 8000})
    with pytest.raises(ValueError, match="freeze: the model has no part 'x'"):
        check(None, freeze="x")
    with pytest.raises(ValueError, match="name it by init_from"):
        check(None, freeze="features")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("streams", {"center_utterances": True}, "center_utterances is False"),
        ("extractor", {"n_mfcc": 13}, "n_mfcc is 12 there and 13 here"),
    ],
)
def test_other_features(part, change, message, either, tmp_path):
    """Of the same shape, so that only the description shows the difference."""
    model = small()
    stream = model.streams["mfcc"]
    for name, value in change.items():
        target = stream.extractor if part == "extractor" else stream
        if part == "streams":
            target = stream.normalization
        setattr(target, name, value)
    written = (either / "model.json").is_file()
    if not written:
        # The YAML states only what its author wrote
        yaml = either / "hyperparams.yaml"
        text = yaml.read_text("utf-8")
        more = "sample_rate: 16000\n        n_mfcc: 12"
        text = text.replace("    sample_rate: 16000", f"    {more}", 1)
        more = "num_features: 39\n      center_utterances: False"
        text = text.replace("num_features: 39", more)
        yaml.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        initialise(settings(tmp_path, model, LABELS, either), False)


def test_a_yaml_is_parsed_and_not_run(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "evil")
    (folder / "model.json").unlink()
    yaml = folder / "hyperparams.yaml"
    made = tmp_path / "made"
    evil = f"evil: !apply:os.mkdir ['{made}']\n"
    yaml.write_text(evil + yaml.read_text("utf-8"), "utf-8")
    initialise(settings(tmp_path, small(), LABELS, folder), False)
    assert not made.exists()


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (lambda f: shutil.rmtree(f), FileNotFoundError, "no model folder"),
        (
            lambda f: (f / "model.ckpt").write_bytes(b"x" * 99),
            ValueError,
            "model.ckpt",
        ),
        (
            lambda f: (f / "model.ckpt").unlink(),
            FileNotFoundError,
            "model.ckpt",
        ),
    ],
)
def test_a_damaged_folder(harm, error, message, either, tmp_path):
    harm(either)
    with pytest.raises(error, match=message):
        initialise(settings(tmp_path, small(), LABELS, either), False)


def test_a_hub_is_asked_for_data_only(source, tmp_path, monkeypatch):
    from speechbrain_dslstm.pretrained import sources

    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(source)

    monkeypatch.setattr(sources, "snapshot_download", download)
    monkeypatch.setattr(sources.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.chdir(tmp_path)
    hparams = settings(tmp_path, small(), LABELS, "user/name")
    assert initialise(hparams, False)["source"] == "user/name"
    assert {name for name, _ in asked} == {"user/name"}
    assert not any(name.endswith(".py") for name in asked[0][1])


def test_a_resumed_run_keeps_its_own_weights(source, tmp_path, caplog):
    hparams = settings(tmp_path, small(), LABELS, source)
    record = initialise(hparams, False)
    again = small()
    before = {k: v.clone() for k, v in again.state_dict().items()}
    # The source may be gone by now
    hparams = settings(tmp_path, again, LABELS, str(source))
    with caplog.at_level(logging.INFO):
        assert initialise(hparams, True) == record
    assert "goes on from its own checkpoint" in caplog.text
    for key, value in again.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("now", [None, SHIPPED])
def test_a_resumed_run_from_another_model(now, source, tmp_path):
    initialise(settings(tmp_path, small(), LABELS, source), False)
    with pytest.raises(ValueError, match="another init_from") as caught:
        initialise(settings(tmp_path, small(), LABELS, now), True)
    assert str(source) in str(caught.value) and str(now) in str(caught.value)


def test_the_card_names_the_origin(source, tmp_path):
    record = initialise(settings(tmp_path, small(), LABELS, source), False)
    assert json.loads((tmp_path / "run/save/origin.json").read_text()) == record
    results = {"system": "mfcc_lstm", "corpus": "mine", "note": "", "ua": 0.5}
    results |= {"labels": LABELS, "wa": 0.5, "description": "speaker"}
    write_card(source, results | {"init_from": record})
    text = (source / "README.md").read_text("utf-8")
    assert f"`{source}`" in text and record["sha256"] in text
    assert "no card that says" in text
    (source / "README.md").unlink()


def test_the_licence_of_the_origin(source, tmp_path):
    folder = shutil.copytree(source, tmp_path / "licensed")
    header = "---\nlanguage: de\nlicense: 'cc0-1.0'\n---\n\n# A model\n\n"
    prose = "Trained on\nmy corpus.\x1b[31m\n\nMore.\n"
    (folder / "README.md").write_text(header + prose, "utf-8")
    origin = read_origin(folder)
    assert origin.licence == "cc0-1.0"
    assert origin.card == "Trained on my corpus.[31m"
    assert "CC0" in read_origin(SHIPPED).card
