"""Real clips for the benchmarks, from EMO-DB."""

import os
from pathlib import Path

__all__ = ["emodb_clips", "emodb_folder"]


def emodb_folder():
    """Folder of EMO-DB.

    Returns
    -------
    pathlib.Path
        The folder ``emodb`` in DSLSTM_SPEECH_DATA, or that of the repository.
    """
    given = os.environ.get("DSLSTM_SPEECH_DATA")
    if given and Path(given, "emodb").is_dir():
        return Path(given, "emodb")
    return Path(__file__).resolve().parents[2] / "data" / "emodb"


def emodb_clips():
    """Paths of all clips.

    Returns
    -------
    list of pathlib.Path
        Sorted.
    """
    paths = sorted(emodb_folder().rglob("*"))
    return [one for one in paths if one.suffix in (".flac", ".ogg", ".wav")]
