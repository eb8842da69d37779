"""Recordings of one speaker whose mood changes: joined clips of EMO-DB."""

from itertools import cycle

import torch

from speechbrain_dslstm.audio import load_audio


def join_clips(folder, speaker, letter, seconds):
    """Clips of a speaker and an emotion (its German initial), repeated and cut."""
    paths = [p for p in folder.iterdir() if p.name.startswith(speaker)]
    paths = sorted(p for p in paths if p.stem[5] == letter)
    if not paths:
        return None
    parts, samples = [], 0
    for path in cycle(paths):
        parts.append(load_audio(path))
        samples += len(parts[-1])
        if samples >= seconds * 16000:
            return torch.cat(parts)[: round(seconds * 16000)]
