#!/usr/bin/env python3
"""Share of answers that stay the same with silence or noise around or over clips.

> python tests/benchmarks/pauses.py SPEECH_DATA --every 10

Prints a markdown table for all clips of ``SPEECH_DATA/emodb`` and every fourth
of ``SPEECH_DATA/ravdess``: the answers of a model with its active speech off
("before"), and on ("after"), compared with its answers for the clips as they
are. ``--before MODEL`` names another model for the first column, and
``--before-every 10`` takes every tenth of the clips for it.
"""

import argparse
import csv
import itertools
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from torchaudio.functional import resample

from speechbrain_dslstm.audio import load_audio
from speechbrain_dslstm.inference import EmotionClassifier

RATE = 16000
LEVELS = {"silence": None, "-75 dB": -75, "-60 dB": -60}
UNEVEN = 0.5137, 1.2345, 4.9999  # seconds; no multiples of 10 ms


def noise(seconds, level, generator):
    """White noise of a level in dBFS, or digital silence."""
    size = round(seconds * RATE)
    if level is None:
        return torch.zeros(size)
    return torch.randn(size, generator=generator) * 10 ** (level / 20)


def with_pause(wav, pause):
    """Put a pause at the quietest place of the clip's middle half."""
    size = RATE // 50
    middle = wav[len(wav) // 4 : 3 * len(wav) // 4]
    power = middle.unfold(0, size, size // 2).square().sum(1)
    place = len(wav) // 4 + int(power.argmin()) * (size // 2) + size // 2
    return torch.cat([wav[:place], pause, wav[place:]])


def with_noise(wav, ratio, generator):
    """Add white noise, with the ratio of the powers in dB."""
    level = 10 * float(wav.square().mean().log10()) - ratio
    return wav + noise(len(wav) / RATE, level, generator)


def conditions(all_seconds):
    """Yield the name of each change, and the function that makes it."""
    generator = torch.Generator().manual_seed(0)

    def padded(level, seconds, before, after):
        return lambda wav: torch.cat(
            [
                noise(seconds * before, level, generator),
                wav,
                noise(seconds * after, level, generator),
            ]
        )

    places = {"before": (1, 0), "after": (0, 1), "both": (1, 1)}
    for level, seconds, place in itertools.product(LEVELS, all_seconds, places):
        change = padded(LEVELS[level], seconds, *places[place])
        yield f"{level}, {seconds:g} s {place}", change
    for level, seconds in itertools.product(LEVELS, UNEVEN):
        change = padded(LEVELS[level], seconds, 1, 1)
        yield f"{level}, {seconds:g} s both", change
    for level, dbfs in LEVELS.items():
        yield (
            f"{level}, 3 s between words",
            lambda wav, dbfs=dbfs: with_pause(wav, noise(3, dbfs, generator)),
        )
    yield "offset 0.1 (-20 dBFS)", lambda wav: wav + 0.1
    yield "offset -0.03", lambda wav: wav - 0.03
    yield "gain -20 dB", lambda wav: wav / 10
    yield (
        "gain +20 dB at most",
        lambda wav: wav * min(10, 0.99 / float(wav.abs().max())),
    )
    for ratio in (30, 20, 10, 0):
        yield (
            f"white noise over the speech, {ratio} dB below it",
            lambda wav, ratio=ratio: with_noise(wav, ratio, generator),
        )
    yield (
        "sampled at 8 kHz, as a telephone does",
        lambda wav: resample(resample(wav, RATE, RATE // 2), RATE // 2, RATE),
    )


def classify(classifier, wavs):
    """Labels of waveforms, in batches of similar length."""
    labels = [None] * len(wavs)
    order = sorted(range(len(wavs)), key=lambda k: len(wavs[k]))
    for start in range(0, len(order), 8):
        batch = order[start : start + 8]
        counts = torch.tensor([len(wavs[k]) for k in batch])
        padded = pad_sequence([wavs[k] for k in batch], batch_first=True)
        answer = classifier.classify_batch(padded, counts)
        for k, label in zip(batch, answer.text_lab, strict=True):
            labels[k] = label
    return labels


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="pretrained/emotion-dslstm-emodb")
    parser.add_argument("--before", help="model of the first column")
    parser.add_argument("--before-every", type=int, default=1)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[0.5, 1, 2, 5]
    )
    parser.add_argument(
        "--changes", default="", help="only those with this in their names"
    )
    args = parser.parse_args()
    after = EmotionClassifier.from_hparams(args.model)
    before = EmotionClassifier.from_hparams(args.before or args.model)
    before.mods.embedding_model.active_speech = None
    speech = after.mods.embedding_model.active_speech
    wav = torch.randn(4 * RATE)
    for seconds in (4, 60):
        long = wav.repeat(seconds // 4)
        speech.cut(long)
        start = time.perf_counter()
        for _ in range(10):
            speech.cut(long)
        spent = (time.perf_counter() - start) * 100
        print(f"cut of {seconds} s: {spent:.1f} ms")
    for corpus, step in (("emodb", 1), ("ravdess", 4)):
        folder = args.data / corpus
        with open(folder / "manifest.tsv", encoding="utf-8") as file:
            rows = csv.DictReader(file, delimiter="\t")
            truth = {row["file"]: row["emotion"] for row in rows}
        files = sorted(folder.glob("*.flac"))[:: step * args.every]
        wavs = [load_audio(path, RATE) for path in files]
        pair = (before, args.before_every), (after, 1)
        clean, right = [], []
        for model, every in pair:
            clean.append(classify(model, wavs[::every]))
            found = zip(clean[-1], files[::every], strict=True)
            found = [label == truth[path.name] for label, path in found]
            right.append(f"{sum(found)} of {len(found)}")
        print(
            f"\n{corpus}: {len(files)} clips, right as they are: "
            f"{right[0]} before, {right[1]} after\n"
        )
        print("| change | before | after |\n| --- | ---: | ---: |", flush=True)
        for name, change in conditions(args.seconds):
            if args.changes not in name:
                continue
            changed = [change(wav) for wav in wavs]
            shares = []
            for (model, every), labels in zip(pair, clean, strict=True):
                found = classify(model, changed[::every])
                same = sum(a == b for a, b in zip(found, labels, strict=True))
                shares.append(f"{100 * same / len(found):.1f} %")
            print(f"| {name} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
