"""Finding audio files on disk and opening them, for every corpus.

Nothing here knows a corpus: the name pattern comes from the corpus module, and
what is read goes into the manifest.
"""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.audio import (
    LONGEST_CLIP,
    AudioError,
    decode,
    open_audio,
)

__all__ = ["find_clips", "read_audio_facts"]

logger = get_logger(__name__)


def read_audio_facts(path):
    """Decode a file; say how long it is, what it holds, or what is wrong.

    The hash is taken over the decoded samples as 32-bit floats, so that a WAV
    and a FLAC file of the same recording agree.

    Arguments
    ---------
    path : str or pathlib.Path
        The audio file.

    Returns
    -------
    dict or None
        ``duration`` in seconds and ``audio_hash``.
    str or None
        What is wrong with the file, the ``kind`` of an ``AudioError``, such
        as "truncated"; None where all is well.

    Example
    -------
    >>> read_audio_facts("nowhere.wav")
    (None, 'missing')
    """
    digest, frames = hashlib.sha256(), 0
    try:
        with open_audio(path, LONGEST_CLIP) as file:
            for piece in decode(file, path, longest=LONGEST_CLIP):
                digest.update(np.ascontiguousarray(piece, "<f4"))
                frames += len(piece)
            duration = frames / file.samplerate
    except AudioError as error:
        return None, error.kind
    return {"duration": duration, "audio_hash": digest.hexdigest()[:32]}, None


def find_clips(data_folder, pattern, corpus, hint):
    """Find a corpus' clips below a folder by their published names.

    Arguments
    ---------
    data_folder : str or pathlib.Path
        Searched with all its subfolders; hidden files are passed over.
    pattern : str
        Regular expression that the whole base name must match.
    corpus : str
        Name of the corpus, for messages.
    hint : str
        What a base name looks like and where to get the corpus.

    Returns
    -------
    list of (re.Match, pathlib.Path)
        Match of the base name and path, sorted by path.

    Raises
    ------
    FileNotFoundError
        There is no such folder.
    ValueError
        The folder has no such file.

    Example
    -------
    >>> find_clips("nowhere", "x", "EMO-DB", "03a01Fa.wav")
    Traceback (most recent call last):
        ...
    FileNotFoundError: EMO-DB: no folder nowhere; expected 03a01Fa.wav
    """
    data_folder = Path(data_folder)
    if not data_folder.is_dir():
        raise FileNotFoundError(
            f"{corpus}: no folder {data_folder}; expected {hint}"
        )
    found, others, seen = [], [], set()
    # links are followed, as copies of corpora are often linked together
    for folder, subfolders, files in os.walk(data_folder, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(s for s in subfolders if s[0] != ".")
        for name in files:
            path = Path(folder, name)
            if name[0] == "." or path.suffix.lower() not in (".wav", ".flac"):
                continue
            match = re.fullmatch(pattern, path.stem)
            if match:
                found.append((match, path))
            else:
                others.append(name)
    if not found:
        raise ValueError(
            f"{corpus}: {data_folder} has no audio file named {pattern} "
            f"({len(others)} other audio files); expected {hint}"
        )
    if others:
        logger.info(
            "%s: %d audio files with other names passed over, such as %s",
            corpus,
            len(others),
            min(others),
        )
    return sorted(found, key=lambda item: str(item[1]))
