"""FFmpeg's containers give the same sound, and broken ones the true reason."""

import io
import logging

import numpy as np
import pytest
import soundfile
import torch
from media_files import write_media

from speechbrain_dslstm.audio import (
    AudioError,
    kinds,
    load_audio,
    media,
    open_audio,
    read_blocks,
)

SECONDS = 1.5
FORMATS = {
    "m4a": "aac",
    "mp4": "aac",
    "mov": "aac",
    "aac": "aac",
    "3gp": "aac",
    "webm": "libopus",
    "mkv": "aac",
    "mka": "libmp3lame",
    "wma": "wmav2",
    "avi": "libmp3lame",
    "ogg": "flac",
    "ts": "aac",
}


def tone(rate=16000, seconds=SECONDS):
    """A tone of 440 Hz that grows."""
    time = np.arange(round(seconds * rate)) / rate
    return (0.6 * time / seconds * np.sin(2 * np.pi * 440 * time)).astype("f4")


def error_of(path, **options):
    """The error of a file."""
    with pytest.raises(AudioError) as caught:
        load_audio(path, **options)
    assert getattr(path, "name", "") in str(caught.value)
    return caught.value


def assert_tone(wav, missing=0.15, atol=0.08):
    """The tone with up to ``missing`` seconds more at its ends."""
    assert abs(len(wav) / 16000 - SECONDS) < missing
    expected = tone()
    best = min(
        np.abs(wav[k : k + 20000].numpy() - expected[2000:22000]).max()
        for k in range(1000, min(5000, len(wav) - 20000))
    )
    assert best < atol


@pytest.mark.parametrize("ending", FORMATS)
def test_every_container(ending, tmp_path):
    path = tmp_path / f"tone.{ending}"
    rate = 48000 if ending == "webm" else 16000
    write_media(path, tone(rate), rate, FORMATS[ending])
    wav = load_audio(path)
    assert_tone(wav)
    blocks = list(read_blocks(path, seconds=0.2))
    assert len(blocks) > 5 and torch.equal(torch.cat(blocks), wav)
    with open(path, "rb") as file:
        assert torch.equal(load_audio(file), wav)
    assert torch.equal(load_audio(path.read_bytes()), wav)


def test_telephone_speech(tmp_path):
    path = tmp_path / "call.amr"
    write_media(path, tone(8000), 8000, "libopencore_amrnb")
    assert_tone(load_audio(path), atol=0.3)
    path.write_bytes(2 * path.read_bytes())
    assert "joins several AMR files" in str(error_of(path))


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.mov", "v.avi"])
def test_the_sound_of_a_video(name, tmp_path):
    path = tmp_path / name
    write_media(path, tone(), 16000, "libmp3lame", video=True)
    assert_tone(load_audio(path))
    write_media(path, None, 16000, None, video=True)
    error = error_of(path)
    assert error.kind == "empty" and "video only" in str(error)


def test_stereo_keeps_its_channels(tmp_path):
    path = tmp_path / "call.m4a"
    write_media(path, np.stack([tone(), 0 * tone()], 1), 16000, "aac")
    left, right = load_audio(path, channel="each")
    assert_tone(left)
    assert right.abs().max() < 0.01


def test_several_tracks(tmp_path, caplog):
    """One is read, the default one, and the log says which."""
    path = tmp_path / "two.mp4"
    write_media(path, tone(), 16000, "aac", tracks=2)
    with caplog.at_level(logging.WARNING):
        wav = load_audio(path)
    assert_tone(wav)
    assert "two.mp4 has 2 audio streams; stream 0" in caplog.text


def test_a_recording_of_a_browser(tmp_path):
    """It is written to a pipe, and does not know its length."""

    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *ignored):
            raise OSError("a pipe")

    import av

    stream, path = Pipe(), tmp_path / "voice.webm"
    write_media(tmp_path / "known.webm", tone(48000), 48000, "libopus")
    with av.open(str(tmp_path / "known.webm")) as given:
        with av.open(stream, "w", format="webm") as taken:
            copied = taken.add_stream_from_template(given.streams.audio[0])
            for packet in given.demux(given.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = copied
                    taken.mux(packet)
    path.write_bytes(stream.getvalue())
    with open_audio(path) as file:
        assert not file.exact
        assert file.frames / file.samplerate == pytest.approx(1.5, abs=0.1)
    assert_tone(load_audio(path))
    assert error_of(path, longest=1.0).kind == "too long"


@pytest.mark.parametrize("ending", ["m4a", "webm", "mkv", "wma", "aac"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_cut_files(ending, part, tmp_path):
    """Never the first half in silence."""
    path = tmp_path / f"cut.{ending}"
    rate = 48000 if ending == "webm" else 16000
    write_media(path, tone(rate), rate, FORMATS[ending], movflags="faststart")
    data = path.read_bytes()
    path.write_bytes(data[: round(part * len(data))])
    error = error_of(path)
    assert error.kind == "truncated" or "damaged or cut off" in str(error)
    path.write_bytes(data[:40])
    error_of(path)


def test_the_index_at_the_end_is_missing(tmp_path):
    path = tmp_path / "cut.m4a"
    write_media(path, tone(), 16000, "aac")
    data = path.read_bytes()
    place = data.index(b"moov") - 4
    path.write_bytes(data[:place])
    assert "its index (moov) is missing" in str(error_of(path))


def test_joined_files_of_which_ffmpeg_reads_the_first(tmp_path):
    for ending, codec in [("m4a", "aac"), ("wma", "wmav2"), ("tta", "tta")]:
        path = tmp_path / f"joined.{ending}"
        write_media(path, tone(), 16000, codec)
        path.write_bytes(2 * path.read_bytes())
        assert "joins several" in str(error_of(path))


def test_an_encrypted_file(tmp_path):
    path = tmp_path / "bought.m4a"
    keys = {"encryption_key": "00" * 16, "encryption_kid": "11" * 16}
    keys["encryption_scheme"] = "cenc-aes-ctr"
    write_media(path, tone(), 16000, "aac", **keys)
    assert "it is encrypted" in str(error_of(path))


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXTINF:1,\n{}\n",
        b"ffconcat version 1.0\nfile '{}'\n",
        b"<?xml version='1.0'?><MPD>{}</MPD>",
        b"\x89PNG\r\n\x1a\n" + bytes(2000),
        bytes(30000),
        np.random.default_rng(1).bytes(30000),
    ],
)
@pytest.mark.parametrize("ending", ["m4a", "mp3", "wav", "webm"])
def test_what_is_no_recording_is_not_tried(content, ending, tmp_path):
    """A playlist must not open another file, nor FFmpeg find sound in noise."""
    other = tmp_path / "other.wav"
    soundfile.write(other, tone(), 16000)
    path = tmp_path / f"list.{ending}"
    path.write_bytes(content.replace(b"{}", str(other).encode()))
    error_of(path)


def test_an_m4a_by_another_name(tmp_path):
    path = tmp_path / "voice.m4a"
    write_media(path, tone(), 16000, "aac")
    assert_tone(load_audio(path.rename(tmp_path / "voice.wav")))


def test_without_ffmpeg(tmp_path, monkeypatch):
    """The error names the command that helps; libsndfile's kinds are read."""
    for module in (kinds, media):
        monkeypatch.setattr(module, "has_ffmpeg", lambda: False)
    path = tmp_path / "voice.m4a"
    write_media(path, tone(), 16000, "aac")
    text = 'requires FFmpeg: pip install "speechbrain-dslstm[media]"'
    assert text in str(error_of(path))
    soundfile.write(tmp_path / "voice.mp3", tone(), 16000)
    assert_tone(load_audio(tmp_path / "voice.mp3"))
