"""Shared by all tests: speech, seeds, threads and poisoned memory."""

import os
import random
import sys
from pathlib import Path

# Before anything imports huggingface_hub: no test reaches for the network
os.environ["HF_HUB_OFFLINE"] = "1"
# Deterministic cuBLAS, needed by the poisoning below where there is a GPU
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import soundfile  # noqa: E402
import speechbrain  # noqa: E402, F401
import torch  # noqa: E402
from nightly import NIGHT  # noqa: E402
from real_speech import EMODB, clips_in  # noqa: E402
from speechbrain.utils.importutils import LazyModule  # noqa: E402

from speechbrain_dslstm.corpora import synthetic  # noqa: E402

# Several threads on a busy machine wait for each other for minutes
THREADS = 1


class _TorchRandom:
    """Lets hypothesis seed torch, so that a failing example can be repeated."""

    def seed(self, seed):
        torch.manual_seed(seed)

    def getstate(self):
        return torch.get_rng_state()

    def setstate(self, state):
        torch.set_rng_state(state)


# hypothesis keeps a weak reference only
_torch_random = _TorchRandom()
hypothesis.register_random(_torch_random)
hypothesis.settings.register_profile("local", deadline=None, print_blob=True)
hypothesis.settings.register_profile(
    "ci",
    hypothesis.settings.get_profile("local"),
    derandomize=True,
    max_examples=100 if NIGHT else 40,
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


# hypothesis reads __file__ of every loaded module. SpeechBrain's lazy modules
# would then import their target, which fails if it is not installed (k2).
for module in list(sys.modules.values()):
    if isinstance(module, LazyModule):
        module.__file__ = None


def poison_memory():
    """Fill what torch.empty returns with NaN (integers: the largest one)."""
    # Without warn_only, operations with no deterministic form would raise
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True


# At import, so that it holds for doctests, too
poison_memory()


@pytest.fixture(autouse=True)
def reproducible():
    """Start each test from the same seeds and threads, and clean up."""
    threads = torch.get_num_threads()
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    poison_memory()
    yield
    torch.set_num_threads(threads)
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    torch.set_default_dtype(torch.float32)
    poison_memory()


@pytest.fixture(scope="session")
def speech_files(tmp_path_factory):
    """32 files: four synthetic speakers, four emotions, twice each.

    Each joins three sentences, so that no licensed corpus is needed.
    """
    clips = tmp_path_factory.mktemp("clips")
    synthetic.generate(clips, speakers=4)
    folder = tmp_path_factory.mktemp("speech")
    paths = sorted(clips.glob("*.wav"))
    for k in range(0, len(paths), 3):
        samples = [soundfile.read(path)[0] for path in paths[k : k + 3]]
        path = folder / f"{paths[k].stem}.flac"
        soundfile.write(path, np.concatenate(samples), synthetic.RATE)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def speech_data():
    """Folder with several real corpora, a sub-folder for each."""
    given = os.environ.get("DSLSTM_SPEECH_DATA")
    if not given:
        pytest.skip(
            "set DSLSTM_SPEECH_DATA to a folder that holds "
            "emodb/, ravdess/ and nemo/ (see recipes/emotion_recognition)"
        )
    if not Path(given).is_dir():
        pytest.fail(f"DSLSTM_SPEECH_DATA={given} is not a folder")
    return Path(given)


def _corpus(folder):
    if not folder.is_dir():
        pytest.skip(f"DSLSTM_SPEECH_DATA has no sub-folder {folder.name}/")
    return folder


@pytest.fixture(scope="session")
def emodb_folder():
    """Folder of EMO-DB: German, ten speakers."""
    return EMODB


@pytest.fixture(scope="session")
def recordings(emodb_folder):
    """Files of EMO-DB."""
    return clips_in(emodb_folder)


@pytest.fixture(scope="session")
def ravdess_folder(speech_data):
    """Folder of RAVDESS: English, 24 speakers."""
    return _corpus(speech_data / "ravdess")


@pytest.fixture(scope="session")
def nemo_folder(speech_data):
    """Folder of nEMO: Polish, nine speakers."""
    return _corpus(speech_data / "nemo")
