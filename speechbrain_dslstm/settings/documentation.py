"""Keys of a system with their values, comments and sections, from its files.

The YAML files are the documentation of the recipe's options: a comment behind
a key describes it, and a comment above a group of keys is its heading.
"""

import difflib
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

from ruamel.yaml import YAML

from speechbrain_dslstm.hparams import recipe_root

# Only a system's YAML has this key; recipe.yaml and features.yaml do not
SYSTEM = re.compile(r"^system:", re.M)
KEY = re.compile(r"^(?:  )?([A-Za-z_]\w*):(?=\s|$)[ ]*(.*)$")
INCLUDED = re.compile(r"^recipe:\s*!include:(\S+)", re.M)


class Key(NamedTuple):
    """A key as the files describe it; ``value`` is its text in the YAML."""

    name: str
    value: str
    comment: str
    section: str


def find_systems() -> dict[str, Path]:
    """Find the YAMLs of the systems that come with the package, by name."""
    return {
        path.stem: path
        for path in sorted((recipe_root() / "hparams").glob("*.yaml"))
        if SYSTEM.search(path.read_text(encoding="utf-8"))
    }


def find_yaml(given: str) -> Path:
    """Find a system: a file, else one of the package by its name."""
    if Path(given).is_file():
        return Path(given)
    if given.endswith((".yaml", ".yml")) or "/" in given:
        raise FileNotFoundError(f'no file {given} (write options with "=")')
    systems = find_systems()
    if given not in systems:
        close = difflib.get_close_matches(given, systems, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise FileNotFoundError(
            f"unknown system {given!r}; {hint}expected a YAML file or one of "
            f"{', '.join(systems)}"
        )
    return systems[given]


def summarize(path: Path) -> str:
    """First sentence of the comment at the top of a YAML, shortened."""
    text = path.read_text(encoding="utf-8")
    head = re.match(r"(?:#.*\n)*", text)[0].replace("\n#", "").strip("# \n")
    sentence = re.split(r"(?<=[a-z)])\. ", head)[0].rstrip(".")
    return textwrap.shorten(sentence, 110, placeholder=" ...")


def describe_keys(path: Path, shared: Path | None = None) -> dict[str, Key]:
    """Describe the keys of a system and of the ``shared`` file it includes.

    Values are those of the system; a comment is that of the first file that
    has one, the system's before the shared one.
    """
    own = _read_keys(path)
    if shared is None:
        return own
    found = _read_keys(shared)
    for name, key in own.items():
        before = found.get(name)
        comment = key.comment or (before.comment if before else "")
        section = before.section if before else f"Of {path.stem} itself"
        found[name] = key._replace(comment=comment, section=section)
    return found


def _read_keys(path: Path) -> dict[str, Key]:
    """Read keys at column 0, and those of an included file, two columns in."""
    found, section, heading = {}, "", []
    inside = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            heading.append(line.lstrip("# "))
            continue
        match = KEY.match(line)
        if heading and match and not line.startswith(" "):
            section = " ".join(heading)
        heading = []
        if match is None:
            continue
        name, rest = match.groups()
        if not line.startswith(" "):
            inside = name
        elif inside != "recipe":
            continue
        if name == "recipe":
            continue
        value, comment = _split_comment(rest)
        found[name] = Key(name, value, comment, section)
    return found


def _split_comment(text: str) -> tuple[str, str]:
    """Split the text behind a key into its value and its comment."""
    match = re.match(
        r"""((?:"[^"]*"|'[^']*'|[^#"']|(?<!\s)#)*)(?:#\s*(.*))?$""", text
    )
    value, comment = match.groups() if match else (text, None)
    return value.strip(), comment or ""


def is_plain(key: Key) -> bool:
    """Whether a value is a number, a text or a list, and not an object."""
    if not key.value or key.value.startswith("!"):
        return False
    value = YAML(typ="safe", pure=True).load(key.value)
    return not isinstance(value, dict) or not value
