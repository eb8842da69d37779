"""The running posterior of a stream, the same as offline at its end.

Every stage of the model looks a bounded distance ahead and behind, so that a
stream keeps a bounded piece of each stage's input and the recurrences' states,
however long it gets. At 16 kHz and the paper's sizes the stages look ahead:

=====================  =====================================================
MFCC frame             25 ms from its start
delta, acceleration    2 + 2 frames of 10 ms
mel x, mel y           half a window: 16 ms, 32 ms
CNN on x (2 frames)    2 + 4 frames of 16 ms
CNN on y (4 frames)    3 + 6 frames of 32 ms
alignment              3 pooled frames of x, 64 ms each
LSTM, DS-LSTM, mean    none
=====================  =====================================================

In all 65 ms on the way of the MFCCs and 320 ms on that of the spectrograms.

A model that takes out each utterance's own mean looks ahead to the end.
``with_normalization`` gives the same weights with a mean that a stream has.
"""

import copy
from functools import partial

import torch

from speechbrain_dslstm.audio import check_samples
from speechbrain_dslstm.features.normalization import (
    FeatureNormalization,
    RunningNormalization,
)
from speechbrain_dslstm.inference.receptive_field import (
    Window,
    check_parts,
    cnn_stages,
    stream_stage,
)
from speechbrain_dslstm.models.branches import MFCCBranch, SpectrogramBranch
from speechbrain_dslstm.models.dual_level import DualLevelClassifier

__all__ = ["with_normalization", "EmotionStream"]

NORMALIZATIONS = ("running", "training")
LARGEST_PIECE = 16000  # samples taken from a chunk at a time


def with_normalization(model, normalization, share_weights=False):
    """The same weights with another treatment of the features' mean.

    Arguments
    ---------
    model : DualLevelClassifier
        A trained model.
    normalization : str
        "running": the mean of the frames heard so far is taken out, which
        stands in for the utterance's mean that the model was trained with.
        "training": only the training set's statistics.
    share_weights : bool
        Whether the result has the model's own tensors; neither is to be
        moved, cast or trained while both are in use.

    Returns
    -------
    DualLevelClassifier
        A copy, in evaluation mode. Where the model was trained with each
        utterance's mean, its answers are an approximation.

    Raises
    ------
    ValueError
        Another normalisation, or another model.

    Example
    -------
    >>> model = DualLevelClassifier(n_classes=2, p=0.0)
    >>> model.streams["mfcc"].normalization.center_utterances = True
    >>> copied = with_normalization(model, "training")
    >>> copied.streams["mfcc"].normalization.center_utterances
    False
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {', '.join(NORMALIZATIONS)}, got "
            f"{normalization!r}"
        )
    if not isinstance(model, DualLevelClassifier):
        raise ValueError(f"no normalisation known in a {type(model).__name__}")
    tensors = [*model.parameters(), *model.buffers()] if share_weights else []
    model = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    for stream in model.streams.values():
        norm = stream.normalization
        norm.center_utterances = False
        if normalization == "running":
            stream.normalization = RunningNormalization(
                norm.num_features, norm.eps
            )
            stream.normalization.load_state_dict(norm.state_dict())
            stream.normalization.to(norm.mean.device)
    return model.eval()


class EmotionStream:
    """Takes audio in chunks of any size, gives the running posterior.

    After ``finish`` the posterior equals the offline one of the same model,
    however the audio was cut into chunks; the state has a constant size.

    Arguments
    ---------
    model : DualLevelClassifier
        In evaluation mode.
    calibrate : torch.nn.Module, optional
        Maps log-posteriors to log-posteriors, ``TemperatureScaling``.

    Raises
    ------
    ValueError
        The model needs the whole utterance (centring, resizing, a backward
        direction, batch norm of each step), or has a branch that is not known
        here.

    Example
    -------
    >>> model = DualLevelClassifier(n_classes=3).eval()
    >>> wav = torch.randn(16000)
    >>> stream = EmotionStream(model)
    >>> for chunk in wav.split(1000):
    ...     running = stream.push(chunk)
    >>> offline = model(wav.unsqueeze(0)).detach()[0]
    >>> torch.allclose(stream.finish(), offline, atol=1e-5)
    True
    """

    def __init__(self, model, calibrate=None):
        check_streamable(model)
        self.model = model
        self.calibrate = calibrate or torch.nn.Identity()
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.samples = 0
        self.finished = False
        self.features = {
            name: _FeatureStage(stream)
            for name, stream in model.streams.items()
        }
        self.branches = {
            name: KNOWN[type(branch)](branch)
            for name, branch in model.branches.items()
        }

    @torch.no_grad()
    def push(self, chunk):
        """Hear the next samples.

        Arguments
        ---------
        chunk : torch.Tensor, [samples]
            Any number of samples in [-1, 1] at the model's rate.

        Returns
        -------
        torch.Tensor or None, [n_classes]
            Log-posteriors of all that was heard; None as long as some stage
            has seen too little.

        Raises
        ------
        AudioError
            A ValueError: NaN, infinity or samples above 1000. The stream is
            as it was before.
        ValueError
            After ``finish``, or not one row of floats.
        """
        if self.finished:
            raise ValueError("the stream is finished; begin a new one")
        if chunk.dim() != 1 or not chunk.is_floating_point():
            raise ValueError(
                f"expected floats [samples], got {list(chunk.shape)} of "
                f"{chunk.dtype}"
            )
        check_samples(chunk, where="the stream")
        self.samples += len(chunk)
        for piece in chunk.split(LARGEST_PIECE) if len(chunk) else ():
            self._advance(piece.to(self.device, self.dtype), end=False)
        return self.posterior()

    @torch.no_grad()
    def finish(self):
        """End the stream: let every stage come to the last sample.

        Returns
        -------
        torch.Tensor, [n_classes]
            Log-posteriors of the whole stream.

        Raises
        ------
        ValueError
            Nothing was heard.
        """
        if not self.samples:
            raise ValueError("nothing was pushed into the stream")
        if not self.finished:
            missing = max(0, self.model.min_samples - self.samples)
            silence = torch.zeros(missing, device=self.device, dtype=self.dtype)
            self._advance(silence, end=True)
            self.finished = True
        return self.posterior()

    @torch.no_grad()
    def posterior(self):
        """Look at the running posterior.

        Returns
        -------
        torch.Tensor or None, [n_classes]
            Log-posteriors of all that was heard; None before each branch has
            had a frame.
        """
        logits = {name: b.logits() for name, b in self.branches.items()}
        if any(value is None for value in logits.values()):
            return None
        fused = self.model.fuse(logits)
        return self.calibrate(fused.log_softmax(dim=-1))[0]

    def state_size(self):
        """Count what the stream keeps.

        Returns
        -------
        int
            Numbers held in buffers and states.
        """
        held = [*self.features.values(), *self.branches.values()]
        return sum(stage.state_size() for stage in held)

    def _advance(self, piece, end):
        feats = {
            name: stage.advance(piece.unsqueeze(0), end)
            for name, stage in self.features.items()
        }
        for branch in self.branches.values():
            branch.advance(feats, end)


def check_streamable(model):
    """Refuse a model that cannot be streamed.

    Arguments
    ---------
    model : torch.nn.Module
        A model.

    Raises
    ------
    ValueError
        Says what in the model needs the whole utterance.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> check_streamable(DualLevelClassifier(2, resize=[230, 120]))
    Traceback (most recent call last):
    ValueError: a stream cannot stretch "mel_x" to 230 frames: ...
    """
    check_parts(model, KNOWN, "a stream")
    for stream in model.streams.values():
        if stream.normalization.source == "speaker":
            raise ValueError(
                "this model needs the statistics of a speaker's audio, which "
                "a stream cannot know: train with normalization: training"
            )
        if stream.normalization.center_utterances:
            raise ValueError(
                "this model takes out each utterance's own mean, which a "
                'stream cannot know: use normalization="running" (an '
                "approximation) or train with center_utterances: False"
            )


class _FeatureStage:
    """Waveform -> normalised features, a piece at a time."""

    def __init__(self, stream):
        self.window = stream_stage(stream.extractor)
        self.normalization = stream.normalization
        self.state = None

    def advance(self, piece, end):
        """Features that have become complete."""
        feats = self.window.advance(piece, end)
        if feats is None:
            return None
        counts = torch.full((1,), feats.shape[1], device=feats.device)
        norm = self.normalization
        if not isinstance(norm, RunningNormalization):
            return norm(feats, counts)
        feats = FeatureNormalization.forward(norm, feats, counts)
        feats, self.state = norm.step(feats, self.state)
        return feats

    def state_size(self):
        """Numbers held."""
        sums = self.state[1].numel() if self.state else 0
        return self.window.state_size() + sums


class _RunningMean:
    """Mean over all steps so far, and the logits of it."""

    def __init__(self, branch):
        self.branch = branch
        self.total, self.steps, self.hx = None, 0, None

    def add(self, out):
        """Add the outputs of some steps."""
        total = out.double().sum(dim=1)
        self.total = total if self.total is None else self.total + total
        self.steps += out.shape[1]

    def logits(self):
        """Logits of what was heard, or None."""
        if not self.steps:
            return None
        mean = (self.total / self.steps).to(self.branch.head.weight.dtype)
        return self.branch.head(mean)

    def state_size(self):
        """Numbers held."""
        if self.total is None:
            return 0
        return self.total.numel() + sum(h.numel() for h in self.hx)


class _MFCCStage(_RunningMean):
    """The LSTM over the MFCCs."""

    def advance(self, feats, end):
        """Run over the new frames."""
        if feats["mfcc"] is not None:
            out, self.hx = self.branch.lstm(feats["mfcc"], self.hx)
            self.add(out)


class _SpectrogramStage(_RunningMean):
    """CNNs, alignment and DS-LSTM over both spectrograms."""

    def __init__(self, branch):
        super().__init__(branch)
        self.cnns = {
            "mel_x": cnn_stages(branch.cnn_x),
            "mel_y": cnn_stages(branch.cnn_y),
        }
        align = branch.alignment
        self.pool = Window(
            partial(_average, align),
            stride=align.stride,
            left=0,
            right=align.min_frames - 1,
            total=lambda n: align.num_frames(n, n),
            least=align.min_frames,
        )
        self.waiting = {"mel_x": None, "mel_y": None}

    def advance(self, feats, end):
        """Run over the new frames."""
        for name, stages in self.cnns.items():
            value = feats[name]
            for stage in stages:
                value = stage.advance(value, end)
            if name == "mel_x":
                value = self.pool.advance(value, end)
            held = [v for v in (self.waiting[name], value) if v is not None]
            self.waiting[name] = torch.cat(held, dim=1) if held else None
        x, y = self.waiting.values()
        time = 0 if x is None or y is None else min(x.shape[1], y.shape[1])
        if time:
            out, self.hx = self.branch.ds_lstm(
                x[:, :time], y[:, :time], hx=self.hx
            )
            self.add(out)
            self.waiting = {"mel_x": x[:, time:], "mel_y": y[:, time:]}

    def state_size(self):
        """Numbers held."""
        stages = [self.pool, *self.cnns["mel_x"], *self.cnns["mel_y"]]
        held = [v for v in self.waiting.values() if v is not None]
        return (
            super().state_size()
            + sum(stage.state_size() for stage in stages)
            + sum(v.numel() for v in held)
        )


def _average(alignment, x):
    counts = torch.full((1,), x.shape[1])
    return alignment(x, x, counts, counts)[0]


KNOWN = {MFCCBranch: _MFCCStage, SpectrogramBranch: _SpectrogramStage}
