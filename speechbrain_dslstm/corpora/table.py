"""Own recordings: a table with a row for each clip, or for a part of a file.

Required columns are ``file`` and ``emotion``; ``OPTIONAL`` lists the others.
``read_table`` needs no audio. ``find_files`` looks for the recordings.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from speechbrain_dslstm.corpora.clips import split_segment
from speechbrain_dslstm.corpora.table_files import Row, read_rows
from speechbrain_dslstm.corpora.transcripts import normalise_text
from speechbrain_dslstm.utils.names import fits_on_line

__all__ = ["Table", "find_files", "read_table"]

REQUIRED = ("file", "emotion")
DIMENSIONS = ("valence", "arousal", "dominance")
OPTIONAL = (
    *("speaker", "gender", "session", "text", "text_id", "split"),
    *("start", "end", *DIMENSIONS),
)
GENDERS = {
    **dict.fromkeys(("f", "female", "w", "woman", "girl"), "F"),
    **dict.fromkeys(("m", "male", "man", "boy"), "M"),
}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
# Without a column session, speakers are put into at most as many groups
GROUPS = 5
LONGEST_STEM = 60  # bytes
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
# pandas' and audformat's times, such as "0 days 00:00:01.5"
TIME = re.compile(r"(?:(\d+) days? ?)?(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)")


@dataclass(frozen=True)
class Table:
    """The rows of a table as records; ``records`` have no path yet.

    Each record has the keys of a manifest entry but those of the audio, and
    ``file``, the text in the table; ``segment``, start and end in seconds or
    None; and ``where``, file and line.
    """

    path: Path
    records: list[dict]

    @property
    def stem(self) -> str:
        """Name of the table in folders and reports, without its hash."""
        name = self.path.name if self.path.is_dir() else self.path.stem
        if self.path.name == "db.yaml":
            name = self.path.absolute().parent.name
        name = re.sub(r"[^\w.-]+", "_", name).strip("._-") or "table"
        # File systems allow 255 bytes, and more is added
        return name.encode()[:LONGEST_STEM].decode(errors="ignore")

    @property
    def digest(self) -> str:
        """Hash of all that the rows say, whatever their order and layout."""
        lines = sorted(
            json.dumps({**record, "where": ""}, sort_keys=True)
            for record in self.records
        )
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def read_table(
    path: str | Path, columns: Mapping[str, str] | None = None
) -> Table:
    """Read a table, and check everything that can be checked without audio.

    ``columns`` gives the table's own name of a column, such as
    {"emotion": "label"}. Kinds of files are those of ``table_files``.
    """
    path = Path(path).expanduser()
    theirs = _column_names(columns)
    rows = read_rows(path, filter(None, theirs.values()))
    present = set().union(*(row for _, row in rows))
    for name in (*REQUIRED, *(columns or {})):
        if theirs[name] not in present:
            others = ", ".join(sorted(present)) or "none"
            raise ValueError(
                f"{path}: no column {theirs[name]!r}; the columns are: "
                f"{others}. If {name} has another name there, give "
                f"--columns='{{{name}: NAME}}'"
            )
    records, seen = [], {}
    for row in rows:
        record = _record(row, theirs)
        key = record["id"]
        if key in seen:
            _refuse_duplicate(record, seen[key])
        seen[key] = record
        records.append(record)
    _check_speakers(records)
    _check_overlaps(records)
    if theirs["session"] not in present:
        _group_speakers(records)
    return Table(path, records)


def _column_names(columns: Mapping[str, str] | None) -> dict[str, str | None]:
    """Map our names of columns to the table's; None for one it cannot have."""
    theirs = {name: name for name in (*REQUIRED, *OPTIONAL)}
    for name, given in dict(columns or {}).items():
        if name not in theirs:
            raise ValueError(
                f"columns: unknown column {name!r}; expected one of "
                f"{', '.join(theirs)}"
            )
        if given is None or isinstance(given, bool | list | dict):
            raise ValueError(
                f"columns: {name} is {given!r}; expected the name of a column"
            )
        theirs[name] = str(given).strip()
    # A column given for one meaning must not keep the meaning of its name
    given = {theirs[name].casefold() for name in columns or {}}
    for name in theirs:
        if name not in (columns or {}) and name in given:
            theirs[name] = None
    return theirs


def _record(row: Row, theirs: Mapping[str, str | None]) -> dict[str, Any]:
    """Turn a row into a record."""
    where, cells = row
    cell = {name: cells.get(theirs[name], "") for name in theirs}
    for name in REQUIRED:
        if not cell[name]:
            raise ValueError(f"{where}: {theirs[name]} is empty")
    for name, text in cell.items():
        # A transcript may have several lines
        text = " ".join(text.split()) if name == "text" else text
        if not fits_on_line(text):
            raise ValueError(
                f"{where}: {theirs[name]} is {text[:60]!r}, with a character "
                "that cannot be printed; expected a text on one line"
            )
    split = cell["split"].lower()
    if split and split not in SPLITS:
        raise ValueError(
            f"{where}: {theirs['split']} is {cell['split']!r}; expected "
            "train, valid or test"
        )
    segment = _segment(where, cell, theirs)
    file = _clean_path(where, cell["file"])
    part = "" if segment is None else f"[{_span(segment)}]"
    record = {
        "id": file + part,
        "file": file,
        "segment": segment,
        "where": where,
        "emotion": cell["emotion"],
        "speaker": cell["speaker"],
        "gender": GENDERS.get(cell["gender"].lower(), ""),
        "session": cell["session"],
        "dialogue": "",
        "text_id": cell["text_id"] or normalise_text(cell["text"]),
        "text": cell["text"],
    }
    if split:
        record["split"] = SPLITS[split]
    for name in DIMENSIONS:
        if cell[name] and cell[name].lower() not in ("nan", "na"):
            record[name] = _number(where, theirs[name], cell[name])
    return record


def _clean_path(where: str, text: str) -> str:
    """Bring the text of a path into one form: /, without . and doubled parts."""
    if "://" in text and ADDRESS.match(text):
        parts = urlsplit(text)
        if parts.scheme.lower() != "file" or parts.netloc not in (
            "",
            "localhost",
        ):
            raise ValueError(
                f"{where}: {text[:60]} is an address; download the file, and "
                "give its path"
            )
        text = unquote(parts.path)
    if os.name != "nt":
        if WINDOWS.match(text):
            raise ValueError(
                f"{where}: {text} is a path of another computer under Windows; "
                "give paths relative to data_folder"
            )
        text = text.replace("\\", "/")
    if "#t=" in text and split_segment(text)[1] is not None:
        raise ValueError(
            f"{where}: {text} ends with times; give them in columns start and "
            "end"
        )
    text = os.path.normpath(os.path.expanduser(text))
    return text.replace(os.sep, "/")


def _segment(
    where: str, cell: Mapping[str, str], theirs: Mapping[str, str | None]
) -> tuple[float, float | None] | None:
    """Start and end in seconds, None to the end; None for the whole file."""
    start, end = (
        None
        if cell[name].lower() in ("", "nan", "nat", "na")
        else _seconds(where, theirs[name], cell[name])
        for name in ("start", "end")
    )
    if end is None and not start:
        return None
    start = start or 0.0
    if start < 0 or (end is not None and end <= start):
        raise ValueError(
            f"{where}: start {start:g} and end {end if end is None else f'{end:g}'}"
            "; expected 0 <= start < end, in seconds"
        )
    return start, end


def _seconds(where: str, name: str, text: str) -> float:
    """Read a time: a number of seconds, or such as 0 days 00:00:01.5."""
    time = TIME.fullmatch(text)
    if not time:
        return _number(where, name, text)
    days, hours, minutes, seconds = (float(one or 0) for one in time.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _number(where: str, name: str, text: str) -> float:
    """Read a number; a decimal comma, an infinity and NaN are errors."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in text:
        raise ValueError(
            f"{where}: {name} is {text!r}; expected a number such as 1.5"
        )
    return number


def _span(segment: tuple[float, float | None]) -> str:
    """Write a segment as in the id of its clip, such as 0.5-2."""
    start, end = segment
    return f"{start:.10g}-{'' if end is None else f'{end:.10g}'}"


def _refuse_duplicate(record: dict, other: dict) -> None:
    """Raise the error for a clip that has two rows."""
    line = other["where"].rpartition(":")[2]
    facts = "" if record["segment"] is None else " with the same segment"
    if record["emotion"] != other["emotion"]:
        facts += f", as {record['emotion']!r} and as {other['emotion']!r}"
    raise ValueError(
        f"{record['where']}: {record['file']} is also in line {line}{facts}; "
        "remove one of the rows"
    )


def _check_speakers(records: list[dict]) -> None:
    """Refuse a speaker of two genders, who may be two speakers."""
    seen = {}
    for record in records:
        if record["speaker"] and record["gender"]:
            other = seen.setdefault(record["speaker"], record)
            if other["gender"] != record["gender"]:
                line = other["where"].rpartition(":")[2]
                raise ValueError(
                    f"{record['where']}: speaker {record['speaker']} is "
                    f"{record['gender']} here and {other['gender']} in line "
                    f"{line}; two speakers need two names"
                )
    for record in records:
        known = seen.get(record["speaker"])
        if known is not None:
            record["gender"] = known["gender"]


def _check_overlaps(records: list[dict]) -> None:
    """Refuse parts of a file that overlap, but are in different subsets."""
    by_file = {}
    for record in records:
        by_file.setdefault(record["file"], []).append(record)
    for some in by_file.values():
        if len({record.get("split") for record in some}) < 2:
            continue
        spans = sorted(
            (*_bounds(record["segment"]), number)
            for number, record in enumerate(some)
        )
        for k, (_, end, number) in enumerate(spans):
            for start, _, later in spans[k + 1 :]:
                if start >= end:
                    break
                one, two = some[number], some[later]
                if one.get("split") != two.get("split"):
                    line = one["where"].rpartition(":")[2]
                    raise ValueError(
                        f"{two['where']}: {two['id']} overlaps {one['id']} in "
                        f"line {line}, which is in another subset"
                    )


def _bounds(segment: tuple[float, float | None] | None) -> tuple[float, float]:
    """Start and end of a segment as numbers."""
    start, end = segment or (0.0, None)
    return start, math.inf if end is None else end


def _group_speakers(records: list[dict]) -> None:
    """Make sessions of groups of speakers; women and men are spread over them."""
    genders = {r["speaker"]: r["gender"] for r in records if r["speaker"]}
    order = sorted(genders, key=lambda name: (genders[name], name))
    groups = {name: str(1 + k % GROUPS) for k, name in enumerate(order)}
    for record in records:
        record["session"] = groups.get(record["speaker"], "")


def find_files(table: Table, folders: list[Path]) -> list[dict]:
    """Find the recordings, and return records in the form of ``build_manifest``.

    Relative paths belong to the first of the ``folders`` that has one of the
    table's files. Missing files raise a FileNotFoundError that names the first.
    """
    names = [record["file"] for record in table.records]
    relative = [name for name in names if not os.path.isabs(name)]
    folder = folders[0]
    for one in folders:
        if any(os.path.isfile(os.path.join(one, name)) for name in relative):
            folder = one
            break
    start = f"{Path(os.path.abspath(folder)).as_posix()}/"
    records, missing, seen = [], [], {}
    for record in table.records:
        # An absolute path into the folder is the same as a relative one
        name = record["file"].removeprefix(start)
        key = record["id"].removeprefix(start)
        if key in seen:
            _refuse_duplicate(record, seen[key])
        seen[key] = record
        path = os.path.normpath(os.path.join(folder, name))
        if not os.path.isfile(path):
            missing.append((record["where"], path))
        found = {k: v for k, v in record.items() if k != "file"}
        records.append({**found, "id": key, "path": path})
    if missing:
        where, path = missing[0]
        hint = (
            ""
            if not relative
            else (
                "; relative paths belong to data_folder, which is "
                f"{folder} here"
            )
        )
        raise FileNotFoundError(
            f"{where}: no file {path} ({len(missing)} of the {len(records)} "
            f"files are missing){hint}"
        )
    return records
