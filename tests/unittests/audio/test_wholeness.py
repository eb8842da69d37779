"""Cut, joined and unclosed files are read whole or refused, never in part."""

import io
import struct

import numpy as np
import pytest
import soundfile

from speechbrain_dslstm.audio import AudioError, load_audio

RATE, SAMPLES = 16000, 40001


@pytest.fixture(scope="module")
def sound():
    return np.random.default_rng(0).integers(-9000, 9000, SAMPLES).astype("<i2")


def encode(sound, **options):
    file = io.BytesIO()
    soundfile.write(file, sound, RATE, **options)
    return file.getvalue()


def media(sound, format, codec, live=False):
    """A file of FFmpeg; a live one does not know its size."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    options = {"live": "1"} if live else {}
    with av.open(file, "w", format=format, options=options) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound[None], "s16", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        for new in (frame, None):
            container.mux(stream.encode(new))
    return file.getvalue()


def rf64(sound, counted):
    form = struct.pack("<HHIIHH", 1, 1, RATE, RATE * 2, 2, 16)
    sizes = struct.pack("<IQQQI", 28, counted + 72, counted, 0, 0)
    head = b"RF64\xff\xff\xff\xffWAVEds64" + sizes + b"fmt \x10\0\0\0" + form
    return head + b"data\xff\xff\xff\xff" + sound.tobytes()


def test_rf64_that_is_cut(sound):
    assert len(load_audio(rf64(sound, 2 * SAMPLES))) == SAMPLES
    with pytest.raises(AudioError, match="has 80002 of 90000 bytes"):
        load_audio(rf64(sound, 90000))


def test_w64(sound):
    data = encode(sound, format="W64")
    size = len(load_audio(data))
    assert size == SAMPLES
    pad = bytes(-len(data) % 8)
    both = load_audio(data + pad + data)
    assert len(both) == 2 * SAMPLES
    np.testing.assert_array_equal(both[:SAMPLES], both[SAMPLES:])
    with pytest.raises(AudioError, match="is cut off"):
        load_audio(data[:-9000])
    place = data.index(b"data") + 16
    for unknown in (0, 24, 2**63 - 1):
        live = data[:place] + struct.pack("<Q", unknown) + data[place + 8 :]
        assert SAMPLES <= len(load_audio(live)) < SAMPLES + 8


def test_caf(sound):
    with pytest.raises(AudioError, match="is cut off: it has"):
        load_audio(encode(sound, format="CAF")[:-9000])
    # The last packet of 4096 samples is almost empty
    alac = load_audio(media(sound[:37000], "caf", "alac"))
    assert 37000 <= len(alac) < 37000 + 4096


def test_webm_of_unknown_size(sound):
    """FFmpeg reads the first of these only, without an error."""
    live = media(sound, "matroska", "flac", live=True)
    assert len(load_audio(live)) == SAMPLES
    with pytest.raises(AudioError, match="joins several WebM or Matroska"):
        load_audio(live + live)


def test_tags_behind_mp4_and_webm(sound):
    for format, codec in (("mov", "pcm_s16le"), ("matroska", "flac")):
        data = media(sound, format, codec)
        for tail in (b"TAGtitle" + bytes(120), b"APETAGEX" + bytes(24)):
            assert len(load_audio(data + tail)) == SAMPLES
        with pytest.raises(AudioError, match="cut off"):
            load_audio(data[:-2000])


def test_no_mp3_in_a_file_of_this_name(tmp_path):
    """The reason is that of the content: the file does exist."""
    path = tmp_path / "list.mp3"
    path.write_text("#EXTM3U\nfile:///etc/hosts\n")
    with pytest.raises(AudioError, match="Format not recognised"):
        load_audio(path)


@pytest.mark.parametrize("dtype", [">i2", ">f4", ">f8", ">i4"])
def test_arrays_of_the_other_byte_order(dtype, sound):
    scale = 1 if dtype == ">i2" else 2**16 if dtype == ">i4" else 1 / 2**15
    given = (sound.astype("f8") * scale).astype(dtype)
    found = load_audio(given, RATE, input_rate=RATE)
    np.testing.assert_array_equal(found, sound.astype("f4") / 2**15)
