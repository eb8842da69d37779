"""Find the audio files of a corpus by name, turn them into records, decode them.

Name patterns and labels come from the module of each corpus.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soxr
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.audio.channels import mix_channels
from speechbrain_dslstm.audio.checks import (
    LONGEST_CLIP,
    AudioError,
    check_samples,
    printable,
)
from speechbrain_dslstm.audio.reading import (
    Recording,
    decode,
    load_audio,
    open_audio,
)
from speechbrain_dslstm.utils.folders import walk_folder

__all__ = [
    "add_segment",
    "find_clips",
    "load_clip",
    "read_audio_facts",
    "read_clips",
    "select_labels",
    "split_segment",
]

logger = get_logger(__name__)
Segment = tuple[float, float | None]  # start and end in seconds; None: the end
FRAGMENT = re.compile(
    r"(?P<file>.+)#t=(?P<start>[\d.e+-]+),(?P<end>[\d.e+-]*)", re.S
)
ROUNDING = 0.05  # seconds by which a part may end after its file

CLIP_ENDINGS = (".wav", ".flac", ".ogg")


def read_audio_facts(
    path: str | Path, segment: Segment | None = None
) -> tuple[dict | None, str | None]:
    """Decode a clip; return its ``duration`` and ``audio_hash``, and its fault.

    The clip is the file, or its part from start to end in seconds. The hash is
    taken over the decoded samples as 32-bit floats, so that a WAV and a FLAC
    file of the same recording agree. The fault is the ``kind`` of an
    ``AudioError``, such as "truncated". One of the two results is None.
    """
    digest, frames = hashlib.sha256(), 0
    try:
        with open_clip(path, segment, LONGEST_CLIP) as (pieces, rate):
            for piece in pieces:
                digest.update(np.ascontiguousarray(piece, "<f4"))
                frames += len(piece)
            duration = frames / rate
    except AudioError as error:
        return None, error.kind
    return {"duration": duration, "audio_hash": digest.hexdigest()[:32]}, None


@contextmanager
def open_clip(
    path: str | Path, segment: Segment | None, longest: float
) -> Iterator[tuple[Iterator[np.ndarray], int]]:
    """Open a file, or a part of it, as pieces [samples, channels] and their rate."""
    whole = segment is None
    with open_audio(path, longest if whole else None) as file:
        if whole:
            yield decode(file, path, longest=longest), file.samplerate
        else:
            yield _part(file, path, segment, longest), file.samplerate


def _part(
    file: Recording, path: str | Path, segment: Segment, longest: float
) -> Iterator[np.ndarray]:
    """Decode a part of an open file; yields it as one piece."""
    shown, rate = printable(path), file.samplerate
    start = round(segment[0] * rate)
    end = file.frames if segment[1] is None else round(segment[1] * rate)
    if start >= file.frames or end > file.frames + ROUNDING * rate:
        raise AudioError(
            f"a part up to {end / rate:g} s of {shown}, which has "
            f"{file.frames / rate:g} s",
            "that end after their recording",
        )
    if end - start > longest * rate:
        raise AudioError(
            f"a part of {(end - start) / rate:g} s of {shown}; expected at "
            f"most {longest:g} s",
            "too long",
        )
    file.seek(start)
    piece = file.read(end - start)
    if len(piece) < min(end, file.frames) - start:
        raise AudioError(f"the audio in {shown} is cut off", "truncated")
    if not len(piece):
        raise AudioError(f"no audio samples in a part of {shown}", "empty")
    check_samples(torch.from_numpy(piece), where=shown)
    yield piece


def add_segment(wav: str, segment: Segment | None) -> str:
    """Add the times of a part to a path, as a media fragment does (W3C).

    >>> add_segment("a.wav", (0.5, 2.0))
    'a.wav#t=0.5,2.0'
    """
    if segment is None:
        return wav
    start, end = segment
    return f"{wav}#t={start!r},{'' if end is None else repr(end)}"


def split_segment(wav: str) -> tuple[str, Segment | None]:
    """Split a path of a manifest into the file and the part of it, if any.

    >>> split_segment("a.wav#t=0.5,2.0"), split_segment("a.wav")
    (('a.wav', (0.5, 2.0)), ('a.wav', None))
    """
    match = FRAGMENT.fullmatch(wav)
    if match is None:
        return wav, None
    end = float(match["end"]) if match["end"] else None
    return match["file"], (float(match["start"]), end)


def load_clip(
    wav: str, sample_rate: int, longest: float = LONGEST_CLIP
) -> torch.Tensor:
    """Read a clip of a manifest, mono [samples] in [-1, 1], at a rate in Hz.

    ``wav`` is the path of a file; times after it, such as ``#t=0.5,2.0``,
    select a part in seconds.
    """
    path, segment = split_segment(wav)
    if segment is None:
        return load_audio(path, sample_rate, longest)
    with open_clip(path, segment, longest) as (pieces, rate):
        mono = np.concatenate(list(mix_channels(pieces, rate)))[:, 0]
    if rate != sample_rate:
        mono = soxr.resample(mono, rate, sample_rate)
    return torch.from_numpy(mono)


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
    found, others = [], []
    # Copies of corpora often consist of links, which are followed
    for path, hidden in walk_folder(data_folder):
        if hidden or path.suffix.lower() not in CLIP_ENDINGS:
            continue
        match = re.fullmatch(pattern, path.stem)
        if match:
            found.append((match, path))
        else:
            others.append(path.name)
    if not found:
        raise ValueError(
            f"{corpus}: {data_folder} has no audio file named {pattern} "
            f"({len(others)} other audio files); expected {hint}"
        )
    if others:
        words = "%s: %d audio files with other names skipped, such as %s"
        logger.info(words, corpus, len(others), min(others))
    return sorted(found, key=lambda item: str(item[1]))
