"""``dslstm classify --output --resume``: no row twice, none lost."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from processes import REPOSITORY

from speechbrain_dslstm.cli.row_file import RowFile
from speechbrain_dslstm.cli.rows import make_format

FORMATS = ("csv", "jsonl")
SETTINGS = {"--model": "abc"}


@pytest.fixture(scope="module")
def recordings(speech_clips, tmp_path_factory):
    """Nine clips, silence, no audio, and a stereo file, with hard names."""
    folder = tmp_path_factory.mktemp("recordings")
    for k in range(9):
        name = ('quote "and", comma', "line\nfeed", "Größe")[k % 3]
        soundfile.write(folder / f"{k} {name}.wav", speech_clips[k], 16000)
    soundfile.write(folder / "silence.wav", np.zeros(16000), 16000)
    (folder / "text.wav").write_text("no audio")
    (folder / os.fsdecode(b"latin \xe4.wav")).write_text("no audio")
    both = np.stack([speech_clips[0].numpy()] * 2, axis=1)
    soundfile.write(folder / "z.wav", both, 16000)
    return folder


def places_to_cut(content):
    """In the header, in a row, after it, in quotes, before the line feed."""
    ends = [k + 1 for k, byte in enumerate(content) if byte == 10]
    some = [*ends[:2], *ends[-2:]]
    cuts = {0, 3, *some, *(k - 1 for k in some), *(k + 9 for k in some[:-1])}
    return sorted(cuts)


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize(
    "options", [(), ("--channel=each",), ("--long", "--window=1")]
)
def test_cut_anywhere_it_becomes_the_same_file(
    ending, options, dslstm, recordings, tmp_path
):
    path = tmp_path / f"answers.{ending}"
    command = ["classify", recordings, f"--output={path}", *options]
    status, out, _ = dslstm(*command)
    assert (status, out) == (1, f"{path}  13 files, 2 could not be read\n")
    whole = path.read_bytes()
    cuts = places_to_cut(whole)
    for cut in cuts if not options else cuts[::4]:
        path.write_bytes(whole[:cut])
        assert dslstm(*command, "--resume")[0] == 1, cut
        assert path.read_bytes() == whole, cut


def test_the_file_equals_standard_output(dslstm, recordings, tmp_path):
    for ending, flag in zip(FORMATS, ("--csv", "--json"), strict=True):
        path = tmp_path / f"answers.{ending}"
        clips = sorted(recordings.glob("[0-8]*.wav"))
        dslstm("classify", *clips, "-o", path)
        _, out, _ = dslstm("classify", *clips, flag)
        assert path.read_text("utf-8") == out


def test_files_that_came_later_are_added(dslstm, recordings, tmp_path):
    path, links = tmp_path / "answers.csv", tmp_path / "links"
    links.mkdir()
    clips = sorted(recordings.glob("[0-8]*.wav"))
    for clip in clips[1:5]:
        (links / clip.name).symlink_to(clip)
    command = ["classify", links, links, "-o", path, "--resume"]
    assert dslstm(*command)[0] == 0
    before = path.read_bytes()
    (links / clips[0].name).symlink_to(clips[0])
    assert dslstm(*command)[0] == 0
    assert path.read_bytes().startswith(before)
    rows = list(csv.DictReader(io.StringIO(path.read_text(), newline="")))
    names = [Path(row["file"]).name for row in rows]
    assert names == [clip.name for clip in [*clips[1:5], clips[0]]]


def test_what_is_refused(dslstm, model, recordings, tmp_path):
    """With one line, and the file stays as it is."""
    path = tmp_path / "a.csv"
    [clip] = recordings.glob("0*.wav")
    command = ["classify", clip, f"--output={path}"]
    assert dslstm(*command)[0] == 0
    whole = path.read_bytes()
    for given, message in [
        ([], "a.csv exists: add --resume to continue it"),
        (["--resume", "--any-sound"], "other values of --any-sound: give the"),
        (["--resume", "--channel=0"], "expected the columns file,channel,lab"),
        (["--resume", "--json"], 'row 1: expected a JSON object with "file"'),
    ]:
        status, out, err = dslstm(*command, *given)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err and path.read_bytes() == whole
    for content in (b"mine", b"mine\n", whole + b"too,few\n", b"\xff\0"):
        path.write_bytes(content)
        status, _, err = dslstm(*command, "--resume")
        assert status == 2 and "expected the columns" in err
        assert path.read_bytes() == content
    for output, message in [
        ("a.txt", "must end in .csv or .jsonl"),
        ("no/a.csv", "no folder"),
        (".", "must end in"),
    ]:
        given = ["classify", clip, "-o", tmp_path / output]
        status, _, err = dslstm(*given)
        assert status == 2 and message in err
    status, _, err = dslstm("classify", clip, "--resume")
    assert status == 2 and "--resume requires --output" in err


def test_one_process_at_a_time_writes_rows_at_once(tmp_path):
    form = make_format("csv", ["anger"], [])
    with RowFile(tmp_path / "a.csv", form, SETTINGS):
        with pytest.raises(ValueError, match="another process is writing it"):
            RowFile(tmp_path / "a.csv", form, SETTINGS)
    with RowFile(tmp_path / "a.csv", form, SETTINGS) as file:
        assert file.done == {}
        file.write({"file": "a.wav", "label": "anger"})
        rows = (tmp_path / "a.csv").read_text()
    assert rows == "file,label,anger,reason,error\na.wav,anger,,,\n"


def test_after_a_kill(model, recordings, tmp_path):
    """Rows are in the file as soon as they are known."""
    folder, path = tmp_path / "many", tmp_path / "answers.jsonl"
    folder.mkdir()
    clips = sorted(recordings.glob("[0-8]*.wav"))
    for k in range(2000):
        (folder / f"{k:04}.wav").symlink_to(clips[k % len(clips)])
    command = [sys.executable, "-m", "speechbrain_dslstm.cli", "classify"]
    command += [folder, "-m", model, "--output", path]
    process = subprocess.Popen(command, cwd=REPOSITORY)
    while not (path.exists() and path.stat().st_size > 4000):
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = path.read_text().splitlines(keepends=True)
    if not lines[-1].endswith("\n"):
        lines.pop()
    rows = [json.loads(line) for line in lines]
    expected = [str(folder / f"{k:04}.wav") for k in range(len(rows))]
    assert len(rows) > 10 and [row["file"] for row in rows] == expected
