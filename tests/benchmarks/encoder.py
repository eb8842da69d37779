"""The system over a Whisper encoder: from a file to an emotion, and its training.

Weights are random, which costs the same time. A clip of 4 s is classified on one
thread, in turns with openSMILE's ComParE functionals and with the forward pass of
wav2vec2-base. The training is one fold of EMO-DB with cached frames, a
process of train.py with 2 threads, its 16 epochs and the saving.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import opensmile
import soundfile
import torch
from corpus import emodb_folder
from safetensors.torch import save_file
from timing import Row, compare

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.hparams import load_hparams
from speechbrain_dslstm.models import WhisperFrames
from speechbrain_dslstm.pretrained import make_label_encoder

REPOSITORY = Path(__file__).resolve().parents[2]
YAML = REPOSITORY / "hparams" / "encoder_ds_lstm.yaml"
TRAIN = REPOSITORY / "recipes" / "emotion_recognition" / "train.py"
PARITY = ["models/test_whisper.py", "features/test_whisper_mel.py"]
NO_SOURCE = "{corpus: emodb, encoder_source: null}"


def wav2vec2(wav):
    """A forward pass of a wav2vec2-base, without a classifier.

    Arguments
    ---------
    wav : torch.Tensor
        One clip, [1, samples].

    Returns
    -------
    callable
        The pass.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    model = Wav2Vec2Model(Wav2Vec2Config()).eval()

    def call():
        with torch.no_grad():
            return model(wav)

    return call


def train_fold(folder, frames):
    """Seconds of a training of one fold, the second with the same cache.

    Arguments
    ---------
    folder : pathlib.Path
        EMO-DB.
    frames : WhisperFrames
        Its weights are those of the source.

    Returns
    -------
    float
        Wall-clock time of the process.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "whisper")
        source.mkdir()
        state = frames.encoder.state_dict()
        named = {f"encoder.{name}": value for name, value in state.items()}
        save_file(named, source / "model.safetensors")
        config = {
            "model_type": "whisper",
            "num_mel_bins": 80,
            "d_model": 384,
            "encoder_attention_heads": 6,
            "encoder_ffn_dim": 1536,
            "encoder_layers": 4,
            "max_source_positions": 1500,
        }
        (source / "config.json").write_text(json.dumps(config))
        # The first run fills the cache
        for run, epochs in (("first", 1), ("second", 16)):
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, TRAIN, YAML, "--corpus=emodb"]
                + [f"--data_folder={folder}", f"--encoder_source={source}"]
                + [f"--output_folder={Path(scratch, run)}"]
                + [f"--feature_cache={Path(scratch, 'cache')}"]
                + [f"--number_of_epochs={epochs}", "--noprogressbar"]
                + ["--test_every_epoch=False"],
                check=True,
                capture_output=True,
                env={**os.environ, "OMP_NUM_THREADS": "2"},
            )
            taken = time.perf_counter() - start
    return taken


def rows(options):
    """Time everything.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for each row.

    Yields
    ------
    Row
        classify_file and a training.
    """
    hparams = load_hparams(YAML, NO_SOURCE)
    model = EmotionClassifier.from_model(
        hparams["model"], make_label_encoder(hparams["labels"]), 16000
    )
    noise = torch.randn(64000).cumsum(0)
    noise = 0.5 * (noise - noise.mean()) / noise.abs().max()
    smile = opensmile.Smile(
        opensmile.FeatureSet.ComParE_2016, opensmile.FeatureLevel.Functionals
    )
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "clip.wav"))
        soundfile.write(path, noise.numpy(), 16000)
        calls = {
            "ours": lambda: model.classify_file(path, speech_only=False),
            "wav2vec2-base": wav2vec2(noise.unsqueeze(0)),
            "ComParE functionals": lambda: smile.process_file(path),
        }
        row = compare(
            "encoder",
            "encoder_ds_lstm: classify_file, 4 s",
            calls,
            1 / 10,
            options.seconds,
        )
        yield row
        ours = row.medians["ours"]
        name = "encoder_ds_lstm: classify_file, 4 s, ms"
        yield Row("encoder", name, ours, 60.0, {"ms": ours})
    taken = train_fold(emodb_folder(), WhisperFrames([1, 2, 3, 4]))
    name = "encoder_ds_lstm: a fold of EMO-DB, cached, s"
    yield Row("encoder", name, taken, 120.0, {"s": taken})
