"""A file of answers that grows row by row and survives a kill."""

import csv
import io
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import click

from speechbrain_dslstm.cli.rows import RowFormat
from speechbrain_dslstm.utils.files import (
    check_output,
    name_errors,
    replace_file,
)

ENDINGS = {".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
# So that names which are no UTF-8 come back as they are
TEXT = {"encoding": "utf-8", "errors": "surrogateescape"}


def check_row_file(path: Path, resume: bool) -> None:
    """Refuse a file that exists, unless it is to be continued."""
    if path.is_file() and not resume:
        raise FileExistsError(
            f"{path} exists: add --resume to continue it, or give another name"
        )
    check_output(path, overwrite=True)


class RowFile:
    """Rows of answers in a file, which is continued if it exists.

    Each row reaches the system with one call, so that a kill costs at most the
    row that is being written. A part of a row at the end is removed. The
    ``settings`` that shape the answers are kept beside the file, and other ones
    are refused; nothing is written before all checks have passed.

    Arguments
    ---------
    path
        The file.
    form
        CSV or JSON Lines.
    settings
        What must be the same for all rows, as JSON data.
    """

    def __init__(self, path: Path, form: RowFormat, settings: dict) -> None:
        self.path, self.form = path, form
        self._record = path.with_name(f".{path.name}.settings.json")
        with name_errors(path):
            self._file = open(path, "a+b", buffering=0)
        try:
            self._lock()
            self.done = self._recover(settings)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "RowFile":
        return self

    def __exit__(self, kind: type | None, *error: object) -> None:
        self._file.close()
        if kind is KeyboardInterrupt:
            hint = "dslstm: stopped; the same command with --resume continues"
            click.echo(hint, err=True)

    def write(self, row: dict) -> None:
        """Append a row."""
        self._append(self.form.line(row))

    def _append(self, text: str) -> None:
        left = text.encode(**TEXT)
        with name_errors(self.path):
            # A full disk may take a part, and says why only at the next call
            while left:
                left = left[self._file.write(left) :]

    def _lock(self) -> None:
        """Refuse a file that another process is writing."""
        with suppress(ImportError):
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self.path}: another process is writing it"
                ) from None
            except OSError:
                # A file system without locks
                pass

    def _recover(self, settings: dict) -> dict[str, bool]:
        """Keep the rows of complete files: file -> whether it could be read."""
        self._file.seek(0)
        content = self._file.read()
        records = list(_split(content, self.form.kind == "csv"))
        rows = [self._parse(k, text) for k, text in enumerate(records)]
        begun = sum(row is not None for row in rows)
        if content and not begun and not self._is_begun(content):
            raise ValueError(f"{self.path}: {self._expected()}")
        if begun:
            self._check_settings(settings)
        if self.form.places and begun:
            # Rows of the last file may be missing
            last = rows[-1]["file"]
            while rows and rows[-1] is not None and rows[-1]["file"] == last:
                rows.pop()
        kept = b"".join(records[: len(rows)])
        with name_errors(self.path):
            self._file.truncate(len(kept))
        if not begun:
            replace_file(self._record, json.dumps(settings, indent=1))
        if not kept:
            self._append(self.form.header)
        done = {}
        for row in filter(None, rows):
            name = os.path.abspath(row["file"])
            unread = bool(row.get("error")) and not row.get("reason")
            done[name] = done.get(name, True) and not unread
        return done

    def _is_begun(self, content: bytes) -> bool:
        """Whether a file without rows is what a kill left of this format."""
        start = self.form.header or '{"file": '
        given = content.decode(**TEXT)
        return start.startswith(given) or given.startswith(start)

    def _parse(self, number: int, record: bytes) -> dict | None:
        """Read a whole row; None for the header."""
        text = record.decode(**TEXT)
        if self.form.kind == "csv":
            names = next(csv.reader([self.form.header]))
            cells = next(csv.reader(io.StringIO(text, newline="")), [])
            if number == 0 and cells == names:
                return None
            if number > 0 and len(cells) == len(names):
                return dict(zip(names, cells, strict=True))
        else:
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(text)
                if isinstance(row["file"], str):
                    return row
        raise ValueError(f"{self.path}, row {number + 1}: {self._expected()}")

    def _expected(self) -> str:
        kind = "the columns " + self.form.header.strip()
        if self.form.kind == "json":
            kind = 'a JSON object with "file"'
        return f"expected {kind}, as this command writes it"

    def _check_settings(self, settings: dict) -> None:
        """Refuse rows of another model or other options."""
        with suppress(FileNotFoundError):
            before = json.loads(self._record.read_text("utf-8"))
            other = [k for k, v in settings.items() if before.get(k) != v]
            if other:
                raise ValueError(
                    f"{self.path} was begun with other values of "
                    f"{', '.join(other)}: give the same options, or another "
                    "--output"
                )


def _split(content: bytes, quoted: bool) -> Iterator[bytes]:
    """Split into whole records; a line feed in quotes belongs to a record."""
    held = b""
    for line in io.BytesIO(content):
        held += line
        inside = quoted and held.count(b'"') % 2
        if line.endswith(b"\n") and not inside:
            yield held
            held = b""
