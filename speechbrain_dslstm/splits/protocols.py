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

from speechbrain_dslstm.splits import folds as sides

__all__ = [
    "Protocol",
    "PROTOCOLS",
    "Split",
    "count_folds",
    "make_split",
    "LeakError",
    "split_hash",
]

logger = get_logger(__name__)


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
        train, valid, chosen = sides.validation_speakers(
            entries, list(entries), [], valid_speakers, rng
        )
        test, tested = valid, "test is valid"
    elif protocol == "random":
        train, test, tested = sides.stratified_fold(
            entries, fold, seed, n_folds
        )
        train, valid, chosen = sides.validation_clips(
            entries, train, n_folds, rng
        )
    else:
        train, test, tested = sides.held_out(
            entries, protocol, fold, seed, n_folds
        )
        if protocol == "text":
            train, valid, chosen = sides.validation_sentences(
                entries, train, n_folds, valid_speakers, rng
            )
        else:
            train, valid, chosen = sides.validation_speakers(
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
    check_subsets(split)
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


def check_subsets(split):
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


class LeakError(ValueError):
    """A split shares what its protocol forbids.

    Example
    -------
    >>> issubclass(LeakError, ValueError)
    True
    """


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
    return digest(
        [sorted(split.train), sorted(split.valid), sorted(split.test)]
    )


def digest(value):
    """12 hexadecimal digits that stand for a value."""
    text = json.dumps(value)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
