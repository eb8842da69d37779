"""Version of this package, and the commit where it runs from a checkout."""

import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from speechbrain_dslstm.hparams import recipe_root

# What a run executes; notes and results of a checkout do not count
CODE = ("speechbrain_dslstm", "recipes", "hparams", "setup.py")


def find_provenance() -> dict[str, str]:
    """Find the "version" of this package, and in a checkout the "commit".

    The commit is followed by "modified" where the code differs from it.
    """
    found = {"version": package_version()}
    commit = _find_commit(recipe_root())
    return found | ({"commit": commit} if commit else {})


def package_version() -> str:
    """Version of this package, which need not be installed."""
    setup = recipe_root() / "setup.py"
    if setup.is_file():
        match = re.search(r'version="([^"]+)"', setup.read_text("utf-8"))
        if match:
            return match[1]
    try:
        return version("speechbrain-dslstm")
    except PackageNotFoundError:
        return "unknown"


def _find_commit(root: Path) -> str | None:
    """Commit of a checkout; None without git, or outside of a checkout."""
    # Not a repository that the package is merely installed in
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit} modified" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    """Run git in a folder, and return what it prints."""
    done = subprocess.run(
        ["git", "--no-optional-locks", "-C", str(root), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip()
