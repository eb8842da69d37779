"""Audio files -> mono waveforms at the rate a model expects."""

import soundfile
import torch
import torchaudio

__all__ = ["load_audio"]


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
    ValueError
        The file is missing, no audio, empty, or holds NaN or infinity; the
        message names it.

    Example
    -------
    >>> import soundfile
    >>> path = getfixture("tmp_path") / "tone.wav"
    >>> soundfile.write(path, torch.zeros(4410, 2).numpy(), 44100)
    >>> load_audio(path).shape
    torch.Size([1600])
    """
    try:
        samples, rate = soundfile.read(
            str(path), dtype="float32", always_2d=True
        )
    # TypeError: of a file that ends in .raw soundfile wants to know the rate
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        raise ValueError(f"cannot read audio from {path}: {error}") from error
    if not len(samples):
        raise ValueError(f"no audio samples in {path}")
    wav = torch.from_numpy(samples).mean(dim=1)
    if not bool(torch.isfinite(wav).all()):
        raise ValueError(f"NaN or infinite samples in {path}")
    if rate == sample_rate:
        return wav
    return torchaudio.functional.resample(wav, rate, sample_rate)
