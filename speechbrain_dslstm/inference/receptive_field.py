"""Receptive fields of the model's layers, and layers run over a stream.

Output j of a layer reads the inputs from ``stride * j - left`` to
``stride * j + right``; beyond the ends of the utterance the layer pads its
input itself. A layer with a bounded receptive field can run unchanged on a
piece of its input that has enough context: the outputs that the cut edges of
the piece affect are dropped.
"""

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import torch

from speechbrain_dslstm.features.extractor import Extractor
from speechbrain_dslstm.features.mel import LogMelSpectrogram
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.layers.alignment import AveragePoolAlignment
from speechbrain_dslstm.layers.cnn import LocalFeatureBlock, LocalFeatureCNN
from speechbrain_dslstm.models.branches import SpectrogramBranch
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.models.whisper_frames import (
    EncoderLayers,
    WhisperFrames,
)


class ReceptiveField(NamedTuple):
    """Output j reads the inputs ``stride * j - left`` to ``stride * j + right``."""

    stride: int
    left: int
    right: int

    def then(self, layer: "ReceptiveField") -> "ReceptiveField":
        """Receptive field of ``layer`` on the outputs of this one."""
        return ReceptiveField(
            self.stride * layer.stride,
            self.stride * layer.left + self.left,
            self.stride * layer.right + self.right,
        )

    @property
    def context(self) -> int:
        """Outputs at the start of a piece that read inputs before the piece."""
        return -(-self.left // self.stride)


def frame_field(extractor: Extractor) -> ReceptiveField:
    """Samples that one frame reads, without the deltas of MFCCs."""
    if isinstance(extractor, LogMelSpectrogram):
        half = extractor.n_fft // 2
        return ReceptiveField(extractor.hop_length, half, half - 1)
    if isinstance(extractor, MFCC39):
        return ReceptiveField(extractor.hop_length, 0, extractor.win_length - 1)
    raise ValueError(
        f"streaming supports no {type(extractor).__name__}; expected MFCC39 "
        "or LogMelSpectrogram"
    )


def delta_field(extractor: MFCC39) -> ReceptiveField:
    """Frames that one delta, or one acceleration of deltas, reads."""
    return ReceptiveField(1, extractor.delta_window, extractor.delta_window)


def features_field(extractor: Extractor) -> ReceptiveField:
    """Samples that one frame of all features reads."""
    field = frame_field(extractor)
    if isinstance(extractor, MFCC39):
        delta = delta_field(extractor)
        field = field.then(delta).then(delta)
    return field


def block_field(block: LocalFeatureBlock) -> ReceptiveField:
    """Frames that one output frame of a convolution and its pooling reads."""
    kernel, padding = block.kernel_size[0], block.padding[0]
    right = block.pool_size - 1 - padding + kernel - 1
    return ReceptiveField(block.pool_size, padding, right)


def alignment_field(alignment: AveragePoolAlignment) -> ReceptiveField:
    """Frames of x that one aligned frame reads or waits for."""
    return ReceptiveField(alignment.stride, 0, alignment.min_frames - 1)


def stream_fields(model: DualLevelClassifier) -> dict[str, ReceptiveField]:
    """Samples that one step of the recurrence reads, for each feature stream.

    An encoder's frames read the whole utterance, so they are not among them.
    """
    fields = {
        name: features_field(stream.extractor)
        for name, stream in model.streams.items()
        if not isinstance(stream.extractor, WhisperFrames)
    }
    for branch in model.branches.values():
        if type(branch) is SpectrogramBranch:
            x, y = branch.inputs
            for name, cnn in ((x, branch.cnn_x), (y, branch.cnn_y)):
                for block in cnn.blocks if name in fields else ():
                    fields[name] = fields[name].then(block_field(block))
            if x in fields:
                fields[x] = fields[x].then(alignment_field(branch.alignment))
    return fields


def samples_per_step(model: DualLevelClassifier) -> int:
    """Samples after which every layer has made a whole number of frames."""
    strides = [field.stride for field in stream_fields(model).values()]
    for stream in model.streams.values():
        if isinstance(stream.extractor, WhisperFrames):
            strides.append(stream.extractor.stride)
    return math.lcm(*strides)


def check_parts(
    model: torch.nn.Module,
    known: Collection[type],
    user: str,
    whole: bool = False,
) -> None:
    """Refuse a model that cannot run layer by layer with ``ValueError``.

    ``known`` holds the supported classes of branches; ``user`` is the subject
    of the message, such as "a stream". ``whole`` says that the user has the
    whole utterance, so that an encoder can run.
    """
    if not isinstance(model, DualLevelClassifier):
        raise ValueError(f"{user} supports no {type(model).__name__}")
    for name, stream in model.streams.items():
        encoder = isinstance(stream.extractor, WhisperFrames)
        if encoder and not whole:
            raise ValueError(
                f"{user} cannot run the encoder of this model, whose attention "
                "reads the whole utterance: classify the last seconds with "
                "stream(window=4)"
            )
        if not encoder and type(stream.extractor) not in (
            MFCC39,
            LogMelSpectrogram,
        ):
            raise ValueError(
                f"{user} supports no {type(stream.extractor).__name__}"
            )
        if stream.resize is not None:
            raise ValueError(
                f'{user} cannot stretch "{name}" to {stream.resize} frames, '
                "which needs the length of the whole utterance; train with "
                "resize: null"
            )
    for name, branch in model.branches.items():
        if type(branch) not in known:
            raise ValueError(
                f'{user} supports no {type(branch).__name__} (branch "{name}")'
            )
        if type(branch) is not SpectrogramBranch:
            continue
        for part, expected in (
            (branch.cnn_x, (LocalFeatureCNN, EncoderLayers)),
            (branch.cnn_y, (LocalFeatureCNN, EncoderLayers)),
            (branch.alignment, AveragePoolAlignment),
        ):
            if not isinstance(part, expected):
                raise ValueError(f"{user} supports no {type(part).__name__}")
        if branch.ds_lstm.bidirectional:
            raise ValueError(
                f"{user} cannot run a bidirectional DS-LSTM, which reads "
                "backwards from the end of the utterance"
            )
        if branch.ds_lstm.gate_norms:
            raise ValueError(
                f"{user} supports no gate_norm, whose statistics are those of "
                "each step counted from the start of an utterance"
            )


class StreamedLayer:
    """Runs a layer with a bounded receptive field over a stream.

    ``function`` is the layer, [1, inputs, ...] -> [1, outputs, ...], and
    ``num_outputs`` maps the number of inputs of a whole utterance to that of
    its outputs; ``least`` is the number of inputs that it needs to run at all.

    >>> pairs = lambda x: x[:, :-1:2] + x[:, 1::2]
    >>> layer = StreamedLayer(pairs, ReceptiveField(2, 0, 1), lambda n: n // 2)
    >>> layer.advance(torch.ones(1, 3), end=False)
    tensor([[2.]])
    >>> layer.advance(torch.ones(1, 3), end=False)
    tensor([[2., 2.]])
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        field: ReceptiveField,
        num_outputs: Callable[[int], int],
        least: int = 1,
    ) -> None:
        self.function = function
        self.field = field
        self.num_outputs = num_outputs
        self.least = least
        self.held = None
        self.start = 0  # input index of held[0], a multiple of the stride
        self.done = 0  # outputs returned so far

    def advance(self, x: torch.Tensor | None, end: bool) -> torch.Tensor | None:
        """Take the next inputs, return the outputs that are now complete.

        Both are [1, frames, ...], or None if there are none; ``end`` says that
        the utterance ends with these inputs.
        """
        if x is not None and self.held is not None:
            x = torch.cat([self.held, x], dim=1)
        self.held = self.held if x is None else x
        if self.held is None:
            return None
        stride, right = self.field.stride, self.field.right
        received = self.start + self.held.shape[1]
        if end:
            ready = self.num_outputs(received)
        else:
            # The layer pads a piece as if the utterance ended there: take
            # only the outputs that read none of this padding
            ready = max(0, (received - 1 - right) // stride + 1)
        out = None
        if ready > self.done and self.held.shape[1] >= self.least:
            first = self.start // stride
            out = self.function(self.held)
            out = out[:, self.done - first : ready - first]
            self.done = ready
        keep = stride * max(0, self.done - self.field.context) - self.start
        if keep > 0:
            # A view would keep the whole piece in memory
            self.held = self.held[:, keep:].clone()
            self.start += keep
        return out

    def state_size(self) -> int:
        """Count the numbers held."""
        return 0 if self.held is None else self.held.numel()


def stream_features(extractor: Extractor) -> StreamedLayer:
    """Stream an extractor: samples [1, samples] -> features [1, frames, size]."""
    field = features_field(extractor)
    return StreamedLayer(extractor, field, extractor.num_frames)


def stream_cnn(cnn: LocalFeatureCNN) -> list[StreamedLayer]:
    """Stream a CNN block by block: [1, frames, bins] -> [1, frames, size]."""
    layers = []
    for block in cnn.blocks:
        field = block_field(block)
        run = partial(_run_block, block, block is cnn.blocks[-1])
        least = field.right + 1 - field.left
        layers.append(StreamedLayer(run, field, block.num_frames, least))
    return layers


def stream_alignment(alignment: AveragePoolAlignment) -> StreamedLayer:
    """Stream the average pool of x: [1, frames, size] -> [1, aligned, size]."""

    def average(x: torch.Tensor) -> torch.Tensor:
        counts = torch.full((1,), x.shape[1])
        return alignment(x, x, counts, counts)[0]

    field, least = alignment_field(alignment), alignment.min_frames
    return StreamedLayer(
        average, field, lambda n: alignment.num_frames(n, n), least
    )


def _run_block(block, last, x):
    """Run a block on [1, time, frequency, channel], the layout between blocks."""
    if x.dim() == 3:
        x = x.unsqueeze(-1)
    counts = torch.full((1,), x.shape[1], device=x.device)
    x = block(x.permute(0, 3, 1, 2), counts).permute(0, 2, 3, 1)
    return x.flatten(2) if last else x
