"""Forks, another default number type, fp16, no folder for compiled code, consoles."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from nightly import NIGHT, at_night

from speechbrain_dslstm.inference import EmotionClassifier, load_safe

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = "pretrained/emotion-dslstm-emodb"
FORK = """
import multiprocessing, os, sys, torch
torch.set_num_threads(4)
from speechbrain_dslstm.inference import load_safe
classifier = load_safe("pretrained/emotion-dslstm-emodb")
torch.manual_seed(0)
wavs = 0.1 * torch.randn(8, 48000)
# All threads of the parent work
torch.randn(600, 600) @ torch.randn(600, 600)
torch.randn(4_000_000).exp().sum()
expected = classifier.classify_batch(wavs).out_prob
opened = classifier.stream(window=2.0, speech_only=False)
opened.push(wavs[0])

def check(_=None):
    torch.randn(4_000_000).exp().sum()
    found = classifier.classify_batch(wavs).out_prob
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    stream = classifier.stream()
    stream.push(wavs[0])
    stream.finish()
    opened.push(wavs[1])
    result, = classifier.classify_files([sys.argv[1]])
    return result.label

label = check()
children = []
for _ in range(2):
    child = os.fork()
    if not child:
        try:
            os._exit(0 if check() == label else 1)
        except BaseException as error:
            print(error, file=sys.stderr)
        os._exit(2)
    children.append(child)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(check, range(3)) == [label] * 3
print("answered")
"""


def run(code, *arguments, timeout=240, **variables):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, **variables},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def spoken(emodb_folder):
    return sorted(emodb_folder.glob("03a01*"))[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_children_of_a_fork_answer(spoken):
    """As in a web server that loads the model before it forks."""
    done = run(FORK, spoken, OMP_NUM_THREADS="4")
    assert done.stdout == "answered\n", done.stderr


@pytest.mark.parametrize("load", [load_safe, EmotionClassifier.from_hparams])
def test_another_default_number_type(load, spoken):
    def answers():
        classifier = load(MODEL)
        streams = [classifier.stream(), classifier.stream(window=2.0)]
        wav = classifier.load_audio(spoken)
        for stream in streams:
            stream.push(wav)
        found = [stream.finish() for stream in streams]
        result = classifier.classify_files([spoken])[0]
        found += [result.log_posteriors, classifier.classify_file(spoken)[0][0]]
        found += [s.log_posteriors for s in classifier.classify_long(spoken)]
        return torch.stack([value.float() for value in found])

    expected = answers()
    torch.set_default_dtype(torch.float64)
    found = answers()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("load", [load_safe, EmotionClassifier.from_hparams])
def test_fp16_on_a_cpu(load):
    with pytest.raises(ValueError, match="fp16 requires a GPU.*is cpu"):
        load(MODEL, run_opts={"device": "cpu", "precision": "fp16"})


COMPILE = """
from speechbrain_dslstm.utils.compiled import compiled
import numba.core.caching as caching
if {nowhere}:
    caching.FunctionCache._impl_class._locator_classes = []

def halve(x):
    return x / 2

def double(x):
    return x * 2

print(compiled()(halve)(3.0), compiled()(double)(3.0))
"""


@pytest.mark.parametrize("nowhere", [at_night(False), True])
def test_the_compiler_is_announced(nowhere, tmp_path):
    """In one line, however many loops are compiled."""
    script = tmp_path / "script.py"
    script.write_text(COMPILE.format(nowhere=nowhere))
    start = [sys.executable, script]
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    variables["PYTHONPATH"] = str(REPOSITORY)
    for again in (False, True):
        done = subprocess.run(
            start, env=variables, capture_output=True, text=True
        )
        assert done.stdout == "1.5 6.0\n", done.stderr
        said = done.stderr.count("compiling loops")
        assert said == (0 if again and not nowhere else 1), done.stderr
        assert ("NUMBA_CACHE_DIR" in done.stderr) == nowhere


FORMS = ([], ["--csv"], ["--json"]) if NIGHT else (["--csv"],)
NAMES = ["zażółć.flac", "日本.flac", "naïve\udce9.flac"]


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode on Windows")
@pytest.mark.parametrize(
    "encoding",
    [at_night("ascii"), at_night("cp437"), "cp1252", at_night("utf-8")],
)
def test_consoles_that_lack_letters(encoding, spoken, tmp_path):
    """Every row is printed in every form."""
    samples, rate = soundfile.read(spoken)
    for name in NAMES:
        with open(os.fsencode(tmp_path / name), "wb") as file:
            soundfile.write(file, samples, rate, format="FLAC")
    for options in FORMS:
        done = subprocess.run(
            [sys.executable, "-m", "speechbrain_dslstm.cli", "classify"]
            + [*options, tmp_path],
            env={**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"},
            cwd=REPOSITORY,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode(encoding, "surrogateescape")
        lines = text.splitlines()
        assert len(lines) == 3 + (options == ["--csv"])
        if options == ["--json"]:
            found = {Path(json.loads(line)["file"]).name for line in lines}
            assert found == set(NAMES)
        elif encoding == "utf-8":
            assert all(name in text for name in NAMES)
        if options == ["--csv"]:
            rows = list(csv.DictReader(io.StringIO(text)))
            assert all(row["label"] for row in rows)
