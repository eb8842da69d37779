"""The folds of a protocol as a CSV table, for use by other software."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from speechbrain_dslstm.splits.protocols import (
    count_folds,
    make_split,
    split_hash,
)
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["write_folds"]


def write_folds(
    path: str | Path,
    entries: dict[str, dict],
    protocols: Sequence[str],
    seed: int = 0,
    n_folds: int = 5,
    valid_speakers: int = 2,
) -> None:
    """Write to which subset each utterance belongs in each fold.

    Each utterance has a row, sorted by id, with its speaker and emotion, and a
    column for each fold. A column is named by protocol, fold and hash of the
    split, such as "session 0 85f1b5f9c056"; results.json and reports give the
    same hash. A cell is train, valid or test; valid+test where one subset
    serves as both; or empty.

    Arguments
    ---------
    path
        The CSV file.
    entries
        Manifest entries by utterance id.
    protocols
        Names in ``PROTOCOLS``.
    seed, n_folds, valid_speakers
        See ``make_split``.

    Example
    -------
    >>> entries = {
    ...     s + t: {"speaker": s, "session": s, "text_id": t}
    ...     | {"emotion": "anger", "gender": "F"}
    ...     for s in "abcd"
    ...     for t in "12"
    ... }
    >>> path = getfixture("tmp_path") / "folds.csv"
    >>> write_folds(path, entries, ["session"])
    >>> with open(path, newline="") as file:
    ...     row = next(csv.DictReader(file))
    >>> row["id"], row["speaker"], list(row.values()).count("test")
    ('a1', 'a', 1)
    """
    columns = {}
    for protocol in protocols:
        for fold in range(count_folds(entries, protocol, n_folds)):
            split = make_split(
                entries, protocol, fold, seed, n_folds, valid_speakers
            )
            subsets_of = {key: [] for key in entries}
            for name, ids in split.subsets.items():
                for key in ids:
                    subsets_of[key].append(name)
            columns[f"{protocol} {fold} {split_hash(split)}"] = subsets_of
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "speaker", "emotion", *columns])
    for key in sorted(entries):
        entry = entries[key]
        found = ["+".join(subsets[key]) for subsets in columns.values()]
        writer.writerow([key, entry["speaker"], entry["emotion"], *found])
    replace_file(path, text.getvalue())
