"""What the built package holds: its folder, and the recipe."""

import re
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml
from nightly import nightly

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "speechbrain_dslstm"


def files(folder):
    """Paths below a folder, compiled files left out."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_is_built(tmp_path):
    """Modules, stubs, ``py.typed``, templates and the model."""
    done = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build_py",
            f"--build-lib={tmp_path}",
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    built = files(tmp_path / NAME)
    recipe = {one for one in built if one.startswith("recipe_files/")}
    assert built - recipe == files(REPOSITORY / NAME)
    assert {"py.typed", "layers/__init__.pyi"} <= built
    expected = {
        f"recipe_files/{folder}/{name}"
        for folder in ("hparams", "recipes/emotion_recognition")
        for name in files(REPOSITORY / folder)
    }
    assert recipe == expected | {"recipe_files/results/baselines.yaml"}


def test_one_version():
    """Of the package and of its citation, which has a date as well."""
    [version] = re.findall(
        r'version="(.*?)"', (REPOSITORY / "setup.py").read_text("utf-8")
    )
    text = (REPOSITORY / "CITATION.cff").read_text("utf-8")
    citation = yaml.safe_load(text)
    assert citation["version"] == version
    assert citation["date-released"].year >= 2026


@nightly
def test_the_index_accepts_it(tmp_path):
    """Built as a release is; the description has no link into the repository."""
    source, output = tmp_path / "source", tmp_path / "dist"
    command = ["git", "clone", "-q", REPOSITORY, source]
    subprocess.run(command, check=True)
    for line in ("build --no-isolation -o", "twine check --strict"):
        command = [sys.executable, "-m", *line.split()]
        paths = [output, source] if "build" in line else [*output.iterdir()]
        done = subprocess.run(
            [*command, *paths], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    [packed] = output.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        info = archive.extractfile(f"{packed.name[:-7]}/PKG-INFO").read()
    text = info.decode()
    assert "# speechbrain-dslstm" in text and "](https://" in text
    assert not re.search(r"\]\((?!\w+:)", text)
