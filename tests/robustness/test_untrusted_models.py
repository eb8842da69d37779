"""Models of unknown origin: refused at once, and nothing in them is run.

Every payload that would run something makes a file; a test of its own shows
that HyperPyYAML does run it.
"""

import contextlib
import hashlib
import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
import time
from io import BytesIO
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from huggingface_hub import constants
from real_speech import clips_in
from safetensors.torch import load, load_file, save
from speechbrain.inference.classifiers import EncoderClassifier
from speechbrain.inference.interfaces import foreign_class
from speechbrain.utils import fetching

from speechbrain_dslstm import DualLevelClassifier, EmotionClassifier
from speechbrain_dslstm.inference import load_safe
from speechbrain_dslstm.models import MFCCBranch
from speechbrain_dslstm.pretrained import save_pretrained
from speechbrain_dslstm.pretrained.safe_format import read_description
from speechbrain_dslstm.pretrained.sources import SHIPPED

LABELS = ["sadness", "anger", "neutral"]
HPARAMS = """
sample_rate: 16000
model: !new:speechbrain_dslstm.DualLevelClassifier
  n_classes: 3
  p: 0.0
  mfcc: !new:speechbrain_dslstm.models.MFCCBranch
    n_classes: 3
    hidden_size: 8
"""
SECONDS, MEGABYTES = 1.0, 100
# YAMLs whose payload hyperpyyaml.load_hyperpyyaml runs
PROGRAMS = {
    "apply": "x: !apply:os.system ['touch {ran}']",
    "apply of a flow map": "x: !apply:subprocess.call {{args: [touch, {ran}]}}",
    "applyref": "x: !applyref:subprocess.call\n  args: [touch, {ran}]",
    "new": "x: !new:subprocess.Popen [[touch, {ran}]]",
    "include": "x: !include:{included}",
    "implicit tuple": ("x: (!!python/object/apply:os.system ['touch {ran}'])"),
    "aliased callable": (
        "x: &a !name:subprocess.call\n  args: [touch, {ran}]\n"
        "y: !apply:operator.getitem [!new:collections.defaultdict [*a], 1]"
    ),
    "python tag": "x: !!python/object/apply:os.system ['touch {ran}']",
    "python object": (
        "x: !!python/object/new:tuple\n"
        "- !!python/object/new:map\n"
        "  - !!python/name:os.system ''\n"
        "  - ['touch {ran}']"
    ),
}
BOMBS = {
    "anchors": "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n"
        for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    ),
    "merged anchors": "a: &a {x: 1}\nb: &b\n  <<: [*a, *a, *a]\n  c: *b\n",
    "power": "a: 999999999\nb: !ref <a> ** <a>\nc: !ref <b> ** <b>\n",
    "repeat": "a: 999999999\nb: !ref <a> * <a> * <a>\n",
}


def inputs(folder):
    """The YAML payloads, and the file that they would create."""
    ran, included = folder / "ran", folder / "included.yaml"
    included.write_text(f"y: !apply:os.system ['touch {ran}']\n")
    values = {"ran": ran, "included": included}
    found = {name: text.format(**values) for name, text in PROGRAMS.items()}
    return found | BOMBS, ran


def yaml_loaders():
    """State of the YAML loaders in this process; no load may change it."""
    found = {"deep": yaml.constructor.BaseConstructor.construct_object}
    found["deep"] = found["deep"].__defaults__
    for name in ("SafeLoader", "CSafeLoader", "FullLoader", "Loader"):
        loader = getattr(yaml, name, None)
        for table in ("constructors", "multi_constructors"):
            found[name, table] = dict(getattr(loader, f"yaml_{table}", {}))
        resolvers = getattr(loader, "yaml_implicit_resolvers", {})
        found[name] = {key: list(value) for key, value in resolvers.items()}
    return found


def memory(line):
    """VmRSS or VmHWM (the peak) in bytes; without /proc, the peak of the run."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    [found] = [x for x in status.read_text().splitlines() if line in x]
    return int(found.split()[1]) * 1024


@contextlib.contextmanager
def refused(match, kind=ValueError, ran=None):
    """Expect an error in time and within memory, with no payload run."""
    loaders = yaml_loaders()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before, started = memory("VmRSS"), time.monotonic()
    with pytest.raises(kind, match=match) as caught:
        yield caught
    assert time.monotonic() - started < SECONDS
    assert memory("VmHWM") - before < MEGABYTES << 20
    assert len(str(caught.value)) < 1500
    assert ran is None or not ran.exists()
    assert yaml_loaders() == loaders
    assert yaml.safe_load("a: (1, 2)\nb: 0x1f\nc: no") == {
        "a": "(1, 2)",
        "b": 31,
        "c": False,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A model folder."""
    torch.manual_seed(0)
    model = DualLevelClassifier(3, p=0.0, mfcc=MFCCBranch(3, hidden_size=8))
    model.update_normalization(torch.randn(1, 16000))
    folder = tmp_path_factory.mktemp("made") / "model"
    save_pretrained(folder, HPARAMS, model.eval(), LABELS)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the folder, for the test to damage."""
    load_safe(made)  # so that no import counts for the time
    copy = shutil.copytree(made, tmp_path / "model")
    shutil.copyfile(copy / "model.json", copy / "kept.json")
    return copy


def rewrite(folder, content=None, **changes):
    """Change model.json, and record the hash of new weights in it."""
    path = folder / "model.json"
    data = json.loads(path.read_text())
    if content is not None:
        (folder / "model.ckpt").write_bytes(content)
        changes["sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(data | changes))
    return data


def test_hyperpyyaml_runs_the_payloads(tmp_path):
    """Otherwise the tests below would show nothing."""
    program = (
        "import contextlib, sys, time, hyperpyyaml\n"
        "path, ran = sys.argv[1:]\n"
        "with contextlib.suppress(BaseException):\n"
        "    hyperpyyaml.load_hyperpyyaml(open(path))\n"
        "    time.sleep(0.3)\n"
    )
    texts, ran = inputs(tmp_path)
    idle = []
    for name in PROGRAMS:
        path = tmp_path / "payload.yaml"
        path.write_text(texts[name])
        command = [sys.executable, "-c", program, path, ran]
        subprocess.run(list(map(str, command)), check=True, timeout=60)
        if not ran.exists():
            idle.append(name)
        ran.unlink(missing_ok=True)
    assert not idle


@pytest.mark.parametrize("name", [*PROGRAMS, *BOMBS])
def test_yaml_is_refused(name, folder, tmp_path):
    """A program in place of the description, or without a description."""
    texts, ran = inputs(tmp_path)
    (folder / "hyperparams.yaml").write_text(texts[name])
    # load_safe does not open hyperparams.yaml
    assert load_safe(folder).labels == LABELS
    (folder / "model.json").write_text(texts[name])
    with refused("model.json is not valid JSON", ran=ran):
        load_safe(folder)
    # As a value of the description, it stays a string
    (folder / "model.json").write_text(json.dumps({"format": texts[name]}))
    with refused("expected format", ran=ran):
        load_safe(folder)
    rewrite_model(folder, lambda data: data.update(mfcc=texts[name]))
    with refused("model.json", ran=ran):
        load_safe(folder)
    (folder / "model.json").unlink()
    with refused("load_safe reads this file", FileNotFoundError, ran):
        load_safe(folder)


def rewrite_model(folder, change):
    """Change the architecture in an otherwise intact model.json."""
    shutil.copyfile(folder / "kept.json", folder / "model.json")
    data = json.loads((folder / "model.json").read_text())
    change(data["model"])
    (folder / "model.json").write_text(json.dumps(data))


def deep(levels):
    return "[" * levels + "]" * levels


def in_model(key, value):
    return lambda data: data["model"].update({key: value})


def in_stream(**values):
    return lambda data: data["model"]["streams"]["mfcc"]["extractor"].update(
        values
    )


def largest_branch(data):
    """34 GB described in a hundred characters, each value allowed."""
    data["model"]["mfcc"].update(hidden_size=8192, num_layers=16)


def many_streams(data):
    stream = data["model"]["streams"]["mfcc"]
    data["model"]["streams"] = {str(k): stream for k in range(100)}


def nested_parts(data):
    """Branches nested in each other."""
    part = data["model"]["mfcc"]
    for _ in range(15):
        part = {"class": "SpectrogramBranch", "cnn_x": part, "cnn_y": part}
    data["model"]["spectrogram"] = {"class": "CNNLSTMBranch", "cnns": part}


DESCRIPTIONS = {
    "one class of many": (lambda d: d["labels"].extend("ab" * 10**5), "list"),
    "unlike labels": (lambda d: d.update(labels=[{}, 1, []] * 10**4), "list"),
    "deep": (lambda d: d.update(labels=json.loads(deep(900))), "containers"),
    "many streams": (many_streams, "streams"),
    "doubling parts": (nested_parts, "too large"),
    "34 GB": (largest_branch, "numbers, at most"),
    "huge number": (in_model("n_classes", 10**4000), "n_classes|model"),
    "huge table": (in_stream(n_mels=8192, n_fft=65536), "n_mels times n_fft"),
    "huge cosines": (
        in_stream(n_mels=8192, n_mfcc=8191, n_fft=512),
        "n_mels times n_fft",
    ),
    "a real number": (in_model("n_classes", 3.0), "3.0 is not of type"),
    "true": (in_model("n_classes", True), "model"),
    "not a number": (in_stream(scale=float("nan")), "NaN is not a number"),
    "infinite": (in_stream(scale=float("inf")), "Infinity is not a number"),
    "another class": (in_model("class", "os.system"), "was expected"),
    "a list for a class": (in_model("class", ["os.system"]), "was expected"),
    "dunder": (in_model("__class__", "x"), "__class__"),
    "no hash": (lambda d: d.pop("sha256"), "'sha256' is a required"),
    "escape": (lambda d: d.update(labels=["\x1b]0;a", "b", "c"]), "printed"),
    "surrogate": (lambda d: d.update(labels=["\ud800", "b", "c"]), "printed"),
    "two of one name": (
        lambda d: d.update(labels=["a", "a", "b"]),
        "same name",
    ),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_that_are_bombs(name, folder):
    change, match = DESCRIPTIONS[name]
    data = json.loads((folder / "model.json").read_text())
    change(data)
    (folder / "model.json").write_text(json.dumps(data))
    with refused(match):
        load_safe(folder)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (deep(100_000), "is not valid JSON"),
        ("[" + "1," * 400_000 + "1]", "list of length 400001"),
        ("[" + "[1,1,1,1,1,1,1,1,1]," * 40_000 + "1]", "list of length 40001"),
        ("[" + ",".join(["[" + "1," * 99 + "1]"] * 999) + "]", "10000 values"),
        ("1" * 900_000, "is not valid JSON"),
        ('{"format": ' + "9" * 900_000 + "}", "is not valid JSON"),
        ('{"format": 1e999999999}', "expected format"),
        ('{"format": "' + "a" * 900_000 + '"}', "str of length 900000"),
        ('{"' + "a" * 900_000 + '": 1}', "str of length 900000"),
        (" " * (1 << 21), "2097152 bytes"),
        ('{"format": 1, "format": 1}', "duplicate key"),
        ("\ufeff{}", "is not valid JSON"),
        ("\0" * 1000, "is not valid JSON"),
    ],
    ids=range(13),
)
def test_json_that_is_a_bomb(text, match, folder):
    (folder / "model.json").write_text(text)
    with refused(match):
        load_safe(folder)


def test_a_description_that_is_no_file(folder):
    path = folder / "model.json"
    path.write_bytes(b"\xff\xfe{}")
    with refused("is not valid JSON"):
        load_safe(folder)
    path.unlink()
    os.mkfifo(path)
    with refused("no model.json", FileNotFoundError):
        load_safe(folder)
    path.unlink()
    path.symlink_to("/dev/zero")
    with refused("no model.json", FileNotFoundError):
        load_safe(folder)


def framed(header, data=b"", size=None):
    """A safetensors file with the given header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entries(content):
    """Header and data of a safetensors file."""
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def spoilt_header(change):
    def spoil(content):
        header, data = entries(content)
        change(header)
        return framed(header, data)

    return spoil


def overlapping(header):
    offsets = [
        value["data_offsets"]
        for value in header.values()
        if value["data_offsets"][1] - value["data_offsets"][0] == 128
    ]
    offsets[1][:] = offsets[0]


def first(header, **values):
    next(iter(header.values())).update(values)


class Program:
    """An object that runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {os.environ['RAN']}",)


def zipped(content):
    """A program in a file that ``torch.save`` writes."""
    out = BytesIO()
    torch.save({"a": Program()}, out)
    return out.getvalue()


def changed(change):
    def spoil(content):
        state = load(content)
        change(state)
        return save(state)

    return spoil


HEAD = "branches.mfcc.head.bias"
WEIGHTS = {
    "pickle": (lambda c: pickle.dumps(Program()), "cannot read"),
    "pickle in a zip": (zipped, "cannot read"),
    "empty": (lambda c: b"", "cannot read"),
    "four bytes": (lambda c: c[:4], "cannot read"),
    "cut in the header": (lambda c: c[:100], "cannot read"),
    "cut in the data": (lambda c: c[:-1], "cannot read"),
    "one byte more": (lambda c: c + b"a", "cannot read"),
    "much more": (lambda c: c + bytes(10**6), "does not fit the model"),
    "overlapping": (spoilt_header(overlapping), "cannot read"),
    "outside": (
        spoilt_header(lambda h: first(h, data_offsets=[0, 2**40])),
        "cannot read",
    ),
    "backwards": (
        spoilt_header(lambda h: first(h, data_offsets=[4, 0])),
        "cannot read",
    ),
    "of huge shape": (
        spoilt_header(lambda h: first(h, shape=[2**40, 2**40])),
        "cannot read",
    ),
    "of shape -1": (spoilt_header(lambda h: first(h, shape=[-1])), "cannot"),
    "of unknown type": (
        spoilt_header(lambda h: first(h, dtype="os.system")),
        "cannot read",
    ),
    "of empty names": (spoilt_header(lambda h: h.clear()), "cannot read"),
    "header of 2**63": (lambda c: framed(b"{}", size=2**63), "cannot read"),
    "header of 90 MB": (lambda c: framed(b" " * 90_000_000), "cannot read"),
    "header of a list": (lambda c: framed(b"[]"), "cannot read"),
    "header of brackets": (
        lambda c: framed(deep(10**5).encode()),
        "cannot read",
    ),
    "header of names": (
        lambda c: framed(
            {
                str(k): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
                for k in range(15_000)
            }
        ),
        "does not fit",
    ),
    "integers": (
        changed(lambda s: s.update({HEAD: s[HEAD].int()})),
        "wrong type",
    ),
    "NaN": (changed(lambda s: s[HEAD].fill_(float("nan"))), "not finite"),
    "infinite": (changed(lambda s: s[HEAD].fill_(float("inf"))), "not finite"),
    "another shape": (
        changed(lambda s: s.update({HEAD: s[HEAD][:1].clone()})),
        "wrong shape",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_none(name, folder, tmp_path, monkeypatch):
    """All loaders refuse them; model.json records the hash of the bad file."""
    monkeypatch.setenv("RAN", str(tmp_path / "ran"))
    spoil, match = WEIGHTS[name]
    content = spoil((folder / "model.ckpt").read_bytes())
    rewrite(folder, sha256=hashlib.sha256(content).hexdigest())
    # Older folders have the second name, which is read first
    for file in ("model.ckpt", "model.safetensors"):
        (folder / file).write_bytes(content)
        with refused(match, ran=tmp_path / "ran") as caught:
            load_safe(folder)
        assert file in str(caught.value)
    for loader in LOADERS.values():
        with pytest.raises(ValueError, match="is not the file that"):
            loader(folder)
    forget_hashes(folder)
    with pytest.raises(ValueError, match="model.ckpt"):
        EmotionClassifier.from_hparams(folder)
    assert not (tmp_path / "ran").exists()


def test_weights_of_a_terabyte(folder):
    """A sparse file takes no room on disk."""
    os.truncate(folder / "model.ckpt", 1 << 40)
    with refused("does not fit the model: 1099511627776 bytes"):
        load_safe(folder)


LOADERS = {
    "ours": EmotionClassifier.from_hparams,
    "stock": lambda folder: EncoderClassifier.from_hparams(str(folder)),
    "foreign": lambda folder: foreign_class(
        str(folder), pymodule_file="custom_interface.py"
    ),
}


def forget_hashes(folder):
    """Make it an older folder, without hashes."""
    path = folder / "hyperparams.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if "sha256" not in x))


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["model.ckpt", "label_encoder.ckpt"])
def test_what_was_altered_is_refused(name, loader, folder):
    path = folder / name
    if name == "model.ckpt":
        state = load_file(path)
        state = {key: value.clone() for key, value in state.items()}
        state[HEAD][0] += 1e-3
        path.write_bytes(save(state))
    else:
        text = path.read_text()
        path.write_text(text.replace("sadness", "neutral_", 1))
    with pytest.raises(ValueError, match=f"{name} is not the file that hyper"):
        LOADERS[loader](folder)
    forget_hashes(folder)
    LOADERS[loader](folder)


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_bit_in_the_weights(name, folder):
    content = bytearray((folder / "model.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with refused(f"{name} is not the file that model.json"):
        load_safe(folder)


@pytest.mark.parametrize("folder", sorted(SHIPPED.glob("emotion-*")))
def test_the_shipped_models_have_their_hashes(folder):
    text = (folder / "hyperparams.yaml").read_text()
    for name in ("model.ckpt", "label_encoder.ckpt"):
        content = (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() in text
    content = (folder / "model.ckpt").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    assert read_description(folder)["sha256"] == found


@pytest.fixture
def hub(made, tmp_path, monkeypatch):
    """A hub with two models that differ in the order of their classes."""
    cache = tmp_path / "cache"
    for name, labels in (("one", LABELS), ("two", LABELS[::-1])):
        place = cache / f"models--user--{name}" / "snapshots" / "1"
        shutil.copytree(made, place)
        model = EmotionClassifier.from_hparams(made).mods.embedding_model
        save_pretrained(place, HPARAMS, model, labels)

    def download(repo_id, filename, **kwargs):
        place = cache / f"models--{repo_id.replace('/', '--')}"
        path = place / "snapshots" / "1" / filename
        if not path.exists():
            raise FileNotFoundError(f"no {repo_id}")
        return str(path)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetching.huggingface_hub, "hf_hub_download", download)
    return tmp_path


@pytest.mark.parametrize("first_by", ["ours", "stock"])
def test_a_savedir_is_of_one_model(first_by, hub):
    """SpeechBrain alone would return the first model for both names."""
    kept = str(hub / "kept")
    if first_by == "stock":
        EncoderClassifier.from_hparams("user/one", savedir=kept)
    for _ in range(2):
        found = EmotionClassifier.from_hparams("user/one", savedir=kept)
        assert found.labels == LABELS
    with pytest.raises(ValueError, match="savedir .*kept holds the files of"):
        EmotionClassifier.from_hparams("user/two", savedir=kept)
    other = EmotionClassifier.from_hparams("user/two", savedir=hub / "other")
    assert other.labels == LABELS[::-1]


def test_a_savedir_that_somebody_else_filled(hub):
    kept = hub / "kept"
    EncoderClassifier.from_hparams("user/one", savedir=str(kept))
    with pytest.raises(ValueError, match="holds files of unknown origin"):
        EmotionClassifier.from_hparams("user/two", savedir=kept)
    assert EmotionClassifier.from_hparams(kept).labels == LABELS


def test_a_mistyped_id_leaves_no_claim(hub):
    kept = hub / "kept"
    with pytest.raises(FileNotFoundError):
        EmotionClassifier.from_hparams("user/onee", savedir=kept)
    found = EmotionClassifier.from_hparams("user/one", savedir=kept)
    assert found.labels == LABELS


def test_two_files_of_one_name(made, emodb_folder, tmp_path):
    """SpeechBrain's load_audio links them into one folder by that name."""
    classifier = EmotionClassifier.from_hparams(made)
    clips = clips_in(emodb_folder)[:2]
    paths, kept = [], tmp_path / "kept"
    for k, clip in enumerate(clips):
        wav, rate = soundfile.read(clip)
        paths.append(tmp_path / str(k) / "a.wav")
        paths[-1].parent.mkdir()
        soundfile.write(paths[-1], wav, rate)
    wavs = [classifier.load_audio(path, savedir=kept) for path in paths]
    assert [len(wav) for wav in wavs] == [
        soundfile.info(str(path)).frames for path in paths
    ]
    alone = [classifier.classify_batch(wav)[0] for wav in wavs]
    for path, expected in zip(paths, alone, strict=True):
        found = classifier.classify_file(path, speech_only=False)[0]
        assert torch.equal(found, expected)
    results = classifier.classify_files(paths, speech_only=False)
    for result, expected in zip(results, alone, strict=True):
        torch.testing.assert_close(
            result.answer[0], expected, atol=1e-5, rtol=0
        )
    assert not kept.exists()
