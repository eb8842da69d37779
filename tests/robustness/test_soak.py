"""One classifier under load: many threads, bad requests, long files.

Half a minute with CI set, minutes without. The seed is printed; another one
comes with DSLSTM_SEED.
"""

import gc
import json
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import psutil
import pytest
import soundfile
import torch
from nightly import NIGHT, nightly

from speechbrain_dslstm import EmotionClassifier
from speechbrain_dslstm.audio import AudioError, load_audio
from speechbrain_dslstm.pretrained import make_label_encoder

SEED = int(os.environ.get("DSLSTM_SEED", "13"))
REQUESTS = 2000 if NIGHT else 50
WARM_UP = 160 if NIGHT else 50
THREADS = 8
BAD = 0.2
GROWTH = 50  # MB
LONG_FILES = 64
# docs/inference.md promises this of classify_files, above the loaded model
LARGEST = 300 << 20
SHIPPED = "pretrained/emotion-dslstm-emodb"
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of the audio files."""
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module")
def good(folder, recordings):
    """Speech at some rates, in stereo, and one recording of over a minute."""
    found = []
    clips = recordings[3 :: max(1, len(recordings) // 12)]
    for k, clip in enumerate(clips):
        wav, rate = soundfile.read(clip, dtype="float32")
        path = folder / f"good{k}.wav"
        if k % 3 == 1:
            wav = np.stack([wav, 0.5 * wav], axis=1)
        # Read as if spoken faster or slower: other samples at the model's rate
        rate = [rate, 22050, 8000, rate][k % 4]
        soundfile.write(path, wav, rate, "PCM_16")
        found.append(path)
    wavs = [soundfile.read(clip, dtype="float32")[0] for clip in clips]
    long = np.concatenate([wavs[k % len(wavs)] for k in range(30)])
    soundfile.write(folder / "long.flac", long[: 16000 * 62], 16000)
    return [*found, folder / "long.flac"]


@pytest.fixture(scope="module")
def bad(folder):
    """Files without speech, and files that are not audio."""
    rng = np.random.default_rng(0)
    samples = {
        "nan.wav": np.r_[np.ones(8000), np.nan, np.ones(8000)],
        "silence.wav": np.zeros(16000),
        "noise.wav": 0.1 * rng.normal(size=16000),
        "short.wav": 0.1 * rng.normal(size=800),
        "none.wav": np.zeros(0),
    }
    for name, wav in samples.items():
        soundfile.write(folder / name, wav, 16000, "FLOAT")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("no audio\n" * 100)
    (folder / "cut.flac").write_bytes(b"fLaC" + bytes(50))
    (folder / "folder.wav").mkdir()
    more = ["empty.wav", "text.wav", "cut.flac", "folder.wav", "missing.wav"]
    return [folder / name for name in [*samples, *more]]


@pytest.fixture(scope="module")
def classifier():
    """The model that comes with the package."""
    return EmotionClassifier.from_hparams(SHIPPED)


def answer(found):
    """Label and posteriors, which must not depend on other requests."""
    return found[0].detach().clone(), list(found[3])


def by_stream(classifier, path):
    stream = classifier.stream(normalization="running")
    wav = load_audio(path)
    for chunk in wav[: 2 * 16000].split(4000):
        stream.push(chunk)
    return stream.finish().clone(), []


def by_batch(classifier, path):
    wav = load_audio(path)
    half = len(wav) // 2
    counts = torch.tensor([len(wav), half])
    return answer(classifier.classify_batch(wav.expand(2, -1), counts))


def by_windows(classifier, path):
    found = list(classifier.classify_long(path, window=2.0))
    labels = [(s.start, s.end, s.label, s.reason) for s in found]
    rows = [s.log_posteriors for s in found if s.label is not None]
    return torch.stack(rows) if rows else torch.zeros(0), labels


def by_list(classifier, path):
    """Classify a list in which a bad file comes first and must change nothing."""
    missing = path.with_name("missing.wav")
    first, second = classifier.classify_files([missing, path], progress=False)
    assert "missing.wav" in first.error and first.answer is None
    if second.answer is None:
        return torch.zeros(0), [second.error, second.reason]
    return answer(second.answer)


KINDS = {
    "file": lambda c, path: answer(c.classify_file(path)),
    "batch": by_batch,
    "windows": by_windows,
    "list": by_list,
    "stream": by_stream,
}


def ask(classifier, request):
    """The answer to a request, or its error."""
    kind, path = request
    try:
        return KINDS[kind](classifier, path)
    # Of a folder without audio in a list
    except (AudioError, FileNotFoundError) as error:
        return type(error).__name__, str(error)


def draw(rng, good, bad, number):
    """Draw requests of all kinds; long files are for lists and windows only."""
    found = []
    for k in range(number):
        # The exact share; the order is random
        path = rng.choice(bad if k < BAD * number else good)
        kinds = [k for k in KINDS if path.stem != "long" or k in by_many]
        found.append((rng.choice(kinds), path))
    rng.shuffle(found)
    return found


by_many = ("list", "windows")


def differs(found, expected):
    """Whether an answer differs from that of the request alone."""
    if isinstance(found[0], str) or isinstance(expected[0], str):
        return found != expected
    return found[1] != expected[1] or not torch.allclose(
        found[0], expected[0], **CLOSE
    )


def resident():
    """Resident memory in MB, with what malloc keeps for later."""
    gc.collect()
    return psutil.Process().memory_info().rss / 2**20


def in_use():
    """Numbers of threads and open files of this process."""
    gc.collect()
    process = psutil.Process()
    return process.num_threads(), process.num_fds()


def test_soak(classifier, good, bad):
    print(f"seed {SEED}, {REQUESTS} requests")
    rng = random.Random(SEED)
    kinds = [(kind, path) for kind in KINDS for path in [*good, *bad]]
    kinds = [r for r in kinds if r[1].stem != "long" or r[0] in by_many]
    alone = {request: ask(classifier, request) for request in kinds}
    # Answers differ, so a neighbour's answer would be noticed
    sharp = [a[0] for r, a in alone.items() if r[0] == "file"]
    sharp = [a for a in sharp if torch.is_tensor(a)]
    assert len(sharp) >= 10
    for one, other in pairwise(sharp):
        assert not torch.allclose(one, other, atol=1e-3)
    refusals = [alone["file", path] for path in bad]
    assert all(isinstance(refused[0], str) for refused in refusals)
    requests = draw(rng, good, bad, WARM_UP + REQUESTS)
    assert sum(r[1] in bad for r in requests) >= BAD * len(requests)
    before, started = in_use(), time.monotonic()
    together = threading.Barrier(THREADS)

    def begin(_):
        """The largest request of each kind, in every thread."""
        torch.set_num_threads(1)
        together.wait()
        largest = [(k, good[-1] if k in by_many else good[0]) for k in KINDS]
        return [r for r in largest if differs(ask(classifier, r), alone[r])]

    with ThreadPoolExecutor(THREADS) as pool:

        def run(some):
            results = pool.map(lambda r: ask(classifier, r), some)
            return [
                (request, found)
                for request, found in zip(some, results, strict=True)
                if differs(found, alone[request])
            ]

        wrong = sum(pool.map(begin, range(THREADS)), [])
        wrong += run(requests[:WARM_UP])
        warm = resident()
        wrong += run(requests[WARM_UP:])
        grown = resident() - warm
    assert not wrong, f"{len(wrong)} of {len(requests)}: {wrong[:2]}"
    print(
        f"{len(requests)} requests in {time.monotonic() - started:.1f} s; "
        f"{warm:.0f} MB after {WARM_UP}, then {grown:+.1f} MB"
    )
    assert grown < GROWTH
    threads, files = in_use()
    assert threads <= before[0] and files <= before[1]


class Meeting(torch.nn.Module):
    """A model in which two calls are at the same time."""

    def __init__(self):
        super().__init__()
        self.barrier = threading.Barrier(2, timeout=30)

    def forward(self, wavs, wav_lens=None):
        """Uniform posteriors, once both are here."""
        assert torch.is_autocast_enabled("cpu")
        self.barrier.wait()
        return torch.zeros(len(wavs), 2)


def test_autocast_of_two_threads():
    """SpeechBrain has one context, which kept the second thread's state.

    A caller's own autocast came out off in one thread, or on in the other.
    """
    classifier = EmotionClassifier.from_model(
        Meeting(),
        make_label_encoder(["anger", "sadness"]),
        16000,
        run_opts={"precision": "bf16"},
    )

    def run(enabled):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            classifier.classify_batch(torch.zeros(1, 16000))
            return torch.is_autocast_enabled("cpu")

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(run, [True, False])) == [True, False]


LONG = """
import json, sys
from pathlib import Path
from speechbrain_dslstm import EmotionClassifier

def memory(line):
    rows = Path("/proc/self/status").read_text().splitlines()
    return int(next(r for r in rows if line in r).split()[1]) * 1024

classifier = EmotionClassifier.from_hparams(sys.argv[1])
paths = sorted(Path(sys.argv[2]).glob("*.flac"))
classifier.classify_file(sys.argv[3])
before = memory("VmRSS")
results = classifier.classify_files(paths, progress=False)
print(json.dumps({
    "labels": [r.label for r in results],
    "posteriors": [r.log_posteriors.tolist() for r in results],
    "errors": [r.error for r in results],
    "more": memory("VmHWM") - before,
}))
"""


@nightly
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_five_minutes_many_times(classifier, good, recordings, tmp_path):
    """Memory is that of some windows, not of 64 recordings."""
    different = min(LONG_FILES, 4)
    for k in range(LONG_FILES):
        path = tmp_path / f"{k:02}.flac"
        if k >= different:
            path.symlink_to(tmp_path / f"{k % different:02}.flac")
            continue
        wavs, seconds = [], 0.0
        for clip in recordings[k * len(recordings) // 4 :] + recordings * 8:
            wav, rate = soundfile.read(clip, dtype="float32")
            wavs.append(wav)
            seconds += len(wav) / rate
            if seconds > 300:
                break
        soundfile.write(path, np.concatenate(wavs)[: 300 * rate], rate)
    command = [sys.executable, "-c", LONG, SHIPPED, str(tmp_path), good[0]]
    out = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(out.stdout.splitlines()[-1])
    print(f"{LONG_FILES} files: {found['more'] / 2**20:.0f} MB more")
    assert found["errors"] == [None] * LONG_FILES
    assert found["more"] < LARGEST
    # Each as it is alone
    assert len({tuple(row) for row in found["posteriors"]}) == different
    [alone] = classifier.classify_files([tmp_path / "00.flac"])
    torch.testing.assert_close(
        torch.tensor(found["posteriors"][0]), alone.log_posteriors, **CLOSE
    )
    for k, row in enumerate(found["posteriors"]):
        assert row == found["posteriors"][k % different]
