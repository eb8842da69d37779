"""The classes of own data: rename labels, leave some out, fix the order."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from speechbrain_dslstm.utils.names import fits_on_line

__all__ = ["LabelMap", "read_classes", "read_label_map"]

# Label -> class; the empty text leaves the label's clips out
LabelMap = dict[str, str]
SHOWN = 8  # labels in an error
ZEROS = re.compile(r"(?<![\d.])0+(?=\d)|(?<=\d)\.0+$")  # of 01 and of 1.0
LONGEST_NAME = 100  # characters


def read_label_map(given: str | Path | Mapping[Any, Any] | None) -> LabelMap:
    """Read a label map from a mapping, a YAML file, or ``ang=anger,hap=joy``.

    Labels that it does not name keep their name; ``other=`` leaves them out.

    >>> read_label_map("ang=anger, other=")
    {'ang': 'anger', 'other': ''}
    """
    if given is None or given == "":
        return {}
    if isinstance(given, Mapping):
        return _named("label_map", given)
    path = Path(str(given)).expanduser()
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        # The base type reads every scalar as text: 1, yes and null are names
        yaml = YAML(typ="base")
        try:
            found = yaml.load(path.read_text(encoding="utf-8-sig"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no label map {path}") from error
        except (YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"label map {path} is no YAML: {reason}"
            ) from error
        if not isinstance(found, Mapping):
            raise ValueError(
                f"label map {path}: expected lines such as 'ang: anger'"
            )
        return _named(f"label map {path}", found)
    pairs = {}
    for part in str(given).split(","):
        label, equals, name = (one.strip() for one in part.partition("="))
        if not equals or not label:
            raise ValueError(
                f"label_map: {part.strip()!r} is no 'label=class'; expected "
                "the path of a YAML, or such as ang=anger,hap=happiness"
            )
        if label in pairs:
            raise ValueError(f"label_map: {label!r} is mapped twice")
        pairs[label] = name
    return _named("label_map", pairs)


def _named(where: str, pairs: Mapping[Any, Any]) -> LabelMap:
    """Turn the keys and values of a map into text; None is the empty class."""
    found = {}
    for label, name in pairs.items():
        for one in (label, name):
            if isinstance(one, bool | list | tuple | dict):
                raise ValueError(
                    f"{where}: {one!r} is no text: quote labels such as 'yes'"
                )
        name = "" if name is None else str(name).strip()
        if name:
            check_name(where, name)
        found[str(label).strip()] = name
    return found


def read_classes(given: str | Iterable[Any] | None) -> list[str] | None:
    """Read the classes in their order: a list, or a text with commas.

    >>> read_classes("anger, sadness")
    ['anger', 'sadness']
    """
    if given is None or given == "":
        return None
    parts = given.split(",") if isinstance(given, str) else list(given)
    names = []
    for part in parts:
        if part is None or isinstance(part, bool | list | tuple | dict):
            raise ValueError(
                f"classes: {part!r} is no text: quote names such as 'null'"
            )
        names.append(check_name("classes", str(part).strip()))
    again = [name for name, count in Counter(names).items() if count > 1]
    if again:
        raise ValueError(f"classes: {again[0]!r} is given twice")
    if len(names) < 2:
        raise ValueError(f"classes: expected at least 2, got {names}")
    return names


def check_name(where: str, name: str) -> str:
    """Refuse the name of a class that is empty, long or not on one line."""
    if not name:
        raise ValueError(f"{where}: the name of a class is empty")
    if not fits_on_line(name):
        raise ValueError(
            f"{where}: {name!r} has a character that cannot be printed; "
            "expected a class name on one line"
        )
    if len(name) > LONGEST_NAME:
        raise ValueError(
            f"{where}: a class name of {len(name)} characters; expected at "
            f"most {LONGEST_NAME}"
        )
    return name


def find_similar(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pairs of names that differ in case, blanks or zeros before a number alone.

    >>> find_similar(["Anger", "anger", "s01", "s1", "s2"])
    [('Anger', 'anger'), ('s01', 's1')]
    """
    seen, pairs = {}, []
    for name in sorted(set(names)):
        key = "".join(unicodedata.normalize("NFKC", name).casefold().split())
        key = ZEROS.sub("", key)
        if key in seen:
            pairs.append((seen[key], name))
        seen.setdefault(key, name)
    return pairs


def apply_labels(
    records: Iterable[dict],
    label_map: LabelMap,
    classes: list[str] | None,
) -> tuple[list[dict], list[dict]]:
    """Give records the names of their classes; return them and those left out.

    A label outside ``classes`` raises a ValueError, unless the map leaves it
    out: a typing error would otherwise take clips away.
    """
    kept, dropped, unknown = [], [], {}
    for record in records:
        label = record["emotion"]
        name = label_map.get(label, label)
        if name and len(name) > LONGEST_NAME:
            check_name(record.get("where", record["id"]), name)
        if not name:
            dropped.append(record)
        elif classes is not None and name not in classes:
            unknown.setdefault(name, []).append(record)
        else:
            kept.append({**record, "emotion": name})
    if unknown:
        name, some = max(unknown.items(), key=lambda item: len(item[1]))
        where = some[0].get("where", some[0]["id"])
        others = sorted(set(unknown) - {name})
        more = f" (and {', '.join(others[:SHOWN])})" if others else ""
        raise ValueError(
            f"{where}: label {name!r} of {len(some)} clips{more} is not among "
            f"the classes {', '.join(classes)}: rename it with label_map "
            f"({name}=CLASS), or leave its clips out ({name}=)"
        )
    return kept, dropped
