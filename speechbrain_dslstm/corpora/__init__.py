"""Corpora: one module each with fixed constants, and one way to use them.

Every module has ``NAME``, ``LICENSE``, ``CITATION``, ``URL``, ``LABEL_SETS``
(name -> ordered mapping of the corpus' codes to emotions),
``DEFAULT_LABEL_SET`` and ``records(data_folder, label_set, **options)``.
``manifest.py`` turns records into manifests. A module may have
``compare_counts`` and ``left_out``, see ``iemocap.py``.
"""

import importlib

from speechbrain_dslstm.corpora.manifest import build_manifest, select_labels

__all__ = ["CORPORA", "get_corpus", "get_labels", "prepare", "vote_names"]

CORPORA = ("iemocap", "emodb", "ravdess", "nemo", "synthetic")


def get_corpus(name):
    """Find a corpus module by name.

    Arguments
    ---------
    name : str
        One of ``CORPORA``.

    Returns
    -------
    module
        The corpus module.

    Raises
    ------
    ValueError
        There is no such corpus.

    Example
    -------
    >>> get_corpus("emodb").NAME
    'EMO-DB'
    """
    if name not in CORPORA:
        raise ValueError(
            f"unknown corpus {name!r}; there are: {', '.join(CORPORA)}"
        )
    return importlib.import_module(f"{__name__}.{name}")


def prepare(corpus, data_folder, label_set=None, left_out=None, **options):
    """Read a corpus into manifest entries.

    Arguments
    ---------
    corpus : str
        One of ``CORPORA``.
    data_folder : str or pathlib.Path
        Where the corpus lies; the ``synthetic`` one is generated there.
    label_set : str, optional
        A name in the module's ``LABEL_SETS``; its default if left out.
    left_out : list, optional
        Gets a dict for each clip that was left out: its "id", the "reason",
        and "where" that was seen, ``file:line`` below ``data_folder``.
    **options : dict
        Options of the corpus module's ``records``.

    Returns
    -------
    entries : dict
        Utterance id -> entry, sorted by id; see ``manifest.py``.
    labels : list of str
        The emotions in their fixed order.

    Raises
    ------
    ValueError
        Unknown corpus or label set, or a folder with no usable clip.
    FileNotFoundError
        There is no such folder.

    Example
    -------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> entries, labels = prepare("synthetic", folder, speakers=2, sentences=1)
    >>> len(entries), labels
    (8, ['anger', 'happiness', 'neutral', 'sadness'])
    """
    module = get_corpus(corpus)
    label_set = module.DEFAULT_LABEL_SET if label_set is None else label_set
    labels = get_labels(corpus, label_set)
    records = module.records(data_folder, label_set, **options)
    if left_out is not None and hasattr(module, "left_out"):
        left_out += module.left_out(data_folder, label_set, **options)
    entries = build_manifest(records, data_folder, labels, left_out)
    # only a corpus with a published table of counts has something to compare
    compare = getattr(module, "compare_counts", None)
    if compare is not None:
        compare(entries, label_set, **options)
    return entries, labels


def get_labels(corpus, label_set=None):
    """Emotions of a corpus in their fixed order, without reading it.

    Arguments
    ---------
    corpus : str
        One of ``CORPORA``.
    label_set : str, optional
        A name in the module's ``LABEL_SETS``; its default if left out.

    Returns
    -------
    list of str
        The emotions.

    Raises
    ------
    ValueError
        Unknown corpus or label set.

    Example
    -------
    >>> get_labels("iemocap")
    ['anger', 'happiness', 'neutral', 'sadness']
    """
    module = get_corpus(corpus)
    codes = select_labels(
        module.LABEL_SETS, label_set or module.DEFAULT_LABEL_SET
    )
    return list(dict.fromkeys(codes.values()))


def vote_names(corpus, label_set=None):
    """What listeners could vote for, and which emotion that is.

    Arguments
    ---------
    corpus : str
        One of ``CORPORA``.
    label_set : str, optional
        A name in the module's ``LABEL_SETS``; its default if left out.

    Returns
    -------
    dict of str to str
        Name of a vote -> emotion; empty where the corpus has no votes.

    Example
    -------
    >>> vote_names("iemocap")["Excited"], vote_names("emodb")
    ('happiness', {})
    """
    module = get_corpus(corpus)
    codes = select_labels(
        module.LABEL_SETS, label_set or module.DEFAULT_LABEL_SET
    )
    votes = getattr(module, "VOTES", {})
    return {name: codes[code] for name, code in votes.items() if code in codes}
