"""Corpora: one module for each, and one manifest schema for all.

Read ``manifest`` first, which turns a corpus' records into manifest entries,
then ``emodb``, the simplest corpus. ``clips`` finds and decodes audio files,
``transcripts`` holds the tokenizer of the text branch, and
``iemocap_annotations`` reads IEMOCAP's text files.

Every corpus module has ``NAME``, ``LICENSE``, ``CITATION``, ``URL``,
``LABEL_SETS`` (name -> ordered mapping of the corpus' codes to emotions),
``DEFAULT_LABEL_SET`` and ``records(data_folder, label_set, **options)``. It may
have ``compare_counts``, ``left_out`` and ``VOTES``, see ``iemocap``.

Own recordings come from a table: ``table_files`` reads CSV and other kinds,
``table`` gives the rows their meaning, ``label_map`` renames their labels.
``sources`` combines tables and corpora as a run's settings say.

``python -m speechbrain_dslstm.corpora`` writes the manifest of a corpus.
"""

from pathlib import Path
from typing import Any

from speechbrain_dslstm.corpora.builtin import CORPORA, get_corpus
from speechbrain_dslstm.corpora.clips import select_labels
from speechbrain_dslstm.corpora.sources import SETTINGS, Source

__all__ = [
    "CORPORA",
    "Source",
    "get_corpus",
    "get_labels",
    "prepare",
    "vote_names",
]


def prepare(
    corpus: str,
    data_folder: str | Path | dict | None,
    label_set: str | None = None,
    left_out: list[dict] | None = None,
    **options: Any,
) -> tuple[dict[str, dict], list[str]]:
    """Read a corpus into manifest entries.

    Arguments
    ---------
    corpus
        One of ``CORPORA``, or table, or several joined by "+".
    data_folder
        Folder of the corpus, or what the paths in a table are relative to; of
        several corpora a folder that has one for each, or a folder by name. The
        ``synthetic`` corpus is generated there. None: the table's own folder.
    label_set
        A name in the module's ``LABEL_SETS``; None for its default.
    left_out
        List to which a dict is appended for each clip left out: its "id", the
        "reason", and "where" it is found, as ``file:line`` below
        ``data_folder``.
    **options
        "table", "columns", "label_map" and "classes" as in recipe.yaml, and
        options of the corpus module's ``records``.

    Returns
    -------
    entries
        Utterance id -> entry, sorted by id; see ``manifest``.
    labels
        The emotions in their fixed order.

    Raises
    ------
    ValueError
        Unknown corpus or label set, a bad row of a table, or a folder without a
        usable clip.
    FileNotFoundError
        The folder, or a recording of a table, does not exist.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> entries, labels = prepare("synthetic", folder, speakers=2, sentences=1)
    >>> len(entries), labels
    (8, ['anger', 'happiness', 'neutral', 'sadness'])
    """
    own = {name: options.pop(name) for name in SETTINGS if name in options}
    source = Source(
        {
            "corpus": corpus,
            "data_folder": data_folder,
            "label_set": label_set,
            "corpus_options": options,
            **own,
        }
    )
    return source.prepare(left_out), source.labels


def get_labels(
    corpus: str, label_set: str | None = None, **settings: Any
) -> list[str]:
    """List the classes of a run in their fixed order, without audio.

    The default is the module's ``DEFAULT_LABEL_SET``; ``settings`` are those of
    a table, see ``prepare``.

    >>> get_labels("iemocap")
    ['anger', 'happiness', 'neutral', 'sadness']
    """
    return Source({"corpus": corpus, "label_set": label_set, **settings}).labels


def vote_names(corpus: str, label_set: str | None = None) -> dict[str, str]:
    """Map the names that annotators could vote for to emotions of a label set.

    It is empty for own tables, several corpora, and a corpus without votes.

    >>> vote_names("iemocap")["Excited"], vote_names("emodb")
    ('happiness', {})
    """
    votes = {}
    if corpus in CORPORA:
        module = get_corpus(corpus)
        name = label_set or module.DEFAULT_LABEL_SET
        codes = select_labels(module.LABEL_SETS, name)
        votes = getattr(module, "VOTES", {})
    return {name: codes[code] for name, code in votes.items() if code in codes}
