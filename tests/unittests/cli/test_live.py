"""``dslstm stream`` and ``dslstm mic``: rates, containers, devices, ends."""

import io
import json
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from speechbrain_dslstm.cli.app import main
from speechbrain_dslstm.cli.mic import Microphone
from speechbrain_dslstm.inference import load_safe
from speechbrain_dslstm.pretrained.safe_format import write_safe

LABELS = ["sadness", "anger", "neutral"]
REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def model(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_safe(folder, small_model(center=True), LABELS, 16000, 1.5)
    return folder


@pytest.fixture
def dslstm(model, monkeypatch, capsys):
    """Run a command with bytes on standard input."""

    def run(*arguments, data=b""):
        argv = ["dslstm", *map(str, arguments), "--model", str(model)]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        found = capsys.readouterr()
        return stop.value.code or 0, found.out, found.err

    return run


def pcm(samples):
    return (np.asarray(samples) * 32767).astype("<i2").tobytes()


def wav_bytes(samples, rate, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", **options)
    return file.getvalue()


def last(out):
    return json.loads(out.splitlines()[-1])


def posteriors(out):
    return torch.tensor(list(last(out)["posteriors"].values()))


@pytest.fixture(scope="module")
def spoken(speech_clips):
    return torch.cat(speech_clips[:3])[: 5 * 16000 + 3000].numpy()


def test_the_default_answers_for_the_last_seconds(dslstm, model, spoken):
    status, out, err = dslstm("stream", "--json", data=pcm(spoken) + b"\0")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "")
    assert [row["final"] for row in rows] == [False] * 10 + [True]
    stream = load_safe(model).stream(window=4.0, decay=1.0)
    stream.push(
        torch.from_numpy(np.frombuffer(pcm(spoken), "<i2") / 32768).float()
    )
    expected = stream.finish().exp()
    torch.testing.assert_close(posteriors(out), expected, atol=1e-4, rtol=0)
    assert rows[-1]["seconds"] == 5.188
    _, out, _ = dslstm("stream", "--json", "--window=2", data=pcm(spoken))
    window = load_safe(model).classify_batch(torch.from_numpy(spoken[-32000:]))
    torch.testing.assert_close(
        posteriors(out), window.out_prob[0].exp(), atol=5e-3, rtol=0
    )


def test_rates_and_channels(dslstm, spoken):
    """44.1 kHz with two channels has the answer of 16 kHz with one."""
    _, out, _ = dslstm("stream", "--json", "--window=3", data=pcm(spoken))
    expected = posteriors(out)
    fine = soxr.resample(spoken, 16000, 44100)
    both = np.stack([fine, np.zeros_like(fine)], axis=1)
    options = ["stream", "--json", "--window=3", "--rate=44100"]
    for channels, options_ in [(fine, []), (both, ["--channel=0"])]:
        count = f"--channels={1 if channels.ndim == 1 else 2}"
        _, out, _ = dslstm(*options, count, *options_, data=pcm(channels))
        torch.testing.assert_close(posteriors(out), expected, atol=0.05, rtol=0)
        assert last(out)["seconds"] == pytest.approx(
            len(spoken) / 16000, abs=2e-3
        )
    # The mean of opposite phases would be silence
    both = np.stack([fine, -fine], axis=1)
    _, out, _ = dslstm(*options, "--channels=2", data=pcm(both))
    torch.testing.assert_close(posteriors(out), expected, atol=0.05, rtol=0)
    status, _, err = dslstm(
        *options, "--channels=2", "--channel=5", data=pcm(both)
    )
    assert status == 2 and "no channel 5" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"]
)
def test_wav_is_read_as_it_comes(subtype, dslstm, spoken):
    _, out, _ = dslstm("stream", "--json", data=pcm(spoken))
    expected = posteriors(out)
    fine = soxr.resample(spoken, 16000, 48000)
    data = wav_bytes(np.stack([fine, fine], axis=1), 48000, subtype=subtype)
    # A chunk after the samples is no audio
    for tail in (b"", b"LIST\x04\0\0\0abcd"):
        status, out, err = dslstm("stream", "--json", data=data + tail)
        assert (status, err) == (0, "")
        tolerance = 0.15 if subtype == "PCM_U8" else 0.05
        torch.testing.assert_close(
            posteriors(out), expected, atol=tolerance, rtol=0
        )


def test_wav_whose_size_is_unknown_or_wrong(dslstm, spoken):
    data = wav_bytes(spoken, 16000)
    place = data.index(b"data") + 4
    _, expected, _ = dslstm("stream", "--json", data=data)
    for size in (0, 0x7FFFF000, 0xFFFFFFFF):
        piped = data[:place] + struct.pack("<I", size) + data[place + 4 :]
        assert dslstm("stream", "--json", data=piped) == (0, expected, "")
    status, out, err = dslstm("stream", data=data[:-4000])
    assert status == 2 and "is cut off" in err and err.count("\n") == 1
    for broken in (data[:20], data[:30], data[:place], b"RIFF\0\0\0\0WAVE" * 9):
        status, out, err = dslstm("stream", data=broken)
        assert status == 2 and err.count("\n") == 1 and not out
    law = wav_bytes(spoken, 16000, subtype="ULAW")
    status, out, err = dslstm("stream", data=law)
    assert status == 2 and "ffmpeg" in err and not out
    bad = wav_bytes(np.full(16000, np.nan), 16000, subtype="FLOAT")
    status, out, err = dslstm("stream", data=bad)
    assert status == 2 and "NaN" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "format", ["FLAC", "OGG", "MP3", "AIFF", "CAF", "AU", "W64"]
)
def test_containers_are_refused(format, dslstm, spoken):
    file = io.BytesIO()
    soundfile.write(file, spoken, 16000, format=format)
    for data in (file.getvalue(), file.getvalue()[:3000]):
        status, out, err = dslstm("stream", "--json", data=data)
        assert status == 2 and out == "" and err.count("\n") == 1
        assert "ffmpeg -i FILE -f wav - | dslstm stream" in err


@pytest.mark.parametrize(
    "head",
    [
        b"\0\0\0\x20ftypM4A ",
        b"\x1a\x45\xdf\xa3",
        b"RIFF\0\0\0\0WEBP",
        b"ID3\x04\0\0\0\x0f\x7f\x7f",
        b"#!AMR\n",
        b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    ],
)
def test_heads_of_containers(head, dslstm):
    data = head + np.random.default_rng(0).bytes(40000)
    status, out, err = dslstm("stream", data=data)
    assert status == 2 and out == "" and "on standard input" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window=inf"], "inf is not"),
        (["--window=nan"], "nan is not"),
        (["--window=-1"], "-1 is not"),
        (["--window=0"], "0 is not"),
        (["--window=1e5"], "1e5 is not"),
        (["--window=100"], "a window of 0.2 to 60 seconds"),
        (["--decay=nan"], "nan is not"),
        (["--every=inf"], "inf is not"),
        (["--every=x"], "'x' is not a number"),
        (["--rate=1"], "1 is not in the range"),
        (["--channels=0"], "0 is not in the range"),
        (["--channel=each"], "each is not mix or an index"),
        (["--whole", "--window=3"], "--whole takes no --window"),
        (["--normalization=training"], "requires --whole"),
    ],
)
def test_options_that_are_refused(arguments, message, dslstm):
    status, out, err = dslstm("stream", *arguments, data=b"\0" * 4000)
    assert status == 2 and message in err and err.count("\n") == 1 and not out


@pytest.mark.parametrize("option", ["--window", "--hop", "--unknown-below"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
def test_numbers_of_classify(option, value, dslstm, speech_files):
    arguments = ["classify", speech_files[0], "--long", f"{option}={value}"]
    status, out, err = dslstm(*arguments)
    assert status == 2 and f"{value} is not" in err and err.count("\n") == 1


def test_an_interrupt_gives_the_final_answer(model, spoken):
    """While the program waits for audio that does not come."""
    process = subprocess.Popen(
        [sys.executable, "-m", "speechbrain_dslstm.cli", "stream", "--json"]
        + ["--model", str(model)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    process.stdin.write(pcm(spoken[:40000]))
    process.stdin.flush()
    assert not json.loads(process.stdout.readline())["final"]
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err == b""
    assert json.loads(out.splitlines()[-1])["final"]


class FakeDevice:
    """sounddevice's interface, played from an array by a thread of its own."""

    class PortAudioError(Exception):
        pass

    def __init__(self, samples, rate, overflow=False):
        self.samples, self.rate = samples, rate
        self.overflow = overflow
        outside = self

        class InputStream:
            def __init__(
                self, samplerate, blocksize, device, channels, dtype, callback
            ):
                assert dtype == "float32" and samplerate == rate
                if device == "gone":
                    raise outside.PortAudioError("no device gone [-9996]")
                self.active, self.callback = True, callback
                self.size, self.channels = blocksize, channels
                self.thread = threading.Thread(target=self.play)

            def start(self):
                self.thread.start()

            def play(self):
                memory = np.zeros((self.size, self.channels), "float32")
                for k in range(0, len(outside.samples), self.size):
                    block = outside.samples[k : k + self.size]
                    # The same memory each time, as PortAudio does
                    memory[: len(block)] = block[:, None]
                    status = SimpleNamespace(
                        input_overflow=outside.overflow and k == 0
                    )
                    self.callback(
                        memory[: len(block)], len(block), None, status
                    )
                memory[:] = np.nan
                self.active = False

            def close(self):
                self.thread.join()

        self.InputStream = InputStream

    def query_devices(self, device=None, kind=None):
        if kind is None:
            return "  0 Built-in microphone (2 in, 0 out)"
        return {"name": "x", "default_samplerate": float(self.rate)}


def test_a_microphone(dslstm, model, spoken, monkeypatch):
    """The same audio as a stream has the same answer."""
    fine = soxr.resample(spoken, 16000, 48000)
    fake = FakeDevice(fine, 48000, overflow=True)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    status, out, err = dslstm("mic", "--json", "--window=3")
    assert status == 0 and "1 blocks of audio were lost" in err
    data = wav_bytes(fine, 48000, subtype="FLOAT")
    _, expected, _ = dslstm("stream", "--json", "--window=3", data=data)
    torch.testing.assert_close(
        posteriors(out), posteriors(expected), atol=1e-3, rtol=0
    )
    assert (
        last(out)["final"] and last(out)["seconds"] == last(expected)["seconds"]
    )
    status, out, _ = dslstm("mic")
    assert out.splitlines()[-1].startswith("    5.2 s  ")
    assert all(label in out.splitlines()[-1] for label in LABELS)
    status, out, _ = dslstm("mic", "--list-devices")
    assert (status, out) == (0, "  0 Built-in microphone (2 in, 0 out)\n")
    status, _, err = dslstm("mic", "--device=gone")
    assert status == 2 and "cannot record: no device gone" in err
    assert "--list-devices" in err and err.count("\n") == 1


def test_a_terminal_shows_one_line(dslstm, spoken, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeDevice(spoken, 16000))
    monkeypatch.setattr(sys.stdout.__class__, "isatty", lambda self: True)
    _, out, _ = dslstm("mic")
    assert out.count("\n") == 1 and out.count("\r") > 5


def test_what_is_missing_for_a_microphone(dslstm, monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    status, _, err = dslstm("mic")
    assert status == 2 and 'pip install "speechbrain-dslstm[mic]"' in err
    assert err.count("\n") == 1
    monkeypatch.delitem(sys.modules, "sounddevice")

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    status, _, err = dslstm("mic")
    assert status == 2 and "apt install libportaudio2" in err


def test_a_slow_machine_loses_blocks_and_says_so():
    """Memory stays bounded: 30 s wait at most."""
    fake = FakeDevice(np.zeros(16000 * 40, "float32"), 16000)
    with Microphone(fake, None, 1) as microphone:
        microphone._stream.thread.join()
        assert microphone._queue.qsize() == 300 and microphone.lost == 100
        stop = SimpleNamespace(stopped=False)
        assert len(list(microphone.blocks(stop))) == 300
