#!/usr/bin/env python3
"""Run the tests with other versions of torch: by hand, or at night.

> python tests/torch_range.py
> python tests/torch_range.py --versions 2.7.1 2.11.0 -- tests/unittests/ds_lstm

Each version has a virtual environment of its own, of about 6 GB while it is
tested, with the torchaudio of the same version and all else that ``.[test]`` asks
for: setup.py's range of the two is left out. What follows ``--`` goes to pytest.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# The newest patch of each minor version that setup.py allows
VERSIONS = ["2.10.0", "2.11.0"]
# What the installed package requires beside the pair, one line each
OTHERS = """
import importlib.metadata, pip._vendor.packaging.requirements as packaging
for text in importlib.metadata.requires("speechbrain-dslstm"):
    one = packaging.Requirement(text)
    wanted = not one.marker or one.marker.evaluate({"extra": "test"})
    if wanted and one.name not in ("torch", "torchaudio"):
        one.marker = None
        print(one)
"""


def run_tests(version: str, arguments: list[str]) -> tuple[bool, str]:
    """Whether the tests pass with a version of torch, and pytest's last line."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder, "bin", "python"))
        pip = [python, "-m", "pip", "install", "--quiet"]
        pair = [f"torch=={version}", f"torchaudio=={version}"]
        try:
            subprocess.run([*pip, "--no-deps", "."], cwd=REPOSITORY, check=True)
            listed = subprocess.run(
                [python, "-c", OTHERS],
                check=True,
                capture_output=True,
                text=True,
            )
            others = listed.stdout.splitlines()
            subprocess.run([*pip, *pair, *others], check=True)
        except subprocess.CalledProcessError as error:
            return False, f"cannot be installed: {error}"
        # As in an activated environment: tests start dslstm by its name
        path = os.pathsep.join([str(Path(python).parent), os.environ["PATH"]])
        done = subprocess.run(
            [python, "-m", "pytest", "-q", *arguments],
            cwd=REPOSITORY,
            env={**os.environ, "PATH": path},
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        print(done.stdout, flush=True)
        return done.returncode == 0, done.stdout.strip().split("\n")[-1]


def main() -> None:
    """Test each version, and exit with 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--versions", nargs="+", default=VERSIONS)
    parser.add_argument("arguments", nargs="*", help="of pytest, after --")
    options = parser.parse_args()
    found = {
        version: run_tests(version, options.arguments or ["-n", "2"])
        for version in options.versions
    }
    for version, (passed, line) in found.items():
        print(f"torch {version:7} {'ok' if passed else 'FAILED':6}  {line}")
    sys.exit(not all(passed for passed, _ in found.values()))


if __name__ == "__main__":
    main()
