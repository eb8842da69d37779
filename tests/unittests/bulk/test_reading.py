"""Shards are read to their damage, addresses to the last recording."""

import gzip
import io
import tarfile

import fsspec
import pyarrow as pa
import pytest

from speechbrain_dslstm.bulk import reading
from speechbrain_dslstm.bulk.reading import SHARD, fetch, read_shards

CONTENTS = {
    "a.wav": b"a" * 3000,
    "a.json": b"{}",
    "in/b.flac": b"b" * 5000,
    "in/.c.wav": b"c",
    "d.ogg": b"d" * 700,
}
AUDIO = ["a.wav", "in/b.flac", "d.ogg"]


@pytest.fixture
def shard(tmp_path):
    """A shard as WebDataset writes it."""
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in CONTENTS.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def read(path, done=()):
    block = pa.table([[str(path)], [list(done)]], schema=SHARD)
    return [row for part in read_shards(block) for row in part.to_pylist()]


def test_a_shard(shard):
    packed = shard.with_name("s.tar.gz")
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    for path in (shard, packed, f"file://{shard}"):
        rows = read(path)
        assert [row["data"] for row in rows] == [CONTENTS[n] for n in AUDIO]
        assert not any(row["error"] for row in rows)
    # Addresses that open
    for row in read(shard):
        with fsspec.open(row["address"]) as file:
            assert file.read() == row["data"]


def test_done_and_large_members(shard, monkeypatch):
    monkeypatch.setattr(reading, "INLINE", 4000)
    rows = read(shard, [f"tar://a.wav::{shard}"])
    assert [row["address"] for row in rows] == [
        f"tar://{name}::{shard}" for name in AUDIO[1:]
    ]
    assert [row["data"] for row in rows] == [None, CONTENTS["d.ogg"]]
    assert read(shard, [f"tar://{name}::{shard}" for name in AUDIO]) == []


# Blocks of 512: header a, 6 of a, header and one of json, header b, 10 of b
@pytest.mark.parametrize(
    "damage, kept, said",
    [
        (lambda d: d[:2000], 0, "unexpected end of data"),
        (lambda d: d[: 512 * 7], 1, "cut off"),
        (lambda d: d[: 512 * 9 + 100], 1, ""),
        (lambda d: d[: 512 * 12], 1, "unexpected end of data"),
        (lambda d: d[: 512 * 9] + b"x" * 512 + d[512 * 10 :], 1, "damaged at"),
        (lambda d: b"x" * 512 + d[512:], 0, "it is not a tar file"),
        (lambda d: b"", 0, "it is not a tar file"),
        (lambda d: bytes(1024), 0, "it holds no audio files"),
        (lambda d: gzip.compress(d)[:100], None, ""),
    ],
)
def test_damage_is_a_row(shard, damage, kept, said):
    shard.write_bytes(damage(shard.read_bytes()))
    *rows, last = read(shard)
    if kept is not None:
        assert [row["data"] for row in rows] == [
            CONTENTS[name] for name in AUDIO[:kept]
        ]
    assert last["address"] == last["file"] == str(shard)
    assert f"cannot read the shard {shard}: " in last["error"]
    assert said in last["error"] and last["data"] is None


def test_a_missing_shard():
    (row,) = read("/no/such.tar")
    assert "No such file" in row["error"]


def test_fetch(monkeypatch):
    """Each recording has its bytes or its error, whatever is beside it."""
    monkeypatch.setattr(reading, "INLINE", 100)
    monkeypatch.setattr(reading, "AT_ONCE", 2)
    system = fsspec.filesystem("memory")
    system.pipe({"/f/a.wav": b"a" * 100, "/f/b.wav": b"b" * 101})
    addresses = [
        "memory:///f/a.wav",
        "nosuch://x",
        "memory:///f/b.wav",
        "memory:///f/gone.wav",
    ]
    block = pa.table({"file": list("abcd"), "address": addresses})
    parts = list(fetch(block))
    assert [part.num_rows for part in parts] == [2, 2]
    rows = [row for part in parts for row in part.to_pylist()]
    assert [row["address"] for row in rows] == addresses
    assert [row["data"] for row in rows] == [b"a" * 100, None, None, None]
    errors = [row["error"] for row in rows]
    assert errors[0] is errors[2] is None
    assert "nosuch" in errors[1]
    assert errors[3] == (
        "cannot read audio from memory:///f/gone.wav: no such file"
    )
    system.rm("/f", recursive=True)
