"""Read the rows of a table of recordings: CSV, TSV, JSON Lines or audformat.

Every row keeps the line that it begins on, and every error names file and line.
``table`` gives the rows their meaning.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["Row", "read_rows"]

# Line, or another place in the table, and the text of each column
Row = tuple[str, dict[str, str]]
DELIMITERS = ",;\t|"
JSON_LINES = (".jsonl", ".ndjson", ".json")
SEPARATED = (".csv", ".tsv", ".tab", ".txt")
# First bytes of files that spreadsheets and others save, and what they are
FOREIGN = {
    b"PK\x03\x04": "an Excel or zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel file",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "a gzip file",
    b"PAR1": "a Parquet file",
}
LONGEST_CELL = 2**20  # characters; an unclosed quote swallows the whole file


def read_rows(path: str | Path, wanted: Iterable[str]) -> list[Row]:
    """Read a table as text; the place of a row is "file:line".

    Empty lines are skipped, cells lose spaces at both ends, and names of
    columns may differ in case from ``wanted``. The delimiter is the one of
    ``, ; tab |`` that splits the header into most of the ``wanted`` columns.
    """
    path = Path(path)
    wanted = list(wanted)
    if path.is_dir() or path.name == "db.yaml":
        from speechbrain_dslstm.corpora.audformat_tables import read_database

        folder = path if path.is_dir() else path.parent
        return read_database(folder, wanted)
    ending = path.suffix.lower()
    if ending not in (*JSON_LINES, *SEPARATED):
        raise ValueError(
            f"{path}: unknown kind of table {path.suffix!r}; expected one of "
            f"{', '.join((*SEPARATED, *JSON_LINES))}, or the folder of an "
            "audformat database"
        )
    text = _read_text(path)
    if ending in JSON_LINES:
        rows = _json_lines(path, text, wanted)
    else:
        rows = _separated(path, text, wanted)
    names = {name.casefold(): name for name in wanted}
    found = [
        (where, {names.get(k.casefold(), k): v for k, v in row.items()})
        for where, row in rows
    ]
    if not found:
        raise ValueError(f"{path}: the table has no row")
    return found


def _read_text(path: Path) -> str:
    """Read UTF-8 with or without a byte order mark, and refuse what is no text."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no table {path}") from error
    if not data.strip():
        raise ValueError(f"{path}: the table is empty")
    for start, kind in FOREIGN.items():
        if data.startswith(start):
            raise ValueError(
                f"{path} is {kind}: save the table as CSV in UTF-8"
            )
    if b"\0" in data:
        line = data[: data.index(b"\0")].count(b"\n") + 1
        raise ValueError(f"{path}:{line}: a NUL byte; expected text in UTF-8")
    try:
        # Joined files have several marks
        return data.decode("utf-8").lstrip("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = error.start - before.rfind(b"\n")
        raise ValueError(
            f"{path}:{line}: byte {column} of the line (0x"
            f"{data[error.start]:02x}) is not UTF-8: save the table in UTF-8"
        ) from error


def _separated(path: Path, text: str, wanted: list[str]) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV, whatever its delimiter."""
    known = {name.casefold() for name in wanted}

    def header(delimiter: str) -> list[str]:
        """Read the names of the columns; none if they cannot be read."""
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            rows = ([cell.strip() for cell in row] for row in reader)
            return next(filter(any, rows), [])
        except csv.Error:
            return []

    def fit(delimiter: str) -> tuple[int, int]:
        """Rate a delimiter by the columns it yields: wanted ones, and all."""
        names = header(delimiter)
        return len(known & {name.casefold() for name in names}), len(names)

    delimiter = max(DELIMITERS, key=fit)
    before = csv.field_size_limit(LONGEST_CELL)
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    columns, begin = None, 1
    try:
        for cells in reader:
            here, begin = f"{path}:{begin}", reader.line_num + 1
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if columns is None:
                columns = _check_header(here, cells)
                continue
            if len(cells) != len(columns):
                raise ValueError(
                    f"{here}: {len(cells)} cells, but the header has "
                    f"{len(columns)} columns"
                )
            yield (
                here,
                {
                    name: cell
                    for name, cell in zip(columns, cells, strict=True)
                    if name
                },
            )
    except csv.Error as error:
        raise ValueError(
            f"{path}:{begin}: {error} (is a quote not closed?)"
        ) from error
    finally:
        csv.field_size_limit(before)


def _check_header(here: str, names: list[str]) -> list[str]:
    """Refuse two columns of the same name; columns without a name are ignored."""
    seen = set()
    for name in filter(None, names):
        if name.casefold() in seen:
            raise ValueError(f"{here}: two columns are named {name!r}")
        seen.add(name.casefold())
    return names


def _json_lines(path: Path, text: str, wanted: list[str]) -> Iterator[Row]:
    """Yield the objects of JSON Lines; values of ``wanted`` keys become text."""
    known = {name.casefold() for name in wanted}
    # Not splitlines(): JSON may hold U+2028 and others
    for number, line in enumerate(text.split("\n"), start=1):
        here = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_pairs)
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", error)
            raise ValueError(
                f"{here}: {reason}; expected JSON Lines, an object on each line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{here}: expected an object such as "
                f'{{"file": "a.wav", "emotion": "anger"}}, got {line[:40]!r}'
            )
        _check_header(here, list(row))
        yield (
            here,
            {
                key: _as_text(here, key, row[key])
                if key.casefold() in known
                else ""
                for key in row
            },
        )


def _pairs(pairs: list[tuple[str, object]]) -> dict:
    """Build a JSON object, and refuse a name that it has twice."""
    found = {}
    for key, value in pairs:
        name = key.strip()
        if name in found:
            raise ValueError(f"two values are named {name!r}")
        found[name] = value
    return found


def _as_text(here: str, name: str, value: object) -> str:
    """Write a JSON value as the cell of a CSV."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise ValueError(
        f"{here}: {name} is {json.dumps(value)[:40]}; expected a text or number"
    )
