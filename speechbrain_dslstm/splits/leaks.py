"""The leak guard: values that the test subset shares with the other two.

``check_leaks`` raises an error where a protocol forbids what is shared. All
counts come from the manifest entries alone, whoever made the split.
"""

from collections.abc import Sequence

from speechbrain_dslstm.splits.protocols import (
    LeakError,
    Split,
    applicable_protocols,
    count_folds,
    digest,
    get_protocol,
    make_split,
)

__all__ = [
    "leak_table",
    "check_leaks",
    "format_leak_table",
    "identical_recordings",
    "worst_leaks",
    "leak_summary",
    "format_leak_summary",
    "audio_hash",
]

# Keys of manifest entries that the guard compares, and their names in tables
KINDS = {
    "speaker": "speakers",
    "session": "sessions",
    "dialogue": "dialogues",
    "text_id": "sentences",
    "audio_hash": "identical recordings",
}
SHOWN = 3
# "train" or "valid" -> key in KINDS -> number of shared values and examples
LeakTable = dict[str, dict[str, dict]]


def leak_table(split: Split, entries: dict[str, dict]) -> LeakTable:
    """Count what the test subset shares with training and validation.

    ``table[subset][kind]``, for the subsets train and valid and the keys of
    ``KINDS``, has the ``count`` of shared values and some ``examples``; and of
    several corpora, the kind "corpus" as well.

    >>> entries = {i: dict.fromkeys(KINDS, i[0]) for i in ("a1", "b1", "a2")}
    >>> split = Split(["a1"], ["b1"], ["a2"], "speaker", 0, 0, 4, "")
    >>> leak_table(split, entries)["train"]["speaker"]
    {'count': 1, 'examples': ['a']}
    """
    for name, ids in split.subsets.items():
        unknown = sorted(set(ids) - set(entries))
        if unknown:
            raise ValueError(
                f"{len(unknown)} {name} clips have no entry, such as "
                f"{unknown[0]}"
            )
    table = {}
    kinds = list(KINDS)
    # An entry of a single built-in corpus has no such key
    if all("corpus" in entry for entry in entries.values()):
        kinds.append("corpus")
    for name in ("train", "valid"):
        table[name] = {}
        for kind in kinds:
            mine = {entries[key][kind] for key in split.subsets[name]}
            tested = {entries[key][kind] for key in split.test}
            # An empty value means that the corpus lacks this kind
            both = sorted((mine & tested) - {""})
            table[name][kind] = {"count": len(both), "examples": both[:SHOWN]}
    return table


def check_leaks(split: Split, entries: dict[str, dict]) -> LeakTable:
    """Raise an error for a split that shares what its protocol forbids.

    The result is the ``leaks.leak_table`` of the split.

    Arguments
    ---------
    split
        A split of any origin.
    entries
        Manifest entries by utterance id.

    Raises
    ------
    LeakError
        Names the shared values, their subsets and examples.
    ValueError
        Unknown protocol, empty subset or unknown utterance.

    Example
    -------
    >>> entries = {i: dict.fromkeys(KINDS, i[0]) for i in ("a1", "b1", "a2")}
    >>> entries["a1"]["audio_hash"] = "x"
    >>> split = Split(["a1"], ["b1"], ["a2"], "speaker", 0, 0, 4, "")
    >>> _ = check_leaks(split, entries)
    Traceback (most recent call last):
        ...
    speechbrain_dslstm.splits.protocols.LeakError: protocol 'speaker', fold 0: train and test share 1 speaker (a)
    """
    rule = get_protocol(split.protocol)
    split.check()
    table = leak_table(split, entries)
    faults = [
        f"{name} and test share {found['count']} {kind} "
        f"({_examples(split, entries, name, kind, found['examples'])})"
        for name in (["train"] if rule.valid_is_test else ["train", "valid"])
        for kind, found in table[name].items()
        if found["count"] and kind in rule.forbidden
    ]
    if faults:
        raise LeakError(
            f"protocol {split.protocol!r}, fold {split.fold}: "
            + "; ".join(faults)
        )
    return table


def _examples(
    split: Split,
    entries: dict[str, dict],
    subset: str,
    kind: str,
    examples: list[str],
) -> str:
    """Write shared values for an error; of a recording, the clips that hold it."""
    if kind != "audio_hash":
        return ", ".join(examples)
    ids = split.subsets[subset], split.test
    names = [
        next(key for key in some if entries[key][kind] == examples[0])
        for some in ids
    ]
    return f"{' and '.join(names)} are the same recording"


def format_leak_table(table: LeakTable) -> str:
    """Write a leak table as text, one line for each kind."""
    lines = [f"{'shared with test':16} {'train':>7} {'valid':>7}  example"]
    for kind in KINDS:
        train, valid = table["train"][kind], table["valid"][kind]
        example = (train["examples"] + valid["examples"] + [""])[0]
        lines.append(
            f"{kind:16} {train['count']:7} {valid['count']:7}  {example[:32]}"
        )
    return "\n".join(line.rstrip() for line in lines)


def identical_recordings(entries: dict[str, dict]) -> list[list[str]]:
    """Group the ids of each recording that a corpus has under several names."""
    names = {}
    for key in sorted(entries):
        names.setdefault(entries[key]["audio_hash"], []).append(key)
    return [ids for ids in names.values() if len(ids) > 1]


def worst_leaks(tables: list[LeakTable]) -> dict[str, dict[str, int]]:
    """Take the largest counts of the folds' leak tables: ``worst[subset][kind]``."""
    return {
        name: {
            kind: max(table[name][kind]["count"] for table in tables)
            for kind in KINDS
        }
        for name in ("train", "valid")
    }


def leak_summary(
    entries: dict[str, dict],
    protocols: Sequence[str] | None = None,
    seed: int = 0,
    n_folds: int = 5,
    valid_speakers: int = 2,
) -> dict[str, dict]:
    """Split a corpus under each protocol and take the worst leaks of all folds.

    For each protocol, by default all that the entries allow, the result has the number of
    "folds" and the result of ``worst_leaks``. ``make_split`` explains the other
    arguments.
    """
    summary = {}
    if protocols is None:
        protocols = applicable_protocols(entries)
    for protocol in protocols:
        folds = count_folds(entries, protocol, n_folds)
        tables = []
        for fold in range(folds):
            options = fold, seed, n_folds, valid_speakers
            split = make_split(entries, protocol, *options)
            tables.append(leak_table(split, entries))
        summary[protocol] = {"folds": folds, **worst_leaks(tables)}
    return summary


def format_leak_summary(summary: dict[str, dict]) -> str:
    """Write a leak summary as a Markdown table with a row for each protocol.

    Each cell has the number of values that training and test share, and that
    validation and test share.
    """
    heads = ["protocol", "folds", *KINDS.values()]
    lines = [heads, ["---"] * len(heads)]
    for protocol, found in summary.items():
        cells = [f"{found['train'][k]} / {found['valid'][k]}" for k in KINDS]
        lines.append([f"`{protocol}`", str(found["folds"]), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def audio_hash(entries: dict[str, dict]) -> str:
    """Hash the audio of a corpus, to see whether two runs used the same."""
    return digest(sorted((key, e["audio_hash"]) for key, e in entries.items()))
