"""Real clips for the benchmarks, from EMO-DB."""

import os
from pathlib import Path

__all__ = ["emodb_folder"]


def emodb_folder():
    """Folder of EMO-DB.

    Returns
    -------
    pathlib.Path or None
        The folder ``emodb`` in DSLSTM_SPEECH_DATA; None where there is none.
    """
    given = os.environ.get("DSLSTM_SPEECH_DATA")
    folder = Path(given or "", "emodb")
    return folder if given and folder.is_dir() else None
