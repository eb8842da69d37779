"""The command line: answers, output formats, exit codes, one-line errors."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from speechbrain_dslstm.cli.app import dslstm as group
from speechbrain_dslstm.inference import load_safe

LABELS = ["sadness", "anger", "neutral"]
REPOSITORY = Path(__file__).resolve().parents[3]


def test_classify(dslstm, model, speech_files):
    status, out, err = dslstm("classify", *speech_files[:3])
    assert (status, err) == (0, "")
    classifier = load_safe(model)
    for line, path in zip(out.splitlines(), speech_files, strict=False):
        _, score, _, label = classifier.classify_file(path)
        assert line.startswith(f"{path}  {label[0]}  [{label[0]} ")
        assert f"{score.exp().item():.2f}" in line


def test_json(dslstm, model, speech_files):
    status, out, _ = dslstm("classify", "--json", *speech_files[:3])
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [r["file"] for r in rows] == [
        str(path) for path in speech_files[:3]
    ]
    for row in rows:
        assert list(row["posteriors"]) == LABELS
        assert sum(row["posteriors"].values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(LABELS, key=row["posteriors"].get)


def test_csv_of_a_folder(dslstm, speech_clips, tmp_path):
    soundfile.write(tmp_path / "a.ogg", speech_clips[0].numpy(), 16000)
    soundfile.write(tmp_path / "b.wav", np.zeros(16000), 16000)
    (tmp_path / "c.wav").write_text("no audio")
    status, out, _ = dslstm("classify", "--csv", tmp_path)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 1
    assert [Path(row["file"]).name for row in rows] == [
        "a.ogg",
        "b.wav",
        "c.wav",
    ]
    assert list(rows[0]) == ["file", "label", *LABELS, "reason", "error"]
    total = sum(float(rows[0][label]) for label in LABELS)
    assert total == pytest.approx(1, abs=1e-5)
    assert rows[1]["reason"] == "silence" and not rows[1]["label"]
    assert "c.wav" in rows[2]["error"]


def test_a_folder_says_what_was_passed_over(dslstm, speech_clips, tmp_path):
    """In one line of its own, whatever the format."""
    soundfile.write(tmp_path / "a.ogg", speech_clips[0].numpy(), 16000)
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / ".hidden.wav").write_text("no audio")
    for options in ([], ["--json"], ["--csv"], ["--long"]):
        status, out, err = dslstm("classify", tmp_path, *options)
        assert status == 0 and "a.ogg" in out
        assert err == (
            "dslstm: passed over: 1 hidden (such as .hidden.wav), "
            "1 not audio (such as notes.txt)\n"
        )


def test_channels(dslstm, speech_clips, tmp_path):
    path = tmp_path / "call.wav"
    speech = speech_clips[0].numpy()
    soundfile.write(path, np.stack([speech, 0 * speech], 1), 16000)
    _, out, _ = dslstm("classify", path, "--channel=each", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0])[:3] == ["file", "channel", "label"]
    assert [row["channel"] for row in rows] == ["0", "1"]
    assert rows[0]["label"] in LABELS and rows[1]["reason"] == "silence"
    _, out, _ = dslstm("classify", path, "--channel=each", "--json", "--long")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["channel"] for row in rows[:2]] == [0, 1]
    _, out, _ = dslstm("classify", path, "--channel=1")
    assert out == f"{path}  channel 1  - (silence)\n"
    _, out, _ = dslstm("classify", path, "--csv")
    assert out.startswith("file,label,")
    status, _, err = dslstm("classify", path, "--channel=2")
    assert status == 1 and "no channel 2 in" in err and "which has 2" in err
    for wrong in ("left", "-1", "1.5"):
        status, _, err = dslstm("classify", path, f"--channel={wrong}")
        assert status == 2 and "not mix, each or an index" in err


def test_silence_is_an_answer_and_a_broken_file_none(dslstm, tmp_path):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(16000), 16000)
    assert dslstm("classify", path) == (0, f"{path}  - (silence)\n", "")
    status, out, err = dslstm("classify", path, tmp_path / "gone.wav")
    assert status == 1 and "(silence)" in out
    assert err.startswith("dslstm: cannot read audio from")
    assert err.count("\n") == 1
    status, out, _ = dslstm("classify", "--any-sound", "--json", path)
    assert json.loads(out)["label"] in LABELS


def test_long(dslstm, speech_clips, tmp_path):
    path = tmp_path / "long.flac"
    samples = torch.cat(speech_clips[:6])
    soundfile.write(path, samples.numpy(), 16000)
    _, out, _ = dslstm(
        "classify", path, "--long", "--window=3", "--hop=1.5", "--json"
    )
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["start"] for row in rows[:3]] == [0, 1.5, 3.0]
    assert rows[-1]["end"] == pytest.approx(len(samples) / 16000, abs=2e-3)
    _, out, _ = dslstm("classify", path, "--long", "--csv")
    assert out.startswith("file,start,end,label,sadness")
    status, out, err = dslstm("classify", "--long", path, "gone.wav")
    assert status == 1 and "gone.wav" in err and out.count("\n") >= 2


def test_unknown(dslstm, speech_files):
    _, out, _ = dslstm("classify", speech_files[0], "--unknown-below=1.0")
    assert "  unknown  [" in out


def test_stream(dslstm, model, speech_clips, monkeypatch):
    wav = speech_clips[0]
    pcm = (wav * 32768).round().clamp(-32768, 32767).short().numpy()
    stdin = io.TextIOWrapper(io.BytesIO(pcm.astype("<i2").tobytes() + b"\0"))
    monkeypatch.setattr(sys, "stdin", stdin)
    status, out, _ = dslstm("stream", "--json", "--every=0.3", "--whole")
    rows = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and len(rows) >= 3
    assert [row["final"] for row in rows] == [False] * (len(rows) - 1) + [True]
    offline = load_safe(model).with_normalization("running")
    expected = offline.classify_batch(wav)[0][0].exp()
    found = torch.tensor(list(rows[-1]["posteriors"].values()))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert rows[-1]["seconds"] == round(len(wav) / 16000, 3)


def test_a_stream_without_speech_has_a_reason(
    dslstm, speech_clips, monkeypatch
):
    """The reason stays until there is speech."""
    silence = torch.zeros(16000)
    wav = torch.cat([silence, speech_clips[0]])
    for samples, options in [(silence, []), (silence, ["--any-sound"])] + [
        (wav, [])
    ]:
        pcm = (samples * 32767).short().numpy().astype("<i2").tobytes()
        stdin = io.TextIOWrapper(io.BytesIO(pcm))
        monkeypatch.setattr(sys, "stdin", stdin)
        _, out, _ = dslstm("stream", "--json", *options)
        rows = [json.loads(line) for line in out.splitlines()]
        if options:
            assert all(row["label"] in LABELS for row in rows)
        elif samples is silence:
            assert [row["reason"] for row in rows] == ["silence"] * len(rows)
        else:
            assert rows[0]["reason"] == "silence" and "label" not in rows[0]
            assert rows[-1]["label"] in LABELS and "reason" not in rows[-1]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pcm)))
    _, out, _ = dslstm("stream")
    assert "- (silence)" in out and "[" in out.splitlines()[-1]


def test_an_empty_stream(dslstm, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    status, _, err = dslstm("stream")
    assert (status, err) == (2, "dslstm: no audio on standard input\n")


def test_info(dslstm, model):
    status, out, _ = dslstm("info", model)
    assert status == 0
    for part in ("sadness, anger, neutral", "16000 Hz", "1.500", "DSLSTM"):
        assert part in out or part == "DSLSTM"
    assert "SpectrogramBranch (0.5), MFCCBranch (0.5)" in out


def test_explain(dslstm, speech_files, tmp_path):
    picture = tmp_path / "picture.png"
    status, out, _ = dslstm("explain", speech_files[0], "-o", picture)
    assert status == 0 and out.startswith(f"{picture}  ")
    assert picture.read_bytes()[:4] == b"\x89PNG"


def test_export_says_what_it_cannot(dslstm, tmp_path):
    for arguments, message in [
        (["a.txt"], "must end in .onnx or .pt2"),
        (["a.pt2", "--int8"], "--int8 and --step require a .onnx file"),
        (["a.onnx", "--step"], "subtracts each utterance's own mean"),
    ]:
        status, _, err = dslstm("export", *arguments)
        assert status == 2 and message in err and err.count("\n") == 1


@pytest.mark.parametrize("options", [[], ["--int8"], ["--step"]])
def test_export_hands_on(options, dslstm, monkeypatch, tmp_path):
    """Only the choice of the export; tests/unittests/export has the rest."""
    from speechbrain_dslstm.export import onnx_export as export

    called = []

    def fake(kind):
        def write(source, path):
            called.append(kind)
            Path(path).write_bytes(b"x" * 10000)

        return write

    for name in ("export_onnx", "export_step_onnx", "quantize_onnx"):
        monkeypatch.setattr(export, name, fake(name))
    path = tmp_path / "model.onnx"
    if "--step" in options:
        options = [*options, "--normalization=running"]
    status, out, _ = dslstm("export", path, *options)
    assert (status, out) == (0, f"{path}  0.01 MB\n")
    first = "export_step_onnx" if "--step" in options else "export_onnx"
    expected = [first, "quantize_onnx"] if "--int8" in options else [first]
    assert called == expected
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify"], "Missing argument"),
        (["classify", "a.wav", "--json", "--csv"], "either --json or --csv"),
        (["classify", "a.wav", "--unknown-below=2"], "2 is not 0 to 1"),
        (["classify", "a.wav", "--hop=2"], "--window and --hop require --long"),
        (["classify", "a.wav", "--window=0", "--long"], "0 is not 0.02"),
        (["classify", "a.wav", "--threads=0"], "0 is not in the range x>=1"),
        (["classify", "a.wav", "--threads=2", "--long"], "has no effect with"),
        (["explain", "gone.wav"], "cannot read audio from gone.wav"),
        (["info", "gone"], "no model folder gone"),
        (["classify", "--no-such"], "No such option"),
    ],
)
def test_errors_are_one_line(arguments, message, dslstm):
    status, out, err = dslstm(*arguments)
    assert status == 2 and out == ""
    assert message in err and err.startswith("dslstm: ")
    assert err.count("\n") == 1 and "Traceback" not in err


def test_a_folder_without_audio(dslstm, tmp_path):
    status, _, err = dslstm("classify", tmp_path)
    assert (status, err) == (2, f"dslstm: no audio files in {tmp_path}\n")


def test_a_yaml_is_not_run(dslstm, speech_files, tmp_path):
    evil = "model: !apply:os.mkdir ['ran']\n"
    (tmp_path / "hyperparams.yaml").write_text(evil)
    status, _, err = dslstm("classify", speech_files[0], model=tmp_path)
    assert status == 2 and "no model.json" in err
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", sorted(group.commands))
def test_help_has_examples_that_parse(name):
    runner = CliRunner()
    found = runner.invoke(group, [name, "--help"])
    assert found.exit_code == 0 and "Examples:" in found.output
    lines = [
        line.strip()
        for line in found.output.splitlines()
        if line.strip().startswith(("dslstm ", "arecord", "ffmpeg"))
    ]
    assert lines
    for line in lines:
        words = line.split("dslstm ")[1].split(" > ")[0].split()
        command = group.commands[words[0]]
        # Raises an error for an unknown option
        command.make_context(words[0], words[1:])


def test_a_closed_pipe_is_quiet(model, speech_files):
    command = [sys.executable, "-m", "speechbrain_dslstm.cli", "classify"]
    command += [*map(str, speech_files[:2]), "--model", str(model)]
    first = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=REPOSITORY,
    )
    first.stdout.close()
    err = first.stderr.read().decode()
    first.stderr.close()
    assert first.wait() == 1 and err == ""


def test_adapt(dslstm, model, speech_files, tmp_path):
    output = tmp_path / "adapted"
    recordings = [*speech_files[:6], tmp_path / "gone.wav"]
    options = ["-o", output, "--seconds=10", "--blend=0.5"]
    status, out, err = dslstm("adapt", *recordings, *options)
    assert status == 0, err
    assert out.startswith(f"{output}  adapted to ")
    assert "6 recordings, blend 0.5, 1 skipped" in out
    assert err.count("\n") == 1 and "gone.wav" in err
    expected = load_safe(model).adapt(speech_files[:6], 0.5, seconds=10)
    answers = [
        one.classify_file(speech_files[8])[0]
        for one in (expected, load_safe(output))
    ]
    torch.testing.assert_close(*answers)
    card = (output / "README.md").read_text("utf-8")
    assert f"`{model}`" in card and "6 recordings, blend 0.5" in card
    # It does not overwrite, and leaves nothing of a refused attempt
    before = sorted(output.iterdir())
    status, _, err = dslstm("adapt", *recordings, *options)
    assert status == 2 and f"{output} exists already" in err
    other = tmp_path / "other"
    status, _, err = dslstm("adapt", *recordings, "-o", other)
    assert status == 2 and "at least 60 s are required" in err
    assert sorted(output.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapted"]
