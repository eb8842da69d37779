"""The corpora that have a module, by name."""

import importlib
from types import ModuleType

__all__ = ["CORPORA", "get_corpus"]

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
    return importlib.import_module(f"speechbrain_dslstm.corpora.{name}")
