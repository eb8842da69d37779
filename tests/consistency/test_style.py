"""Linters, words, and files that do not belong into the repository."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
IGNORED = {"build", "dist", "data", "exp", "results_local", "__pycache__"}
IGNORED |= {".git", ".venv", ".hypothesis", ".pytest_cache", ".ruff_cache"}
AUDIO = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".sph", ".aiff"}
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".joblib"}
# Written so that this very line does not match
MACHINE_PATH = re.compile(
    r"(?<![\w.:/~<>}-])/(?:(?:home|Users)/\w+/|(?:root|work|mnt)/\w)"
)


def repository_files():
    """List the files that git tracks or would add."""
    git = subprocess.run(
        ["git", "ls-files", "-z", "-c", "-o", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    if git.returncode == 0:
        names = sorted(set(git.stdout.split("\0")) - {""})
    else:
        # A source archive without git
        paths = (p.relative_to(REPOSITORY) for p in REPOSITORY.rglob("*"))
        names = sorted(
            path.as_posix()
            for path in paths
            if not IGNORED.intersection((path.parts[0], path.parent.name))
            and not path.parts[0].endswith(".egg-info")
        )
    # git also lists what was deleted and not yet staged
    return [name for name in names if (REPOSITORY / name).is_file()]


FILES = repository_files()


def text_of(name):
    """A file's text; None for a binary file."""
    try:
        return (REPOSITORY / name).read_text("utf-8")
    except UnicodeDecodeError:
        return None


# Model folders are as train.py writes them
SHIPPED = "speechbrain_dslstm/shipped/"
WRITTEN = [name for name in FILES if not name.startswith(SHIPPED)]


def of_kind(*endings):
    """List the written files with these endings."""
    return [name for name in WRITTEN if name.endswith(endings)]


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "--no-cache", *of_kind(".py")],
        ["ruff", "format", "--no-cache", "--check", *of_kind(".py")],
        ["yamllint", "--strict", *of_kind(".yaml", ".yml", ".cff")],
        ["codespell_lib", *WRITTEN],
    ],
    ids=["ruff-check", "ruff-format", "yamllint", "codespell"],
)
def test_linter(command):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    # Without this, a linter that is not installed looks like a finding
    assert "No module named" not in done.stderr, (
        f'{command[0]} is missing: pip install ".[test]"'
    )
    assert done.returncode == 0, (
        f"{' '.join(command[:2])}\n{done.stdout}{done.stderr}"
    )


def test_tests_are_no_package():
    """SpeechBrain's recipe tests break where tests/ has an __init__.py."""
    found = [str(p) for p in REPOSITORY.glob("tests/**/__init__.py")]
    assert not found, f"remove {found}"


def test_no_audio_and_no_pickles():
    """Corpora have their licences; a pickle is a program from a stranger.

    EMO-DB is in the public domain.
    """
    found = [f for f in FILES if Path(f).suffix.lower() in AUDIO | PICKLES]
    found = [f for f in found if not re.match(r"data/emodb/\w+\.ogg$", f)]
    # SpeechBrain requires that ending; a pickle begins with one of these bytes
    found = [
        f
        for f in found
        if not f.startswith(SHIPPED)
        or (REPOSITORY / f).read_bytes()[:1] in (b"P", b"\x80")
    ]
    assert not found, f"these do not belong into the repository: {found}"


@pytest.mark.parametrize("name", of_kind(".npz", ".npy"))
def test_arrays_hold_no_pickles(name):
    arrays = np.load(REPOSITORY / name, allow_pickle=False)
    if name.endswith(".npz"):
        for key in arrays.files:
            arrays[key]


def test_no_machine_paths():
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name in FILES
        for number, line in enumerate((text_of(name) or "").split("\n"), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "paths of one machine only:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "line, wrong",
    [
        ('"/' + "home/someone/data", True),
        ("in /" + "root/dev", True),
        ("--data_folder=/" + "work/data", True),
        ("https://example.org/home/page", False),
        ("<data_root>/work/a.wav", False),
        ("src/work/a.py", False),
        ("/path/to/corpus", False),
        ("/home/a.wav", False),
    ],
)
def test_the_check_of_paths(line, wrong):
    assert bool(MACHINE_PATH.search(line)) == wrong


# Word to avoid -> word to use; the brackets keep this table out of the search
GLOSSARY = {
    r"the hos[t]\b": "SpeechBrain, or the CPU",
    r"yardstic[k]": "baseline",
    r"\bways? bac[k]\b": "backward pass",
    r"is none o[f]\b": "unknown X; expected one of ...",
    r"as there are n[o]\b": "a number other than ...",
    r"(train(ing)?|test|valid(ation)?) side[s]?\b": "subset",
    r"\bhang[s]? on\b": "depends on",
}


@pytest.mark.parametrize("word", GLOSSARY)
def test_glossary(word):
    """One word for one idea, in code, YAML and documents."""
    pattern = re.compile(word, re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name in of_kind(".py", ".yaml", ".md", ".toml", ".j2", ".csv")
        # The changelog names what once was called otherwise
        if not name.startswith(("results/", "CHANGELOG"))
        for number, line in enumerate(text_of(name).split("\n"), 1)
        if pattern.search(line)
    ]
    assert not found, f'write "{GLOSSARY[word]}":\n' + "\n".join(found)


def test_tests_that_are_named_exist():
    """tests/README.md lists each fault with its test."""
    text = (REPOSITORY / "tests" / "README.md").read_text("utf-8")
    named = re.findall(r"`([\w/]+\.py)?::(test_\w+)(\*?)`", text)
    sources = {name: text_of(name) for name in of_kind(".py")}
    wrong = [
        f"{file}::{test}"
        for file, test, more in named
        if not any(
            re.search(rf"def {test}{'' if more else '[(]'}", source)
            for name, source in sources.items()
            if name.endswith(file or ".py")
        )
    ]
    assert len(named) > 50 and not wrong, wrong


def test_whitespace():
    """No trailing blanks, no tabs in code, one line feed at the end."""
    found = []
    for name in FILES:
        text = text_of(name)
        # A licence and recorded tables stay as they are
        if not text or name == "LICENSE" or name.endswith((".csv", ".svg")):
            continue
        if "\r" in text:
            found.append(f"{name}: carriage returns")
        if not text.endswith("\n") or text.endswith("\n\n"):
            found.append(f"{name}: does not end with one line feed")
        if not name.endswith(".md") and re.search(r"[ \t]$", text, re.M):
            found.append(f"{name}: blanks at a line's end")
    assert not found, "\n".join(["", *found])
