"""Read the tables of an audformat database as rows; requires audformat."""

import os
from pathlib import Path

__all__ = ["read_database"]


def read_database(
    folder: Path, wanted: list[str]
) -> list[tuple[str, dict[str, str]]]:
    """Read all clips of a database that have a label of emotion.

    Columns are found by the names of schemes, as ``audformat.Database.get``
    does. A table whose split is train, dev or test gives ``split``. The place
    of a row is the header and the file's name.
    """
    header = folder / "db.yaml"
    if not header.is_file():
        raise FileNotFoundError(
            f"{folder} is a folder without db.yaml, so it is no audformat "
            "database; expected a table such as CSV, or such a database"
        )
    pickles = sorted(folder.glob("db.*.pkl"))
    if pickles:
        # Loading a pickle runs whatever its author put there
        raise ValueError(
            f"{pickles[0]} is a pickle, which is not read: save the database "
            "with storage_format='csv' or 'parquet'"
        )
    try:
        import audformat
    except ImportError as error:
        raise ImportError(
            f"{header} needs the library audformat: "
            'pip install "speechbrain-dslstm[audformat]"'
        ) from error
    try:
        base = audformat.Database.load(str(folder), load_data=True)
    except Exception as error:
        raise ValueError(f"{header}: {error}") from error
    emotion = wanted[1]
    others = [
        name
        for name in wanted[2:]
        if name and name not in ("start", "end", "split")
    ]
    splits = {None: None}
    if base.splits:
        splits = {name: one.type for name, one in base.splits.items()}
    rows = {}
    for name, kind in splits.items():
        # Tables of no split are read last, and only for clips of no split
        options = {} if name is None else {"splits": name}
        _add(rows, base, emotion, others, options, kind or "", header)
    _add(rows, base, emotion, others, {}, "", header)
    if not rows:
        raise ValueError(
            f"{header}: no column or scheme {emotion!r}; the schemes are "
            f"{', '.join(base.schemes) or 'none'}"
        )
    return list(rows.values())


def _add(rows, base, emotion, others, options, split, header):
    """Add the clips of a split that are not there yet."""
    import pandas

    have = [name for name in others if name in _columns(base)]
    found = base.get(emotion, have, **options)
    if not len(found.columns):
        return
    for index, values in zip(
        found.index, found.itertuples(index=False, name=None), strict=True
    ):
        file, start, end = (
            index if isinstance(index, tuple) else (index, *[""] * 2)
        )
        key = file, str(start), str(end)
        if key in rows:
            continue
        row = {
            name: "" if pandas.isna(value) else str(value).strip()
            for name, value in zip(found.columns, values, strict=True)
        }
        if not row[emotion]:
            continue
        row["file"] = file.replace("/", os.sep)
        for name, value in (("start", start), ("end", end)):
            known = value != "" and not pandas.isna(value)
            row[name] = str(value.total_seconds()) if known else ""
        if split:
            row["split"] = split
        rows[key] = f"{header}: {file}", row


def _columns(base):
    """Names that audformat can look labels up by."""
    names = set(base.schemes)
    for scheme in base.schemes.values():
        labels = scheme.labels
        if isinstance(labels, dict):
            for facts in labels.values():
                names |= set(facts) if isinstance(facts, dict) else set()
        elif isinstance(labels, str) and labels in base.misc_tables:
            names |= set(base.misc_tables[labels].columns)
    for table in (*base.tables.values(), *base.misc_tables.values()):
        names |= set(table.columns)
    return names
