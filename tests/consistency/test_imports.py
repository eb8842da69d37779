"""The package stands alone, and its folders import only downwards."""

import ast
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "speechbrain_dslstm"
OUTSIDE = {"recipes", "hparams", "tests", "train", "cross_validate"}


def imported(source: str) -> set[str]:
    """Top-level names of all absolute imports, "." for relative ones."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." if node.level else node.module.split(".")[0])
    return found


def test_nothing_from_outside_and_no_relative_import():
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    wrong = {
        str(path.relative_to(REPOSITORY)): names
        for path in files
        if (names := imported(path.read_text("utf-8")) & {*OUTSIDE, "."})
    }
    assert not wrong


def test_the_check_itself():
    source = "import tests.a\ndef f():\n    from . import b\n    import torch"
    assert imported(source) == {"tests", ".", "torch"}


def test_folders_are_packages():
    """Without an ``__init__.py``, find_packages leaves a folder out."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    folders = {path for path in folders if path.parent.name != "shipped"}
    assert not [path for path in folders if not (path / "__init__.py").exists()]


def test_imports_point_downwards():
    """The contracts in pyproject.toml: no cycle, no arrow upwards."""
    # A process of its own: import-linter disables the loggers of its process
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
