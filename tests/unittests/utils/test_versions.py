"""A torchaudio for another torch is named, with the command that helps."""

import subprocess
import sys

import pytest
from processes import REPOSITORY


def write(folder, name, version):
    """Write the metadata of a package that takes the place of the real one."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )


@pytest.mark.parametrize(
    ("torch", "torchaudio", "message"),
    [
        (
            "2.10.0+cpu",
            "2.11.0",
            "torchaudio 2.11 does not work with torch 2.10",
        ),
        ("2.11.0", "2.10.1", "pip install torchaudio==2.11.*"),
        ("2.11.0", "2.11.1+cu130", ""),
    ],
)
def test_pairs(torch, torchaudio, message, tmp_path):
    write(tmp_path, "torch", torch)
    write(tmp_path, "torchaudio", torchaudio)
    done = subprocess.run(
        [sys.executable, "-c", "import speechbrain_dslstm"],
        env={"PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == bool(message)
    assert message in done.stderr and bool(done.stderr) == bool(message)
