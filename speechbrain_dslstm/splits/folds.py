"""How the sides of a split are made: manifest entries in, lists of ids out.

``protocols.py`` says what each protocol needs and puts these together. Entries
come sorted by id, and folds are scikit-learn's, so that a seed is enough to
get the same sides again. Each maker also says in words what it chose.
"""

import warnings
from collections import Counter

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
    "validation_clips",
    "validation_speakers",
    "validation_sentences",
    "values",
]


def values(entries, key):
    """List the values an entry key takes.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    key : str
        Such as ``speaker``.

    Returns
    -------
    list of str
        Sorted, each once.

    Example
    -------
    >>> values({"u1": {"speaker": "b"}, "u2": {"speaker": "a"}}, "speaker")
    ['a', 'b']
    """
    return sorted({entry[key] for entry in entries.values()})


def random_fold(entries, fold, seed, n_folds):
    """Put clips into random folds, whatever their emotion.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id, sorted.
    fold : int
        The one to test.
    seed : int
        For the permutation.
    n_folds : int
        Folds made.

    Returns
    -------
    tuple of (list of str, list of str, str)
        Training ids, test ids, the test side in words.

    Example
    -------
    >>> random_fold({"a": {}, "b": {}, "c": {}, "d": {}}, 0, 0, 2)
    (['a', 'b'], ['c', 'd'], 'test 1/2 of the clips')
    """
    maker = KFold(n_folds, shuffle=True, random_state=seed)
    ids = list(entries)
    train, test = _folds(maker, ids, ids)[fold]
    return train, test, f"test 1/{n_folds} of the clips"


def stratified_fold(entries, fold, seed, n_folds):
    """Put clips into random folds with like shares of each emotion.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id, sorted.
    fold : int
        The one to test.
    seed : int
        For the permutation.
    n_folds : int
        Folds made.

    Returns
    -------
    tuple of (list of str, list of str, str)
        Training ids, test ids, the test side in words.

    Raises
    ------
    ValueError
        No class has a clip for every fold.

    Example
    -------
    >>> entries = {f"u{i}": {"emotion": "ab"[i % 2]} for i in range(8)}
    >>> train, test, words = stratified_fold(entries, 0, 0, 4)
    >>> sorted(entries[key]["emotion"] for key in test)
    ['a', 'b']
    """
    labels = [entry["emotion"] for entry in entries.values()]
    most = max(Counter(labels).values())
    if most < n_folds:
        raise ValueError(
            f"n_folds is {n_folds}, but no class has more than {most} clips"
        )
    maker = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
    train, test = _folds(maker, list(entries), labels)[fold]
    return train, test, f"test 1/{n_folds} of the clips"


def held_out(entries, protocol, fold, seed, n_folds):
    """Hold a speaker, a session, sentences or both of the latter out.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id, sorted.
    protocol : str
        ``speaker``, ``session``, ``text`` or ``speaker-text``.
    fold : int
        The one to test.
    seed : int
        For the groups of sentences.
    n_folds : int
        Groups of sentences made, at most.

    Returns
    -------
    tuple of (list of str, list of str, str)
        Training ids, test ids, the test side in words.

    Example
    -------
    >>> entries = {"u1": {"speaker": "b"}, "u2": {"speaker": "a"}}
    >>> held_out(entries, "speaker", 0, 0, 5)
    (['u1'], ['u2'], 'test a')
    """
    ids = list(entries)
    if protocol == "speaker":
        speaker = values(entries, "speaker")[fold]
        test = _having(entries, ids, "speaker", {speaker})
        return _without(ids, test), test, f"test {speaker}"
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


def validation_clips(entries, train, n_folds, rng):
    """Take one n-th of the training clips for validation.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    train : list of str
        Ids to take from.
    n_folds : int
        The n.
    rng : numpy.random.Generator
        For the choice.

    Returns
    -------
    tuple of (list of str, list of str, str)
        What is left, validation ids, the validation side in words.

    Raises
    ------
    ValueError
        There is but one clip.

    Example
    -------
    >>> import numpy as np
    >>> entries = {f"u{i}": {"emotion": "ab"[i % 2]} for i in range(8)}
    >>> rng = np.random.default_rng(0)
    >>> train, valid, words = validation_clips(entries, list(entries), 4, rng)
    >>> sorted(entries[key]["emotion"] for key in valid), words
    (['a', 'b'], '2 clips')
    """
    if len(train) < 2:
        raise ValueError(f"{len(train)} training clip leaves no validation")
    size = -(-len(train) // n_folds)
    strata = [entries[key]["emotion"] for key in train]
    counts = Counter(strata)
    # stratifying needs room for every class on both sides
    if min(counts.values()) < 2 or len(counts) > min(size, len(train) - size):
        strata = None
    left, valid = train_test_split(
        train,
        test_size=size,
        random_state=int(rng.integers(2**31)),
        stratify=strata,
    )
    return left, valid, f"{len(valid)} clips"


def validation_sentences(entries, train, n_folds, valid_speakers, rng):
    """Take about one n-th of the training sentences for validation.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    train : list of str
        Ids to take from.
    n_folds : int
        The n.
    valid_speakers : int
        Speakers taken instead where there is but one sentence.
    rng : numpy.random.Generator
        For the choice.

    Returns
    -------
    tuple of (list of str, list of str, str)
        What is left, validation ids, the validation side in words.

    Example
    -------
    >>> import numpy as np
    >>> entry = {"emotion": "anger"}
    >>> entries = {t: entry | {"text_id": t} for t in "abcd"}
    >>> rng = np.random.default_rng(0)
    >>> validation_sentences(entries, list("abcd"), 4, 2, rng)[2]
    '1 of 4 sentences'
    """
    some = {key: entries[key] for key in train}
    if len(values(some, "text_id")) < 2:
        # nothing but speakers is left to tell the two sides apart
        return validation_speakers(entries, train, [], valid_speakers, rng)
    texts = _text_groups(some, int(rng.integers(2**31)), n_folds)[0]
    valid = _having(entries, train, "text_id", texts)
    words = f"{len(texts)} of {len(values(some, 'text_id'))} sentences"
    return _without(train, valid), valid, words


def validation_speakers(
    entries, train, test, valid_speakers, rng, by_session=False
):
    """Take a training session, or a few training speakers, for validation.

    Arguments
    ---------
    entries : dict
        Manifest entries by utterance id.
    train : list of str
        Ids to take from.
    test : list of str
        Ids tested; speakers of their sessions are taken last.
    valid_speakers : int
        Speakers to take; the sexes take turns.
    rng : numpy.random.Generator
        For the choice.
    by_session : bool
        Whether to take a session of at least two speakers instead, where two
        sessions stay for training.

    Returns
    -------
    tuple of (list of str, list of str, str)
        What is left, validation ids, the validation side in words.

    Raises
    ------
    ValueError
        No speaker would be left for training.

    Example
    -------
    >>> import numpy as np
    >>> entries = {
    ...     s: {"speaker": s, "gender": g, "session": s}
    ...     for s, g in zip("abcd", "FFMM")
    ... }
    >>> rng = np.random.default_rng(0)
    >>> validation_speakers(entries, list("bcd"), ["a"], 2, rng)
    (['c'], ['b', 'd'], 'speakers b, d')
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
    # who is heard in the same recordings as the test speaker comes last
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


def _text_groups(entries, seed, n_folds):
    """Sets of sentences of like size and like emotions."""
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


def _folds(maker, ids, labels, groups=None):
    """Training and test ids of every fold of a scikit-learn splitter."""
    with warnings.catch_warnings():
        # make_split reports a class rarer than the folds, and by name
        warnings.simplefilter("ignore", UserWarning)
        folds = list(maker.split(ids, labels, groups))
    return [([ids[i] for i in a], [ids[i] for i in b]) for a, b in folds]


def _having(entries, ids, key, wanted):
    """Those ids whose entry has a wanted value."""
    return [i for i in ids if entries[i][key] in wanted]


def _without(ids, others):
    """Those ids that are not among the others."""
    others = set(others)
    return [i for i in ids if i not in others]
