"""Every block of the documentation does what it says."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hyperpyyaml import load_hyperpyyaml
from nightly import NIGHT

REPOSITORY = Path(__file__).resolve().parents[2]
# inference.md speaks of files and models that the reader has
PAGES = [REPOSITORY / "docs" / "compose.md"]
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


@pytest.fixture
def workplace(tmp_path):
    """A folder with the files that YAML blocks name."""
    for param in blocks("yaml"):
        name = FILE.match(param.values[0])
        if name:
            (tmp_path / name[1]).write_text(param.values[0], encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml(text):
    assert load_hyperpyyaml(text)


@pytest.mark.parametrize("text", blocks("python"))
def test_python(text, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    exec(compile(text, "block", "exec"), {"__name__": "block"})


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
def test_bash(text):
    """Files and options of each command are there; the runs are elsewhere."""
    shared = (REPOSITORY / "hparams" / "recipe.yaml").read_text("utf-8")
    for line in text.splitlines():
        words = line.split()
        assert words[0] == "python" and (REPOSITORY / words[1]).is_file()
        keys = shared
        for word in words[2:]:
            if word.endswith(".yaml"):
                keys += (REPOSITORY / word).read_text("utf-8")
        for option in re.findall(r" --(\w+)=", line):
            assert re.search(rf"^{option}:", keys, re.M), option


def run_line(line, folder):
    """Run a line of bash in a folder; trainings are small ones."""
    words = shlex.split(line)
    if words[0] == "dslstm":
        words = [sys.executable, "-m", "speechbrain_dslstm.cli", *words[1:]]
        # The shell's own pattern
        words = [
            one
            for word in words
            for one in (map(str, folder.glob(word)) if "*" in word else [word])
        ]
    else:
        words[0] = sys.executable
        # The sizes of a model that a training starts from are given
        whole = "--init_from=" in line
        words += SMALL[2:] if whole else SMALL
        if "cross_validate" in words[1]:
            # All folds take a minute
            words += ["--resamples=200"] if NIGHT else ["--dry_run"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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
    [results] = tmp_path.glob("runs/*/mine-*/session/training/*/results.json")
    found = json.loads(results.read_text("utf-8"))
    assert found["labels"] == ["anger", "happiness", "neutral", "sadness"]
