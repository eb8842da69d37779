"""The leak guard: what the subsets of a split share, and which of it a protocol forbids."""

from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.splits.protocols import (
    PROTOCOLS,
    LeakError,
    check_subsets,
    count_folds,
    digest,
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

logger = get_logger(__name__)
# What the guard looks at: key of the entries -> what it is
KINDS = {
    "speaker": "speakers",
    "session": "sessions",
    "dialogue": "dialogues",
    "text_id": "sentences",
    "audio_hash": "identical recordings",
}
SHOWN = 3


def leak_table(split, entries):
    """Count what the test side shares with the other two.

    Arguments
    ---------
    split : Split
        Whoever made it.
    entries : dict
        Manifest entries by utterance id.

    Returns
    -------
    dict
        ``table[side][kind]`` for the sides train and valid and the entry keys
        in ``KINDS``: ``count`` of shared values and some ``examples``.

    Raises
    ------
    ValueError
        The split names an utterance that has no entry.

    Example
    -------
    >>> from speechbrain_dslstm.splits import Split
    >>> entry = {"emotion": "anger", "dialogue": "", "gender": "F"}
    >>> entries = {
    ...     s + t: {**entry, "speaker": s, "session": s, "text_id": t}
    ...     | {"audio_hash": s + t}
    ...     for s in "abcd"
    ...     for t in "123"
    ... }
    >>> table = leak_table(make_split(entries, "speaker", 0), entries)
    >>> table["train"]["speaker"]["count"], table["train"]["text_id"]["count"]
    (0, 3)
    """
    ids_of = {"train": split.train, "valid": split.valid, "test": split.test}
    for name, ids in ids_of.items():
        unknown = sorted(set(ids) - set(entries))
        if unknown:
            raise ValueError(
                f"{len(unknown)} {name} clips have no entry, such as "
                f"{unknown[0]}"
            )
    table = {}
    for name in ("train", "valid"):
        table[name] = {}
        for kind in KINDS:
            mine = {entries[key][kind] for key in ids_of[name]}
            tested = {entries[key][kind] for key in split.test}
            # an empty value says that the corpus has no such thing
            both = sorted((mine & tested) - {""})
            table[name][kind] = {"count": len(both), "examples": both[:SHOWN]}
    return table


def check_leaks(split, entries):
    """Stop a split that shares what its protocol forbids.

    Arguments
    ---------
    split : Split
        Whoever made it.
    entries : dict
        Manifest entries by utterance id.

    Returns
    -------
    dict
        The ``leak_table``.

    Raises
    ------
    LeakError
        Names what is shared, between which sides, with examples.
    ValueError
        Unknown protocol, empty side or unknown utterance.

    Example
    -------
    >>> from speechbrain_dslstm.splits import Split
    >>> entry = {"emotion": "anger", "dialogue": "", "gender": "F"}
    >>> entries = {
    ...     s + t: {**entry, "speaker": s, "session": s, "text_id": t}
    ...     | {"audio_hash": s + t}
    ...     for s in "abcd"
    ...     for t in "123"
    ... }
    >>> split = Split(["a1"], ["b1"], ["a2"], "speaker", 0, 0, 4, "")
    >>> _ = check_leaks(split, entries)
    Traceback (most recent call last):
        ...
    speechbrain_dslstm.splits.protocols.LeakError: protocol 'speaker', fold 0: train and test share 1 speaker (a)
    """
    if split.protocol not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {split.protocol!r}; there are: "
            f"{', '.join(PROTOCOLS)}"
        )
    check_subsets(split)
    table = leak_table(split, entries)
    rule = PROTOCOLS[split.protocol]
    sides_ = ["train"] if rule.valid_is_test else ["train", "valid"]
    faults = [
        f"{side} and test share {found['count']} {kind} "
        f"({', '.join(found['examples'])})"
        for side in sides_
        for kind, found in table[side].items()
        if found["count"] and kind in rule.forbidden
    ]
    if faults:
        raise LeakError(
            f"protocol {split.protocol!r}, fold {split.fold}: "
            + "; ".join(faults)
        )
    return table


def format_leak_table(table):
    """Write a leak table as text, one line per kind.

    Arguments
    ---------
    table : dict
        What ``leak_table`` returned.

    Returns
    -------
    str
        Kind, values shared by train and test and by valid and test, example.

    Example
    -------
    >>> found = {kind: {"count": 0, "examples": []} for kind in KINDS}
    >>> print(format_leak_table({"train": found, "valid": found}))
    shared with test   train   valid  example
    speaker                0       0
    session                0       0
    dialogue               0       0
    text_id                0       0
    audio_hash             0       0
    """
    lines = [f"{'shared with test':16} {'train':>7} {'valid':>7}  example"]
    for kind in KINDS:
        train, valid = table["train"][kind], table["valid"][kind]
        example = (train["examples"] + valid["examples"] + [""])[0]
        lines.append(
            f"{kind:16} {train['count']:7} {valid['count']:7}  {example[:32]}"
        )
    return "\n".join(line.rstrip() for line in lines)


def identical_recordings(entries):
    """Find recordings that stand in a corpus under several names.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.

    Returns
    -------
    list of list of str
        The ids of each such recording, sorted.

    Example
    -------
    >>> hashes = {"a": "1", "b": "2", "c": "1"}
    >>> entries = {key: {"audio_hash": h} for key, h in hashes.items()}
    >>> identical_recordings(entries)
    [['a', 'c']]
    """
    names = {}
    for key in sorted(entries):
        names.setdefault(entries[key]["audio_hash"], []).append(key)
    return [ids for ids in names.values() if len(ids) > 1]


def worst_leaks(tables):
    """The most that any fold shares.

    Arguments
    ---------
    tables : list of dict
        What ``leak_table`` returned, fold by fold.

    Returns
    -------
    dict
        ``worst[side][kind]``, the largest count of shared values.

    Example
    -------
    >>> few = {kind: {"count": 0, "examples": []} for kind in KINDS}
    >>> many = {**few, "speaker": {"count": 7, "examples": ["a"]}}
    >>> tables = [{"train": few, "valid": few}, {"train": many, "valid": few}]
    >>> worst_leaks(tables)["train"]["speaker"]
    7
    """
    return {
        side: {
            kind: max(table[side][kind]["count"] for table in tables)
            for kind in KINDS
        }
        for side in ("train", "valid")
    }


def leak_summary(entries, protocols=None, seed=0, n_folds=5, valid_speakers=2):
    """What each protocol's test sides share with the other two.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    protocols : list of str, optional
        Names in ``PROTOCOLS``; all of them if left out.
    seed : int
        See ``make_split``.
    n_folds : int
        See ``make_split``.
    valid_speakers : int
        See ``make_split``.

    Returns
    -------
    dict
        Protocol -> "folds", their number, and what ``worst_leaks`` returns.

    Raises
    ------
    ValueError
        A bad protocol or number, or too little data for it.

    Example
    -------
    >>> from speechbrain_dslstm.splits import Split
    >>> entry = {"emotion": "anger", "dialogue": "", "gender": "F"}
    >>> entries = {
    ...     s + t: {**entry, "speaker": s, "session": s, "text_id": t}
    ...     | {"audio_hash": s + t}
    ...     for s in "abcd"
    ...     for t in "123"
    ... }
    >>> found = leak_summary(entries, ["session"])["session"]
    >>> found["folds"], found["train"]["speaker"], found["train"]["text_id"]
    (4, 0, 3)
    """
    summary = {}
    for protocol in PROTOCOLS if protocols is None else protocols:
        folds = count_folds(entries, protocol, n_folds)
        splits = (
            make_split(entries, protocol, fold, seed, n_folds, valid_speakers)
            for fold in range(folds)
        )
        tables = [leak_table(split, entries) for split in splits]
        summary[protocol] = {"folds": folds, **worst_leaks(tables)}
    return summary


def format_leak_summary(summary):
    """Write a leak summary as a Markdown table.

    Arguments
    ---------
    summary : dict
        What ``leak_summary`` returned.

    Returns
    -------
    str
        A row for each protocol; in each cell the values that training and
        test, and validation and test, have in common.

    Example
    -------
    >>> none = dict.fromkeys(KINDS, 0)
    >>> table = {"session": {"folds": 4, "train": none, "valid": none}}
    >>> print(format_leak_summary(table).splitlines()[-1])
    | `session` | 4 | 0 / 0 | 0 / 0 | 0 / 0 | 0 / 0 | 0 / 0 |
    """
    heads = ["protocol", "folds", *KINDS.values()]
    lines = [heads, ["---"] * len(heads)]
    for protocol, found in summary.items():
        cells = [f"{found['train'][k]} / {found['valid'][k]}" for k in KINDS]
        lines.append([f"`{protocol}`", str(found["folds"]), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def audio_hash(entries):
    """Name the audio of a corpus, to see that two runs used the same.

    Arguments
    ---------
    entries : dict
        Utterance id -> manifest entry.

    Returns
    -------
    str
        12 hexadecimal digits.

    Example
    -------
    >>> audio_hash({"a": {"audio_hash": "0f"}})
    'b794e175b943'
    """
    return digest(sorted((key, e["audio_hash"]) for key, e in entries.items()))
