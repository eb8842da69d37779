"""Version and commit of the code, in checkouts and out of them."""

import shutil
import subprocess
from pathlib import Path

from speechbrain_dslstm.settings import provenance

REPOSITORY = Path(__file__).resolve().parents[3]


def git(folder, *arguments):
    """Run git in a folder."""
    own = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", str(folder), *own, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_commit_and_modification(tmp_path, monkeypatch):
    """And no commit of a repository that merely holds the package."""
    shutil.copytree(REPOSITORY / "hparams", tmp_path / "hparams")
    shutil.copy(REPOSITORY / "setup.py", tmp_path)
    monkeypatch.setattr(provenance, "recipe_root", lambda: tmp_path)
    found = provenance.find_provenance()
    assert found.keys() == {"version"} and found["version"][0].isdigit()
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("not code")
    assert provenance.find_provenance()["commit"] == commit
    (tmp_path / "hparams" / "own.yaml").write_text("a: 1\n")
    found = provenance.find_provenance()
    assert found["commit"] == f"{commit} modified"
    monkeypatch.setattr(provenance, "recipe_root", lambda: tmp_path / "hparams")
    assert "commit" not in provenance.find_provenance()


def test_without_git(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(provenance, "recipe_root", lambda: tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "commit" not in provenance.find_provenance()
