"""From a file to an emotion, against plain torch, librosa and openSMILE.

A clip of 4 s, batch 1, one thread, after warm-up, ``dual_level`` and ``paper``
with random weights; and how long the package takes to import and a model to
load.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import librosa
import opensmile
import soundfile
import torch
from plain import PlainClassifier
from timing import Row, compare

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.hparams import load_hparams
from speechbrain_dslstm.models import FeatureSequence
from speechbrain_dslstm.pretrained import make_label_encoder, save_pretrained

TESTS = Path(__file__).resolve().parents[1]
PARITY = [
    *("inference/test_classifier.py", "features/test_extractors.py"),
    "models/test_dual_level.py",
]
SYSTEMS = ["dual_level", "paper"]
LABELS = ["anger", "happiness", "neutral", "sadness"]
MODEL = """
sample_rate: 16000
model: !new:speechbrain_dslstm.DualLevelClassifier
  n_classes: 4
"""
IMPORT = """
import time
start = time.perf_counter()
from speechbrain_dslstm import EmotionClassifier
print(time.perf_counter() - start)
"""
LOAD = """
import time
from speechbrain_dslstm import EmotionClassifier
start = time.perf_counter()
EmotionClassifier.from_hparams({folder!r})
print(time.perf_counter() - start)
"""


def in_a_process(code):
    """Run code that prints a number last.

    Arguments
    ---------
    code : str
        Python.

    Returns
    -------
    float
        The number.
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=TESTS.parent,
    )
    return float(done.stdout.split()[-1])


def plain_way(model, path):
    """Classify a file with librosa, openSMILE and plain modules.

    Arguments
    ---------
    model : DualLevelClassifier
        Gives the parameters.
    path : str
        The file.

    Returns
    -------
    callable
        Gives log-posteriors [1, classes].
    """
    plain = PlainClassifier(model).eval()
    smile = opensmile.Smile(
        str(TESTS / "golden" / "mfcc12_e_d_a.conf"), feature_level="lld"
    )

    def call():
        wav, rate = librosa.load(path, sr=16000)
        found = {"mfcc": smile.process_signal(wav, rate).values}
        for name, n_fft in (("mel_x", 512), ("mel_y", 1024)):
            power = librosa.feature.melspectrogram(
                y=wav * model.streams[name].extractor.scale,
                sr=rate,
                n_fft=n_fft,
                hop_length=n_fft // 2,
                n_mels=n_fft // 4,
            )
            found[name] = librosa.power_to_db(power, top_db=None).T
        extracted = {
            name: FeatureSequence(
                torch.tensor(feats).unsqueeze(0), torch.tensor([len(feats)])
            )
            for name, feats in found.items()
        }
        with torch.no_grad():
            spectrogram, mfcc = plain(model.normalize(extracted))
            logits = model.p * spectrogram + (1 - model.p) * mfcc
            return logits.log_softmax(-1)

    return call


def compare_system(system, path, seconds):
    """Time a system's ``classify_file``, once both ways agree.

    Arguments
    ---------
    system : str
        Name of its YAML.
    path : str
        The file.
    seconds : float
        For the row.

    Returns
    -------
    Row
        Ours against plain.
    """
    hparams = load_hparams(
        TESTS.parent / "hparams" / f"{system}.yaml", "corpus: iemocap"
    )
    model = EmotionClassifier.from_model(
        hparams["model"], make_label_encoder(LABELS), 16000
    )
    by_hand = plain_way(hparams["model"].eval(), path)
    torch.testing.assert_close(
        model.classify_file(path, speech_only=False)[0],
        by_hand(),
        atol=1e-3,
        rtol=0,
    )
    return compare(
        "inference",
        f"{system}: classify_file, 4 s, batch 1",
        {
            "ours": lambda: model.classify_file(path, speech_only=False),
            "plain": by_hand,
        },
        1 / 5,
        seconds,
    )


def rows(options):
    """Time everything.

    Arguments
    ---------
    options : argparse.Namespace
        ``seconds`` for each row.

    Yields
    ------
    Row
        classify_file, import and loading.
    """
    noise = torch.randn(64000).cumsum(0)
    noise = 0.5 * (noise - noise.mean()) / noise.abs().max()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "clip.wav"))
        soundfile.write(path, noise.numpy(), 16000)
        saved = Path(folder, "model")
        for system in SYSTEMS:
            yield compare_system(system, path, options.seconds)
        from speechbrain_dslstm import DualLevelClassifier

        save_pretrained(saved, MODEL, DualLevelClassifier(4), LABELS)
        for name, code, target in (
            ("import of EmotionClassifier, s", IMPORT, 3.0),
            ("loading of a model, s", LOAD.format(folder=str(saved)), 0.5),
        ):
            taken = [in_a_process(code) for _ in range(3)]
            median = sorted(taken)[1]
            yield Row("inference", name, median, target, {"s": median})
