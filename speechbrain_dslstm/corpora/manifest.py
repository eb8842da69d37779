"""The one manifest schema of all corpora: build, validate, write, read.

A manifest is a JSON object, utterance id -> entry, as SpeechBrain's
``DynamicItemDataset.from_json`` reads it. Paths begin with ``{data_root}``, so
a manifest moves between machines. The keys of an entry are those of
``REQUIRED`` and, where the corpus has them, those of ``OPTIONAL``.
"""

import json
import math
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.corpora.clips import read_audio_facts
from speechbrain_dslstm.utils.files import replace_file

__all__ = [
    "build_manifest",
    "select_labels",
    "check_entries",
    "write_manifest",
    "write_left_out",
    "read_manifest",
    "check_dimensions",
    "to_scale",
]

logger = get_logger(__name__)
ROOT = "{data_root}/"
REQUIRED = {
    "wav": str,
    "duration": float,
    "emotion": str,
    "speaker": str,
    "gender": str,
    "session": str,
    "dialogue": str,
    "text_id": str,
    "text": str,
    "audio_hash": str,
}
OPTIONAL = {
    "valence": float,
    "arousal": float,
    "dominance": float,
    "votes": dict,
}
MAY_BE_EMPTY = ("dialogue", "text")
SHOWN = 3


def build_manifest(records, data_folder, labels, left_out=None):
    """Turn a corpus module's records into manifest entries.

    Every audio file is opened. What cannot be used is counted in one warning
    per kind of trouble, and the rest survives. Of two records with one id the
    first usable one, in the order of their paths, is kept.

    Arguments
    ---------
    records : iterable of dict
        Each with ``id``, ``path`` (inside ``data_folder``) and the keys of an
        entry but ``wav``, ``duration`` and ``audio_hash``; ``where`` may say
        which line of which file it is from.
    data_folder : str or pathlib.Path
        What ``{data_root}`` will stand for.
    labels : list of str
        The emotions wanted.
    left_out : list, optional
        Gets a dict for each record that could not be used: its "id", the
        "reason", and "where" it is from.

    Returns
    -------
    dict
        Utterance id -> entry, sorted by id.

    Raises
    ------
    ValueError
        Nothing usable is left, or an entry breaks the schema.

    Example
    -------
    >>> import tempfile, numpy as np, soundfile
    >>> folder = tempfile.mkdtemp()
    >>> soundfile.write(f"{folder}/a.wav", np.zeros(8000) + 0.5, 16000)
    >>> record = {"id": "a", "path": f"{folder}/a.wav", "emotion": "anger"}
    >>> record |= {"speaker": "1", "gender": "F", "session": "1"}
    >>> record |= {"dialogue": "", "text_id": "s1", "text": ""}
    >>> entry = build_manifest([record], folder, ["anger"])["a"]
    >>> entry["wav"], entry["duration"]
    ('{data_root}/a.wav', 0.5)
    """
    data_folder = Path(data_folder)
    entries = {}
    trouble = {}
    left_out = [] if left_out is None else left_out
    ordered = sorted(records, key=lambda r: (r["id"], str(r["path"])))
    for record in ordered:
        record = dict(record)
        key, path = record.pop("id"), Path(record.pop("path"))
        name = path.relative_to(data_folder).as_posix()
        where = record.pop("where", name)
        if record["emotion"] not in labels:
            kind = f"with a label outside {labels}"
            name = f"{name} ({record['emotion']})"
        elif key in entries:
            kind, name = "named twice (the first is kept)", f"{key} ({name})"
        else:
            facts, kind = read_audio_facts(path)
        if kind is not None:
            trouble.setdefault(kind, []).append(name)
            reason = f"{kind}: {name}"
            left_out.append({"id": key, "reason": reason, "where": where})
            continue
        # SpeechBrain runs str.format_map over every string of a manifest
        wav = ROOT + name.replace("{", "{{").replace("}", "}}")
        text = record["text"].replace("{", "(").replace("}", ")")
        text_id = record["text_id"].replace("{", "(").replace("}", ")")
        record.update(text=text, text_id=text_id)
        entries[key] = {"wav": wav, **facts, **record}
    for kind in sorted(trouble):
        names = trouble[kind]
        logger.warning(
            "%d of %d clips %s, skipped: %s%s",
            len(names),
            len(ordered),
            kind,
            ", ".join(names[:SHOWN]),
            ", ..." if len(names) > SHOWN else "",
        )
    if not entries:
        raise ValueError(
            f"no usable clip in {data_folder}: {len(ordered)} found"
            + "".join(f"; {len(v)} {k}" for k, v in sorted(trouble.items()))
        )
    check_entries(entries)
    return entries


def select_labels(label_sets, name):
    """Look a label set up by name.

    Arguments
    ---------
    label_sets : dict
        Name -> ordered mapping of the corpus' codes to emotions.
    name : str
        The one wanted.

    Returns
    -------
    dict
        The corpus' code -> emotion.

    Raises
    ------
    ValueError
        There is no such label set.

    Example
    -------
    >>> select_labels({"2class": {"W": "anger", "N": "neutral"}}, "2class")
    {'W': 'anger', 'N': 'neutral'}
    """
    if name not in label_sets:
        known = ", ".join(label_sets)
        raise ValueError(f"unknown label set {name!r}; there are: {known}")
    return label_sets[name]


def check_entries(entries):
    """Hold entries to the schema.

    Arguments
    ---------
    entries : dict
        Utterance id -> entry.

    Raises
    ------
    ValueError
        Names the utterance and the key at fault.

    Example
    -------
    >>> check_entries({"a": {"wav": 3}})
    Traceback (most recent call last):
        ...
    ValueError: a: wav is 3, expected str
    """
    if not isinstance(entries, dict) or not entries:
        raise ValueError("a manifest is a non-empty object of id -> entry")
    for key, entry in entries.items():
        if not isinstance(entry, dict):
            raise ValueError(f"{key}: the entry is {entry!r}, expected dict")
        unknown = sorted(set(entry) - set(REQUIRED) - set(OPTIONAL))
        if unknown:
            raise ValueError(f"{key}: unknown key {unknown[0]}")
        for name, kind in (REQUIRED | OPTIONAL).items():
            if name in entry:
                fault = _fault(name, entry[name], kind)
            else:
                fault = "is missing" if name in REQUIRED else None
            if fault:
                raise ValueError(f"{key}: {name} {fault}")


def _fault(name, value, kind):
    """What is wrong with one value, or None."""
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"is {value!r}, expected float"
        if not math.isfinite(value) or (name == "duration" and value <= 0):
            return f"is {value}, expected a finite number"
        return None
    if not isinstance(value, kind):
        return f"is {value!r}, expected {kind.__name__}"
    if kind is dict:
        rows = value.values()
        good = all(
            isinstance(row, list) and all(isinstance(v, str) for v in row)
            for row in rows
        )
        return None if good else f"is {value!r}, expected lists of str"
    if not value and name not in MAY_BE_EMPTY:
        return "is empty"
    if name == "gender" and value not in ("F", "M"):
        return f"is {value!r}, expected 'F' or 'M'"
    if name == "wav" and not value.startswith(ROOT):
        return f"is {value!r}, expected to begin with {ROOT}"
    try:
        value.format_map({"data_root": ""} if name == "wav" else {})
    except (KeyError, ValueError, IndexError, AttributeError):
        return f"is {value!r}, which has an unescaped brace"
    return None


def write_manifest(path, entries):
    """Write a manifest whole or not at all.

    Arguments
    ---------
    path : str or pathlib.Path
        The JSON file; its folder is made if needed.
    entries : dict
        Utterance id -> entry; checked first.

    Example
    -------
    >>> write_manifest("train.json", {})
    Traceback (most recent call last):
        ...
    ValueError: a manifest is a non-empty object of id -> entry
    """
    check_entries(entries)
    ordered = dict(sorted(entries.items()))
    replace_file(path, json.dumps(ordered, ensure_ascii=False, indent=1))


def write_left_out(path, left_out):
    """Write what a corpus had that is in no manifest.

    Arguments
    ---------
    path : str or pathlib.Path
        The JSON file; its folder is made if needed.
    left_out : list of dict
        As ``prepare`` gives it.

    Example
    -------
    >>> path = getfixture("tmp_path") / "left_out.json"
    >>> write_left_out(path, [{"id": "a", "reason": "empty", "where": "a.wav"}])
    >>> json.loads(path.read_text())[0]["reason"]
    'empty'
    """
    replace_file(path, json.dumps(left_out, ensure_ascii=False, indent=1))


def read_manifest(path):
    """Read a manifest back and hold it to the schema.

    Arguments
    ---------
    path : str or pathlib.Path
        The JSON file.

    Returns
    -------
    dict
        Utterance id -> entry, sorted by id; ``{data_root}`` is left in place.

    Raises
    ------
    ValueError
        The file is no JSON, names an id twice or breaks the schema.

    Example
    -------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "bad.json")
    >>> _ = path.write_text('{"a": {"wav": "/elsewhere/a.wav"}}')
    >>> read_manifest(path)
    Traceback (most recent call last):
        ...
    ValueError: ...bad.json: a: wav is '/elsewhere/a.wav', expected to begin with {data_root}/
    """
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file, object_pairs_hook=_no_repeats)
        check_entries(entries)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dict(sorted(entries.items()))


def _no_repeats(pairs):
    """Build a dict, refusing a key that stands there twice."""
    result = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"{key} stands there twice")
        result[key] = value
    return result


# IEMOCAP's ratings, whose middle becomes 0 and whose ends +-1
MIDDLE, HALF_RANGE = 3.0, 2.0


def check_dimensions(entries, dimensions, corpus):
    """See that every utterance has the dimensions to be learnt.

    Arguments
    ---------
    entries : dict
        Utterance id -> manifest entry.
    dimensions : list of str
        Those wanted.
    corpus : str
        Its name, for the message.

    Raises
    ------
    ValueError
        Names the first utterance and dimension that is missing.

    Example
    -------
    >>> check_dimensions({"a": {"emotion": "anger"}}, ["valence"], "emodb")
    Traceback (most recent call last):
    ValueError: emodb has no valence (utterance a): set dimensions to []
    """
    for key, entry in entries.items():
        for name in dimensions:
            if name not in entry:
                raise ValueError(
                    f"{corpus} has no {name} (utterance {key}): set "
                    "dimensions to []"
                )


def to_scale(values):
    """Bring ratings of 1 to 5 to -1 to 1.

    Arguments
    ---------
    values : list of float
        Ratings.

    Returns
    -------
    torch.Tensor, [values]
        On the new scale.

    Example
    -------
    >>> to_scale([1.0, 3.0, 4.5])
    tensor([-1.0000,  0.0000,  0.7500])
    """
    return (torch.tensor(values) - MIDDLE) / HALF_RANGE
