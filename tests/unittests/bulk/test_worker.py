"""A worker answers as classify_files does, and outlives its own death."""

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import soundfile

from speechbrain_dslstm.bulk.answers import Answers, answer_schema, part_name
from speechbrain_dslstm.bulk.worker import Model, Worker


@pytest.fixture
def make(classifier, tmp_path, monkeypatch):
    """Make a worker of the small model; its threads stay as they are."""
    monkeypatch.setattr(Model, "load", lambda *args: classifier)
    schema = answer_schema(classifier.labels, classifier.dimensions, {})

    def worker(**options):
        return Worker(Model(""), f"{tmp_path}/out", schema, options)

    return worker


def block(addresses, **more):
    return pa.table({"file": addresses, "address": addresses, **more})


def rows_of(worker):
    return worker.answers.read(*worker.schema.names).to_pylist()


def check(rows, expected, labels):
    """Same rows as results of ``classify_files``, posteriors to 1e-5."""
    assert len(rows) == len(expected)
    for row, result in zip(rows, expected, strict=True):
        for name in ("label", "channel", "reason"):
            assert row[name] == getattr(result, name)
        assert (row["error"] is None) == (result.error is None)
        assert len(row["segments"]) == len(result.segments)
        if result.label:
            found = [row[name] for name in labels]
            posteriors = result.log_posteriors.exp().tolist()
            assert found == pytest.approx(posteriors, abs=1e-5)


def test_local_remote_and_inline(make, classifier, speech_files, tmp_path):
    """Bytes, an address that the worker opens, and a path: the same answers."""
    long = tmp_path / "long.flac"
    clips = [soundfile.read(path)[0] for path in speech_files[:30]]
    soundfile.write(long, np.concatenate(clips), 16000)
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(16000), 16000)
    paths = [*speech_files[:3], long, silence]
    contents = [path.read_bytes() for path in paths]
    system = fsspec.filesystem("memory")
    system.pipe(
        {f"/w/{p.name}": c for p, c in zip(paths, contents, strict=True)}
    )
    addresses = [f"memory:///w/{path.name}" for path in paths]
    expected = classifier.classify_files(paths)
    for given in (
        block([str(path) for path in paths]),
        block(addresses),
        block(addresses, data=contents),
    ):
        worker = make()
        report = worker(given).to_pylist()[0]
        assert report["rows"] == 5 and report["failure"] is None
        assert report["seconds"] > 0
        rows = rows_of(worker)
        check(rows, expected, classifier.labels)
        assert rows[3]["segments"][1]["start"] == 6.0
        assert rows[4]["error"].endswith(
            f"{given['address'][4].as_py()}: silence"
        )
        worker.answers.system.rm(worker.answers.path, recursive=True)
    system.rm("/w", recursive=True)


def test_each_channel_and_errors(make, classifier, speech_files, tmp_path):
    """Rows stay with their recording where it has several, or an error."""
    clips = [soundfile.read(path)[0][:16000] for path in speech_files[:2]]
    stereo = tmp_path / "stereo.wav"
    soundfile.write(stereo, np.stack(clips, 1), 16000)
    paths = [stereo, tmp_path / "gone.wav", tmp_path, stereo, speech_files[2]]
    paths = [str(path) for path in paths]
    worker = make(channel="each")
    failed = [None, None, None, "cut off", None]
    report = worker(block(paths, error=failed)).to_pylist()[0]
    assert report["rows"] == 5
    rows = rows_of(worker)
    # The error of the reading first
    assert [row["address"] for row in rows] == [
        paths[3],
        *(paths[0], paths[0], paths[1], paths[2], paths[4]),
    ]
    assert rows[0]["error"] == "cut off"
    assert "no such file" in rows[3]["error"]
    assert "it is a folder" in rows[4]["error"]
    expected = classifier.classify_files(
        [paths[0], paths[4]], channel="each", progress=False
    )
    check([rows[1], rows[2], rows[5]], expected, classifier.labels)


def test_a_recording_that_ends_the_process(make, speech_files):
    """After a death, one by one; after two more, without the one that kills."""
    paths = [str(path) for path in speech_files[:3]]
    name = part_name(paths)

    class Died(BaseException):
        pass

    def classify(self, given, original=Worker._classify):
        if paths[1] in given["address"].to_pylist():
            raise Died
        return original(self, given)

    worker = make()
    worker._classify = classify.__get__(worker)
    for notes in ([], [paths[1]], [paths[1]] * 2):
        with pytest.raises(Died):
            worker(block(paths))
        assert worker.answers.notes(name) == notes
    assert rows_of(worker) == []
    worker(block(paths))
    rows = rows_of(worker)
    assert [row["label"] is None for row in rows] == [False, True, False]
    assert "the process died 2 times" in rows[1]["error"]
    assert worker.answers.notes(name) is None


def test_no_room(make, speech_files, monkeypatch):
    worker = make()

    def fail(*args):
        raise OSError("no room")

    monkeypatch.setattr(Answers, "write", fail)
    report = worker(block([str(speech_files[0])])).to_pylist()[0]
    assert report["failure"] == "no room" and report["rows"] == 0
