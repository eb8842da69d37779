"""The manifest schema of all corpora: build, check, write and read manifests.

A manifest is a JSON object, utterance id -> entry, as SpeechBrain's
``DynamicItemDataset.from_json`` reads it. Paths begin with ``{data_root}``, so
a manifest can be used on other machines; those outside it are absolute. A clip
that is a part of a file has its times after the path, see ``clips.load_clip``.
An entry has the keys of ``REQUIRED`` and, where the corpus has them, those of
``OPTIONAL``.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.corpora.clips import add_segment, read_audio_facts
from speechbrain_dslstm.utils.files import replace_file
from speechbrain_dslstm.utils.progress import track

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
    "corpus": str,
    "split": str,
}
# Own data may lack them; protocols refuse clips without what they need
MAY_BE_EMPTY = ("dialogue", "text", "speaker", "session", "text_id", "gender")
# Keys whose braces become parentheses, because SpeechBrain formats all texts;
# the emotion keeps its own, as ReproducibleDataset does not format it
PLAIN = {"text", "text_id", "speaker", "session", "corpus"}
SHOWN = 3  # names of clips in a warning
SCALE = 1.0, 5.0  # lowest and highest rating of IEMOCAP


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
        Each with ``id``, ``path`` (of the audio file) and the keys of an
        entry but ``wav``, ``duration`` and ``audio_hash``; ``where`` may give
        the file and line of its source, ``segment`` the start and end of the
        clip in its file.
    data_folder
        Folder that ``{data_root}`` stands for.
    labels
        The wanted emotions.
    left_out
        List to which a dict is appended for each unusable record: its "id", the
        "reason", and "where" it comes from.
    """
    data_folder = Path(data_folder)
    entries, trouble, names = {}, {}, {}
    left_out = [] if left_out is None else left_out
    ordered = sorted(records, key=lambda r: (r["id"], str(r["path"])))
    for record in track(ordered, "reading clips"):
        record = dict(record)
        key, path = record.pop("id"), Path(record.pop("path"))
        inside = path.is_relative_to(data_folder)
        place = path.relative_to(data_folder) if inside else path.absolute()
        name = place.as_posix()
        where, segment = record.pop("where", name), record.pop("segment", None)
        if record["emotion"] not in labels:
            kind = f"with a label outside {labels}"
            name = f"{name} ({record['emotion']})"
        elif key in entries:
            kind, name = "named twice (the first is kept)", f"{key} ({name})"
        else:
            facts, kind = read_audio_facts(path, segment)
        if kind is not None:
            shown = name if where == name else f"{name} ({where})"
            trouble.setdefault(kind, []).append(shown)
            reason = f"{kind}: {name}"
            left_out.append({"id": key, "reason": reason, "where": where})
            continue
        # SpeechBrain runs str.format_map over every string of a manifest
        wav = name.replace("{", "{{").replace("}", "}}")
        wav = add_segment(f"{ROOT if inside else ''}{wav}", segment)
        for field in PLAIN & set(record):
            given = record[field]
            plain = given.replace("{", "(").replace("}", ")")
            other = names.setdefault((field, plain), given)
            if other != given and field != "text":
                raise ValueError(
                    f"{where}: {field} {given!r} and {other!r} cannot be told "
                    "apart, as braces are read as parentheses: rename one"
                )
            record[field] = plain
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
    if name == "gender" and value not in ("F", "M", ""):
        return f"is {value!r}, expected 'F', 'M' or '' if it is not known"
    if name == "wav" and not (value.startswith(ROOT) or os.path.isabs(value)):
        return f"is {value!r}, expected to begin with {ROOT}, or absolute"
    if name == "emotion":
        return None
    try:
        value.format_map({"data_root": ""} if name == "wav" else {})
    except (KeyError, ValueError, IndexError, AttributeError):
        return f"is {value!r}, which has an unescaped brace"
    return None


def write_manifest(path: str | Path, entries: dict[str, dict]) -> None:
    """Check entries and write them, sorted by id; the folder is made if needed.

    A subset may have no entries; a corpus, as ``read_manifest`` reads it, has.
    """
    if entries:
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
    entries: dict[str, dict],
    dimensions: list[str],
    corpus: str,
    scale: Sequence[float] = SCALE,
) -> None:
    """Refuse utterances without one of the dimensions, or with one off the scale."""
    low, high = check_scale(scale)
    for key, entry in entries.items():
        for name in dimensions:
            if name not in entry:
                raise ValueError(
                    f"{corpus} has no {name} (utterance {key}): set "
                    "dimensions to []"
                )
            if not low <= entry[name] <= high:
                raise ValueError(
                    f"{key}: {name} is {entry[name]:g}, outside "
                    f"dimension_range [{low:g}, {high:g}]: set it to the "
                    "lowest and highest rating that your scale allows"
                )


def check_scale(scale: Sequence[float]) -> tuple[float, float]:
    """Read the lowest and highest rating of a scale, ``dimension_range``."""
    try:
        low, high = map(float, scale)
    except (TypeError, ValueError):
        low = high = math.nan
    if not low < high or not math.isfinite(high - low):
        raise ValueError(
            f"dimension_range is {scale!r}; expected the lowest and the "
            "highest rating, such as [1, 5]"
        )
    return low, high


def to_scale(
    values: list[float], scale: Sequence[float] = SCALE
) -> torch.Tensor:
    """Map ratings from 1 to 5, or another ``scale``, to -1 to 1, [values].

    >>> to_scale([1.0, 3.0, 4.5])
    tensor([-1.0000,  0.0000,  0.7500])
    """
    low, high = check_scale(scale)
    return (torch.tensor(values) - (low + high) / 2) / ((high - low) / 2)
