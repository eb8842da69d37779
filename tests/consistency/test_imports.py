"""The package stands alone: no recipes, hparams or tests inside of it."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = "speechbrain_dslstm"
OUTSIDE = {"recipes", "hparams", "tests", "train", "cross_validate"}
FILES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in REPOSITORY.glob(f"{PACKAGE}/**/*.py")
    # Model folders are data
    if path.parts[-3] != "shipped"
)


def imported(source, depth):
    """Yield each imported module's line and top-level name.

    ``depth`` is the number of packages the module stands in; a relative
    import that leaves them all has the name "..".
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0:
                yield node.lineno, node.module.split(".")[0]
            else:
                yield node.lineno, PACKAGE if node.level <= depth else ".."


def test_there_are_files():
    assert f"{PACKAGE}/__init__.py" in FILES


@pytest.mark.parametrize("file", FILES)
def test_imports_nothing_from_outside(file):
    source = (REPOSITORY / file).read_text("utf-8")
    found = [
        f"{file}:{line} imports {name}"
        for line, name in imported(source, file.count("/"))
        if name in OUTSIDE | {".."}
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("file", FILES)
def test_folders_are_packages(file):
    """Without an __init__.py, find_packages leaves a folder out."""
    folder = (REPOSITORY / file).parent
    assert (folder / "__init__.py").is_file(), f"{folder} has no __init__.py"


@pytest.mark.parametrize(
    "source, names",
    [
        ("import recipes.emotion_recognition", ["recipes"]),
        ("from tests import conftest", ["tests"]),
        ("def f():\n    import hparams", ["hparams"]),
        ("from . import a", [PACKAGE]),
        ("from .. import a", [".."]),
        ("import torch, tests", ["torch", "tests"]),
    ],
)
def test_the_check_itself(source, names):
    assert [name for _, name in imported(source, 1)] == names
