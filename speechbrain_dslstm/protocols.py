"""Named splits of a manifest, and the guard that checks them for leaks.

A split names what must not stand on both sides. ``make_split`` builds it from
manifest entries, a protocol, a fold and a seed; ``check_leaks`` works from the
entries alone, whoever made the split. No corpus is named here.
"""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm import sides

__all__ = [
    "PROTOCOLS",
    "LeakError",
    "Protocol",
    "Split",
    "audio_hash",
    "check_leaks",
    "count_folds",
    "format_leak_summary",
    "format_leak_table",
    "identical_recordings",
    "leak_summary",
    "leak_table",
    "make_split",
    "split_hash",
    "worst_leaks",
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


@dataclass(frozen=True)
class Protocol:
    """What a protocol forbids, and how its best epoch is chosen.

    Arguments
    ---------
    forbidden : tuple of str
        Entry keys whose values no test clip may share with another side.
    split : str
        How the sides are made.
    selection : str
        What the best epoch is chosen on.
    valid_is_test : bool
        Whether one side serves as both.

    Example
    -------
    >>> PROTOCOLS["speaker"].forbidden
    ('speaker', 'audio_hash')
    """

    forbidden: tuple
    split: str
    selection: str
    valid_is_test: bool = False


PROTOCOLS = {
    "speaker": Protocol(
        ("speaker", "audio_hash"),
        "leave one speaker out",
        "validation on other training speakers",
    ),
    "session": Protocol(
        ("speaker", "session", "dialogue", "audio_hash"),
        "leave one session out",
        "validation on a training session or on training speakers",
    ),
    "text": Protocol(
        ("text_id", "audio_hash"),
        "no sentence on both sides, speakers on both",
        "validation on other training sentences (speakers if none is left)",
    ),
    "speaker-text": Protocol(
        ("speaker", "session", "dialogue", "text_id", "audio_hash"),
        "no session and no sentence on both sides",
        "validation on a training session or on training speakers",
    ),
    "random": Protocol(
        (),
        "stratified random folds, speakers and sentences on both sides",
        "validation on random training clips",
    ),
    "paper": Protocol(
        (),
        "random folds, speakers and sentences on both sides",
        "best epoch chosen on the test fold, no validation",
        True,
    ),
    "all": Protocol(
        ("speaker", "audio_hash"),
        "no test side, for a model to be used",
        "scored on the validation speakers, which choose the epoch",
        True,
    ),
}


@dataclass(frozen=True)
class Split:
    """Utterance ids of the three sides, and where they come from.

    Arguments
    ---------
    train : list of str
        Sorted ids.
    valid : list of str
        Sorted ids; those of ``test`` under ``paper`` and ``all``.
    test : list of str
        Sorted ids.
    protocol : str
        A name in ``PROTOCOLS``.
    fold : int
        From 0.
    seed : int
        What random choices were drawn from.
    n_folds : int
        Folds there are under this protocol.
    description : str
        The split in words, for logs and reports.
    dropped : int
        Clips on no side.

    Example
    -------
    >>> split = Split(["a"], ["b"], ["c"], "random", 0, 0, 5, "")
    >>> split.dropped
    0
    """

    train: list
    valid: list
    test: list
    protocol: str
    fold: int
    seed: int
    n_folds: int
    description: str
    dropped: int = 0


class LeakError(ValueError):
    """A split shares what its protocol forbids.

    Example
    -------
    >>> issubclass(LeakError, ValueError)
    True
    """


def count_folds(entries, protocol, n_folds=5):
    """Count the folds in which every clip is tested exactly once.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    protocol : str
        A name in ``PROTOCOLS``.
    n_folds : int
        Folds wanted where the data does not say; sentences are put into at
        most as many groups.

    Returns
    -------
    int
        Number of speakers, of sessions, of sentence groups (``text``), of
        sessions times sentence groups (``speaker-text``), 1 (``all``), or
        ``n_folds``.

    Raises
    ------
    ValueError
        Unknown protocol, or too little data for it.

    Example
    -------
    >>> entry = {"emotion": "anger", "dialogue": "", "gender": "F"}
    >>> entries = {
    ...     s + t: {**entry, "speaker": s, "session": s, "text_id": t}
    ...     | {"audio_hash": s + t}
    ...     for s in "abcd"
    ...     for t in "123"
    ... }
    >>> [count_folds(entries, name) for name in PROTOCOLS]
    [4, 4, 3, 12, 5, 5, 1]
    """
    _check_request(entries, protocol, 0, 0, n_folds)
    speakers = sides.values(entries, "speaker")
    sessions = sides.values(entries, "session")
    texts = min(n_folds, len(sides.values(entries, "text_id")))
    count = {
        "speaker": len(speakers),
        "session": len(sessions),
        "text": texts,
        "speaker-text": len(sessions) * texts,
        "all": 1,
    }.get(protocol, n_folds)
    few = {
        "speaker": (len(speakers), "speakers"),
        "all": (len(speakers), "speakers"),
        "session": (len(sessions), "sessions"),
        "text": (texts, "sentences"),
        "speaker-text": min((len(sessions), "sessions"), (texts, "sentences")),
    }.get(protocol, (len(entries) // n_folds + 1, "clips a fold"))
    if few[0] < 2:
        raise ValueError(
            f"protocol {protocol!r} needs at least 2 {few[1]}, "
            f"the {len(entries)} clips have {few[0]}"
        )
    return count


def make_split(entries, protocol, fold, seed=0, n_folds=5, valid_speakers=2):
    """Split utterances into training, validation and test.

    The result depends on the arguments alone, not on the order of ``entries``.
    For ``speaker-text``, fold f tests session f modulo the number of sessions
    on one group of sentences; the first folds visit every session once.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    protocol : str
        A name in ``PROTOCOLS``.
    fold : int
        From 0 to ``count_folds(...) - 1``.
    seed : int
        For all random choices.
    n_folds : int
        See ``count_folds``.
    valid_speakers : int
        Speakers put aside for validation where no session is.

    Returns
    -------
    Split
        The three sides, none of them empty; disjoint, but that ``paper`` and
        ``all`` validate on the test side.

    Raises
    ------
    ValueError
        A bad protocol, fold, seed or number, or a side that stays empty.

    Example
    -------
    >>> entry = {"emotion": "anger", "dialogue": "", "gender": "F"}
    >>> entries = {
    ...     s + t: {**entry, "speaker": s, "session": s, "text_id": t}
    ...     | {"audio_hash": s + t}
    ...     for s in "abcd"
    ...     for t in "123"
    ... }
    >>> split = make_split(entries, "session", fold=1)
    >>> len(split.train), len(split.valid), len(split.test)
    (3, 6, 3)
    >>> split.description
    'session, fold 1 of 4: leave one session out (test b); ...'
    """
    _check_request(entries, protocol, fold, seed, n_folds)
    if not _is_int(valid_speakers) or valid_speakers < 1:
        raise ValueError(f"valid_speakers is {valid_speakers!r}, expected >= 1")
    total = count_folds(entries, protocol, n_folds)
    if fold >= total:
        raise ValueError(
            f"fold is {fold}, but protocol {protocol!r} has {total} folds here "
            f"(0 to {total - 1})"
        )
    entries = {key: entries[key] for key in sorted(entries)}
    rng = np.random.default_rng([seed, fold])
    if protocol == "paper":
        train, test, tested = sides.random_fold(entries, fold, seed, n_folds)
        valid, chosen = test, "valid is test"
    elif protocol == "all":
        train, valid, chosen = sides.valid_people(
            entries, list(entries), [], valid_speakers, rng
        )
        test, tested = valid, "test is valid"
    elif protocol == "random":
        train, test, tested = sides.stratified_fold(
            entries, fold, seed, n_folds
        )
        train, valid, chosen = sides.valid_clips(entries, train, n_folds, rng)
    else:
        train, test, tested = sides.held_out(
            entries, protocol, fold, seed, n_folds
        )
        if protocol == "text":
            train, valid, chosen = sides.valid_texts(
                entries, train, n_folds, valid_speakers, rng
            )
        else:
            train, valid, chosen = sides.valid_people(
                entries,
                train,
                test,
                valid_speakers,
                rng,
                by_session=protocol != "speaker",
            )
    rule = PROTOCOLS[protocol]
    split = Split(
        sorted(train),
        sorted(valid),
        sorted(test),
        protocol,
        int(fold),
        int(seed),
        total,
        f"{protocol}, fold {fold} of {total}: {rule.split} ({tested}); "
        f"{rule.selection} ({chosen})",
        len(entries) - len({*train, *valid, *test}),
    )
    _check_sides(split)
    missing = {e["emotion"] for e in entries.values()}
    missing -= {entries[key]["emotion"] for key in split.train}
    if missing:
        logger.warning(
            "%s, fold %d: no training clip of %s",
            protocol,
            fold,
            ", ".join(sorted(missing)),
        )
    return split


def _is_int(value):
    """Whether a value is a whole number, NumPy's included."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_request(entries, protocol, fold, seed, n_folds):
    """Refuse what no split can be made of, naming it."""
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {protocol!r}; there are: {', '.join(PROTOCOLS)}"
        )
    if not _is_int(fold) or fold < 0:
        raise ValueError(f"fold is {fold!r}, expected a whole number from 0")
    if not _is_int(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}, expected 0 to {2**32 - 1}")
    if not _is_int(n_folds) or not 2 <= n_folds <= len(entries):
        raise ValueError(
            f"n_folds is {n_folds!r}, expected 2 to the {len(entries)} clips"
        )
    for kind in {"speaker", "session", "text_id"} & set(
        PROTOCOLS[protocol].forbidden
    ):
        for key, entry in entries.items():
            if not entry[kind]:
                raise ValueError(f"{key}: {kind} is empty")


def _check_sides(split):
    """Refuse an empty side and a clip on two sides."""
    ids_of = {"train": split.train, "valid": split.valid, "test": split.test}
    where = f"protocol {split.protocol!r}, fold {split.fold}"
    for name, ids in ids_of.items():
        if not ids:
            raise ValueError(f"{where}: no clip is left for {name}")
    pairs = [("train", "test"), ("train", "valid")]
    if not PROTOCOLS[split.protocol].valid_is_test:
        pairs.append(("valid", "test"))
    for one, other in pairs:
        both = set(ids_of[one]) & set(ids_of[other])
        if both:
            raise LeakError(
                f"{where}: {len(both)} clips in {one} and {other}, such as "
                f"{min(both)}"
            )


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
    speechbrain_dslstm.protocols.LeakError: protocol 'speaker', fold 0: train and test share 1 speaker (a)
    """
    if split.protocol not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {split.protocol!r}; there are: "
            f"{', '.join(PROTOCOLS)}"
        )
    _check_sides(split)
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


def split_hash(split):
    """Name a split by its ids, to see that two runs used the same one.

    Arguments
    ---------
    split : Split
        Whoever made it.

    Returns
    -------
    str
        12 hexadecimal digits.

    Example
    -------
    >>> split_hash(Split(["a"], ["b"], ["c"], "random", 0, 0, 5, ""))
    '035f841dd3af'
    """
    return _digest(
        [sorted(split.train), sorted(split.valid), sorted(split.test)]
    )


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
    return _digest(sorted((key, e["audio_hash"]) for key, e in entries.items()))


def _digest(value):
    """12 hexadecimal digits that stand for a value."""
    text = json.dumps(value)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
