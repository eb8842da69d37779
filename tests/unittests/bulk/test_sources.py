"""Folders, tables and shards are listed, local and at addresses."""

import json
import os
import zipfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from speechbrain_dslstm.bulk.sources import find_recordings, resolve


@pytest.fixture
def memory():
    """An empty file system in memory."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


@pytest.fixture
def folder(tmp_path):
    """Recordings, a shard, and files of other kinds."""
    for name, size in [
        ("a.wav", 10),
        ("below/b.OGG", 30),
        ("below/c::d e.flac", 20),
        ("below/.hidden.wav", 1),
        ("notes.txt", 1),
        ("s-0.tar", 1),
    ]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(size))
    return tmp_path


def listed(found, column="address"):
    return found.recordings[column].to_pylist()


def test_a_folder_begins_with_the_largest(folder, monkeypatch):
    expected = ["below/b.OGG", "below/c::d e.flac", "a.wav"]
    monkeypatch.chdir(folder.parent)
    for source in (folder, folder.name, f"file://{folder}"):
        found = find_recordings(source)
        assert listed(found) == [str(folder / name) for name in expected]
        assert listed(found, "size") == [30, 20, 10]
        assert found.shards == [str(folder / "s-0.tar")]
        assert found.summary == (
            "passed over: 1 not audio (such as notes.txt), "
            "1 hidden (such as .hidden.wav)"
        )


def test_patterns_and_several_sources(folder):
    (folder / "s-1.tar").touch()
    sources = [f"{folder}/s-*.tar", folder / "a.wav", folder]
    found = find_recordings(sources)
    assert [os.path.basename(one) for one in found.shards] == [
        "s-0.tar",
        "s-1.tar",
    ]
    assert len(listed(found)) == 3 and listed(found)[0].endswith("a.wav")


def test_a_folder_at_an_address(memory, tmp_path):
    for name in ("x/a.wav", "x/.b/c.wav", "x/d.tar", "x/e.txt", "f.wav"):
        memory.pipe_file(f"/calls/{name}", b"1")
    found = find_recordings("memory://calls/x")
    assert listed(found) == ["memory:///calls/x/a.wav"]
    assert found.shards == ["memory:///calls/x/d.tar"]
    assert "1 hidden" in found.summary and "1 not audio" in found.summary
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as file:
        file.writestr("in/a.wav", b"12")
    found = find_recordings(f"zip://::{tmp_path}/z.zip")
    (address,) = listed(found)
    with fsspec.open(address) as file:
        assert file.read() == b"12"


@pytest.mark.parametrize(
    "name, write",
    [
        ("t.csv", lambda rows: "file;n\n" + "".join(f"{r};1\n" for r in rows)),
        (
            "t.tsv",
            lambda rows: "n\tfile\n" + "".join(f"1\t{r}\n" for r in rows),
        ),
        (
            "t.jsonl",
            lambda rows: "".join(json.dumps({"file": r}) + "\n" for r in rows),
        ),
        ("t.parquet", None),
    ],
)
def test_tables(memory, tmp_path, name, write):
    """The file stays as the table has it; its address is of the table's folder."""
    rows = ["a.wav", "in/0012.wav", "/abs/b.wav", "s3://c/d.wav", "a.wav"]
    path = tmp_path / "tables" / name
    path.parent.mkdir()
    if write:
        path.write_text(write(rows))
    else:
        pq.write_table(pa.table({"file": rows, "n": rows}), path)
    expected = ["a.wav", "in/0012.wav", "/abs/b.wav", "s3://c/d.wav"]
    found = find_recordings(path)
    assert listed(found, "file") == expected
    folder = path.parent
    assert listed(found) == [
        *(f"{folder}/{one}" for one in expected[:2]),
        *expected[2:],
    ]
    memory.pipe_file(f"/remote/{name}", path.read_bytes())
    found = find_recordings(f"memory:///remote/{name}")
    assert listed(found, "file") == expected
    assert listed(found)[:3] == [
        "memory:///remote/a.wav",
        "memory:///remote/in/0012.wav",
        "/abs/b.wav",
    ]


def test_a_folder_of_parquet_is_a_table(tmp_path):
    for k in range(2):
        pq.write_table(
            pa.table({"path": [f"{k}.wav"]}), tmp_path / f"{k}.parquet"
        )
    found = find_recordings(tmp_path, column="path")
    assert listed(found, "file") == ["0.wav", "1.wav"]


def test_what_is_wrong_with_a_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file or folder gone.wav"):
        find_recordings("gone.wav")
    with pytest.raises(ValueError, match="cannot open nosuch://x: .*nosuch"):
        find_recordings("nosuch://x")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="no recordings.*1 not audio"):
        find_recordings(tmp_path)
    table = tmp_path / "t.csv"
    table.write_text("path,n\na.wav,1\n,2\n")
    with pytest.raises(ValueError, match="no column 'file'.* are: path, n"):
        find_recordings(table)
    with pytest.raises(ValueError, match="row 2 has no path .1 of 2 rows"):
        find_recordings(table, "path")
    (tmp_path / "t.parquet").write_text("no table")
    with pytest.raises(ValueError, match="cannot read .*t.parquet: "):
        find_recordings(tmp_path / "t.parquet")


def test_addresses_in_archives():
    assert resolve("zip://a::b.zip") == f"zip://a::{os.path.abspath('b.zip')}"
    assert resolve("c.wav", "zip://in::/b.zip") == "zip://in/c.wav::/b.zip"
