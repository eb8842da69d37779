"""Measure whether adapting without labels helps on other corpora.

> python tests/benchmarks/adaptation.py MODEL ravdess=FOLDER nemo=FOLDER

For each corpus it prints the UA over the classes that model and corpus share
(the best posterior among these), without adaptation and adapted to recordings:

- corpus: all clips of the corpus, the tested ones included
- others: the clips of the other half of the speakers
- speaker: the tested speaker's own clips

No label is read by the adaptation. ``--every=N`` takes every N-th clip. A corpus
``table=FILE`` is a TSV of the columns file, speaker and emotion.
"""

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import torch

from speechbrain_dslstm.corpora import prepare
from speechbrain_dslstm.inference import EmotionClassifier, load_safe


def read_corpus(name: str, place: str) -> list[tuple[str, str, str]]:
    """Path, speaker and emotion of each clip."""
    if name == "table":
        folder = Path(place).parent
        with open(place, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        return [
            (str(folder / row["file"]), row["speaker"], row["emotion"])
            for row in rows
        ]
    entries, _ = prepare(name, place)
    return [
        (one["wav"].format(data_root=place), one["speaker"], one["emotion"])
        for one in entries.values()
    ]


def predict(
    classifier: EmotionClassifier, paths: list[str], labels: list[str]
) -> list[str]:
    """Best of ``labels`` for each clip."""
    columns = [classifier.labels.index(label) for label in labels]
    found = classifier.classify_files(paths, speech_only=False, progress=False)
    scores = torch.stack([one.log_posteriors[columns] for one in found])
    return [labels[k] for k in scores.argmax(1).tolist()]


def average_recall(pairs: list[tuple[str, str]]) -> float:
    """UA in per cent of (true, predicted) pairs."""
    hits = defaultdict(list)
    for truth, found in pairs:
        hits[truth].append(truth == found)
    return 100 * sum(sum(h) / len(h) for h in hits.values()) / len(hits)


def groups(clips: list, how: str) -> list[tuple[list, list]]:
    """Pairs (recordings to adapt to, clips to test) that test every clip once."""
    speakers = sorted({speaker for _, speaker, _ in clips})
    if how == "corpus":
        return [(clips, clips)]
    if how == "speaker":
        own = [[c for c in clips if c[1] == s] for s in speakers]
        return [(one, one) for one in own]
    half = set(speakers[::2])
    first = [c for c in clips if c[1] in half]
    second = [c for c in clips if c[1] not in half]
    return [(first, second), (second, first)]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("corpora", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--blends", type=float, nargs="+", default=[1.0, 0.5])
    options = parser.parse_args()
    classifier = load_safe(options.model)
    for corpus in options.corpora:
        name, _, place = corpus.partition("=")
        clips = read_corpus(name, place)
        labels = sorted({c[2] for c in clips} & set(classifier.labels))
        clips = [c for c in clips if c[2] in labels][:: options.every]
        truth = [c[2] for c in clips]
        found = predict(classifier, [c[0] for c in clips], labels)
        base = average_recall(list(zip(truth, found, strict=True)))
        print(
            f"{corpus}: {len(clips)} clips, {len(labels)} classes", flush=True
        )
        print(f"  not adapted          UA {base:.1f}", flush=True)
        for how in ("corpus", "others", "speaker"):
            for blend in options.blends:
                pairs = []
                for recordings, tested in groups(clips, how):
                    adapted = classifier.adapt(
                        [c[0] for c in recordings], blend, seconds=10
                    )
                    found = predict(adapted, [c[0] for c in tested], labels)
                    truth = [c[2] for c in tested]
                    pairs += zip(truth, found, strict=True)
                score = average_recall(pairs)
                print(f"  {how:8} blend {blend:4}  UA {score:.1f}", flush=True)


if __name__ == "__main__":
    main()
