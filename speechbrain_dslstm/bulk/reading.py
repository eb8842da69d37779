"""Fetch recordings that are not local files: from addresses and from shards.

These functions are Ray Data's reading tasks. They take rows of ``sources`` and
yield rows with the bytes of each recording, some at a time. A recording of more
than ``INLINE`` bytes is left to the worker, which opens its address.
"""

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

import fsspec
import pyarrow as pa

from speechbrain_dslstm.audio.checks import printable, unreadable
from speechbrain_dslstm.bulk.sources import open_system
from speechbrain_dslstm.inference.folders import reason_to_pass_over
from speechbrain_dslstm.utils.folders import is_hidden

__all__ = ["READ", "SHARD", "fetch", "read_shards"]

INLINE = 2**22  # bytes
AT_ONCE = 16  # recordings that are fetched together
SHARD = pa.schema(
    [("address", pa.string()), ("done", pa.list_(pa.string()))],
)
# Without bytes, the worker opens the address; an error is the answer
READ = pa.schema(
    [
        ("file", pa.string()),
        ("address", pa.string()),
        ("data", pa.binary()),
        ("error", pa.string()),
    ]
)
Row = tuple[str, str, bytes | None, str | None]


def fetch(block: pa.Table) -> Iterator[pa.Table]:
    """Read remote recordings, several at a time where the system can."""
    files = block["file"].to_pylist()
    addresses = block["address"].to_pylist()
    for k in range(0, len(files), AT_ONCE):
        some = addresses[k : k + AT_ONCE]
        found = _read_many(some)
        rows = zip(files[k : k + AT_ONCE], some, found, strict=True)
        yield _to_table(_fetched(*row) for row in rows)


def _read_many(addresses: list[str]) -> list[bytes | Exception]:
    """First bytes of each file, or what went wrong."""
    by_system, found = {}, {}
    for address in addresses:
        try:
            system, path = open_system(address)
            by_system.setdefault(id(system), (system, []))[1].append(
                (address, path)
            )
        except Exception as error:
            found[address] = error
    for system, some in by_system.values():
        paths = [path for _, path in some]
        data = system.cat_ranges(paths, 0, INLINE + 1, on_error="return")
        found |= zip((address for address, _ in some), data, strict=True)
    return [found[address] for address in addresses]


def _fetched(file: str, address: str, found: bytes | Exception) -> Row:
    """Row of one recording that was fetched, or was not."""
    if isinstance(found, Exception):
        reason = (
            "no such file" if isinstance(found, FileNotFoundError) else found
        )
        return file, address, None, str(unreadable(address, reason))
    return file, address, found if len(found) <= INLINE else None, None


def read_shards(block: pa.Table) -> Iterator[pa.Table]:
    """Read the audio files of each shard; damage becomes a row of the shard.

    Other files, such as labels, are passed over, and so are members that are
    done already.
    """
    for row in block.to_pylist():
        rows = _with_errors(row["address"], set(row["done"]))
        yield from map(_to_table, _grouped(rows))


def _with_errors(shard: str, done: set[str]) -> Iterator[Row]:
    """Yield the recordings of a shard, and a last row if it is damaged."""
    count, error = 0, None
    try:
        with fsspec.open(shard, "rb") as file:
            for name, data in _members(file):
                count += 1
                address = f"tar://{name}::{shard}"
                if address not in done:
                    done.add(address)
                    yield address, address, data, None
        if not count:
            error = "it holds no audio files"
    # A decompressor, a network or a damaged header may raise anything
    except Exception as problem:
        error = f"{problem} after {count} recordings"
    if error is not None:
        text = f"cannot read the shard {printable(shard)}: {error}"
        yield shard, shard, None, text


def _members(file: BinaryIO) -> Iterator[tuple[str, bytes | None]]:
    """Yield names and bytes of the audio files in a tar file."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:*")
    except tarfile.ReadError as error:
        raise tarfile.ReadError("it is not a tar file") from error
    with tar:
        # Not iter(), which keeps a description of every member
        while (member := tar.next()) is not None:
            tar.members = []
            path = PurePosixPath(member.name)
            hidden = any(map(is_hidden, path.parts))
            if not member.isfile() or reason_to_pass_over(path, hidden):
                continue
            data = None
            if member.size <= INLINE:
                data = tar.extractfile(member).read()
                if len(data) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
            yield member.name, data
        # tarfile takes a damaged header for the end
        tar.fileobj.seek(tar.offset)
        end = tar.fileobj.read(tarfile.BLOCKSIZE)
        if any(end):
            raise tarfile.ReadError(f"damaged at byte {tar.offset}")
        if not end:
            raise tarfile.ReadError("cut off")


def _grouped(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Join rows until their bytes are as many as one large recording has."""
    some, size = [], 0
    for row in rows:
        some.append(row)
        size += len(row[2] or b"")
        if size > INLINE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _to_table(rows: Iterable[Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True))
    return pa.table(
        [pa.array(c, t) for c, t in zip(columns, READ.types, strict=False)],
        READ,
    )
