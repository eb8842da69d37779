"""Named ways to split a manifest into training, validation and test.

A protocol says what training and test must not share. ``make_split`` builds a
split from manifest entries, a protocol, a fold and a seed. ``leaks`` checks any
split from the entries alone. Nothing here depends on the corpus.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.splits.folds import (
    held_out,
    random_fold,
    stratified_fold,
    table_subsets,
    validation_by_corpus,
    validation_clips,
    validation_sentences,
    validation_speakers,
    values,
)

__all__ = [
    "Protocol",
    "PROTOCOLS",
    "applicable_protocols",
    "Split",
    "LeakError",
    "count_folds",
    "get_protocol",
    "speaker_caveat",
    "make_split",
    "split_hash",
    "digest",
]

logger = get_logger(__name__)


@dataclass(frozen=True)
class Protocol:
    """A rule for splitting: what is held out, and how the epoch is chosen.

    ``forbidden`` has the entry keys whose values the test subset may not share
    with another. ``split`` says in words how the subsets are made, and
    ``selection`` which clips choose the best epoch. Where ``valid_is_test``,
    one subset serves as validation and as test.
    """

    forbidden: tuple[str, ...]
    split: str
    selection: str = "from the training part"
    valid_is_test: bool = False


PROTOCOLS = {
    "speaker": Protocol(("speaker", "audio_hash"), "leave one speaker out"),
    "session": Protocol(
        ("speaker", "session", "dialogue", "audio_hash"),
        "leave one session out",
    ),
    "text": Protocol(
        ("text_id", "audio_hash"),
        "hold sentences out, speakers in all subsets",
    ),
    "speaker-text": Protocol(
        ("speaker", "session", "dialogue", "text_id", "audio_hash"),
        "hold a session and sentences out",
    ),
    "random": Protocol(
        (), "stratified random folds, speakers and sentences in all subsets"
    ),
    "paper": Protocol(
        (),
        "random folds, speakers and sentences in all subsets",
        "best epoch chosen on the test fold",
        True,
    ),
    "all": Protocol(
        ("speaker", "audio_hash"),
        "no test subset, for a model to be used",
        "they choose the epoch and are scored",
        True,
    ),
    "corpus": Protocol(
        ("corpus", "speaker", "audio_hash"), "leave one corpus out"
    ),
    "split": Protocol(("audio_hash",), "the table's own subsets"),
}
# Protocols that need an entry key of this name, which some manifests lack
BY_KEY = ("corpus", "split")


def applicable_protocols(entries: Mapping[str, dict]) -> list[str]:
    """List the protocols that a manifest allows: not all have corpora or subsets."""
    keys = set().union(*entries.values())
    several = len({entry.get("corpus") for entry in entries.values()}) > 1
    lacking = {name for name in BY_KEY if name not in keys}
    lacking |= set() if several else {"corpus"}
    return [name for name in PROTOCOLS if name not in lacking]


def get_protocol(name: str) -> Protocol:
    """Look a protocol up by its name."""
    if name not in PROTOCOLS:
        raise ValueError(
            f"unknown protocol {name!r}; expected one of {', '.join(PROTOCOLS)}"
        )
    return PROTOCOLS[name]


def speaker_caveat(protocol: str) -> list[str]:
    """List the caveat of a protocol under which speakers are tested and trained on.

    >>> speaker_caveat("random"), speaker_caveat("session")
    (['same speakers in training and test'], [])
    """
    if "speaker" in get_protocol(protocol).forbidden:
        return []
    if protocol == "split":
        return ["the table's own split: speakers may be in training and test"]
    return ["same speakers in training and test"]


class LeakError(ValueError):
    """A split whose subsets share what its protocol forbids.

    Example
    -------
    >>> issubclass(LeakError, ValueError)
    True
    """


@dataclass(frozen=True)
class Split:
    """Utterance ids of the three subsets, and how they were chosen.

    Arguments
    ---------
    train, valid, test
        Sorted ids. Under ``paper`` and ``all``, ``valid`` and ``test`` agree;
        under the others ``valid`` may be empty.
    protocol
        A name in ``PROTOCOLS``.
    fold
        Index from 0.
    seed
        Seed of all random choices.
    n_folds
        Number of folds under this protocol.
    description
        The split in words, for logs and reports.
    dropped
        Number of clips in no subset.

    Example
    -------
    >>> split = Split(["a"], ["b"], ["c"], "random", 0, 0, 5, "")
    >>> split.subsets
    {'train': ['a'], 'valid': ['b'], 'test': ['c']}
    """

    train: list[str]
    valid: list[str]
    test: list[str]
    protocol: str
    fold: int
    seed: int
    n_folds: int
    description: str
    dropped: int = 0

    @property
    def subsets(self) -> dict[str, list[str]]:
        """Name of each subset -> its ids."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def check(self) -> None:
        """Raise an error for clips in two subsets, or no training or test clip."""
        where = f"protocol {self.protocol!r}, fold {self.fold}"
        for name, ids in self.subsets.items():
            if not ids and name != "valid":
                raise ValueError(f"{where}: no clip is left for {name}")
        pairs = [("train", "test"), ("train", "valid")]
        if not PROTOCOLS[self.protocol].valid_is_test:
            pairs.append(("valid", "test"))
        for one, other in pairs:
            both = set(self.subsets[one]) & set(self.subsets[other])
            if both:
                raise LeakError(
                    f"{where}: {len(both)} clips in {one} and {other}, such as "
                    f"{min(both)}"
                )


def count_folds(
    entries: dict[str, dict], protocol: str, n_folds: int = 5
) -> int:
    """Count the folds in which every clip is tested exactly once.

    The result is the number of speakers, of sessions, of sentence groups
    (``text``), of sessions times sentence groups (``speaker-text``), or of
    corpora; 1 for ``all`` and ``split``; and ``n_folds`` for ``random`` and
    ``paper``.

    Arguments
    ---------
    entries
        Manifest entries by utterance id.
    protocol
        A name in ``PROTOCOLS``.
    n_folds
        Number of random folds; sentences are put into at most as many groups.

    Raises
    ------
    ValueError
        Unknown protocol, or too little data for it.

    Example
    -------
    >>> entries = {
    ...     s + t: {"speaker": s, "session": s, "text_id": t}
    ...     for s in "abcd"
    ...     for t in "123"
    ... }
    >>> [count_folds(entries, name) for name in applicable_protocols(entries)]
    [4, 4, 3, 12, 5, 5, 1]
    """
    _check_request(entries, protocol, 0, 0, n_folds)
    speakers = len(values(entries, "speaker"))
    sessions = len(values(entries, "session"))
    texts = min(n_folds, len(values(entries, "text_id")))
    corpora = len({entry.get("corpus", "") for entry in entries.values()})
    fewer = min((sessions, "sessions"), (texts, "sentences"))
    count, available, unit = {
        "speaker": (speakers, speakers, "speakers"),
        "session": (sessions, sessions, "sessions"),
        "text": (texts, texts, "sentences"),
        "speaker-text": (sessions * texts, *fewer),
        "all": (1, speakers, "speakers"),
        "corpus": (corpora, corpora, "corpora"),
        "split": (1, len(entries), "clips"),
    }.get(protocol, (n_folds, n_folds, "folds"))
    if available < 2:
        raise ValueError(
            f"protocol {protocol!r} needs at least 2 {unit}, "
            f"the {len(entries)} clips have {available}"
        )
    return count


def make_split(
    entries: dict[str, dict],
    protocol: str,
    fold: int,
    seed: int = 0,
    n_folds: int = 5,
    valid_speakers: int = 2,
) -> Split:
    """Split utterances into training, validation and test.

    The result depends on the arguments alone, not on the order of ``entries``.
    Its subsets are disjoint, but ``paper`` and ``all`` validate on the test
    subset. For ``speaker-text``, fold f tests session f modulo the number of
    sessions on one group of sentences; the first folds visit every session
    once.

    Arguments
    ---------
    entries
        Manifest entries by utterance id.
    protocol
        A name in ``PROTOCOLS``.
    fold
        From 0 to ``count_folds(...) - 1``.
    seed
        Seed of all random choices.
    n_folds
        See ``count_folds``.
    valid_speakers
        Number of validation speakers where no whole session is taken. 0: no
        clip is for validation, all that are not tested are for training. A
        table's own validation clips stay, ``paper`` has its test fold, and
        ``all``, which is scored on validation speakers, has one.

    Raises
    ------
    ValueError
        A bad protocol, fold, seed or number, or no clip for training or test.

    Example
    -------
    >>> entry = {"emotion": "anger", "gender": "F"}
    >>> entries = {
    ...     s + t: entry | {"speaker": s, "session": s, "text_id": t}
    ...     for s in "abcd"
    ...     for t in "123"
    ... }
    >>> split = make_split(entries, "session", fold=1)
    >>> len(split.train), len(split.valid), len(split.test)
    (3, 6, 3)
    >>> split.description
    'session, fold 1 of 4: leave one session out (test b); validation: speakers ...'
    """
    _check_request(entries, protocol, fold, seed, n_folds)
    if not _is_int(valid_speakers) or valid_speakers < 0:
        raise ValueError(f"valid_speakers is {valid_speakers!r}, expected >= 0")
    total = count_folds(entries, protocol, n_folds)
    if fold >= total:
        raise ValueError(
            f"fold is {fold}, but protocol {protocol!r} has {total} folds here "
            f"(0 to {total - 1})"
        )
    entries = {key: entries[key] for key in sorted(entries)}
    rng = np.random.default_rng([seed, fold])
    if protocol == "paper":
        train, test, tested = random_fold(entries, fold, seed, n_folds)
        valid, chosen = test, "the test fold"
    elif protocol == "all":
        train, valid, chosen = validation_speakers(
            entries, list(entries), [], max(valid_speakers, 1), rng
        )
        test, tested = valid, "test is validation"
    elif protocol == "split":
        train, valid, test, chosen = table_subsets(
            entries, n_folds, valid_speakers, rng
        )
        tested = f"test {len(test)} clips"
    else:
        if protocol == "random":
            train, test, tested = stratified_fold(entries, fold, seed, n_folds)
        else:
            train, test, tested = held_out(
                entries, protocol, fold, seed, n_folds
            )
        train, valid, chosen = _take_validation(
            entries, protocol, train, test, n_folds, valid_speakers, rng
        )
    rule = PROTOCOLS[protocol]
    how = (
        f"validation: {chosen} ({rule.selection})" if valid else "no validation"
    )
    split = Split(
        sorted(train),
        sorted(valid),
        sorted(test),
        protocol,
        int(fold),
        int(seed),
        total,
        f"{protocol}, fold {fold} of {total}: {rule.split} ({tested}); {how}",
        len(entries) - len({*train, *valid, *test}),
    )
    split.check()
    missing = {e["emotion"] for e in entries.values()}
    missing -= {entries[key]["emotion"] for key in split.train}
    if missing:
        names = ", ".join(sorted(missing))
        logger.warning(
            "%s, fold %d: no training clip of %s", protocol, fold, names
        )
    return split


def _take_validation(
    entries: dict[str, dict],
    protocol: str,
    train: list[str],
    test: list[str],
    n_folds: int,
    valid_speakers: int,
    rng: np.random.Generator,
) -> tuple[list[str], list[str], str]:
    """Split training clips: those that stay, those for validation, in words."""
    if not valid_speakers:
        return train, [], ""
    if protocol == "random":
        return validation_clips(entries, train, n_folds, rng)
    if protocol == "text":
        return validation_sentences(
            entries, train, n_folds, valid_speakers, rng
        )
    if protocol == "corpus":
        return validation_by_corpus(entries, train, valid_speakers, rng)
    by_session = protocol != "speaker"
    return validation_speakers(
        entries, train, test, valid_speakers, rng, by_session
    )


def _is_int(value: object) -> bool:
    """Whether a value is a whole number, NumPy's included."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_request(
    entries: dict[str, dict], protocol: str, fold: int, seed: int, n_folds: int
) -> None:
    """Raise an error for arguments that allow no split."""
    forbidden = get_protocol(protocol).forbidden
    if not _is_int(fold) or fold < 0:
        raise ValueError(f"fold is {fold!r}, expected a whole number from 0")
    if not _is_int(seed) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}, expected 0 to {2**32 - 1}")
    if not _is_int(n_folds) or not 2 <= n_folds <= len(entries):
        raise ValueError(
            f"n_folds is {n_folds!r}, expected 2 to the {len(entries)} clips"
        )
    needed = {"speaker", "session", "text_id", "corpus"} & set(forbidden)
    for kind in sorted(needed | ({"split"} & {protocol})):
        without = [key for key, entry in entries.items() if not entry.get(kind)]
        if without:
            raise ValueError(
                f"{without[0]}: {kind} is empty ({len(without)} of the "
                f"{len(entries)} clips), and protocol {protocol!r} needs it"
            )


def split_hash(split: Split) -> str:
    """Hash the ids of a split, to see whether two runs used the same one.

    >>> split_hash(Split(["a"], ["b"], ["c"], "random", 0, 0, 5, ""))
    '035f841dd3af'
    """
    return digest([sorted(ids) for ids in split.subsets.values()])


def digest(value: list) -> str:
    """Hash a value that JSON can hold to 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]
