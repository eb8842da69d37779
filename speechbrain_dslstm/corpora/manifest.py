"""The manifest schema of all corpora: build, check, write and read manifests.

A manifest is a JSON object, utterance id -> entry, as SpeechBrain's
``DynamicItemDataset.from_json`` reads it. Paths begin with ``{data_root}``, so
a manifest can be used on other machines. An entry has the keys of ``REQUIRED``
and, where the corpus has them, those of ``OPTIONAL``.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.corpora.clips import read_audio_facts
from speechbrain_dslstm.utils.files import replace_file

__all__ = [
    "build_manifest",
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
SHOWN = 3  # names of clips in a warning
# The scale of IEMOCAP's ratings, 1 to 5, is mapped to -1 to 1
MIDDLE, HALF_RANGE = 3.0, 2.0


def build_manifest(
    records: Iterable[dict],
    data_folder: str | Path,
    labels: list[str],
    left_out: list[dict] | None = None,
) -> dict[str, dict]:
    """Turn a corpus module's records into manifest entries.

    Every audio file is decoded. Unusable records are left out, with one warning
    for each kind of fault. Of records with the same id the first usable one, in
    the order of their paths, is kept. The entries are sorted by id.

    Arguments
    ---------
    records
        Each with ``id``, ``path`` (inside ``data_folder``) and the keys of an
        entry but ``wav``, ``duration`` and ``audio_hash``; ``where`` may give
        the file and line of its source.
    data_folder
        Folder that ``{data_root}`` stands for.
    labels
        The wanted emotions.
    left_out
        List to which a dict is appended for each unusable record: its "id", the
        "reason", and "where" it comes from.
    """
    data_folder = Path(data_folder)
    entries, trouble = {}, {}
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
        for field in ("text", "text_id"):
            record[field] = record[field].replace("{", "(").replace("}", ")")
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


def check_entries(entries: dict[str, dict]) -> None:
    """Raise a ValueError for the first utterance and key that break the schema."""
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


def _fault(name: str, value: object, kind: type) -> str | None:
    """Describe what is wrong with a value; None if nothing is."""
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


def write_manifest(path: str | Path, entries: dict[str, dict]) -> None:
    """Check entries and write them, sorted by id; the folder is made if needed."""
    check_entries(entries)
    ordered = dict(sorted(entries.items()))
    replace_file(path, json.dumps(ordered, ensure_ascii=False, indent=1))


def write_left_out(path: str | Path, left_out: list[dict]) -> None:
    """Write the list of clips that ``prepare`` has left out."""
    replace_file(path, json.dumps(left_out, ensure_ascii=False, indent=1))


def read_manifest(path: str | Path) -> dict[str, dict]:
    """Read and check a manifest; entries are sorted, ``{data_root}`` stays."""
    try:
        with open(path, encoding="utf-8") as file:
            entries = json.load(file, object_pairs_hook=_no_repeats)
        check_entries(entries)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return dict(sorted(entries.items()))


def _no_repeats(pairs: list[tuple[str, object]]) -> dict:
    """Build a dict, or raise an error for a duplicate key."""
    result = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {key!r}")
        result[key] = value
    return result


def check_dimensions(
    entries: dict[str, dict], dimensions: list[str], corpus: str
) -> None:
    """Raise an error for the first utterance that lacks one of the dimensions."""
    for key, entry in entries.items():
        for name in dimensions:
            if name not in entry:
                raise ValueError(
                    f"{corpus} has no {name} (utterance {key}): set "
                    "dimensions to []"
                )


def to_scale(values: list[float]) -> torch.Tensor:
    """Map ratings from 1 to 5 to the range from -1 to 1, [values].

    >>> to_scale([1.0, 3.0, 4.5])
    tensor([-1.0000,  0.0000,  0.7500])
    """
    return (torch.tensor(values) - MIDDLE) / HALF_RANGE
