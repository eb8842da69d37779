"""The folds of a protocol as a table, for whoever wants to use the same ones."""

import csv
import io

from speechbrain_dslstm.splits.protocols import (
    count_folds,
    make_split,
    split_hash,
)
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["write_folds"]

SIDES = ("train", "valid", "test")


def write_folds(path, entries, protocols, seed=0, n_folds=5, valid_speakers=2):
    """Write the sides of every fold.

    Arguments
    ---------
    path : str or pathlib.Path
        The csv file: a row for each utterance, sorted by id, with its
        speaker and emotion, and a column for each fold. "session 0
        85f1b5f9c056" is protocol, fold and the ``split_hash`` that stands in
        results.json and in reports; the sides are train, valid, test,
        valid+test where the protocol has one side for both, or empty.
    entries : dict
        Manifest entries by utterance id.
    protocols : list of str
        Names in ``protocols.PROTOCOLS``.
    seed : int
        See ``make_split``.
    n_folds : int
        See ``make_split``.
    valid_speakers : int
        See ``make_split``.

    Raises
    ------
    ValueError
        A bad protocol or number, or too little data for it.

    Example
    -------
    >>> entries = {
    ...     s + t: {"speaker": s, "session": s, "emotion": "anger"}
    ...     | {"dialogue": "", "gender": "F", "text_id": t}
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
            sides = {key: [] for key in entries}
            for side in SIDES:
                for key in getattr(split, side):
                    sides[key].append(side)
            columns[f"{protocol} {fold} {split_hash(split)}"] = sides
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "speaker", "emotion", *columns])
    for key in sorted(entries):
        entry = entries[key]
        found = ["+".join(sides[key]) for sides in columns.values()]
        writer.writerow([key, entry["speaker"], entry["emotion"], *found])
    replace_file(path, text.getvalue())
