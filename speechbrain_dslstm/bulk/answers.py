"""Answers as Parquet files, each written whole or not at all.

A file holds the answers of one part of the recordings. The files are the only
record of what is done: a restart reads the addresses in them.
"""

import hashlib
import io
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq

from speechbrain_dslstm.bulk.sources import is_local, open_system, resolve
from speechbrain_dslstm.inference.answer import column_names
from speechbrain_dslstm.inference.files import FileResult
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["Answers", "Summary", "answer_row", "answer_schema", "part_name"]

KEY = b"dslstm"
NOTES = ".begun"  # folder of what may end a worker
FILE = "__filename"  # pyarrow's name for the file that a row comes from
PLACES = ("file", "address", "channel", "label", "reason", "error", "segments")
WINDOW = ("start", "end", "label", "reason")


@dataclass(frozen=True)
class Summary:
    """Counts of a job, from the answers that are on disk at its end.

    Arguments
    ---------
    output
        Folder of the answers.
    rows
        Number of rows.
    answered
        Rows with an emotion.
    without_speech
        Rows with a reason why there is none.
    failed
        Rows with an error instead.
    earlier
        Recordings that were done before this start.
    seconds
        Duration of this start.
    cpu_seconds
        CPU time of its workers on recordings, without starting and loading.
    workers
        Number of workers.
    passed_over
        Line on files that are no recordings, "" for none.

    Example
    -------
    >>> print(Summary("answers", 3, 2, 1, 0, 1, 4.0, 2.0, 2))
    answers: 3 rows, 2 with an emotion, 1 without speech, 0 failed
    """

    output: str
    rows: int
    answered: int
    without_speech: int
    failed: int
    earlier: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    workers: int = 0
    passed_over: str = ""

    def __str__(self) -> str:
        return (
            f"{self.output}: {self.rows} rows, {self.answered} with an emotion, "
            f"{self.without_speech} without speech, {self.failed} failed"
        )


def answer_schema(
    labels: Iterable[str], dimensions: Iterable[str], job: Mapping[str, Any]
) -> pa.Schema:
    """Columns of the answers: a posterior for each class, then the dimensions.

    ``job``, the model and the options, is kept as metadata.
    """
    labels, dimensions = list(labels), list(dimensions)

    def numbers(others: Iterable[str]) -> list[tuple[str, pa.DataType]]:
        names = column_names([*labels, *dimensions], others)
        return [(name, pa.float32()) for name in names.values()]

    window = pa.struct(
        [
            ("start", pa.float64()),
            ("end", pa.float64()),
            ("label", pa.string()),
            *numbers(WINDOW),
            ("reason", pa.string()),
        ]
    )
    fields = [
        ("file", pa.string()),
        ("address", pa.string()),
        ("channel", pa.int32()),
        ("label", pa.string()),
        *numbers(PLACES),
        ("reason", pa.string()),
        ("error", pa.string()),
        ("segments", pa.list_(window)),
    ]
    return pa.schema(fields, {KEY: json.dumps(job, sort_keys=True).encode()})


def answer_row(
    file: str, address: str, labels: list[str], result: FileResult
) -> dict[str, Any]:
    """Row of one result."""
    return {
        "file": file,
        "address": address,
        "channel": result.channel,
        "label": result.label,
        **_numbers(labels, result, PLACES),
        "reason": result.reason,
        "error": result.error,
        "segments": [
            {
                "start": segment.start,
                "end": segment.end,
                "label": segment.label,
                **_numbers(labels, segment, WINDOW),
                "reason": segment.reason,
            }
            for segment in result.segments
        ],
    }


def _numbers(labels, result, others):
    """Posteriors and dimensions of a result or segment by their columns."""
    if result.log_posteriors is None:
        return {}
    posteriors = result.log_posteriors.exp().tolist()
    values = dict(zip(labels, posteriors, strict=True)) | result.dimensions
    names = column_names(values, others)
    return {names[name]: value for name, value in values.items()}


def part_name(addresses: Iterable[str]) -> str:
    """Name of the file for these recordings: a retry replaces its own file."""
    text = "\n".join(sorted(addresses))
    return f"part-{hashlib.sha256(text.encode()).hexdigest()[:20]}.parquet"


class Answers:
    """A folder of answers, local or at an address.

    Arguments
    ---------
    folder
        It need not exist.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.address = resolve(os.fspath(folder))
        self.system, self.path = open_system(self.address)
        if self.system.exists(self.path) and not self.system.isdir(self.path):
            raise NotADirectoryError(f"{folder} is a file; expected a folder")

    def write(self, name: str, table: pa.Table) -> None:
        """Write one part under its name, whole or not at all."""
        content = io.BytesIO()
        pq.write_table(table, content)
        path = f"{self.path}/{name}"
        if is_local(self.address):
            replace_file(path, content.getvalue())
            return
        temporary = f"{self.path}/.{name}.{uuid.uuid4().hex}.tmp"
        self.system.makedirs(self.path, exist_ok=True)
        try:
            self.system.pipe_file(temporary, content.getvalue())
            self.system.mv(temporary, path)
        except BaseException:
            with suppress(Exception):
                self.system.rm_file(temporary)
            raise

    def read(self, *columns: str) -> pa.Table:
        """Columns of all parts, and the part of each row as ``FILE``."""
        names = self._parts()
        if not names:
            return pa.table(
                {name: pa.nulls(0, pa.string()) for name in columns}
            )
        data = pyarrow.dataset.dataset(
            names, filesystem=self.system, format="parquet"
        )
        return data.to_table(columns=list(columns))

    def check_job(self, schema: pa.Schema) -> None:
        """Refuse answers of another model or of other options."""
        names = self._parts()
        if not names:
            return
        with self.system.open(names[0], "rb") as file:
            kept = (pq.read_schema(file).metadata or {}).get(KEY)
        if kept is None:
            raise ValueError(f"{names[0]} is not a file of answers")
        there, here = json.loads(kept), json.loads(schema.metadata[KEY])
        differs = [
            f"{name} {there.get(name)!r} there, {here.get(name)!r} here"
            for name in sorted({*there, *here})
            if there.get(name) != here.get(name)
        ]
        if differs:
            raise ValueError(
                f"{self.address} holds answers of another job "
                f"({'; '.join(differs)}): give another folder"
            )

    def drop_duplicates(self) -> None:
        """Keep a recording's rows in one part only.

        Two jobs at once, or the last worker of one that was killed, may have
        answered the same recording in two parts.
        """
        rows = self.read("address", FILE)
        if not rows.num_rows:
            return
        files = rows.group_by("address").aggregate(
            [(FILE, "min"), (FILE, "max")]
        )
        twice = pc.not_equal(files[f"{FILE}_min"], files[f"{FILE}_max"])
        kept = {
            row["address"]: row[f"{FILE}_min"]
            for row in files.filter(twice).to_pylist()
        }
        if not kept:
            return
        concerned = pc.is_in(rows["address"], pa.array(list(kept)))
        for name in pc.unique(rows.filter(concerned)[FILE]).to_pylist():
            elsewhere = [one for one, file in kept.items() if file != name]
            self._drop(
                name,
                lambda t, e=elsewhere: pc.is_in(
                    t["address"], pa.array(e, pa.string())
                ),
            )

    def drop_errors(self) -> None:
        """Remove the rows with errors, so that their recordings are tried again."""
        rows = self.read("error", "reason", FILE)
        if rows.num_rows:
            for name in pc.unique(rows.filter(_failed(rows))[FILE]).to_pylist():
                self._drop(name, _failed)

    def summarize(self, **more: Any) -> Summary:
        """Count the rows."""
        rows = self.read("label", "error", "reason")
        counts = {
            name: rows.num_rows - rows[name].null_count
            for name in rows.column_names
        }
        return Summary(
            self.address,
            rows.num_rows,
            counts["label"],
            counts["reason"],
            counts["error"] - counts["reason"],
            **more,
        )

    def note(self, name: str, lines: list[str]) -> None:
        """Note for a part, before it is begun, what may end its worker."""
        path = self._note(name)
        self.system.makedirs(os.path.dirname(path), exist_ok=True)
        self.system.pipe_file(path, json.dumps(lines).encode())

    def notes(self, name: str) -> list[str] | None:
        """What was noted for a part; None if it was not begun, or is done."""
        try:
            return json.loads(self.system.cat_file(self._note(name)))
        # Killed while it was written
        except (FileNotFoundError, ValueError):
            return None

    def drop_notes(self, name: str | None = None) -> None:
        """Remove the notes for a part, or all."""
        path = self._note(name) if name else f"{self.path}/{NOTES}"
        with suppress(FileNotFoundError):
            self.system.rm(path, recursive=name is None)

    def _note(self, name):
        return f"{self.path}/{NOTES}/{name}.json"

    def _parts(self):
        """Paths of the parts, sorted."""
        self.system.invalidate_cache()
        return sorted(self.system.glob(f"{self.path}/part-*.parquet"))

    def _drop(self, file, wrong):
        """Remove some rows of a part."""
        # pyarrow strips the protocol and the leading / of some systems
        path = f"{self.path}/{os.path.basename(file)}"
        with self.system.open(path, "rb") as opened:
            rows = pq.read_table(opened)
        rows = rows.filter(pc.invert(wrong(rows)))
        if rows.num_rows:
            self.write(os.path.basename(file), rows)
        else:
            self.system.rm_file(path)


def _failed(rows: pa.Table) -> pa.ChunkedArray:
    """Which rows hold an error rather than the absence of speech."""
    return pc.and_(pc.is_valid(rows["error"]), pc.is_null(rows["reason"]))
