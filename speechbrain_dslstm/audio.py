"""Audio files -> mono waveforms at the rate a model expects."""

import soundfile
import soxr
import torch

__all__ = ["AudioError", "load_audio", "read_blocks"]


class AudioError(ValueError):
    """An audio input from which no emotion can be told; the message says why.

    Example
    -------
    >>> load_audio("missing.wav")
    Traceback (most recent call last):
    speechbrain_dslstm.audio.AudioError: cannot read audio from missing.wav...
    """


def load_audio(path, sample_rate=16000):
    """Read an audio file of any rate and channel count.

    Arguments
    ---------
    path : str or pathlib.Path
        An audio file that libsndfile reads: wav, flac, ogg, mp3.
    sample_rate : int
        Rate of the result, in Hz.

    Returns
    -------
    torch.Tensor, [samples]
        Mean over the channels, in [-1, 1].

    Raises
    ------
    AudioError
        A ValueError: the file is missing, no audio, empty, or holds NaN or
        infinity; the message names it.

    Example
    -------
    >>> import soundfile
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.zeros(4410, 2).numpy(), 44100)
    >>> load_audio(path).shape
    torch.Size([1600])
    """
    return torch.cat(list(read_blocks(path, sample_rate)))


def read_blocks(path, sample_rate=16000, seconds=10.0):
    """Read an audio file of any length piece by piece.

    Arguments
    ---------
    path : str or pathlib.Path
        An audio file that libsndfile reads: wav, flac, ogg, mp3.
    sample_rate : int
        Rate of the result, in Hz.
    seconds : float
        Audio held in memory at a time.

    Yields
    ------
    torch.Tensor, [samples]
        Mean over the channels, in [-1, 1]. Joined, the blocks are what
        ``load_audio`` returns, however long they are.

    Raises
    ------
    AudioError
        As ``load_audio``.

    Example
    -------
    >>> import soundfile
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.zeros(4000).numpy(), 8000)
    >>> sum(len(block) for block in read_blocks(path, seconds=0.1))
    8000
    """
    try:
        with soundfile.SoundFile(str(path)) as file:
            yield from _resampled(file, path, sample_rate, seconds)
    # TypeError: of a file that ends in .raw soundfile wants to know the rate
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise AudioError(f"cannot read audio from {path}: {error}") from error


def _resampled(file, path, sample_rate, seconds):
    """Mono blocks of an open file at another rate."""
    size = max(1, round(seconds * file.samplerate))
    resample = soxr.ResampleStream(file.samplerate, sample_rate, 1, "float32")
    given = False
    while True:
        samples = file.read(size, dtype="float32", always_2d=True)
        last = len(samples) < size
        mono = torch.from_numpy(samples).mean(dim=1)
        if not bool(torch.isfinite(mono).all()):
            raise AudioError(f"NaN or infinite samples in {path}")
        if file.samplerate != sample_rate:
            mono = resample.resample_chunk(mono.numpy(), last=last)
            mono = torch.from_numpy(mono)
        if len(mono):
            given = True
            yield mono
        if last:
            break
    if not given:
        raise AudioError(f"no audio samples in {path}")
