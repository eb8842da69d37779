"""The command line answers at once, and imports what it needs only."""

import os
import subprocess
import sys

import pytest
from nightly import at_night
from processes import REPOSITORY

COMMAND = [sys.executable, "-m", "speechbrain_dslstm.cli"]
IMPORT = """
import time
started = time.process_time()
import speechbrain_dslstm
print(time.process_time() - started)
"""
CLASSIFY = """
import sys
from speechbrain_dslstm.cli.app import main
sys.argv = ["dslstm", "classify", *sys.argv[1:]]
try:
    main()
finally:
    print(*sys.modules)
"""


def cpu_seconds(arguments):
    """CPU time of a child process."""
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help(arguments):
    assert min(cpu_seconds(arguments) for _ in range(2)) < 0.4


def test_import():
    command = [sys.executable, "-c", IMPORT]
    times = [
        float(subprocess.check_output(command, cwd=REPOSITORY))
        for _ in range(3)
    ]
    assert min(times) < 0.1


@pytest.mark.parametrize(
    "name", ["emotion-dslstm-whisper", at_night("emotion-dslstm-emodb")]
)
def test_a_clip_needs_no_compiled_loops(emodb_folder, name):
    """Each of these would add up to two seconds to the two of SpeechBrain."""
    clip = min(emodb_folder.glob("*.ogg"))
    model = f"--model=pretrained/{name}"
    command = [sys.executable, "-c", CLASSIFY, str(clip), model]
    out = subprocess.check_output(command, cwd=REPOSITORY, text=True)
    answer, modules = out.splitlines()
    assert answer.startswith(f"{clip}  happiness")
    slow = {"numba", "torch._dynamo", "sklearn", "librosa", "matplotlib"}
    assert not slow & set(modules.split())
    # Unless they are asked for
    environment = {**os.environ, "DSLSTM_BACKEND": "numba"}
    out = subprocess.check_output(
        command, cwd=REPOSITORY, text=True, env=environment
    )
    assert out.splitlines()[0] == answer
    assert "numba" in out.split()
