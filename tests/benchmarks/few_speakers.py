"""Compare fine-tuning with a training from scratch on few labelled speakers.

> python tests/benchmarks/few_speakers.py ravdess FOLDER OUTPUT

For each seed it draws five speakers for training and one that chooses the
epoch; all others are the test subset. It writes this split as a table, trains
on it with and without ``--init_from``, everything else equal, and prints the
UA and WA of the test speakers.
"""

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from speechbrain_dslstm.corpora import prepare

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPE = REPOSITORY / "recipes" / "emotion_recognition" / "train.py"
COLUMNS = ("file", "speaker", "emotion", "split")


def write_table(
    path: Path, corpus: str, folder: str, seed: int, speakers: int
) -> None:
    """Write the clips of a corpus with a split by speakers."""
    entries, _ = prepare(corpus, folder)
    names = sorted({entry["speaker"] for entry in entries.values()})
    order = np.random.default_rng(seed).permutation(names).tolist()
    subsets = ["train"] * speakers + ["valid"] + ["test"] * len(order)
    split = dict(zip(order, subsets, strict=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for entry in entries.values():
            wav = entry["wav"].format(data_root=".")
            row = [wav, entry["speaker"], entry["emotion"]]
            writer.writerow([*row, split[entry["speaker"]]])


def main() -> None:
    """Train and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus")
    parser.add_argument("folder")
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--init_from", default="pretrained/emotion-dslstm-emodb"
    )
    parser.add_argument("--speakers", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=15)
    options, others = parser.parse_known_args()
    init = [f"--init_from={options.init_from}"]
    for seed in options.seeds:
        table = options.output / f"seed{seed}.csv"
        write_table(
            table, options.corpus, options.folder, seed, options.speakers
        )
        for name, more in ("scratch", []), ("fine-tuned", init):
            run = options.output / f"{name}_seed{seed}"
            command = [
                *(sys.executable, str(RECIPE)),
                str(REPOSITORY / "hparams" / "dual_level.yaml"),
                *("--corpus=table", f"--table={table}", "--protocol=split"),
                f"--data_folder={options.folder}",
                f"--output_folder={run}",
                f"--number_of_epochs={options.epochs}",
                *(f"--seed={seed}", "--test_every_epoch=False"),
                *(*more, *others),
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            results = json.loads((run / "results.json").read_text("utf-8"))
            ua, wa = 100 * results["ua"], 100 * results["wa"]
            print(
                f"seed {seed}  {name:10}  UA {ua:.1f}  WA {wa:.1f}", flush=True
            )


if __name__ == "__main__":
    main()
