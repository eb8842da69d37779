"""Running posterior of a stream, equal to the offline one at the end.

Every layer but the recurrences has a bounded receptive field. So a stream of
any length keeps a bounded piece of each layer's input, and the states of the
recurrences. At 16 kHz and the paper's sizes the layers look ahead by:

=====================  =====================================================
MFCC frame             25 ms from its start
delta, acceleration    2 + 2 frames of 10 ms
mel x, mel y           half a window: 16 ms, 32 ms
CNN on x (2 frames)    2 + 4 frames of 16 ms
CNN on y (4 frames)    3 + 6 frames of 32 ms
alignment              3 pooled frames of x, 64 ms each
LSTM, DS-LSTM, mean    none
=====================  =====================================================

The sums are 65 ms for the MFCCs and 320 ms for the spectrograms.

A model that subtracts each utterance's own mean looks ahead to the end of the
utterance. ``with_normalization`` returns the same weights with a mean that is
known in a stream.
"""

import copy

import torch

from speechbrain_dslstm.audio.checks import check_samples
from speechbrain_dslstm.features.normalization import (
    FeatureNormalization,
    RunningNormalization,
)
from speechbrain_dslstm.inference.active_stream import ActiveFront
from speechbrain_dslstm.inference.receptive_field import (
    check_parts,
    stream_alignment,
    stream_cnn,
    stream_features,
)
from speechbrain_dslstm.models.branches import MFCCBranch, SpectrogramBranch
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.models.streams import FeatureStream

__all__ = ["with_normalization", "EmotionStream"]

NORMALIZATIONS = ("running", "training")
LARGEST_PIECE = 16000  # samples of a chunk that are processed at a time


def with_normalization(
    model: DualLevelClassifier, normalization: str, share_weights: bool = False
) -> DualLevelClassifier:
    """Copy a model, with a normalisation of its features that a stream can apply.

    "running" subtracts the mean of the frames received so far, which
    approximates the utterance's mean that the model was trained with;
    "training" uses only the statistics of the training set. The copy is in
    evaluation mode. With ``share_weights`` it uses the model's own tensors:
    neither may be moved, cast or trained while both are in use.

    >>> model = DualLevelClassifier(n_classes=2, p=0.0)
    >>> model.streams["mfcc"].normalization.center_utterances = True
    >>> copied = with_normalization(model, "training")
    >>> copied.streams["mfcc"].normalization.center_utterances
    False
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"unknown normalization {normalization!r}; expected one of "
            f"{', '.join(NORMALIZATIONS)}"
        )
    if not isinstance(model, DualLevelClassifier):
        raise ValueError(
            f"expected a DualLevelClassifier, got {type(model).__name__}, whose "
            "normalisation cannot be changed"
        )
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


def centres_utterances(model: torch.nn.Module) -> bool:
    """Whether a model subtracts the mean of each whole utterance."""
    streams = getattr(model, "streams", {}).values()
    return any(stream.normalization.center_utterances for stream in streams)


class EmotionStream:
    """Takes audio in chunks of any size and returns the running posterior.

    After ``finish`` the posterior equals the offline one of the same model,
    however the audio was cut into chunks; the state has a bounded size. With
    ``active_speech`` the posterior is that of the speech so far: it comes 0.7 s
    later, and the audio of the first 30 s is held, see ``active_stream``.

    Arguments
    ---------
    model
        A model in evaluation mode.
    calibrate
        Maps log-posteriors to log-posteriors, such as ``TemperatureScaling``.

    Raises
    ------
    ValueError
        The model needs the whole utterance (centring, resizing, a backward
        direction, batch norm of each step), or has a branch that a stream
        does not support.

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

    def __init__(
        self,
        model: DualLevelClassifier,
        calibrate: torch.nn.Module | None = None,
    ) -> None:
        check_streamable(model)
        self.model = model
        self.calibrate = calibrate or torch.nn.Identity()
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.samples = 0
        self.finished = False
        speech = model.active_speech
        self.front = None if speech is None else ActiveFront(speech)
        self._start()

    def _start(self):
        """Begin with empty states."""
        model = self.model
        self.received = 0  # samples that the features have received
        self.features = {
            name: _StreamedFeatures(stream)
            for name, stream in model.streams.items()
        }
        self.branches = {
            name: KNOWN[type(branch)](branch)
            for name, branch in model.branches.items()
        }

    @torch.no_grad()
    def push(self, chunk: torch.Tensor) -> torch.Tensor | None:
        """Process the next samples, [samples] in [-1, 1] at the model's rate.

        Returns the log-posteriors [n_classes] of all audio so far, or None
        until every branch has received a frame (of speech, with
        ``active_speech``). NaN, infinity or samples above
        1000 raise ``AudioError`` and leave the stream as it was.
        """
        if self.finished:
            raise ValueError("the stream is finished; start a new one")
        check_chunk(chunk)
        self.samples += len(chunk)
        self._pass_on(chunk, end=False)
        return self.posterior()

    @torch.no_grad()
    def finish(self) -> torch.Tensor:
        """End the stream and return its log-posteriors, [n_classes]."""
        if not self.samples:
            raise ValueError("the stream has received no samples")
        if not self.finished:
            self._pass_on(torch.zeros(0), end=True)
            missing = max(0, self.model.min_samples - self.received)
            silence = torch.zeros(missing, device=self.device, dtype=self.dtype)
            self._advance(silence, end=True)
            self.finished = True
        return self.posterior()

    @torch.no_grad()
    def posterior(self) -> torch.Tensor | None:
        """Log-posteriors [n_classes] of all audio so far, as ``push`` returns."""
        outputs = self._outputs()
        if outputs is None:
            return None
        return self.calibrate(self.model.log_posteriors(outputs))[0]

    @torch.no_grad()
    def dimensions(self) -> dict[str, float]:
        """Value of each dimension by its name, if the model predicts any.

        Empty until every branch has received a frame.
        """
        outputs, names = self._outputs(), self.model.dimensions
        if outputs is None or not names:
            return {}
        values = self.model.dimension_values(outputs)[0].tolist()
        return dict(zip(names, values, strict=True))

    def _outputs(self):
        """Outputs of every branch, or None until each has received a frame."""
        outputs = {name: b.outputs() for name, b in self.branches.items()}
        if any(value is None for value in outputs.values()):
            return None
        return outputs

    def state_size(self) -> int:
        """Count the numbers held in buffers and states."""
        held = [*self.features.values(), *self.branches.values()]
        front = self.front.state_size() if self.front is not None else 0
        return front + sum(part.state_size() for part in held)

    def _pass_on(self, chunk, end):
        """Cut the audio to its active part, and compute on what is new of it."""
        if self.front is not None:
            anew, chunk = self.front.advance(chunk, end)
            if anew:
                self._start()
        self.received += len(chunk)
        for piece in chunk.split(LARGEST_PIECE) if len(chunk) else ():
            self._advance(piece.to(self.device, self.dtype), end=False)

    def _advance(self, piece, end):
        feats = {
            name: stream.advance(piece.unsqueeze(0), end)
            for name, stream in self.features.items()
        }
        for branch in self.branches.values():
            branch.advance(feats, end)


def check_chunk(chunk: torch.Tensor) -> None:
    """Refuse a chunk of a stream that is no audio, floats [samples]."""
    if chunk.dim() != 1 or not chunk.is_floating_point():
        raise ValueError(
            f"expected floats [samples], got {list(chunk.shape)} of "
            f"{chunk.dtype}"
        )
    check_samples(chunk, where="the stream")


def check_streamable(model: torch.nn.Module) -> None:
    """Raise ``ValueError`` if a part of the model needs the whole utterance."""
    check_parts(model, KNOWN, "a stream")
    if any(
        getattr(branch, "skip", False) for branch in model.branches.values()
    ):
        raise ValueError(
            "a stream of a branch with skip is not supported: train with "
            "skip_connection: False"
        )
    for stream in model.streams.values():
        if stream.normalization.source == "speaker":
            raise ValueError(
                "this model needs the statistics of a speaker's audio, which "
                "a stream cannot know: train with normalization: training"
            )
        if stream.normalization.center_utterances:
            raise ValueError(
                "this model subtracts each utterance's own mean, which a "
                'stream cannot know: use normalization="running" (an '
                "approximation), a window or train with center_utterances: False"
            )


class _StreamedFeatures:
    """Computes normalised features of a waveform piece by piece."""

    def __init__(self, stream: FeatureStream) -> None:
        self.layer = stream_features(stream.extractor)
        self.normalization = stream.normalization
        self.state = None

    def advance(self, piece, end):
        """Take samples [1, samples], return the features now complete or None."""
        feats = self.layer.advance(piece, end)
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
        """Count the numbers held."""
        sums = self.state[1].numel() if self.state else 0
        return self.layer.state_size() + sums


class _RunningPooling:
    """Pooling of a recurrence over all steps so far, and the branch's outputs."""

    def __init__(self, branch: MFCCBranch | SpectrogramBranch) -> None:
        self.branch = branch
        # float64: a float32 sum over an hour would drift
        self.total, self.steps, self.hx = None, 0, None

    def add(self, out):
        """Add the outputs of some steps: their sum and the sum of squares."""
        out = out.double()
        total = torch.stack([out.sum(dim=1), out.square().sum(dim=1)])
        self.total = total if self.total is None else self.total + total
        self.steps += out.shape[1]

    def outputs(self):
        """Outputs [1, size] of the branch for all steps so far, None before them."""
        if not self.steps:
            return None
        pooled = self.branch.pooling.from_sums(*self.total, self.steps)
        return self.branch.head(pooled.to(self.branch.head.weight.dtype))

    def state_size(self):
        """Count the numbers held."""
        if self.total is None:
            return 0
        return self.total.numel() + sum(h.numel() for h in self.hx)


class _StreamedMFCC(_RunningPooling):
    """LSTM over the MFCCs."""

    def advance(self, feats, end):
        """Run over the new frames."""
        if feats["mfcc"] is not None:
            out, self.hx = self.branch.lstm(feats["mfcc"], self.hx)
            self.add(out)


class _StreamedSpectrograms(_RunningPooling):
    """CNNs, alignment and DS-LSTM over both spectrograms."""

    def __init__(self, branch: SpectrogramBranch) -> None:
        super().__init__(branch)
        x, y = branch.inputs
        self.layers = {
            x: [*stream_cnn(branch.cnn_x), stream_alignment(branch.alignment)],
            y: stream_cnn(branch.cnn_y),
        }
        # Frames of one sequence whose counterparts are not yet complete
        self.waiting = {x: None, y: None}

    def advance(self, feats, end):
        """Run over the new frames."""
        for name, layers in self.layers.items():
            value = feats[name]
            for layer in layers:
                value = layer.advance(value, end)
            held = [v for v in (self.waiting[name], value) if v is not None]
            self.waiting[name] = torch.cat(held, dim=1) if held else None
        x, y = self.waiting.values()
        time = 0 if x is None or y is None else min(x.shape[1], y.shape[1])
        if time:
            out, self.hx = self.branch.ds_lstm(
                x[:, :time], y[:, :time], hx=self.hx
            )
            self.add(out)
            rest = x[:, time:], y[:, time:]
            self.waiting = dict(zip(self.waiting, rest, strict=True))

    def state_size(self):
        """Count the numbers held."""
        layers = [layer for path in self.layers.values() for layer in path]
        held = [v for v in self.waiting.values() if v is not None]
        return (
            super().state_size()
            + sum(layer.state_size() for layer in layers)
            + sum(v.numel() for v in held)
        )


KNOWN = {MFCCBranch: _StreamedMFCC, SpectrogramBranch: _StreamedSpectrograms}
