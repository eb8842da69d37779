"""One model folder, read by our class, by SpeechBrain's and by load_safe."""

import json
import logging
import os
import shutil
import time
import warnings
from pathlib import Path

import pytest
import tiny_encoder
import torch
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.interfaces import foreign_class

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.hparams import load_hparams, resolve_hparams
from speechbrain_dslstm.inference import load_safe
from speechbrain_dslstm.pretrained import save_pretrained
from speechbrain_dslstm.pretrained.architecture import TABLE, build, describe

REPOSITORY = Path(__file__).resolve().parents[3]
SYSTEMS = [
    path.name
    for path in sorted((REPOSITORY / "hparams").glob("*.yaml"))
    if "\nmodel:" in path.read_text("utf-8")
]
# load_safe does not build these: they have classes that TABLE does not list
UNKNOWN = ["ssl_ds_lstm.yaml", "text_level.yaml", "tri_level.yaml"]
SYSTEMS = [name for name in SYSTEMS if name not in UNKNOWN]
LABELS = ["sadness", "anger", "neutral"]


def load_system(name, folder, **overrides):
    """The text and the model of a YAML of the recipe."""
    path = REPOSITORY / "hparams" / name
    overrides = {"output_folder": str(folder), "n_classes": 3, **overrides}
    overrides = json.dumps(overrides)
    model = load_hparams(path, overrides)["model"].eval()
    return resolve_hparams(path, overrides), model


@pytest.fixture(scope="module")
def saved(tmp_path_factory, speech_clips):
    """A folder of the recipe's dual-level model, calibrated."""
    folder = tmp_path_factory.mktemp("saved")
    small = {"channels": [4, 2], "hidden_size": 8}
    text, model = load_system("dual_level.yaml", folder, **small)
    model.update_normalization(speech_clips[0].unsqueeze(0))
    save_pretrained(folder / "model", text, model, LABELS, temperature=1.7)
    return folder / "model"


def batch_of(clips):
    counts = torch.tensor([len(clip) for clip in clips])
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True)
    return padded, counts / padded.shape[1]


LOADERS = {
    "ours": EmotionClassifier.from_hparams,
    "stock": lambda folder: EncoderClassifier.from_hparams(str(folder)),
    "foreign": lambda folder: foreign_class(
        str(folder), pymodule_file="custom_interface.py"
    ),
    "foreign, by name": lambda folder: foreign_class(
        str(folder),
        pymodule_file="custom_interface.py",
        classname="EmotionClassifier",
    ),
    "safe": load_safe,
}


@pytest.mark.parametrize("loader", LOADERS)
def test_all_ways_give_one_answer(loader, saved, speech_clips, speech_files):
    ours = EmotionClassifier.from_hparams(saved)
    other = LOADERS[loader](saved)
    wavs, lengths = batch_of(speech_clips[:4])
    expected = ours.classify_batch(wavs, lengths)
    found = other.classify_batch(wavs, lengths)
    # The last bit may depend on how memory is aligned
    for a, b in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    assert found[3] == expected[3]
    found = other.classify_file(str(speech_files[5]))
    expected = ours.classify_file(speech_files[5])
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(found[0].exp().sum(), torch.tensor(1.0))
    assert found[3] == expected[3]


def test_the_interface_is_two_lines(saved):
    lines = (saved / "custom_interface.py").read_text().splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize("loader", ["ours", "stock", "safe"])
def test_nothing_is_warned_of(loader, saved, speech_clips, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        LOADERS[loader](saved).classify_batch(speech_clips[0].unsqueeze(0))
    assert not caplog.records


def test_temperature_is_applied_once(saved, speech_clips):
    classifier = EmotionClassifier.from_hparams(saved)
    wav = speech_clips[0].unsqueeze(0)
    plain = classifier.mods.embedding_model(wav)
    found = classifier.classify_batch(wav)[0]
    expected = (plain / 1.7).log_softmax(dim=1)
    torch.testing.assert_close(found, expected)
    assert (found.max() < plain.max()).item()


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_can_be_described(system, tmp_path):
    """A rebuilt model has the same names, shapes and settings."""
    options = {}
    if system.startswith("encoder_"):
        options["encoder_source"] = str(tmp_path / "whisper")
        tiny_encoder.write_whisper(tmp_path / "whisper")
    _, model = load_system(system, tmp_path, **options)
    described = describe(model)
    again = build(described)
    assert describe(again) == described
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    again.load_state_dict(model.state_dict())
    wav = torch.randn(1, 16000) * 0.1
    with torch.no_grad():
        torch.testing.assert_close(
            again.eval()(wav), model(wav), atol=0, rtol=0
        )


@pytest.mark.parametrize("known", TABLE, ids=lambda known: known.__name__)
def test_the_table_has_every_argument(known):
    """An argument left out would come back as its default."""
    code = known.__init__.__code__
    names = set(code.co_varnames[1 : code.co_argcount])
    # The backend depends on the machine, the streams keep resize, the weights
    # keep the initial forget bias and the encoder, and only a text branch has a
    # text_weight
    others = {"forget_bias", "text_weight", "source"}
    assert names - set(TABLE[known]) <= {"backend", "resize"} | others


def test_settings_that_are_no_defaults(small_model):
    from speechbrain_dslstm.features import MFCC39, LogMelSpectrogram

    model = small_model(
        gate_norm="batch", output_norm="batch", bidirectional=True
    )
    extractor = MFCC39(
        8000, 200, 80, 256, 20, 50.0, 3900.0, 10, 0.9, 20, 3, 1000.0
    )
    mel = LogMelSpectrogram(256, 64, 40, 8000, 2.0, 1e-6)
    for module in (model, extractor, mel):
        again = build(describe(module))
        assert describe(again) == describe(module)
        for (name, a), (_, b) in zip(
            module.named_buffers(), again.named_buffers(), strict=True
        ):
            if name in ("mel", "dct"):
                torch.testing.assert_close(a, b, atol=0, rtol=0)


def spoil(data, *path, value):
    """Set a value deep in nested data; None deletes it."""
    for step in path[:-1]:
        data = data[step]
    if value is None:
        del data[path[-1]]
    else:
        data[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["format"], "speechbrain-dslstm/9", "expected format"),
        (["model", "class"], "os.system", "was expected"),
        (["model", "mfcc", "class"], "Linear", "model"),
        (["model", "extra"], 1, "extra"),
        (["extra"], 1, "extra"),
        (["model", "p"], "0.5", "p"),
        (["model", "p"], 2.0, r"\$\.model\.p"),
        (["model", "mfcc", "hidden_size"], 10**9, "model"),
        (["model", "n_classes"], 4, "3 labels for 4 classes"),
        (["labels"], ["a", "a", "b"], "labels"),
        (["temperature"], 0, "temperature"),
        (["sha256"], "0" * 64, "is not the file"),
        (["sample_rate"], None, "sample_rate"),
        (["model", "streams", "mfcc", "num_features"], 40, "does not fit"),
    ],
)
def test_the_safe_loader_refuses(path, value, match, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    data = json.loads((folder / "model.json").read_text())
    spoil(data, *path, value=value)
    (folder / "model.json").write_text(json.dumps(data))
    started = time.monotonic()
    with pytest.raises(ValueError, match=match):
        load_safe(folder)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "text", ["", "[]", "!new:os.system", "[" * 100000, "{", "null", "1"]
)
def test_the_safe_loader_refuses_what_is_no_description(text, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / "model.json").write_text(text)
    with pytest.raises(ValueError, match="model.json"):
        load_safe(folder)


def as_older_folder(folder):
    """Rename the weights; older folders held them under both names."""
    (folder / "model.ckpt").rename(folder / "model.safetensors")


@pytest.mark.parametrize("older", [False, True])
def test_the_safe_loader_opens_neither_yaml_nor_pickle(older, saved, tmp_path):
    """These files may be missing, or hold a program."""
    folder = shutil.copytree(saved, tmp_path / "model")
    evil = "x: !apply:os.system ['touch ran']\n"
    (folder / "hyperparams.yaml").write_text(evil)
    if older:
        as_older_folder(folder)
        pickled = b"cos\nsystem\n(S'touch ran'\ntR."
        (folder / "model.ckpt").write_bytes(pickled)
    (folder / "label_encoder.ckpt").unlink()
    (folder / "custom_interface.py").write_text("raise SystemExit")
    before = set(os.listdir())
    assert load_safe(folder).labels == LABELS
    assert set(os.listdir()) == before


@pytest.mark.parametrize("older", [False, True])
def test_the_safe_loader_checks_the_weights(older, saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "model")
    weights = folder / "model.ckpt"
    if older:
        as_older_folder(folder)
        weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="is not the file"):
        load_safe(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="no model.ckpt"):
        load_safe(folder)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        load_safe(tmp_path / "gone")


def test_a_part_that_is_not_in_the_table(tmp_path):
    with pytest.raises(ValueError, match="cannot describe a Linear"):
        describe(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="unknown class 'Linear'"):
        build({"class": "Linear"})


def test_saving_over_an_older_folder(saved, tmp_path):
    """The older copy of the weights would not fit the new description."""
    folder = shutil.copytree(saved, tmp_path / "model")
    as_older_folder(folder)
    text, model = load_system("mfcc_lstm.yaml", tmp_path, hidden_size=8)
    save_pretrained(folder, text, model, LABELS)
    assert not (folder / "model.safetensors").exists()
    assert load_safe(folder).mods.embedding_model.p == 0


def test_a_model_that_load_safe_cannot_load_replaces_one_that_it_can(
    saved, tmp_path
):
    """Otherwise load_safe would load the earlier model."""
    folder = shutil.copytree(saved, tmp_path / "model")
    as_older_folder(folder)
    text, model = load_system("text_level.yaml", tmp_path)
    save_pretrained(folder, text, model, LABELS)
    with pytest.raises(FileNotFoundError, match="no model.json"):
        load_safe(folder)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_none(temperature, tmp_path):
    text, model = load_system("dual_level.yaml", tmp_path, hidden_size=8)
    with pytest.raises(ValueError, match="temperature must be a positive"):
        save_pretrained(tmp_path / "m", text, model, LABELS, temperature)
    assert not (tmp_path / "m").exists()


def test_parts_out_of_the_table_leave_no_file_for_load_safe(tmp_path, caplog):
    """SpeechBrain's files are written, and the warning names the class."""
    text, model = load_system("text_level.yaml", tmp_path)
    save_pretrained(tmp_path / "model", text, model, LABELS)
    assert "no model.json for load_safe" in caplog.text
    assert "TextBranch" in caplog.text
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert "model.ckpt" in names and "model.json" not in names


def test_half_precision_halves_the_folder(tmp_path, speech_clips):
    """Both loaders agree, and are close to the model of full precision."""
    text, model = load_system("dual_level.yaml", tmp_path)
    answers = {}
    for half in (False, True):
        folder = tmp_path / f"half_{half}"
        save_pretrained(folder, text, model, LABELS, half=half)
        ours = EmotionClassifier.from_hparams(folder)
        safe = load_safe(folder)
        found = [one.classify_batch(speech_clips[0])[0] for one in (ours, safe)]
        assert torch.equal(*found)
        assert ours.mods.embedding_model.p == 0.5
        answers[half] = found[0]
    sizes = [
        (tmp_path / f"half_{half}" / "model.ckpt").stat().st_size
        for half in (False, True)
    ]
    assert sizes[1] < 0.55 * sizes[0]
    torch.testing.assert_close(answers[True], answers[False], atol=0.01, rtol=0)
