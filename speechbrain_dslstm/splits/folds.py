"""Ways to hold utterances out of a corpus, for testing and for validation.

Every function takes manifest entries (utterance id -> entry, sorted by id) and
returns ``Parts``: the ids that stay, the ids that are held out, and the choice
in words. Folds are scikit-learn's, so that a seed gives the same ones again.
``protocols`` combines these functions.
"""

import warnings
from collections import Counter
from collections.abc import Container, Iterable

import numpy as np
from sklearn.model_selection import (
    KFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    train_test_split,
)

__all__ = [
    "held_out",
    "random_fold",
    "stratified_fold",
    "table_subsets",
    "validation_by_corpus",
    "validation_clips",
    "validation_speakers",
    "validation_sentences",
    "values",
]

Parts = tuple[list[str], list[str], str]


def values(entries: dict[str, dict], key: str) -> list[str]:
    """List the distinct values of an entry key, sorted."""
    return sorted({entry[key] for entry in entries.values()})


def random_fold(
    entries: dict[str, dict], fold: int, seed: int, n_folds: int
) -> Parts:
    """Hold out one of ``n_folds`` random parts, regardless of emotion."""
    maker = KFold(n_folds, shuffle=True, random_state=seed)
    ids = list(entries)
    train, test = _folds(maker, ids, ids)[fold]
    return train, test, f"test 1/{n_folds} of the clips"


def stratified_fold(
    entries: dict[str, dict], fold: int, seed: int, n_folds: int
) -> Parts:
    """Hold out one of ``n_folds`` random parts with equal shares of emotions."""
    labels = [entry["emotion"] for entry in entries.values()]
    most = max(Counter(labels).values())
    if most < n_folds:
        raise ValueError(
            f"n_folds is {n_folds}, but no class has more than {most} clips"
        )
    maker = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    train, test = _folds(maker, list(entries), labels)[fold]
    return train, test, f"test 1/{n_folds} of the clips"


def held_out(
    entries: dict[str, dict], protocol: str, fold: int, seed: int, n_folds: int
) -> Parts:
    """Hold out a speaker, a corpus, a session, sentences, or the last two.

    ``protocol`` is ``speaker``, ``corpus``, ``session``, ``text`` or
    ``speaker-text``. Sentences are put into at most ``n_folds`` groups.
    """
    ids = list(entries)
    if protocol in ("speaker", "corpus"):
        name = values(entries, protocol)[fold]
        test = _having(entries, ids, protocol, {name})
        return _without(ids, test), test, f"test {name}"
    if protocol == "text":
        groups = _text_groups(entries, seed, n_folds)
        test = _having(entries, ids, "text_id", groups[fold])
        words = f"test {len(groups[fold])} of {sum(map(len, groups))} sentences"
        return _without(ids, test), test, words
    sessions = values(entries, "session")
    session = sessions[fold % len(sessions)]
    test = _having(entries, ids, "session", {session})
    train = _without(ids, test)
    if protocol == "session":
        return train, test, f"test {session}"
    groups = _text_groups(entries, seed, n_folds)
    texts = groups[(fold + fold // len(sessions)) % len(groups)]
    test = _having(entries, test, "text_id", texts)
    train = _without(train, _having(entries, train, "text_id", texts))
    words = (
        f"test {session} on {len(texts)} of {sum(map(len, groups))} sentences"
    )
    return train, test, words


def table_subsets(
    entries: dict[str, dict],
    n_folds: int,
    valid_speakers: int,
    rng: np.random.Generator,
) -> tuple[list[str], list[str], list[str], str]:
    """Take the entries' own subsets: train, valid, test, and the choice in words.

    Where none is for validation, training speakers are taken, or 1/``n_folds``
    of the training clips if speakers are not known, or are tested as well; and
    no clip if ``valid_speakers`` is 0.
    """
    ids = list(entries)
    train, valid, test = (
        _having(entries, ids, "split", {name})
        for name in ("train", "valid", "test")
    )
    for name, some in (("train", train), ("test", test)):
        if not some:
            raise ValueError(
                f"no clip has {name} in the column split; protocol 'split' "
                "needs clips of train and of test"
            )
    if valid or not valid_speakers:
        return train, valid, test, f"{len(valid)} clips of the table"
    speakers = {entries[key]["speaker"] for key in train}
    tested = {entries[key]["speaker"] for key in test}
    apart = "" not in speakers and not speakers & tested
    if apart and len(speakers) > valid_speakers:
        train, valid, words = validation_speakers(
            entries, train, test, valid_speakers, rng
        )
    else:
        train, valid, words = validation_clips(entries, train, n_folds, rng)
    return train, valid, test, words


def validation_by_corpus(
    entries: dict[str, dict],
    train: list[str],
    valid_speakers: int,
    rng: np.random.Generator,
) -> Parts:
    """Take ``valid_speakers`` speakers of each training corpus, at most half."""
    left, valid, words = [], [], []
    for corpus in sorted({entries[key]["corpus"] for key in train}):
        own = _having(entries, train, "corpus", {corpus})
        speakers = len({entries[key]["speaker"] for key in own})
        wanted = min(valid_speakers, speakers // 2)
        if wanted:
            own, some, chosen = validation_speakers(
                entries, own, [], wanted, rng
            )
            valid += some
            words.append(chosen)
        left += own
    if not valid:
        # Corpora of one speaker each; or this raises
        return validation_speakers(entries, train, [], 1, rng)
    return left, valid, "; ".join(words)


def validation_clips(
    entries: dict[str, dict],
    train: list[str],
    n_folds: int,
    rng: np.random.Generator,
) -> Parts:
    """Take 1/``n_folds`` of the training clips, stratified if possible."""
    if len(train) < 2:
        raise ValueError(f"{len(train)} training clip leaves no validation")
    size = -(-len(train) // n_folds)
    strata = [entries[key]["emotion"] for key in train]
    counts = Counter(strata)
    # Stratifying needs room for every class in both parts
    if min(counts.values()) < 2 or len(counts) > min(size, len(train) - size):
        strata = None
    left, valid = train_test_split(
        train,
        test_size=size,
        random_state=int(rng.integers(2**31)),
        stratify=strata,
    )
    return left, valid, f"{len(valid)} clips"


def validation_sentences(
    entries: dict[str, dict],
    train: list[str],
    n_folds: int,
    valid_speakers: int,
    rng: np.random.Generator,
) -> Parts:
    """Take about 1/``n_folds`` of the training sentences.

    Where only one sentence is left, take ``valid_speakers`` speakers instead.
    """
    some = {key: entries[key] for key in train}
    if len(values(some, "text_id")) < 2:
        return validation_speakers(entries, train, [], valid_speakers, rng)
    texts = _text_groups(some, int(rng.integers(2**31)), n_folds)[0]
    valid = _having(entries, train, "text_id", texts)
    words = f"{len(texts)} of {len(values(some, 'text_id'))} sentences"
    return _without(train, valid), valid, words


def validation_speakers(
    entries: dict[str, dict],
    train: list[str],
    test: list[str],
    valid_speakers: int,
    rng: np.random.Generator,
    by_session: bool = False,
) -> Parts:
    """Take a few training speakers, or a training session, for validation.

    Arguments
    ---------
    entries
        Manifest entries by utterance id.
    train
        Ids to take from.
    test
        Ids that are tested. A training speaker who shares a session with them
        can be heard in the test recordings, and is taken last.
    valid_speakers
        Number of speakers; women and men take turns.
    rng
        Source of the random order.
    by_session
        Whether to prefer a whole session of at least two speakers. It is only
        taken where two sessions stay for training.
    """
    some = {key: entries[key] for key in train}
    sessions = values(some, "session")
    if by_session and len(sessions) >= 3:
        session = sessions[rng.integers(len(sessions))]
        valid = _having(entries, train, "session", {session})
        if len({entries[key]["speaker"] for key in valid}) >= 2:
            return _without(train, valid), valid, f"session {session}"
    genders = {e["speaker"]: e["gender"] for e in some.values()}
    if len(genders) <= valid_speakers:
        raise ValueError(
            f"{valid_speakers} validation speakers cannot be taken from "
            f"{len(genders)} training speakers"
        )
    tested = {entries[key]["session"] for key in test}
    near = {e["speaker"] for e in some.values() if e["session"] in tested}
    names = sorted(genders)
    order = [names[i] for i in rng.permutation(len(names))]
    order.sort(key=near.__contains__)
    turn = Counter()
    rank = {}
    for name in order:
        rank[name] = (name in near, turn[genders[name]])
        turn[genders[name]] += 1
    chosen = sorted(sorted(order, key=rank.get)[:valid_speakers])
    valid = _having(entries, train, "speaker", set(chosen))
    words = "speaker" if len(chosen) == 1 else "speakers"
    return _without(train, valid), valid, f"{words} {', '.join(chosen)}"


def _text_groups(
    entries: dict[str, dict], seed: int, n_folds: int
) -> list[set[str]]:
    """Group the sentences so that groups have similar sizes and emotions."""
    ids = list(entries)
    texts = [entry["text_id"] for entry in entries.values()]
    labels = [entry["emotion"] for entry in entries.values()]
    count = min(n_folds, len(set(texts)))
    if max(Counter(labels).values()) < count:
        labels = [""] * len(labels)
    maker = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return [
        {entries[key]["text_id"] for key in test}
        for _, test in _folds(maker, ids, labels, texts)
    ]


def _folds(maker, ids, labels, groups=None) -> list[tuple[list, list]]:
    """Training and test ids of every fold of a scikit-learn splitter."""
    with warnings.catch_warnings():
        # The warning names no class; make_split names those not in training
        warnings.simplefilter("ignore", UserWarning)
        folds = list(maker.split(ids, labels, groups))
    return [([ids[i] for i in a], [ids[i] for i in b]) for a, b in folds]


def _having(
    entries: dict[str, dict], ids: list[str], key: str, wanted: Container[str]
) -> list[str]:
    """Select the ids whose entry has a wanted value."""
    return [i for i in ids if entries[i][key] in wanted]


def _without(ids: list[str], others: Iterable[str]) -> list[str]:
    """Select the ids that are not among the others."""
    others = set(others)
    return [i for i in ids if i not in others]
