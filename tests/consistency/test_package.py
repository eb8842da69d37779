"""What the built package holds: its folder, and the recipe."""

import subprocess
import sys
from pathlib import Path

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
