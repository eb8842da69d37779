"""Corpora: one module for each, and one manifest schema for all.

Read ``manifest`` first, which turns a corpus' records into manifest entries,
then ``emodb``, the simplest corpus. ``clips`` finds and decodes audio files,
``transcripts`` holds the tokenizer of the text branch, and
``iemocap_annotations`` reads IEMOCAP's text files.

Every corpus module has ``NAME``, ``LICENSE``, ``CITATION``, ``URL``,
``LABEL_SETS`` (name -> ordered mapping of the corpus' codes to emotions),
``DEFAULT_LABEL_SET`` and ``records(data_folder, label_set, **options)``. It may
have ``compare_counts``, ``left_out`` and ``VOTES``, see ``iemocap``.

``python -m speechbrain_dslstm.corpora`` writes the manifest of a corpus.
"""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from speechbrain_dslstm.corpora.clips import select_labels
from speechbrain_dslstm.corpora.manifest import build_manifest

__all__ = ["CORPORA", "get_corpus", "get_labels", "prepare", "vote_names"]

CORPORA = ("iemocap", "emodb", "ravdess", "nemo", "synthetic")


def get_corpus(name: str) -> ModuleType:
    """Import the module of a corpus, one of ``CORPORA``, by its name.

    >>> get_corpus("emodb").NAME
    'EMO-DB'
    """
    if name not in CORPORA:
        raise ValueError(
            f"unknown corpus {name!r}; expected one of {', '.join(CORPORA)}"
        )
    return importlib.import_module(f"{__name__}.{name}")


def prepare(
    corpus: str,
    data_folder: str | Path,
    label_set: str | None = None,
    left_out: list[dict] | None = None,
    **options: Any,
) -> tuple[dict[str, dict], list[str]]:
    """Read a corpus into manifest entries.

    Arguments
    ---------
    corpus
        One of ``CORPORA``.
    data_folder
        Folder of the corpus; the ``synthetic`` one is generated there.
    label_set
        A name in the module's ``LABEL_SETS``; None for its default.
    left_out
        List to which a dict is appended for each clip left out: its "id", the
        "reason", and "where" it is found, as ``file:line`` below
        ``data_folder``.
    **options
        Options of the corpus module's ``records``.

    Returns
    -------
    entries
        Utterance id -> entry, sorted by id; see ``manifest``.
    labels
        The emotions in their fixed order.

    Raises
    ------
    ValueError
        Unknown corpus or label set, or a folder without a usable clip.
    FileNotFoundError
        The folder does not exist.

    Example
    -------
    >>> folder = getfixture("tmp_path")
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
    # Only some corpora have published counts to compare with
    compare = getattr(module, "compare_counts", None)
    if compare is not None:
        compare(entries, label_set, **options)
    return entries, labels


def get_labels(corpus: str, label_set: str | None = None) -> list[str]:
    """List the emotions of a label set in their fixed order, without audio.

    The default is the module's ``DEFAULT_LABEL_SET``.

    >>> get_labels("iemocap")
    ['anger', 'happiness', 'neutral', 'sadness']
    """
    return list(dict.fromkeys(_codes(corpus, label_set).values()))


def vote_names(corpus: str, label_set: str | None = None) -> dict[str, str]:
    """Map the names that annotators could vote for to emotions of a label set.

    It is empty for a corpus without votes.

    >>> vote_names("iemocap")["Excited"], vote_names("emodb")
    ('happiness', {})
    """
    codes = _codes(corpus, label_set)
    votes = getattr(get_corpus(corpus), "VOTES", {})
    return {name: codes[code] for name, code in votes.items() if code in codes}


def _codes(corpus: str, label_set: str | None) -> dict[str, str]:
    """Return a label set: the corpus' codes -> emotions; None: the default set."""
    module = get_corpus(corpus)
    name = label_set or module.DEFAULT_LABEL_SET
    return select_labels(module.LABEL_SETS, name)
