"""Hostile audio gives a typed error or the right answer, fast and in little memory.

Every file of ``hostile_files`` goes through every entry point in one process
beside this one (``audio_worker``), which measures time and memory; each test
looks at one file.
"""

import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import hostile_files as hostile
import numpy as np
import pytest
import soundfile
import soxr
import torch
from nightly import nightly

from speechbrain_dslstm.audio import (
    AudioError,
    check_samples,
    load_audio,
    printable,
)
from speechbrain_dslstm.corpora.clips import read_audio_facts
from speechbrain_dslstm.export import export_onnx, export_step_onnx, load_onnx
from speechbrain_dslstm.inference import EmotionStream, NoSpeechError, load_safe
from speechbrain_dslstm.inference.streaming import with_normalization

REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = REPOSITORY / "tests" / "helpers" / "audio_worker.py"

ENTRIES = ["file", "onnx", "list", "folder", "command", "manifest", "loader"]
SECONDS = 2.0
MEGABYTES = 200
# Entries that accept audio without speech
RECIPE = ("manifest", "loader")


@pytest.fixture(scope="module")
def speech(recordings):
    """A clip of at most two seconds at 16 kHz."""
    return soundfile.read(recordings[0])[0][:32000]


@pytest.fixture(scope="module")
def shipped():
    """The model that comes with the package."""
    return load_safe("pretrained/emotion-dslstm-emodb")


@pytest.fixture(scope="module")
def exported(shipped, tmp_path_factory):
    """The ONNX file of the shipped model."""
    return export_onnx(shipped, tmp_path_factory.mktemp("onnx") / "m.onnx")


@pytest.fixture(scope="module")
def reports(speech, exported, recordings, tmp_path_factory):
    """Run the worker; its answer for each entry point and file."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = hostile.write_all(folder, speech)
    good = recordings[1:4]
    job = {
        "entries": [*ENTRIES, "long"],
        "good": [str(path.resolve()) for path in good],
        "onnx": str(exported),
        "files": {
            name: os.fsencode(path).hex() for name, path in paths.items()
        },
    }
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [sys.executable, WORKER, folder / "job.json"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = map(json.loads, done.stdout.splitlines())
    return {(entry, name): found for entry, name, found in rows}


def names():
    """Files in the order of the table, as ids that a terminal can show."""
    return [
        pytest.param(name, id=ascii(name)[1:-1][:40]) for name in hostile.FILES
    ]


@pytest.fixture(scope="module")
def expected(shipped, speech):
    """The answer for the speech that the files are made of."""
    wav = torch.from_numpy(speech).float()
    out_prob, _, _, label = shipped.classify_batch(wav)
    return label[0], out_prob[0]


def check_answer(found, wanted, expected):
    """Check that the answer is that of the speech."""
    label, posteriors = expected
    assert "label" in found, found
    difference = torch.tensor(found["posteriors"]).exp() - posteriors.exp()
    assert difference.abs().max() <= wanted.close
    if wanted.close < 1:
        assert found["label"] == label


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("name", names())
def test_every_file(reports, expected, entry, name):
    """Each file gives the right answer, or an error with its name and the reason."""
    _, wanted = hostile.FILES[name]
    found = reports[entry, name]
    assert "crash" not in found, found
    assert found["seconds"] < SECONDS and found["mb"] < MEGABYTES, found
    if "others" in found:
        others = reports[entry, None]["others"]
        if isinstance(wanted, hostile.Refusal):
            assert found["others"] == others
        else:
            # The last bits depend on the batch
            assert np.abs(np.subtract(found["others"], others)).max() < 1e-4
    if isinstance(wanted, hostile.Answer):
        if entry in RECIPE:
            assert "label" in found, found
        else:
            check_answer(found, wanted, expected)
        return
    if entry in RECIPE and not wanted.speech:
        assert "label" in found
        return
    assert "label" not in found, found
    if entry == "folder" and found["error"] is None:
        # A search of the folder skips files that are missing or not audio
        assert name in SKIPPED or len(name) > 255 or "\0" in name
        return
    if entry == "manifest":
        assert f"1 {wanted.kind}" in found["error"]
        return
    if entry in ("list", "folder", "command") and wanted is hostile.LONG:
        wanted = hostile.Refusal("longer than 7200 s")
    assert printable(name) in found["error"]
    assert re.search(wanted.reason, found["error"]), found
    if "kind" in found and wanted.speech:
        assert found["kind"] == wanted.kind or wanted.kind == "too long"


SKIPPED = {"text.txt", "no_header.raw", "folder.wav", "missing.wav"}


@pytest.mark.parametrize("name", names())
def test_window_by_window(reports, name):
    """A file refused whole is refused in windows, too; only length is no fault."""
    _, wanted = hostile.FILES[name]
    found = reports["long", name]
    assert "crash" not in found, found
    assert found["mb"] < MEGABYTES
    if isinstance(wanted, hostile.Answer):
        assert "label" in found
        return
    assert "label" not in found and found["error"]
    if wanted is hostile.LONG:
        # Reading hours of silence takes longer
        assert found["segments"] == hostile.HOURS * 600
        assert found["seconds"] < 60 and "silence" in found["error"]
    else:
        assert found["seconds"] < SECONDS


def test_unreadable_files(speech):
    """A file without permission; root becomes nobody to test it."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "secret.wav")
        soundfile.write(path, speech, 16000)
        path.chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            with pytest.raises(AudioError, match="secret.wav: Permission"):
                load_audio(path)
            assert read_audio_facts(path) == (None, "unreadable")
        finally:
            os.seteuid(user)
        path.chmod(0o600)
    # A regular file whose reads fail for root, too
    with pytest.raises(AudioError, match="cannot read audio from /proc"):
        load_audio("/proc/self/mem")


def test_one_hierarchy():
    assert issubclass(AudioError, ValueError)
    assert issubclass(NoSpeechError, AudioError)


def test_a_grouping_without_the_bad_ones(shipped, recordings, tmp_path):
    """Bad files among twenty good ones change no bit of their answers."""
    good = recordings[:20]
    # Sound headers, so that only decoding finds the NaN
    bad = []
    for number in range(5):
        wav, rate = soundfile.read(good[4 * number])
        wav[100] = math.nan
        bad.append(tmp_path / f"bad{number}.wav")
        soundfile.write(bad[-1], wav, rate, subtype="FLOAT")
    alone = shipped.classify_files(good)
    mixed = shipped.classify_files([*bad, *good])
    assert all("NaN" in result.error for result in mixed[:5])
    for one, other in zip(alone, mixed[5:], strict=True):
        assert torch.equal(one.log_posteriors, other.log_posteriors)


@pytest.mark.parametrize(("odd", "common"), [(22049, 22050), (44101, 44100)])
@pytest.mark.parametrize("hertz", [220, 3000])
def test_odd_rates_are_right(odd, common, hertz, tmp_path):
    """A tone at an odd rate equals the tone at the common rate next to it."""
    waves = []
    for rate in (odd, common):
        time = np.arange(2 * rate) / rate
        path = tmp_path / f"{rate}.wav"
        tone = 0.5 * np.sin(2 * np.pi * hertz * time)
        soundfile.write(path, tone, rate, subtype="FLOAT")
        waves.append(load_audio(path))
    size = min(map(len, waves))
    assert abs(size - 32000) <= 1
    middle = slice(1000, size - 1000)
    torch.testing.assert_close(
        waves[0][middle], waves[1][middle], atol=1e-4, rtol=0
    )
    exact = 0.5 * np.sin(2 * np.pi * hertz * np.arange(size) / 16000)
    torch.testing.assert_close(
        waves[0][middle].numpy(),
        exact[middle].astype("float32"),
        atol=1e-4,
        rtol=0,
    )


def test_odd_rates_give_the_same_emotion(shipped, speech, expected, tmp_path):
    for rate in (22049, 44101, 11025, 48000):
        path = tmp_path / "odd.wav"
        soundfile.write(path, soxr.resample(speech, 16000, rate), rate)
        found = shipped.classify_file(path)
        assert found[3][0] == expected[0]
        assert (found[0][0].exp() - expected[1].exp()).abs().max() < 0.1


def test_the_limit_is_an_option(shipped, recordings, tmp_path):
    """More than a minute is an error with advice, unless the option allows it."""
    files = recordings[:30]
    wavs = [soundfile.read(path)[0] for path in files]
    path = tmp_path / "long.flac"
    soundfile.write(path, np.concatenate(wavs)[: 61 * 16000], 16000)
    with pytest.raises(AudioError, match="long.flac is longer than 60 s") as e:
        shipped.classify_file(path)
    assert e.value.kind == "too long" and "classify_long" in str(e.value)
    assert shipped.classify_file(path, longest=None)[3]
    assert shipped.classify_files([path])[0].label
    [found] = shipped.classify_files([path], longest=50.0)
    assert "longer than 50 s" in found.error


BAD = {
    "nan": (math.nan, "NaN or infinite samples"),
    "inf": (math.inf, "NaN or infinite samples"),
    "minus_inf": (-math.inf, "NaN or infinite samples"),
    "1e30": (1e30, r"samples up to 1e\+30"),
    "minus_1e30": (-1e30, r"samples up to 1e\+30"),
    "integers": (32767.0, "samples up to 32767"),
}


@pytest.fixture(scope="module")
def waveform_entries(shipped, exported):
    """Every call that takes waveforms."""
    onnx = load_onnx(exported)

    def stream(wav):
        opened = EmotionStream(
            with_normalization(shipped.mods.embedding_model, "running")
        )
        opened.push(wav)
        return opened.finish()

    return {
        "batch": shipped.classify_batch,
        "forward": shipped,
        "stream": stream,
        "onnx": onnx.classify_batch,
        "gate": check_samples,
    }


@pytest.mark.parametrize(
    "entry", ["batch", "forward", "stream", "onnx", "gate"]
)
@pytest.mark.parametrize("fault", BAD)
def test_waveforms(waveform_entries, speech, entry, fault):
    value, reason = BAD[fault]
    wav = torch.from_numpy(speech).float()
    call = waveform_entries[entry]
    call(wav)
    wav[77] = value
    with pytest.raises(AudioError, match=reason):
        call(wav)


@pytest.mark.parametrize("entry", ["batch", "onnx"])
def test_the_item_is_named_and_padding_may_be_anything(
    waveform_entries, speech, entry
):
    call = waveform_entries[entry]
    wavs = torch.from_numpy(np.stack([speech] * 3)).float()
    counts = torch.tensor([len(speech), 9000, 12000])
    clean = call(wavs, counts)[0]
    wavs[1, 9000:] = math.nan
    wavs[2, 12000:] = 1e30
    assert torch.equal(call(wavs, counts)[0], clean)
    wavs[2, 11999] = math.inf
    with pytest.raises(AudioError, match=r"in items \[2\] of the batch"):
        call(wavs, counts)
    with pytest.raises(AudioError, match="got torch.int16"):
        call((wavs * 100).nan_to_num().to(torch.int16), counts)


def test_a_stream_goes_on_after_a_bad_chunk(shipped, speech):
    """A refused chunk leaves the state of the stream as it was."""
    model = with_normalization(shipped.mods.embedding_model, "running")
    wav = torch.from_numpy(speech).float()
    clean, tried = EmotionStream(model), EmotionStream(model)
    for chunk in wav.split(4000):
        clean.push(chunk)
        with pytest.raises(AudioError, match="in the stream"):
            tried.push(chunk + math.nan)
        tried.push(chunk)
    assert tried.samples == clean.samples
    assert torch.equal(tried.finish(), clean.finish())


@pytest.mark.parametrize("fault", BAD)
def test_the_graph_itself_gives_no_label(exported, speech, fault):
    """A graph cannot raise: a bad item gives NaN, and its neighbour is unchanged."""
    import onnxruntime

    session = onnxruntime.InferenceSession(exported)
    wavs = np.stack([speech, speech]).astype("float32")
    inputs = {"wavs": wavs, "counts": np.array([len(speech)] * 2)}
    (clean,) = session.run(None, inputs)
    wavs[1, 77] = BAD[fault][0]
    (found,) = session.run(None, inputs)
    assert np.isnan(found[1]).all()
    np.testing.assert_array_equal(found[0], clean[0])


@nightly
def test_the_graph_of_a_step_gives_no_label(shipped, speech, tmp_path):
    """A stream with a bad chunk gives NaN from then on; its neighbour is unchanged."""
    import onnxruntime

    running = shipped.with_normalization("running")
    path = export_step_onnx(running, tmp_path / "step.onnx")
    session = onnxruntime.InferenceSession(path)
    meta = session.get_modelmeta().custom_metadata_map
    size = int(meta["samples_per_step"])
    types = {"tensor(float)": "float32", "tensor(double)": "float64"}
    inputs = session.get_inputs()[2:]
    wav = np.concatenate([speech] * 2).astype("float32")
    answers = {}
    for fault in (None, *BAD):
        states = {
            value.name: np.zeros(
                [n if isinstance(n, int) else 2 for n in value.shape],
                types[value.type],
            )
            for value in inputs
        }
        for step in range(len(wav) // size):
            chunk = np.stack([wav[step * size :][:size]] * 2)
            if fault is not None and step == 1:
                chunk[1, 77] = BAD[fault][0]
            given = {"chunk": chunk, "step": np.array(step), **states}
            found, *new = session.run(None, given)
            states = dict(zip(states, new, strict=True))
        answers[fault] = found
    clean = answers.pop(None)
    assert np.isfinite(clean).all() and step > 3
    for found in answers.values():
        assert np.isnan(found[1]).all()
        np.testing.assert_allclose(found[0], clean[0], atol=1e-5)
