"""One step of a stream in a form that ``torch.export`` can trace.

Every step takes the same number of samples and returns the same number of
frames at every layer, so all shapes are fixed. Frames that a layer cannot
know yet come in a later step: its frames lag by a constant delay. So the first
steps hold frames of negative index, before the utterance: a convolution takes
them for zeros, a delta for copies of frame 0, and a recurrence skips them.
``inference.streaming`` is the readable counterpart and gives the same posterior
after the same samples.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from speechbrain_dslstm.audio.checks import LOUDEST
from speechbrain_dslstm.ds_lstm.kernel_scan import scan_ds_lstm
from speechbrain_dslstm.export.utterance_graph import (
    average_x,
    run_block,
    scan_lstm,
)
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.features.normalization import (
    FeatureNormalization,
    RunningNormalization,
)
from speechbrain_dslstm.inference.receptive_field import (
    ReceptiveField,
    alignment_field,
    block_field,
    delta_field,
    frame_field,
    samples_per_step,
)
from speechbrain_dslstm.inference.streaming import check_streamable
from speechbrain_dslstm.models.branches import SpectrogramBranch
from speechbrain_dslstm.models.dual_level import DualLevelClassifier

__all__ = ["ExportableStep"]

SHORTEST_STEP = 1600  # samples


class _Frames(NamedTuple):
    """Frames of one step at a layer: at step t, from ``size * t + delay`` on.

    ``delay`` is zero or negative, as the layer lags behind the samples.
    """

    values: torch.Tensor  # [batch, size, ...]
    size: int
    delay: int


class _Step:
    """Runs layers on the frames of one step, with states from the step before.

    States are read and written in a fixed order. Without ``states`` it is a
    dry run from zeros, which finds their names and shapes.
    """

    def __init__(
        self, step: torch.Tensor, states: tuple[torch.Tensor, ...] | None
    ) -> None:
        self.step, self.states = step, states
        self.names, self.new = [], []
        self.spoiled = 0.0  # NaN after invalid samples; added to the sums

    def read(self, name: str, like: torch.Tensor, *shape: int) -> torch.Tensor:
        """Read the next state, which is named and shaped here."""
        self.names.append(name)
        if self.states is None:
            return like.new_zeros(shape)
        return self.states[len(self.names) - 1]

    def write(self, value: torch.Tensor) -> None:
        """Set a state for the next step, in the order of ``read``."""
        self.new.append(value)

    def index(self, frames: _Frames) -> torch.Tensor:
        """Indices of the frames in the utterance, [1, size, 1]."""
        places = torch.arange(frames.size) + frames.delay
        return (places + frames.size * self.step).view(1, -1, 1)

    def run(
        self,
        name: str,
        function: Callable[[torch.Tensor], torch.Tensor],
        frames: _Frames,
        field: ReceptiveField,
        trimmed: bool = False,
    ) -> _Frames:
        """Run a layer on the inputs held from earlier steps and the new ones.

        A ``trimmed`` layer does not pad: it returns only outputs that read
        within its input, and requires copies of frame 0 before frame 0.
        """
        context = field.context
        size = frames.size // field.stride
        delay = (frames.delay - 1 - field.right) // field.stride + 1
        keep = frames.delay - field.stride * (delay - context)
        x = frames.values
        held = self.read(name, x, x.shape[0], keep, *x.shape[2:])
        x = torch.cat([held, x], dim=1)
        self.write(x[:, -keep:] if keep else x[:, :0])
        if trimmed:
            start = frames.delay - keep + frames.size * self.step
            first = (-start).clamp(min=0).clamp(max=x.shape[1] - 1)
            places = torch.arange(x.shape[1]).maximum(first)
            x = x.index_select(1, places)
            context = 0
        out = function(x)[:, context : context + size]
        return _Frames(out, size, delay)

    def join(self, name: str, parts: list[_Frames]) -> _Frames:
        """Concatenate features of different delay at the largest lag."""
        delay = min(part.delay for part in parts)
        values = []
        for k, part in enumerate(parts):
            x, late = part.values, part.delay - delay
            if late:
                shape = x.shape[0], late, x.shape[2]
                held = self.read(f"{name}_late{k}", x, *shape)
                x = torch.cat([held, x], dim=1)
                self.write(x[:, -late:])
                x = x[:, : part.size]
            values.append(x)
        return _Frames(torch.cat(values, dim=2), parts[0].size, delay)


class ExportableStep(torch.nn.Module):
    """Next samples of a stream and its state -> log-posteriors and next state.

    The model, in evaluation mode on the CPU, must be one that can be streamed;
    ``calibrate`` maps log-posteriors to log-posteriors.

    >>> model = DualLevelClassifier(n_classes=2, p=0.0).eval()
    >>> step = ExportableStep(model)
    >>> states = step.initial_state(batch=1)
    >>> found, *states = step(
    ...     torch.randn(1, step.samples), torch.tensor(0), states
    ... )
    >>> found.shape, step.state_names[0]
    (torch.Size([1, 2]), 'mfcc_samples')
    """

    def __init__(
        self,
        model: DualLevelClassifier,
        calibrate: torch.nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_streamable(model)
        self.model = model.eval()
        self.calibrate = calibrate or torch.nn.Identity()
        unit = samples_per_step(model)
        self.samples = unit * -(-SHORTEST_STEP // unit)
        dry = _Step(torch.tensor(0), None)
        with torch.no_grad():
            self._run(torch.zeros(1, self.samples), dry)
        self.state_names = dry.names
        self.state_shapes = [tuple(state.shape) for state in dry.new]
        self.state_types = [state.dtype for state in dry.new]

    def batch_axis(self, name: str) -> int:
        """Axis of the batch in a state: 1 in [layers, batch, hidden], else 0."""
        return 1 if name.endswith(("_h", "_c")) else 0

    def initial_state(self, batch: int = 1) -> tuple[torch.Tensor, ...]:
        """Zeros for ``batch`` new streams, in the order of ``state_names``."""
        states = []
        for name, shape, dtype in zip(
            self.state_names, self.state_shapes, self.state_types, strict=True
        ):
            shape = list(shape)
            shape[self.batch_axis(name)] = batch
            states.append(torch.zeros(shape, dtype=dtype))
        return tuple(states)

    def forward(
        self,
        chunk: torch.Tensor,
        step: torch.Tensor,
        states: tuple[torch.Tensor, ...],
    ) -> tuple[torch.Tensor, ...]:
        """Process a chunk [batch, ``samples``] in [-1, 1] at step 0, 1, ...

        Returns the log-posteriors [batch, n_classes] of all audio so far, the
        dimensions [batch, dimensions] if the model has any, then the next
        states. After a chunk with NaN, infinity or samples above 1000
        the posteriors of its stream stay NaN.
        """
        now = _Step(step, states)
        valid = (chunk.abs() <= LOUDEST).all(dim=1, keepdim=True)
        now.spoiled = torch.zeros(()).where(valid, math.nan)
        return (*self._run(chunk, now), *now.new)

    def _run(self, chunk, now):
        features = {
            name: self._features(name, stream, chunk, now)
            for name, stream in self.model.streams.items()
        }
        outputs = {}
        for name, branch in self.model.branches.items():
            spectrogram = type(branch) is SpectrogramBranch
            run = self._spectrogram if spectrogram else self._mfcc
            outputs[name] = run(name, branch, features, now)
        log_posteriors = self.calibrate(self.model.log_posteriors(outputs))
        if not self.model.dimensions:
            return (log_posteriors,)
        return log_posteriors, self.model.dimension_values(outputs)

    def _features(self, name, stream, chunk, now):
        extractor = stream.extractor
        samples, field = _Frames(chunk, self.samples, 0), frame_field(extractor)
        frames = now.run(f"{name}_samples", extractor.static, samples, field)
        if isinstance(extractor, MFCC39):
            parts, field = [frames], delta_field(extractor)
            for order in ("delta", "acceleration"):
                state, slope = f"{name}_{order}", extractor.slope
                parts.append(now.run(state, slope, parts[-1], field, True))
            frames = now.join(name, parts)
        return self._normalize(name, stream.normalization, frames, now)

    def _normalize(self, name, norm, frames, now):
        index = now.index(frames)
        feats = frames.values
        counts = torch.full((1,), frames.size)
        if isinstance(norm, RunningNormalization):
            feats = FeatureNormalization.forward(norm, feats, counts)
            feats = torch.where(index >= 0, feats, 0.0)
            batch, _, size = feats.shape
            total = now.read(f"{name}_heard", feats.double(), batch, 1, size)
            feats, (_, total) = norm.step(feats, (index[0, 0, 0], total))
            now.write(total)
        else:
            feats = norm(feats, counts)
        return frames._replace(values=torch.where(index >= 0, feats, 0.0))

    def _spectrogram(self, name, branch, features, now):
        name_x, name_y = branch.inputs
        x = _run_cnn(name_x, branch.cnn_x, features[name_x], now)
        y = _run_cnn(name_y, branch.cnn_y, features[name_y], now)
        align = branch.alignment
        field = alignment_field(align)
        x = now.run("aligned_x", lambda x: average_x(align, x), x, field)
        both = now.join("aligned", [x, y])
        size_x = x.values.shape[2]
        x, y = both.values[..., :size_x], both.values[..., size_x:]
        layer = branch.ds_lstm

        def recurrence(hx, valid):
            return scan_ds_lstm(layer, x, y, hx, valid)

        return _outputs(name, branch, layer, recurrence, both, now)

    def _mfcc(self, name, branch, features, now):
        frames, lstm = features["mfcc"], branch.lstm

        def recurrence(hx, valid):
            return scan_lstm(lstm, frames.values, hx, valid)

        return _outputs(name, branch, lstm, recurrence, frames, now)


def _run_cnn(name, cnn, frames, now):
    frames = frames._replace(values=frames.values.unsqueeze(-1))
    for k, block in enumerate(cnn.blocks):

        def run(x, block=block):
            """Run a block on [batch, time, frequency, channel]."""
            return run_block(block, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        frames = now.run(f"{name}_block{k}", run, frames, block_field(block))
        # The next block pads with zeros before the first frame
        valid = (now.index(frames) >= 0).unsqueeze(-1)
        values = torch.where(valid, frames.values, 0.0)
        frames = frames._replace(values=values)
    return frames._replace(values=frames.values.flatten(2))


def _outputs(name, branch, layer, recurrence, frames, now):
    """Run a recurrence; return the branch's outputs for all steps so far."""
    batch = frames.values.shape[0]
    shape = (layer.num_layers, batch, layer.hidden_size)
    h = now.read(f"{name}_h", frames.values, *shape)
    c = now.read(f"{name}_c", frames.values, *shape)
    valid = now.index(frames)[0, :, 0] >= 0
    out, state = recurrence((h, c), valid)
    for value in state:
        now.write(value)
    out = torch.where(valid.view(1, -1, 1), out, 0.0)
    sums = []
    # Squares only where the pooling needs them, as each state is an input
    for kind, values in (("sum", out), ("squares", out.square())):
        if kind == "squares" and branch.pooling.parts == 1:
            sums.append(None)
            continue
        total = now.read(f"{name}_{kind}", out, batch, layer.hidden_size)
        total = total + values.sum(dim=1) + now.spoiled
        now.write(total)
        sums.append(total)
    steps = (frames.size * (now.step + 1) + frames.delay).clamp(min=0)
    return branch.head(branch.pooling.from_sums(*sums, steps))
