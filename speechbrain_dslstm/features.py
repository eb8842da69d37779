"""Waveform -> MFCC-39 and log-mel spectrograms.

The three features of "Speech Emotion Recognition with Dual-Sequence LSTM
Architecture" (ICASSP 2020, arXiv:1910.08874): openSMILE's MFCC12_E_D_A for
the standard LSTM, and librosa's log-mel spectrogram, once with fine time and
once with fine frequency, for the DS-LSTM. On 16-bit speech each equals its
original: librosa within 1e-4 dB, openSMILE, whose Fourier transform rounds to
float32, within 1e-3 (one frame of a million: 1.5e-3). Each frame of a padded
batch equals the frame of the utterance alone. No statistics, no augmentation,
no file reading.

Windows and transforms are in float64: in float32 the transform's rounding
shows in the quiet bands of loud frames (0.14 dB on speech). What follows is
in float32, as with librosa and openSMILE.

Symbols: B batch, S samples, T frames, K frequency bins, M mel bands.
"""

import inspect
import math

import torch
from torch import nn
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from speechbrain_dslstm.lengths import cannot_ask, to_counts, zero_padding

__all__ = ["MFCC39", "LogMelSpectrogram"]

# Raised when the numbers change, so that features kept on disk are made anew
FEATURES_VERSION = 1
# Measured on a CPU: more leave the caches, fewer are too many calls
FRAMES_AT_ONCE = 256
# Bands in one product; more multiply zeros, fewer are too many products
BANDS_AT_ONCE = 32


class _Extractor(nn.Module):
    """What the features share: checks, silent padding, precision."""

    def forward(self, wavs, wav_lens=None):
        """Compute the features of a padded batch.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1].
        wav_lens : torch.Tensor, optional, [batch]
            Relative lengths, or integer sample counts; whatever lies past
            an utterance's end is taken for silence.

        Returns
        -------
        torch.Tensor, [batch, frames, output_size]
            Features; zero past an utterance's last frame.

        Raises
        ------
        ValueError
            Not [batch, samples], no samples, integer samples, or lengths
            that do not fit.
        """
        if wavs.dim() != 2:
            raise ValueError(
                "expected waveforms of shape [batch, samples], 2 dimensions, "
                f"got {wavs.dim()}: {list(wavs.shape)}"
            )
        if not wavs.is_floating_point():
            raise ValueError(
                f"expected waveforms of floats in [-1, 1], got {wavs.dtype}"
            )
        batch, samples = wavs.shape
        _check_samples(samples)
        counts = to_counts(wav_lens, samples, batch, wavs.device)
        with torch.autocast(wavs.device.type, enabled=False):
            if _on_cpu(wavs):
                # One at a time, as the caches do not hold a batch
                sizes = counts.tolist()
                rows = [w[:n] for w, n in zip(wavs, sizes, strict=True)]
                feats = pad_sequence(
                    [self._finish(self._static(row)) for row in rows], True
                )
                missing = self._frames(samples) - feats.shape[1]
                return pad(feats, (0, 0, 0, missing)) if missing else feats
            feats = self._static(zero_padding(wavs, counts))
            frames = self._frames(counts)
            return zero_padding(self._finish(feats, frames), frames)

    @property
    def settings(self):
        """The constructor's arguments: dict of str to int or float."""
        names = inspect.signature(type(self)).parameters
        return {name: getattr(self, name) for name in names}

    def num_frames(self, n):
        """Say how many frames come out.

        Arguments
        ---------
        n : int or torch.Tensor
            Samples.

        Returns
        -------
        int or torch.Tensor
            Frames, of the type of ``n``.

        Raises
        ------
        ValueError
            Fewer samples than one.
        """
        _check_samples(n)
        return self._frames(n)

    def _by_pieces(self, wavs, before, after, size):
        """Features of each frame of a waveform with silence around it."""
        samples = wavs.shape[-1]
        mps = wavs.device.type == "mps"
        padded = wavs.new_zeros(
            *wavs.shape[:-1],
            before + samples + after,
            # MPS has no float64
            dtype=torch.float32 if mps else torch.float64,
        )
        padded[..., before : before + samples] = wavs
        hop = self.hop_length
        frames = 1 + (padded.shape[-1] - size) // hop
        # A graph that is exported holds for any length: no loop in it
        whole = torch.compiler.is_compiling() or not _on_cpu(wavs)
        at_once = frames if whole else FRAMES_AT_ONCE
        rest = size - hop
        pieces = [
            self._of_piece(padded[..., i * hop : (i + at_once) * hop + rest])
            for i in ([0] if whole else range(0, frames, at_once))
        ]
        return torch.cat(pieces, dim=-2) if len(pieces) > 1 else pieces[0]

    def _power(self, frames):
        """Power spectrum, in the precision of all that follows."""
        dtype = frames.dtype
        if _on_cpu(frames):
            # Elsewhere TF32, which SpeechBrain switches on, would get into it
            mode = torch.backends.mkldnn.matmul.fp32_precision
            dtype = torch.float32 if mode in ("none", "ieee") else dtype
        dtype = torch.promote_types(self.mel.dtype, dtype)
        parts = torch.view_as_real(torch.fft.rfft(frames)).to(dtype).square_()
        return parts[..., 0] + parts[..., 1]

    def _bands(self, spectrum, *more):
        """Mel bands, each group from those bins only that it looks at."""
        mel = self.mel
        groups = [
            spectrum[..., bins] @ mel[bins, bands].to(spectrum.dtype)
            for bins, bands in self.groups
        ]
        return torch.cat([*groups, *more], dim=-1)

    def _output(self, x):
        return x.to(torch.promote_types(self.mel.dtype, torch.float32))


class MFCC39(_Extractor):
    """openSMILE's MFCC12_E_D_A: c1..c12, log energy, deltas, accelerations.

    Frames are not centred: the first one starts at sample 0. A clip shorter
    than one frame counts as followed by silence up to one frame. Deltas repeat
    the first and the last frame; openSMILE does so from 4 frames on, and puts
    zeros behind shorter clips. Its Python package cuts samples to 16 bits.

    Arguments
    ---------
    sample_rate : int
        In Hz.
    win_length : int
        Samples per frame.
    hop_length : int
        Samples from frame to frame.
    n_fft : int
        Points of the Fourier transform, at least ``win_length``.
    n_mels : int
        Triangular mel bands.
    f_min : float
        Lower edge of the first band in Hz.
    f_max : float
        Upper edge of the last band in Hz, at most half the sample rate.
    n_mfcc : int
        Cepstral coefficients, from the first one; the zeroth is left out.
    preemphasis : float
        Share of the previous sample that is subtracted, inside each frame.
    lifter : int
        Length of the cepstral lifter.
    delta_window : int
        Frames on either side that a delta looks at.
    scale : float
        Factor on the samples, which makes [-1, 1] the range of 16-bit
        integers: the floors of the logarithms are 1 on that scale.

    Raises
    ------
    ValueError
        A size below 1, a frame longer than the transform, bands outside
        0..``sample_rate / 2``, or as many coefficients as bands.

    Example
    -------
    >>> compute_mfcc = MFCC39()
    >>> compute_mfcc(torch.rand(2, 16000)).shape
    torch.Size([2, 98, 39])
    >>> compute_mfcc.num_frames(16000)
    98
    >>> compute_mfcc(torch.zeros(1, 16000)).abs().max()
    tensor(0.)
    """

    def __init__(
        self,
        sample_rate=16000,
        win_length=400,
        hop_length=160,
        n_fft=512,
        n_mels=26,
        f_min=0.0,
        f_max=8000.0,
        n_mfcc=12,
        preemphasis=0.97,
        lifter=22,
        delta_window=2,
        scale=32767.0,
    ):
        super().__init__()
        _check_positive(
            sample_rate=sample_rate,
            win_length=win_length,
            hop_length=hop_length,
            n_mels=n_mels,
            n_mfcc=n_mfcc,
            lifter=lifter,
            delta_window=delta_window,
        )
        if win_length > n_fft:
            raise ValueError(
                f"win_length must be at most n_fft, got {win_length} > {n_fft}"
            )
        if not 0 <= f_min < f_max <= sample_rate / 2:
            raise ValueError(
                f"expected 0 <= f_min < f_max <= {sample_rate / 2} Hz (half "
                f"the sample rate), got f_min {f_min} and f_max {f_max}"
            )
        if n_mfcc >= n_mels:
            raise ValueError(
                f"n_mfcc must be below n_mels, got {n_mfcc} >= {n_mels}"
            )
        self.sample_rate = sample_rate
        self.win_length = win_length
        self.hop_length = hop_length
        self.n_fft = n_fft
        self.n_mels = n_mels
        self.f_min = f_min
        self.f_max = f_max
        self.n_mfcc = n_mfcc
        self.preemphasis = preemphasis
        self.lifter = lifter
        self.delta_window = delta_window
        self.scale = scale
        self.output_size = 3 * (n_mfcc + 1)
        mel = _htk_mel_matrix(sample_rate, n_fft, n_mels, f_min, f_max)
        # The log energy comes last and passes through
        dct = torch.block_diag(
            _cosine_matrix(n_mels, n_mfcc, lifter), torch.ones(1, 1)
        )
        self.register_buffer("mel", mel.float(), persistent=False)
        self.register_buffer("dct", dct.float(), persistent=False)
        self.groups = _groups(mel)
        # No buffer: a window rounded to float32 leaks into the quiet bands
        window = torch.hamming_window(win_length, False, dtype=torch.float64)
        self.window = pad(scale * window, (0, n_fft - win_length))
        self.first_weight = float((1 - preemphasis) * self.window[0])

    def _frames(self, n):
        past = n - self.win_length
        past = past.clamp(min=0) if torch.is_tensor(n) else max(past, 0)
        return 1 + past // self.hop_length

    def _static(self, wavs):
        # One sample before each frame; behind it, those that the window drops
        after = max(0, self.win_length - wavs.shape[-1])
        after += self.n_fft - self.win_length
        return self._by_pieces(wavs, 1, after, self.n_fft + 1)

    def _of_piece(self, wavs):
        now, before = wavs[..., 1:], wavs[..., :-1]
        emphasised = torch.sub(now, before, alpha=self.preemphasis)
        window = self.window.to(wavs)
        frames = emphasised.unfold(-1, self.n_fft, self.hop_length) * window
        # The first sample of a frame is its own predecessor
        first = now.unfold(-1, self.n_fft, self.hop_length)[..., 0]
        frames[..., 0] = first * self.first_weight
        energy = torch.linalg.vector_norm(frames, dim=-1, keepdim=True).square()
        # sqrt() has no gradient at zero
        magnitude = self._power(frames).clamp_(min=1e-20).sqrt_()
        levels = self._bands(magnitude, energy.to(magnitude.dtype))
        cepstra = levels.clamp_(min=1.0).log_() @ self.dct.to(levels.dtype)
        return self._output(cepstra)

    def _finish(self, static, lengths=None):
        size, width = static.shape[-2], self.delta_window
        steps = torch.arange(-width, size + 2 * width, device=static.device)
        # Both edges repeat; the right one is each utterance's own
        if lengths is None:
            wide = static[..., steps.clamp_(0, size - 1), :]
        else:
            index = steps.clamp_(min=0).minimum(lengths.unsqueeze(1) - 1)
            index = index.unsqueeze(2).expand(-1, -1, static.shape[2])
            wide = static.gather(1, index)
        delta = self._slope(wide)
        # openSMILE repeats the first delta, but goes on after the last one
        first = delta[..., :1, :].expand(*delta.shape[:-2], width, -1)
        acceleration = self._slope(torch.cat([first, delta], dim=-2))
        return torch.cat([static, delta[..., :size, :], acceleration], dim=-1)

    def _slope(self, x):
        """Slope over the frames around each, but for those at the ends."""
        width = self.delta_window
        size = x.shape[-2] - 2 * width

        def from_frame(start):
            """As many frames as come out, from one on."""
            return x.narrow(-2, start, size)

        rise = from_frame(width + 1) - from_frame(width - 1)
        for k in range(2, width + 1):
            more = from_frame(width + k) - from_frame(width - k)
            rise = rise.add_(more, alpha=k)
        return rise / (2 * sum(k * k for k in range(1, width + 1)))


class LogMelSpectrogram(_Extractor):
    """Log-mel power spectrogram in dB, as librosa's defaults make it.

    Frames are centred on multiples of the hop, with silence around the clip;
    hann window, Slaney's mel scale and band normalisation,
    10 * log10(max(power, floor)).

    Arguments
    ---------
    n_fft : int
        Samples per frame and points of the Fourier transform; even.
    hop_length : int, optional
        Samples from frame to frame; ``n_fft // 2`` if left out.
    n_mels : int, optional
        Mel bands from 0 Hz to half the sample rate; ``n_fft // 4`` if left
        out.
    sample_rate : int
        In Hz.
    scale : float
        Factor on the samples; 32768 gives the level of 16-bit integers.
    floor : float
        Smallest power; the smallest output is ``10 * log10(floor)`` dB.

    Raises
    ------
    ValueError
        A size below 1, an odd ``n_fft``, or a floor or scale not above 0.

    Example
    -------
    >>> compute_mel = LogMelSpectrogram(n_fft=512)
    >>> compute_mel(torch.rand(2, 16000)).shape
    torch.Size([2, 63, 128])
    >>> compute_mel.num_frames(torch.tensor([16000, 1]))
    tensor([63,  1])
    >>> compute_mel(torch.zeros(1, 16000)).unique()
    tensor([-100.])
    """

    def __init__(
        self,
        n_fft=512,
        hop_length=None,
        n_mels=None,
        sample_rate=16000,
        scale=1.0,
        floor=1e-10,
    ):
        super().__init__()
        hop_length = n_fft // 2 if hop_length is None else hop_length
        n_mels = n_fft // 4 if n_mels is None else n_mels
        _check_positive(
            n_fft=n_fft,
            hop_length=hop_length,
            n_mels=n_mels,
            sample_rate=sample_rate,
        )
        if n_fft % 2:
            raise ValueError(f"n_fft must be even, got {n_fft}")
        if scale <= 0 or floor <= 0:
            raise ValueError(
                f"scale and floor must be above 0, got {scale} and {floor}"
            )
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.n_mels = n_mels
        self.sample_rate = sample_rate
        self.scale = scale
        self.floor = floor
        self.output_size = n_mels
        mel = _slaney_mel_matrix(sample_rate, n_fft, n_mels)
        self.register_buffer("mel", mel.float(), persistent=False)
        self.groups = _groups(mel)
        # No buffer: a window rounded to float32 leaks into the quiet bands
        self.window = scale * torch.hann_window(n_fft, dtype=torch.float64)

    def _frames(self, n):
        return 1 + n // self.hop_length

    def _static(self, wavs):
        half = self.n_fft // 2
        return self._by_pieces(wavs, half, half, self.n_fft)

    def _of_piece(self, wavs):
        frames = wavs.unfold(-1, self.n_fft, self.hop_length)
        power = self._bands(self._power(frames * self.window.to(frames)))
        return self._output(power).clamp_(min=self.floor).log10_().mul_(10)

    def _finish(self, feats, lengths=None):
        return feats


def _check_positive(**sizes):
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _check_samples(n):
    least, expected = n, "an utterance needs at least 1 sample"
    if torch.is_tensor(n):
        least = n.min()
        if cannot_ask(least >= 1, expected):
            return
    if least < 1:
        raise ValueError(f"{expected}, got {int(least)}")


def _on_cpu(x):
    return x.device.type == "cpu"


def _groups(mel):
    """Slices of the bins and of the bands, for each group of bands."""
    groups = []
    for first in range(0, mel.shape[1], BANDS_AT_ONCE):
        bands = slice(first, first + BANDS_AT_ONCE)
        bins = mel[:, bands].any(dim=1).nonzero().flatten().tolist() or [0]
        groups.append((slice(bins[0], bins[-1] + 1), bands))
    return groups


def _htk_mel_matrix(sample_rate, n_fft, n_mels, f_min, f_max):
    """HTK's triangles, which are straight in mel, not in Hz: [K, M]."""
    hz = torch.arange(n_fft // 2 + 1, dtype=torch.float64)
    hz = hz * (sample_rate / n_fft)
    low, high = (1127 * math.log1p(f / 700) for f in (f_min, f_max))
    spacing = (high - low) / (n_mels + 1)
    position = ((1127 * (hz / 700).log1p() - low) / spacing).unsqueeze(1)
    centre = torch.arange(1, n_mels + 1, dtype=torch.float64)
    return (1 - (position - centre).abs()).clamp(min=0)


def _slaney_mel_matrix(sample_rate, n_fft, n_mels):
    """Slaney's triangles of equal area: [K, M]."""
    # Imported here because it takes a second, and only a constructor needs it.
    from librosa.filters import mel

    matrix = mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, dtype="float64")
    return torch.from_numpy(matrix.T.copy())


def _cosine_matrix(n_mels, n_mfcc, lifter):
    """DCT-II without its zeroth row, liftered: [M, n_mfcc]."""
    order = torch.arange(1, n_mfcc + 1, dtype=torch.float64)
    band = torch.arange(n_mels, dtype=torch.float64).unsqueeze(1) + 0.5
    lift = 1 + lifter / 2 * (math.pi * order / lifter).sin()
    cosine = (math.pi * order * band / n_mels).cos()
    return math.sqrt(2 / n_mels) * cosine * lift
