"""The corpora that a run's settings name: one, several, and own tables.

``corpus`` is a name in ``CORPORA``, or ``table``, or several of them joined by
"+". Of several corpora the ids, speakers, sessions and sentences begin with the
corpus' name, so that none is confused with another's; and the classes are those
that all of them have, unless ``classes`` says otherwise.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.corpora.builtin import CORPORA, get_corpus
from speechbrain_dslstm.corpora.clips import select_labels
from speechbrain_dslstm.corpora.label_map import (
    apply_labels,
    find_similar,
    read_classes,
    read_label_map,
)
from speechbrain_dslstm.corpora.manifest import build_manifest
from speechbrain_dslstm.corpora.table import Table, find_files, read_table
from speechbrain_dslstm.splits.protocols import get_protocol

__all__ = ["Source"]

logger = get_logger(__name__)
TABLE = "table"
FOLDER = re.compile(r"\s*[\w.-]+=")  # such as emodb=FOLDER
# Keys of recipe.yaml that say which data are read
SETTINGS = (
    *("corpus", "data_folder", "label_set", "corpus_options"),
    *("table", "columns", "label_map", "classes"),
)
LONGEST_NAME = 100  # characters of the name of several corpora
# Where the synthetic corpus is generated if no folder is given
GENERATED = "data/synthetic"
# Keys whose values are made different for each of several corpora
OWN = ("id", "speaker", "session", "dialogue", "text_id")


class Source:
    """The data of a run, as the settings in ``SETTINGS`` say.

    Arguments
    ---------
    hparams
        Values of ``SETTINGS``; others are ignored, missing ones are null.

    Raises
    ------
    ValueError
        Settings that contradict each other, or a bad table; the message has
        file and line.
    """

    def __init__(self, hparams: Mapping[str, Any]) -> None:
        given = {
            "corpus": hparams.get("corpus"),
            "data_folder": hparams.get("data_folder"),
            "label_set": hparams.get("label_set"),
            "corpus_options": hparams.get("corpus_options"),
            "table": hparams.get("table"),
            "columns": hparams.get("columns"),
            "label_map": hparams.get("label_map"),
            "classes": hparams.get("classes"),
        }
        self.data_folder = _read_folders(given["data_folder"])
        self.label_set = given["label_set"]
        self.options = dict(given["corpus_options"] or {})
        self.label_map = read_label_map(given["label_map"])
        self.classes = read_classes(given["classes"])
        names = [one.strip() for one in str(given["corpus"]).split("+")]
        for name in names:
            if name not in (*CORPORA, TABLE):
                raise ValueError(
                    f"unknown corpus {name!r}; expected one of "
                    f"{', '.join((*CORPORA, TABLE))}, or several joined by +"
                )
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(
                f"corpus {given['corpus']} has {twice[0]} twice; several "
                "tables are given as --table=a.csv,b.csv"
            )
        paths = _split_paths(given["table"])
        if paths and TABLE not in names:
            raise ValueError(
                f"table is given, but corpus is {given['corpus']}: set corpus "
                "to table"
            )
        if TABLE in names and not paths:
            raise ValueError(
                "corpus table requires the path of one: --table=my.csv"
            )
        columns = given["columns"] or {}
        if not isinstance(columns, Mapping):
            raise ValueError(
                f"columns is {columns!r}; expected a mapping such as "
                "{emotion: label}"
            )
        self.builtin = [name for name in names if name != TABLE]
        if not self.builtin and self.label_set is not None:
            raise ValueError(
                f"label_set is {self.label_set}, but a table has none; select "
                "labels with classes and label_map"
            )
        self.tables = _name_tables(
            [read_table(path, columns) for path in paths], self.builtin
        )
        self.parts = [*self.builtin, *self.tables]
        if len(self.parts) > 1 and self.options:
            raise ValueError(
                f"corpus_options are for a single corpus; got {given['corpus']}"
            )

    @cached_property
    def name(self) -> str:
        """Name in folders and reports, such as emodb, my-0a1b2c3d or emodb+ravdess.

        The name of a table ends with a hash of what it says, so that another
        table, label map or choice of classes is another corpus.
        """
        changed = [self.label_map, self.classes]
        suffix = hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:8]
        names = [
            f"{name}-{self._digest(table)}"
            for name, table in self.tables.items()
        ]
        name = "+".join([*self.builtin, *names])
        name = f"{name}-{suffix}" if self.builtin and any(changed) else name
        if len(name) > LONGEST_NAME:
            ending = hashlib.sha256(name.encode()).hexdigest()[:8]
            name = f"{len(self.parts)}_corpora-{ending}"
        return name

    def _digest(self, table: Table) -> str:
        """Hash of a table, and of what is made of its labels."""
        if not self.label_map and not self.classes:
            return table.digest
        found = [table.digest, sorted(self.label_map.items()), self.classes]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:8]

    @cached_property
    def labels(self) -> list[str]:
        """The classes in their order, without reading audio.

        They are ``classes``, if given; else in the order of a built-in corpus,
        or sorted.
        """
        found = {}
        for name in self.parts:
            if name in self.tables:
                kept, _ = self._relabelled(self.tables[name].records, None)
                labels = sorted({record["emotion"] for record in kept})
            else:
                codes = self._codes(name).values()
                named = (self.label_map.get(code, code) for code in codes)
                labels = list(dict.fromkeys(filter(None, named)))
            found[name] = labels
        if self.classes is not None:
            known = set().union(*found.values())
            for name in self.classes:
                if name not in known:
                    raise ValueError(
                        f"classes: no clip has the label {name!r}; the labels "
                        f"are {', '.join(sorted(known))}"
                    )
            return self.classes
        first, *others = found.values()
        common = [name for name in first if all(name in o for o in others)]
        if len(common) < 2:
            listed = "; ".join(f"{k}: {', '.join(v)}" for k, v in found.items())
            shared = " that all corpora have" if others else ""
            raise ValueError(
                f"at least 2 classes are needed, found {len(common)}{shared} "
                f"({listed}): rename labels with label_map, or give classes"
            )
        return common

    def _codes(self, name: str) -> dict[str, str]:
        """Label set of a built-in corpus: the corpus' codes -> emotions."""
        module = get_corpus(name)
        label_set = self.label_set or module.DEFAULT_LABEL_SET
        return select_labels(module.LABEL_SETS, label_set)

    def _relabelled(
        self, records: Iterable[dict], classes: list[str] | None
    ) -> tuple[list[dict], list[dict]]:
        return apply_labels(records, self.label_map, classes)

    @property
    def is_plain(self) -> bool:
        """Whether the data are a single built-in corpus with its own classes."""
        changed = self.tables or self.label_map or self.classes
        return len(self.parts) == 1 and not changed

    @cached_property
    def fixed_sentences(self) -> bool:
        """Whether most clips of a table say what another speaker says, too."""
        shared = total = 0
        for table in self.tables.values():
            said = {}
            for record in table.records:
                if record["text_id"]:
                    said.setdefault(record["text_id"], []).append(record)
            for some in said.values():
                total += len(some)
                if len({one["speaker"] for one in some}) > 1:
                    shared += len(some)
        return shared * 2 > total

    def folder(self, name: str) -> Path:
        """Folder of a part: of a corpus, or what the paths in a table belong to."""
        return self._folders(name)[0]

    def _folders(self, name: str) -> list[Path]:
        """Folders in which the files of a part may be, the first one first."""
        given = self.data_folder
        beside = []
        if name in self.tables:
            path = self.tables[name].path
            beside = [path if path.is_dir() else path.parent]
        if isinstance(given, Mapping):
            unknown = set(map(str, given)) - set(self.parts)
            if unknown:
                raise ValueError(
                    f"data_folder: unknown corpus {min(unknown)!r}; expected "
                    f"one of {', '.join(self.parts)}"
                )
            if name in given:
                return [_expand(given[name])]
        elif given is not None:
            root = _expand(given)
            if len(self.parts) == 1:
                return [root]
            # The folder of a table is optional among several corpora
            return [root / name, *([root, *beside] if beside else [])]
        if beside:
            return beside
        if name == "synthetic":
            return [Path(GENERATED)]
        raise ValueError(
            f"corpus {name} requires its folder: give data_folder"
            + (f", such as {name}=FOLDER" if len(self.parts) > 1 else "")
        )

    @cached_property
    def data_root(self) -> str:
        """Folder that ``{data_root}`` in the manifests stands for."""
        if len(self.parts) == 1:
            return str(self._folders(self.parts[0])[0])
        given = self.data_folder
        # Without a folder in common, relative paths are those of the caller
        return str(_expand(given)) if isinstance(given, str | Path) else "."

    def check_protocol(self, protocol: str) -> None:
        """Refuse a table whose rows lack what a protocol needs, with the line."""
        forbidden = get_protocol(protocol).forbidden
        needed = [
            key for key in ("speaker", "session", "text_id") if key in forbidden
        ]
        needed += ["split"] if protocol == "split" else []
        for table in self.tables.values():
            for record in table.records:
                for key in needed:
                    if not record.get(key):
                        _refuse(protocol, key, table, record)
            if {"speaker", "session"} <= set(forbidden):
                _check_sessions(protocol, table)
        if protocol == "split" and self.builtin:
            raise ValueError(
                f"protocol split is a table's own, and {self.builtin[0]} has "
                "none: use another protocol"
            )
        if protocol == "corpus" and len(self.parts) < 2:
            raise ValueError(
                "protocol corpus leaves one corpus out, and there is only "
                f"{self.parts[0]}: give several, such as --corpus=emodb+ravdess "
                "or --table=a.csv,b.csv"
            )

    def check_files(self) -> None:
        """Refuse a missing folder, or a file of a table, without reading audio."""
        for name in self.parts:
            if name in self.tables:
                self._find(name)
            # The synthetic corpus is generated
            elif name != "synthetic" and not self.folder(name).is_dir():
                raise FileNotFoundError(
                    f"corpus {name}: no folder {self.folder(name)}; "
                    "data_folder names it"
                )

    def prepare(self, left_out: list[dict] | None = None) -> dict[str, dict]:
        """Decode all clips, and return the manifest entries; see ``prepare``."""
        left_out = [] if left_out is None else left_out
        several, labels = len(self.parts) > 1, self.labels
        records, dropped, unused = [], [], set(self.label_map)
        for name in self.parts:
            if name in self.tables:
                found = self._find(name)
            else:
                found = self._read(name, left_out)
            unused -= {record["emotion"] for record in found}
            classes = None if several and self.classes is None else self.classes
            kept, without = self._relabelled(found, classes)
            if several:
                dropped += [r for r in kept if r["emotion"] not in labels]
                kept = [
                    {**_prefixed(record, name), "corpus": name}
                    for record in kept
                    if record["emotion"] in labels
                ]
            elif name in self.tables:
                kept = [{**record, "corpus": name} for record in kept]
            dropped += without
            records += kept
        self._tell(dropped, left_out)
        if unused:
            logger.warning(
                "label_map: no clip has the label %s",
                ", ".join(map(repr, sorted(unused))),
            )
        self._warn_of_similar(labels, {record["speaker"] for record in records})
        entries = build_manifest(records, self.data_root, labels, left_out)
        self._compare(entries)
        return entries

    def _read(self, name: str, left_out: list[dict]) -> list[dict]:
        """Read the records of a built-in corpus."""
        module, folder = get_corpus(name), self.folder(name)
        label_set = self.label_set or module.DEFAULT_LABEL_SET
        records = module.records(folder, label_set, **self.options)
        if hasattr(module, "left_out"):
            left_out += module.left_out(folder, label_set, **self.options)
        return list(records)

    def _find(self, name: str) -> list[dict]:
        """Find the recordings of a table."""
        return find_files(self.tables[name], self._folders(name))

    def _tell(self, dropped: list[dict], left_out: list[dict]) -> None:
        """Log and list the clips whose label is not a class."""
        for record in dropped:
            where = record.get("where", str(record["path"]))
            reason = f"label {record['emotion']!r} is left out"
            left_out.append(
                {"id": record["id"], "reason": reason, "where": where}
            )
        if dropped:
            counts = Counter(record["emotion"] for record in dropped)
            logger.warning(
                "%d clips are left out by label: %s",
                len(dropped),
                ", ".join(f"{name} {n}" for name, n in sorted(counts.items())),
            )

    def _warn_of_similar(
        self, labels: Iterable[str], speakers: Iterable[str]
    ) -> None:
        """Warn of names in a table that may be the same class or speaker."""
        if not self.tables:
            return
        for kind, names in (("classes", labels), ("speakers", speakers)):
            pairs = find_similar(names)
            if pairs:
                logger.warning(
                    "%s and %s are two %s (%d such pairs): if they are the "
                    "same, write them alike in the table%s",
                    *map(repr, pairs[0]),
                    *(kind, len(pairs)),
                    ", or join them by label_map" if kind == "classes" else "",
                )

    def _compare(self, entries: dict[str, dict]) -> None:
        """Compare the counts of a single corpus with published ones, if any."""
        if not self.is_plain:
            return
        module = get_corpus(self.parts[0])
        compare = getattr(module, "compare_counts", None)
        if compare is not None:
            compare(
                entries,
                self.label_set or module.DEFAULT_LABEL_SET,
                **self.options,
            )


def _expand(folder: Any) -> Path:
    """Path of a folder without ~ and doubled parts."""
    return Path(os.path.normpath(os.path.expanduser(str(folder))))


def _read_folders(given: Any) -> Any:
    """Read data_folder: a path, or emodb=FOLDER,ravdess=FOLDER as a mapping."""
    parts = str(given).split(",")
    if isinstance(given, str) and all(FOLDER.match(part) for part in parts):
        pairs = (part.split("=", 1) for part in parts)
        return {name.strip(): folder.strip() for name, folder in pairs}
    return given


def _split_paths(given: Any) -> list[str]:
    """List the tables: a path, several with commas, or a list."""
    if given is None or given == "":
        return []
    if not isinstance(given, str | Path):
        return [str(one) for one in given]
    if Path(given).expanduser().exists():
        return [str(given)]
    return [one.strip() for one in str(given).split(",") if one.strip()]


def _name_tables(tables: list[Table], taken: list[str]) -> dict[str, Table]:
    """Name tables by their stems; those of the same stem, with their hash."""
    counts = Counter([*taken, *(table.stem for table in tables)])
    found = {}
    for table in tables:
        name = table.stem
        if counts[name] > 1 or name == TABLE:
            name = f"{name}-{table.digest}"
        if name in found:
            raise ValueError(
                f"{table.path} and {found[name].path} say the same; give each "
                "table once"
            )
        found[name] = table
    return found


def _prefixed(record: dict, corpus: str) -> dict:
    """Begin ids, speakers and others with the name of the corpus."""
    own = {k: f"{corpus}/{record[k]}" if record[k] else "" for k in OWN}
    return {**record, **own}


def _check_sessions(protocol: str, table: Table) -> None:
    """Refuse a speaker of several sessions, where both are kept apart."""
    seen = {}
    for record in table.records:
        other = seen.setdefault(record["speaker"], record)
        if other["session"] != record["session"]:
            line = other["where"].rpartition(":")[2]
            raise ValueError(
                f"{record['where']}: speaker {record['speaker']} is in session "
                f"{record['session']}, and in {other['session']} in line "
                f"{line}, but protocol {protocol} keeps sessions and speakers "
                "apart: use --protocol=speaker, or give all clips of a speaker "
                "the same session"
            )


def _refuse(protocol: str, key: str, table: Table, record: dict) -> None:
    """Say what to do about a row without what a protocol needs."""
    count = sum(not one.get(key) for one in table.records)
    advice = {
        "speaker": "a column speaker, or use --protocol=random, whose scores "
        "are too high if speakers are in training and test, or --protocol="
        "split with a column split",
        "session": "a column session, or one for the speaker",
        "text_id": "a column text_id, or text, or use another protocol",
        "split": "a column split with train, valid or test",
    }[key]
    raise ValueError(
        f"{record['where']}: no {key} (in {count} of {len(table.records)} "
        f"rows), which protocol {protocol} needs: add {advice}"
    )
