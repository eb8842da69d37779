"""Find the audio files of a corpus by name, turn them into records, decode them.

Name patterns and labels come from the module of each corpus.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.audio import (
    LONGEST_CLIP,
    AudioError,
    decode,
    open_audio,
)

__all__ = ["find_clips", "read_audio_facts", "read_clips", "select_labels"]

logger = get_logger(__name__)


def read_audio_facts(path: str | Path) -> tuple[dict | None, str | None]:
    """Decode a file; return its ``duration`` and ``audio_hash``, and its fault.

    The hash is taken over the decoded samples as 32-bit floats, so that a WAV
    and a FLAC file of the same recording agree. The fault is the ``kind`` of an
    ``AudioError``, such as "truncated". One of the two results is None.
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


def select_labels(label_sets: dict[str, dict], name: str) -> dict[str, str]:
    """Look up a label set by name; it maps the corpus' codes to emotions."""
    if name not in label_sets:
        raise ValueError(
            f"unknown label set {name!r}; expected one of "
            f"{', '.join(label_sets)}"
        )
    return label_sets[name]


def read_clips(
    data_folder: str | Path,
    corpus: str,
    pattern: str,
    hint: str,
    label_sets: dict[str, dict],
    label_set: str,
    get_fields: Callable[[re.Match], dict[str, str]],
) -> list[dict]:
    """Make a record of each clip whose file name holds its labels.

    ``pattern`` has the groups ``emotion`` (a code of the corpus), ``speaker``
    and ``text``; ``get_fields`` returns ``gender``, ``session`` and ``text`` of
    a match. A clip whose emotion is only in other label sets of the corpus is
    left out; a code in no label set stays, so that ``build_manifest`` reports
    it. ``find_clips`` explains the other arguments.
    """
    labels = select_labels(label_sets, label_set)
    known = set().union(*label_sets.values())
    return [
        {
            "id": path.stem,
            "path": path,
            "emotion": labels.get(match["emotion"], match["emotion"]),
            "speaker": match["speaker"],
            "dialogue": "",
            "text_id": match["text"],
            **get_fields(match),
        }
        for match, path in find_clips(data_folder, pattern, corpus, hint)
        if match["emotion"] in labels or match["emotion"] not in known
    ]


def find_clips(
    data_folder: str | Path, pattern: str, corpus: str, hint: str
) -> list[tuple[re.Match, Path]]:
    """Find the .wav, .flac and .ogg files whose base name matches a pattern entirely.

    All subfolders are searched, and links are followed; hidden files are
    skipped. The result is sorted by path. ``corpus`` and ``hint`` are used in
    the errors for a missing folder and for a folder without such a file.
    """
    data_folder = Path(data_folder)
    if not data_folder.is_dir():
        raise FileNotFoundError(
            f"{corpus}: no folder {data_folder}; expected {hint}"
        )
    found, others, seen = [], [], set()
    # Copies of corpora often consist of links
    for folder, subfolders, files in os.walk(data_folder, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(s for s in subfolders if s[0] != ".")
        for name in files:
            path = Path(folder, name)
            if name[0] == "." or path.suffix.lower() not in (
                ".wav",
                ".flac",
                ".ogg",
            ):
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
        words = "%s: %d audio files with other names skipped, such as %s"
        logger.info(words, corpus, len(others), min(others))
    return sorted(found, key=lambda item: str(item[1]))
