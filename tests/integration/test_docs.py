"""Every block of the documentation does what it says."""

import ast
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import processes
import pytest
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml
from nightly import nightly

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.cli.app import dslstm
from speechbrain_dslstm.export import export_onnx

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "docs" / name for name in ("compose.md", "inference.md")]
SHIPPED = REPOSITORY / "speechbrain_dslstm/shipped/emotion-dslstm-emodb"
# A story: each command uses what those before have made
OWN_DATA = REPOSITORY / "docs" / "own-data.md"
SMALL = [
    "--channels=[2, 2]",
    "--hidden_size=8",
    "--number_of_epochs=1",
    "--speeds=null",
    "--device=cpu",
    "--noprogressbar",
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)
FILE = re.compile(r"# file: (\S+)\n")


def blocks(kind):
    """Blocks of one language, named after page and line."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in BLOCK.finditer(text):
            if match[1] == kind:
                line = text[: match.start()].count("\n") + 1
                found.append(pytest.param(match[2], id=f"{page.name}:{line}"))
    return found


def test_there_are_blocks():
    """And none in a language that nobody runs."""
    kinds = {
        match[1]
        for page in PAGES
        for match in BLOCK.finditer(page.read_text("utf-8"))
    }
    assert kinds == {"python", "yaml", "bash"}
    assert len(blocks("python")) >= 9 and blocks("yaml")


@pytest.fixture(scope="module")
def possessions(speech_files, tmp_path_factory):
    """Files that the pages speak of as the reader's own."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(SHIPPED, folder / "MODEL")
    speech, rate = soundfile.read(speech_files[0])
    for name in ("speech.wav", "speech.mp3", "meeting.mp3"):
        soundfile.write(folder / name, speech, rate)
    call = np.stack([speech, 0 * speech], axis=1)
    soundfile.write(folder / "call.wav", call, rate)
    (folder / "recordings").mkdir()
    shutil.copy(folder / "speech.wav", folder / "recordings")
    (folder / "recordings" / "notes.txt").write_text("not audio")
    classifier = EmotionClassifier.from_hparams(folder / "MODEL")
    export_onnx(classifier, folder / "model.onnx")
    return folder


@pytest.fixture
def workplace(tmp_path, possessions):
    """A folder with the reader's files and those that YAML blocks name."""
    folder = shutil.copytree(possessions, tmp_path / "work")
    for param in blocks("yaml"):
        name = FILE.match(param.values[0])
        if name:
            (folder / name[1]).write_text(param.values[0], encoding="utf-8")
    return folder


SYSTEM = """
sample_rate: 16000
mfcc: !new:speechbrain_dslstm.models.MFCCBranch
  n_classes: 2
  hidden_size: 4
model: !new:speechbrain_dslstm.DualLevelClassifier
  n_classes: 2
  p: 0.0
  mfcc: !ref <mfcc>
"""


def names_of_the_reader():
    """Values that the block on calibration speaks of."""
    logits = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(20) % 2
    return {
        "groups": [(logits.log_softmax(1), targets)] * 2,
        "test_log_posteriors": logits.log_softmax(1),
        "test_targets": targets,
        "labels": ["anger", "joy"],
        "folder": "saved",
        "yaml": SYSTEM,
        "model": load_hyperpyyaml(SYSTEM)["model"],
    }


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml(text):
    assert load_hyperpyyaml(text)


@pytest.mark.parametrize("text", blocks("python"))
def test_python(text, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    names = {"__name__": "block", **names_of_the_reader()}
    exec(compile(text, "block", "exec"), names)


@pytest.mark.parametrize("text", blocks("python"))
def test_formatted(text):
    command = [sys.executable, "-m", "ruff", "format", "--check", "-"]
    done = subprocess.run(
        [*command, f"--config={REPOSITORY / 'pyproject.toml'}"],
        input=text,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", blocks("bash"))
def test_bash(text, workplace, monkeypatch):
    """Commands of inference run; of the recipe's, files and options are there."""
    monkeypatch.chdir(workplace)
    shared = (REPOSITORY / "hparams" / "recipe.yaml").read_text("utf-8")
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if "dslstm" in words:
            check_dslstm(words)
            continue
        assert words[0] == "python" and (REPOSITORY / words[1]).is_file()
        keys, script = shared, (REPOSITORY / words[1]).read_text("utf-8")
        for word in words[2:]:
            if word.endswith(".yaml"):
                keys += (REPOSITORY / word).read_text("utf-8")
        for option in re.findall(r" --(\w+)=", line):
            own = f'"--{option}"' in script
            assert own or re.search(rf"^{option}:", keys, re.M), option


def run_line(line, folder):
    """Run a line of bash in a folder; trainings are small ones."""
    words = shlex.split(line)
    if words[0] == "python":
        # The sizes of a model that a training starts from are given
        words += SMALL[2:] if "--init_from=" in line else SMALL
        if "cross_validate" in words[1]:
            words.append("--resamples=200")
        return processes.call(*words[1:], cwd=folder)[0]
    words = [sys.executable, "-m", "speechbrain_dslstm.cli", *words[1:]]
    # The shell's own pattern
    words = [
        one
        for word in words
        for one in (map(str, folder.glob(word)) if "*" in word else [word])
    ]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@nightly
def test_own_data(tmp_path, monkeypatch):
    """The page from its first to its last block, in one folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("recipes", "hparams", "results"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    for match in BLOCK.finditer(OWN_DATA.read_text("utf-8")):
        kind, text = match.groups()
        if kind == "python":
            exec(compile(text, "block", "exec"), {"__name__": "block"})
            lines = Path("mine.csv").read_text("utf-8").splitlines()
            for k, name in enumerate(("first", "second", "third")):
                some = [lines[0].replace("path,label", "file,emotion")]
                some += lines[1 + 8 * k : 9 + 8 * k]
                Path(f"{name}.csv").write_text("\n".join(some), "utf-8")
        else:
            assert kind == "bash"
            for line in text.splitlines():
                run_line(line, tmp_path)
    [results] = tmp_path.glob(
        "runs/*/mine-*/session/training/fold0_*/results.json"
    )
    found = json.loads(results.read_text("utf-8"))
    assert found["labels"] == ["anger", "happiness", "neutral", "sadness"]


def check_dslstm(words):
    """Run a command on files; of others, its options must be known."""
    given = words[words.index("dslstm") + 1 :]
    given = given[: given.index(">")] if ">" in given else given
    if given[0] in ("classify", "info") and words[0] == "dslstm":
        dslstm.main(given, "dslstm", standalone_mode=False)
    else:
        dslstm.commands[given[0]].make_context(given[0], given[1:])


def test_signatures():
    """The table of calls shows every option and its default."""
    text = (REPOSITORY / "docs" / "inference.md").read_text("utf-8")
    shown = re.findall(r"^\| `(classify_\w+)\((.*?)\)` \|", text, re.M)
    assert len(shown) == 4
    for name, arguments in shown:
        signature = inspect.signature(getattr(EmotionClassifier, name))
        taken = list(signature.parameters.values())[1:]
        call = ast.parse(f"def f({arguments}): pass").body[0].args
        assert [one.arg for one in call.args] == [one.name for one in taken]
        defaults = [
            one.default for one in taken if one.default is not one.empty
        ]
        assert [ast.literal_eval(one) for one in call.defaults] == defaults
