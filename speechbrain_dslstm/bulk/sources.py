"""List the recordings of a folder, a table or shards, local or at an address.

An address is a local path, or whatever fsspec opens: ``s3://bucket/a.wav``,
``tar://a.wav::/data/shard-0.tar``. Local addresses are absolute paths.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
from fsspec.implementations.local import LocalFileSystem

from speechbrain_dslstm.corpora.table_files import DELIMITERS
from speechbrain_dslstm.inference.folders import reason_to_pass_over, summarize
from speechbrain_dslstm.utils.files import name_errors
from speechbrain_dslstm.utils.folders import is_hidden, walk_folder

__all__ = ["Listing", "find_recordings", "is_local", "open_system", "resolve"]

SHARDS = (".tar", ".tar.gz", ".tgz")
TABLES = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}
RECORDINGS = pa.schema(
    [("file", pa.string()), ("address", pa.string()), ("size", pa.int64())]
)


@dataclass
class Listing:
    """Recordings in the order in which they are classified, and shards.

    ``recordings`` has the columns ``file``, as the source names it; ``address``;
    and ``size`` in bytes, null if it is not known. ``passed_over`` are other
    files by the reason.
    """

    recordings: pa.Table = field(default_factory=RECORDINGS.empty_table)
    shards: list[str] = field(default_factory=list)
    passed_over: dict[str, list[Path]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """One line with the number of files for each reason, "" for none."""
        return summarize(self.passed_over)

    def add(self, addresses: list[str], sizes: list[int | None]) -> None:
        """Add recordings that the source names by their address."""
        columns = [addresses, addresses, sizes]
        added = pa.table(columns, schema=RECORDINGS)
        self.recordings = pa.concat_tables([self.recordings, added])


def find_recordings(
    sources: str | os.PathLike | Iterable[str | os.PathLike],
    column: str = "file",
) -> Listing:
    """List what the sources hold, each address once.

    A source is an audio file, a folder, a shard (``.tar``), a pattern of these
    such as ``s3://bucket/shard-*.tar``, or a table (Parquet, CSV, JSON Lines)
    whose ``column`` names files; relative ones lie in the table's folder. The
    recordings of a folder begin with the largest.

    Raises FileNotFoundError for a source that is missing or holds no recording,
    and ValueError for a table without the column or with an empty cell in it.
    """
    if isinstance(sources, str | os.PathLike):
        sources = [sources]
    found = Listing()
    for source in map(os.fspath, sources):
        before = len(found.recordings) + len(found.shards)
        _add(found, source, column)
        if len(found.recordings) + len(found.shards) == before:
            rest = f" ({found.summary})" if found.passed_over else ""
            raise FileNotFoundError(f"no recordings in {source}{rest}")
    found.shards = list(dict.fromkeys(found.shards))
    found.recordings = _distinct(found.recordings)
    return found


def open_system(address: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of an address, and the path in it."""
    if is_local(address):
        return LocalFileSystem(), address
    try:
        return fsspec.core.url_to_fs(address)
    # ImportError names the package that the protocol requires
    except (ValueError, ImportError) as error:
        raise ValueError(f"cannot open {address}: {error}") from error


def is_local(address: str) -> bool:
    """Whether a resolved address is a path of this machine."""
    return "://" not in address


def resolve(text: str, folder: str = "") -> str:
    """Address of what a text names; a relative path lies in the folder."""
    if "://" in text:
        protocol = text.partition("://")[0]
        if protocol in ("file", "local"):
            return LocalFileSystem._strip_protocol(text)
        head, chained, rest = text.partition("::")
        return f"{head}::{resolve(rest)}" if chained else text
    if os.path.isabs(text) or is_local(folder):
        return os.path.abspath(os.path.join(folder, text))
    head, chained, rest = folder.partition("::")
    return f"{head.rstrip('/')}/{text}{chained}{rest}"


def _add(found: Listing, source: str, column: str) -> None:
    """Add the recordings of one source."""
    address = resolve(source)
    system, path = open_system(address)
    name = path.lower()
    if any(sign in path for sign in "*?[") and not system.exists(path):
        for one in sorted(system.glob(path)):
            _add(found, _address(address, system, one), column)
    elif system.isdir(path):
        _add_folder(found, address, column)
    elif not system.exists(path):
        raise FileNotFoundError(f"no file or folder {source}")
    elif name.endswith(SHARDS):
        found.shards.append(address)
    elif Path(name).suffix in TABLES:
        rows = _read_table(system, path, address, column)
        found.recordings = pa.concat_tables([found.recordings, rows])
    else:
        found.add([address], [system.size(path)])


def _address(root: str, system: fsspec.AbstractFileSystem, path: str) -> str:
    """Address of a path in the file system that an address has opened."""
    if is_local(root):
        return path
    _, chained, rest = root.partition("::")
    return system.unstrip_protocol(path) + chained + rest


def _add_folder(found: Listing, address: str, column: str) -> None:
    """Add the audio files and shards below a folder, the largest first."""
    addresses, sizes, tables = [], [], []
    for one, path, size, hidden in _walk(address):
        if not hidden and path.name.lower().endswith(SHARDS):
            found.shards.append(one)
            continue
        reason = reason_to_pass_over(path, hidden)
        if reason is None:
            addresses.append(one)
            sizes.append(size)
        elif not hidden and path.suffix.lower() == ".parquet":
            tables.append(one)
        else:
            found.passed_over.setdefault(reason, []).append(path)
    order = sorted(range(len(sizes)), key=lambda k: -(sizes[k] or 0))
    found.add([addresses[k] for k in order], [sizes[k] for k in order])
    if not addresses and not found.shards:
        for one in tables:
            _add(found, one, column)


def _walk(address: str) -> Iterator[tuple[str, Path, int | None, bool]]:
    """Yield address, path, size and whether it is hidden, of each file."""
    if is_local(address):
        for path, hidden in walk_folder(address):
            # A link to nothing becomes an error when it is read
            size = path.stat().st_size if path.exists() else None
            yield str(path), path, size, hidden
        return
    system, root = open_system(address)
    for inside, _, files in system.walk(root, detail=True):
        below = inside.removeprefix(root).strip("/").split("/")
        hidden = any(part and is_hidden(part) for part in below)
        for name, info in sorted(files.items()):
            one = _address(address, system, info["name"])
            path = Path(info["name"])
            yield one, path, info.get("size"), hidden or is_hidden(name)


def _read_table(
    system: fsspec.AbstractFileSystem, path: str, address: str, column: str
) -> pa.Table:
    """Read the column of a table that names files."""
    kind = TABLES[Path(path).suffix.lower()]
    with name_errors(address):
        try:
            kind = _csv_format(system, path, column) if kind == "csv" else kind
            data = pyarrow.dataset.dataset(path, filesystem=system, format=kind)
            names = data.schema.names
            texts = None
            if column in names:
                table = data.to_table(columns=[column])
                texts = table[column].cast(pa.string()).to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(f"cannot read {address}: {error}") from error
    if texts is None:
        others = ", ".join(names) or "none"
        raise ValueError(
            f"{address}: no column {column!r}; the columns are: {others}"
        )
    texts = [(text or "").strip() for text in texts]
    if "" in texts:
        raise ValueError(
            f"{address}: row {texts.index('') + 1} has no {column} "
            f"({texts.count('')} of {len(texts)} rows)"
        )
    head, chained, rest = address.partition("::")
    folder = os.path.dirname(head) + chained + rest
    columns = [texts, [resolve(t, folder) for t in texts], [None] * len(texts)]
    return pa.table(columns, schema=RECORDINGS)


def _csv_format(
    system: fsspec.AbstractFileSystem, path: str, column: str
) -> Any:
    """Format of a CSV: the delimiter is the one whose header has the column."""
    with system.open(path, "rb") as file:
        header = file.readline().decode("utf-8-sig").strip()

    def fit(delimiter: str) -> tuple[bool, int]:
        names = [name.strip('"') for name in header.split(delimiter)]
        return column in names, len(names)

    return pyarrow.dataset.CsvFileFormat(
        pyarrow.csv.ParseOptions(
            delimiter=max(DELIMITERS, key=fit), newlines_in_values=True
        ),
        # A file's name may look like a number
        convert_options=pyarrow.csv.ConvertOptions(
            column_types={column: pa.string()}
        ),
    )


def _distinct(recordings: pa.Table) -> pa.Table:
    """Keep the first row of each address, in order."""
    first = {}
    for k, address in enumerate(recordings["address"].to_pylist()):
        first.setdefault(address, k)
    return recordings.take(list(first.values())) if first else recordings
