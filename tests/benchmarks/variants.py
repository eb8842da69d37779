"""Parameters and real-time factor of every system, as a Markdown table.

> python tests/benchmarks/variants.py

Random weights, one clip of noise of 4 s, batch 1, one thread on a CPU, from
the waveform to the log-posteriors; systems take turns, and the median counts.
The encoder of ``ssl_ds_lstm`` has the size of WavLM base (94 M) and random
weights; the transcript is 12 tokens.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers

from speechbrain_dslstm.hparams import load_hparams
from speechbrain_dslstm.models import FeatureSequence

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"
INCLUDED = ("recipe", "features")
SECONDS = 4


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    names = [path.stem for path in sorted(HPARAMS.glob("*.yaml"))]
    wavs = 0.1 * torch.randn(1, 16000 * SECONDS)
    text = FeatureSequence(torch.randint(1000, (1, 12)), torch.tensor([12]))
    models = {}
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.WavLMConfig()
        transformers.WavLMModel(config).save_pretrained(folder)
        extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
        extractor.save_pretrained(folder)
        for name in names:
            if name not in INCLUDED:
                overrides = "corpus: iemocap\n"
                if name == "ssl_ds_lstm":
                    overrides += f"ssl_hub: {folder}\n"
                path = HPARAMS / f"{name}.yaml"
                models[name] = load_hparams(path, overrides)["model"].eval()
    times = {name: [] for name in models}
    with torch.no_grad():
        for number in range(rounds + 2):
            for name, model in models.items():
                start = time.perf_counter()
                model(wavs, text=text if model.reads_text else None)
                if number >= 2:
                    times[name].append(time.perf_counter() - start)
    print("| system | parameters | trained | real-time factor |")
    print("|---|---|---|---|")
    order = sorted(models, key=lambda n: statistics.median(times[n]))
    for name in order:
        parameters = list(models[name].parameters())
        count = sum(p.numel() for p in parameters) / 1e6
        trained = sum(p.numel() for p in parameters if p.requires_grad) / 1e6
        factor = statistics.median(times[name]) / SECONDS
        print(f"| `{name}` | {count:.2f} M | {trained:.2f} M | {factor:.4f} |")


if __name__ == "__main__":
    main()
