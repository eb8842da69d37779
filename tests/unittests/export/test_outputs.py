"""Exports and figures touch no file that they did not make, and are whole or absent."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from nightly import nightly

from speechbrain_dslstm.cli.app import main
from speechbrain_dslstm.pretrained.safe_format import write_safe
from speechbrain_dslstm.utils.files import check_output, new_file

LABELS = ["sadness", "anger", "neutral"]


@pytest.fixture(scope="module")
def model(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_safe(folder, small_model(p=0.0), LABELS, 16000)
    return folder


@pytest.fixture
def dslstm(model, monkeypatch, capsys):
    def run(*arguments):
        argv = ["dslstm", *map(str, arguments), "--model", str(model)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, capsys.readouterr().err

    return run


@pytest.mark.parametrize("command", ["export", "explain"])
def test_outputs_that_are_refused(command, dslstm, speech_files, tmp_path):
    suffix = {"export": ".onnx", "explain": ".png"}[command]

    def run(output, *options):
        if command == "export":
            return dslstm("export", output, *options)
        return dslstm("explain", speech_files[0], "-o", output, *options)

    precious = tmp_path / f"precious{suffix}"
    precious.write_text("precious")
    (tmp_path / f"folder{suffix}").mkdir()
    link = tmp_path / f"link{suffix}"
    link.symlink_to(precious)
    os.mkfifo(tmp_path / f"pipe{suffix}")
    for output, message in [
        (precious, "the file exists"),
        (link, "the file exists"),
        (tmp_path / f"folder{suffix}", "this is a folder"),
        (tmp_path / f"pipe{suffix}", "no regular file"),
        (tmp_path / "gone" / f"a{suffix}", "no folder"),
    ]:
        status, err = run(output)
        assert status == 2 and message in err and err.count("\n") == 1
    status, err = run(tmp_path / f"folder{suffix}", "--force")
    assert status == 2 and "this is a folder" in err
    assert precious.read_text() == "precious" and not list(tmp_path.glob("g*"))


@nightly
def test_int8_leaves_the_neighbours_alone(dslstm, tmp_path):
    """The float file was once called OUTPUT.float.onnx, and removed."""
    pytest.importorskip("onnxruntime")
    for name in ("a.float.onnx", "a.onnx.float.onnx", "folded.onnx"):
        (tmp_path / name).write_text("precious")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert dslstm("export", tmp_path / "a.onnx", "--int8")[0] == 0
    after = sorted(path.name for path in tmp_path.iterdir())
    assert after == sorted([*before, "a.onnx"])
    for name in before:
        assert (tmp_path / name).read_text() == "precious"
    size = (tmp_path / "a.onnx").stat().st_size
    assert dslstm("export", tmp_path / "a.onnx")[0] == 2
    assert (tmp_path / "a.onnx").stat().st_size == size
    assert dslstm("export", tmp_path / "a.onnx", "--force")[0] == 0
    assert (tmp_path / "a.onnx").stat().st_size > size


def test_a_failure_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        with new_file(path, overwrite=True) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    # Another process takes the name while this one works
    other = tmp_path / "b.onnx"
    with pytest.raises(FileExistsError):
        with new_file(other) as temporary:
            temporary.write_text("mine")
            other.write_text("theirs")
    assert other.read_text() == "theirs"
    check_output(other, overwrite=True)
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    with new_file(link, overwrite=True) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and path.read_text() == "new"


def command(model, *arguments):
    start = [sys.executable, "-m", "speechbrain_dslstm.cli"]
    return [*start, *map(str, arguments), "--model", str(model)]


@nightly
def test_a_full_disk(model, tmp_path):
    """Files of more than 20 kB cannot be written."""
    done = subprocess.run(
        command(model, "export", tmp_path / "a.pt2"),
        preexec_fn=lambda: (
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)),
        ),
        capture_output=True,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
    )
    assert done.returncode == 2 and "a.pt2" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_a_kill_in_the_middle(model, tmp_path):
    """The output is absent as long as it is not whole."""
    path = tmp_path / "a.pt2"
    process = subprocess.Popen(
        command(model, "export", path),
        cwd=Path(__file__).resolve().parents[3],
        stdout=subprocess.DEVNULL,
    )
    while not list(tmp_path.iterdir()) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL and not path.exists()
