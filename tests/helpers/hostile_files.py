"""Audio files that are none, or are odd: what each must lead to.

``FILES`` names them; ``write_all`` writes them below a folder.
"""

import os
import struct
from pathlib import Path

import numpy as np
import soundfile
from nightly import NIGHT

RATE = 16000
HOURS = 10 if NIGHT else 3


class Answer:
    """The file is speech: the answer of the speech it was made of.

    Arguments
    ---------
    close : float
        How far the posteriors may be from those of that speech.
    """

    def __init__(self, close=1.0):
        self.close = close


class Refusal:
    """No label, but an error with the file's name and a reason.

    Arguments
    ---------
    reason : str
        Found in the message.
    kind : str
        The ``kind`` of the AudioError, which the recipe's report shows.
    speech : bool
        Audio, but no speech: the recipe, which does not judge that, takes it.
    """

    def __init__(self, reason, kind="unreadable", speech=True):
        self.reason, self.kind, self.speech = reason, kind, speech


def riff(samples, rate=RATE, channels=1, bits=16, size=None):
    """A wav file of 16-bit samples whose header says what it is told to."""
    data = (samples * 32767).astype("<i2").tobytes()
    size = len(data) if size is None else size
    frame = channels * bits // 8
    total, second = (min(n, 2**32 - 1) for n in (36 + size, rate * frame))
    fmt = (16, 1, channels, rate, second, min(frame, 65535), bits)
    return (
        b"RIFF"
        + struct.pack("<I", total)
        + b"WAVEfmt "
        + struct.pack("<IHHIIHH", *fmt)
        + b"data"
        + struct.pack("<I", size)
        + data
    )


def _with(samples, value):
    samples = samples.astype("float64")
    samples[len(samples) // 2] = value
    return samples


def _stream_info(flac, frames):
    """A flac file that says it had so many samples."""
    info = int.from_bytes(flac[18:26], "big") >> 36 << 36 | frames
    return flac[:18] + info.to_bytes(8, "big") + flac[26:]


def _flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def write_hours(path, samples=None):
    """Hours in 2 MB: flac of silence, or a wav header with nothing in."""
    minute = np.zeros(60 * RATE, "int16")
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for _ in range(60 * HOURS):
            file.write(minute)


def write_hollow(path, samples=None):
    """The same as wav: a hole of 0.1 GB an hour that takes no room on the disk."""
    size = 2 * RATE * 3600 * HOURS
    path.write_bytes(riff(np.zeros(0), size=size))
    os.truncate(path, 44 + size)


def _sound(subtype="PCM_16", **options):
    """Writer of samples as a sound file."""

    def write(path, samples):
        soundfile.write(path, samples, RATE, subtype=subtype, **options)

    return write


def _of(change, writer):
    """Writer of changed samples."""
    return lambda path, samples: writer(path, change(samples))


def _cut(writer, change=lambda data: data[: len(data) // 2]):
    """Writer of a file whose bytes are then changed."""

    def write(path, samples):
        writer(path, samples)
        path.write_bytes(change(path.read_bytes()))

    return write


def _bytes(make):
    return lambda path, samples: path.write_bytes(make(samples))


def _noise(samples):
    return np.random.default_rng(0).normal(0, 0.1, len(samples))


def _linked(to):
    def write(path, samples):
        if to is not None:
            soundfile.write(path.parents[1] / to, samples, RATE)
        path.symlink_to(Path("..", to or "nowhere.wav"))

    return write


def _twice(path, samples):
    path.symlink_to(path.name)


WAV, FLOAT = _sound(), _sound("FLOAT")
EMPTY = Refusal("no audio samples", "empty")
SHORT = Refusal("too short", speech=False)
SILENT = Refusal("silence", speech=False)
NOISE = Refusal("noise", speech=False)
NAN = Refusal("NaN or infinite samples", "with NaN or infinite samples")
LOUD = Refusal("expected .-1, 1", "out of range")
RATES = Refusal("a sample rate of", "of an impossible rate")
FORMAT = Refusal("cannot read audio from")
CUT = Refusal("is cut off", "truncated")
LONG = Refusal("longer than .* use classify_long", "too long")

FILES = {
    # What is hardly there
    "zero_bytes.wav": (_bytes(lambda s: b""), FORMAT),
    "zero_bytes.flac": (_bytes(lambda s: b""), FORMAT),
    "header_only.wav": (_bytes(lambda s: riff(s[:0])), EMPTY),
    "header_cut.wav": (_bytes(lambda s: riff(s)[:20]), FORMAT),
    "one_sample.wav": (_of(lambda s: s[:1], WAV), SHORT),
    "hundred_samples.wav": (_of(lambda s: s[:100], WAV), SHORT),
    "frame_less_one.wav": (_of(lambda s: s[:399], WAV), SHORT),
    # Samples that are no sound
    "nan.wav": (_of(lambda s: _with(s, np.nan), FLOAT), NAN),
    "all_nan.wav": (_of(lambda s: s * np.nan, FLOAT), NAN),
    "inf.wav": (_of(lambda s: _with(s, np.inf), FLOAT), NAN),
    "minus_inf.wav": (_of(lambda s: _with(s, -np.inf), FLOAT), NAN),
    "1e30.wav": (_of(lambda s: _with(s, 1e30), FLOAT), LOUD),
    "all_1e30.wav": (_of(lambda s: s * 1e30, FLOAT), LOUD),
    "1e300.wav": (_of(lambda s: _with(s, 1e300), _sound("DOUBLE")), NAN),
    "integers.wav": (_of(lambda s: s * 32768, FLOAT), LOUD),
    "zeros.wav": (_of(lambda s: 0 * s, WAV), SILENT),
    "full_scale.wav": (_of(lambda s: 0 * s + 1, WAV), SILENT),
    "noise.wav": (_of(_noise, WAV), NOISE),
    "clipped.wav": (_of(np.sign, WAV), Answer()),
    # Rates
    "rate_1.wav": (_bytes(lambda s: riff(s, 1)), RATES),
    "rate_7.wav": (_bytes(lambda s: riff(s, 7)), RATES),
    "rate_999999937.wav": (_bytes(lambda s: riff(s, 999999937)), RATES),
    "rate_4e9.wav": (_bytes(lambda s: riff(s, 4000000000)), FORMAT),
    "rate_22049.wav": (_bytes(lambda s: riff(s, 22049)), Answer()),
    "rate_44101.wav": (_bytes(lambda s: riff(s, 44101)), Answer()),
    # Channels and widths
    "stereo.wav": (_of(lambda s: np.stack([s, s], 1), WAV), Answer(1e-3)),
    "opposite.wav": (_of(lambda s: np.stack([s, -s], 1), WAV), Answer(1e-3)),
    "5.1.wav": (_of(lambda s: np.stack([s] * 6, 1), WAV), Answer(1e-3)),
    "5.1.flac": (_of(lambda s: np.stack([s] * 6, 1), WAV), Answer(1e-3)),
    "8_bit.wav": (_sound("PCM_U8"), Answer()),
    "24_bit.wav": (_sound("PCM_24"), Answer(1e-3)),
    "32_bit.wav": (_sound("PCM_32"), Answer(1e-3)),
    "float.wav": (FLOAT, Answer(1e-3)),
    "double.wav": (_sound("DOUBLE"), Answer(1e-3)),
    "channels_0.wav": (_bytes(lambda s: riff(s, channels=0)), FORMAT),
    "channels_1024.wav": (_bytes(lambda s: riff(s, channels=1024)), SHORT),
    "bits_0.wav": (_bytes(lambda s: riff(s, bits=0)), FORMAT),
    # Cut, forged, damaged
    "cut.wav": (_cut(WAV), CUT),
    "cut_odd.wav": (_cut(WAV, lambda d: d[: len(d) // 2 + 1]), CUT),
    "cut.aiff": (_cut(WAV), CUT),
    "cut.au": (_cut(WAV), CUT),
    "cut.flac": (_cut(WAV), FORMAT),
    "cut.ogg": (_cut(_sound("VORBIS")), CUT),
    "cut.mp3": (_cut(_sound(None)), CUT),
    "flipped.flac": (_cut(WAV, _flipped), FORMAT),
    # What a writer that was stopped, or wrote to a pipe, leaves: all that is
    # there is read
    "length_0.wav": (_bytes(lambda s: riff(s, size=0)), Answer(1e-2)),
    "length_unknown.wav": (
        _bytes(lambda s: riff(s, size=2**32 - 1)),
        Answer(1e-2),
    ),
    "length_2GB.wav": (_bytes(lambda s: riff(s, size=2**30)), CUT),
    "length_100.wav": (
        _bytes(lambda s: riff(s, size=200)),
        Refusal("its header counts 200 of"),
    ),
    "length_0.flac": (_cut(WAV, lambda d: _stream_info(d, 0)), Answer(1e-3)),
    "length_100.flac": (
        _cut(WAV, lambda d: _stream_info(d, 100)),
        Answer(1e-3),
    ),
    "length_2**36.flac": (_cut(WAV, lambda d: _stream_info(d, 2**36 - 1)), CUT),
    # Two files joined by cat
    "joined.wav": (_cut(WAV, lambda d: 2 * d), Answer()),
    "joined.flac": (_cut(WAV, lambda d: 2 * d), Answer()),
    "joined.ogg": (_cut(_sound("VORBIS"), lambda d: 2 * d), Answer()),
    "joined.mp3": (_cut(_sound(None), lambda d: 2 * d), Answer()),
    "joined.aiff": (_cut(WAV, lambda d: 2 * d), Answer()),
    "hours.flac": (write_hours, LONG),
    "hours.wav": (write_hollow, LONG),
    # No audio
    "text.txt": (_bytes(lambda s: b"no audio at all\n" * 999), FORMAT),
    "text.wav": (_bytes(lambda s: b"no audio at all\n" * 999), FORMAT),
    "picture.wav": (
        _bytes(lambda s: b"\x89PNG\r\n\x1a\n" + bytes(5000)),
        FORMAT,
    ),
    "random.mp3": (
        _bytes(lambda s: np.random.default_rng(0).bytes(30000)),
        FORMAT,
    ),
    "no_header.raw": (_bytes(lambda s: bytes(5000)), FORMAT),
    # Names and places
    "with spaces  and, commas.wav": (WAV, Answer(1e-3)),
    "Größe-喜び-😡.wav": (WAV, Answer(1e-3)),
    os.fsdecode(b"latin-\xe9-\xff.wav"): (WAV, Answer(1e-3)),
    os.fsdecode(b"cut-\xe9.wav"): (_cut(WAV), CUT),
    "link.wav": (_linked("target.wav"), Answer(1e-3)),
    "dangling.wav": (_linked(None), Refusal("a link to nothing", "missing")),
    "circle.wav": (_twice, Refusal("symbolic links", "unreadable")),
    "folder.wav": (
        lambda path, samples: path.mkdir(),
        Refusal("it is a folder|no audio files in"),
    ),
    "pipe.wav": (
        lambda path, samples: os.mkfifo(path),
        Refusal("not a regular file"),
    ),
    "missing.wav": (lambda path, s: None, Refusal("no such file", "missing")),
    "n" * 300 + ".wav": (lambda path, s: None, Refusal("name too long")),
    "nul\0.wav": (lambda path, s: None, Refusal("null byte")),
}


def write_all(folder, speech):
    """Write every file, each into a folder of its own.

    Arguments
    ---------
    folder : pathlib.Path
        An empty folder.
    speech : numpy.ndarray, [samples]
        Speech at 16 kHz.

    Returns
    -------
    dict of str to pathlib.Path
        The files by their names.
    """
    paths = {}
    for number, (name, (write, _)) in enumerate(FILES.items()):
        (folder / str(number)).mkdir()
        paths[name] = folder / str(number) / name
        # libsndfile goes by the ending, and knows no ending that is no text
        plain = folder / str(number) / "plain"
        plain = plain.with_suffix(paths[name].suffix)
        if name.isprintable() or not name.endswith(".wav"):
            write(paths[name], speech)
        elif "\0" not in name:
            write(plain, speech)
            plain.rename(paths[name])
    return paths
