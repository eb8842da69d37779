"""One step of a stream in a form that ``torch.export`` can trace.

Every step takes the same number of samples and gives the same number of
frames at every stage, so all shapes are fixed. What a stage cannot know yet it
gives one step later: its frames run behind by a constant delay, and the first
step's frames of negative index are no frames at all: zeros for a convolution,
copies of frame 0 for a delta, nothing for a recurrence. ``streaming`` is the
readable counterpart, and gives the same posterior after the same samples.
"""

import math
from typing import NamedTuple

import torch

from speechbrain_dslstm.audio import LOUDEST
from speechbrain_dslstm.ds_lstm.kernel_scan import scan_ds_lstm
from speechbrain_dslstm.export.utterance_graph import (
    run_block,
    samples_per_step,
    scan_lstm,
)
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.features.normalization import (
    FeatureNormalization,
    RunningNormalization,
)
from speechbrain_dslstm.inference.streaming import check_streamable
from speechbrain_dslstm.models.branches import SpectrogramBranch

__all__ = ["ExportableStep"]

SHORTEST_STEP = 1600  # samples


class _Flow(NamedTuple):
    """A sequence at some stage: frames per step, and how far it is behind.

    At step t its frames are those from ``size * t + delay``; delay <= 0.
    """

    values: torch.Tensor
    size: int
    delay: int


class _Tape:
    """The states of one step: read in order, written in order."""

    def __init__(self, states):
        self.states = states  # None: only note the shapes that are wanted
        self.names, self.new = [], []
        self.spoiled = 0.0  # NaN where a chunk was no audio

    def read(self, name, like, *shape):
        """The state's value; zeros where the shapes are still being found."""
        self.names.append(name)
        if self.states is None:
            return like.new_zeros(shape)
        return self.states[len(self.names) - 1]

    def write(self, value):
        """The same state's next value."""
        self.new.append(value)


class ExportableStep(torch.nn.Module):
    """The next samples of a stream and its state in, posterior and state out.

    Arguments
    ---------
    model : DualLevelClassifier
        In evaluation mode, on the CPU; one that can be streamed.
    calibrate : torch.nn.Module, optional
        Maps log-posteriors to log-posteriors, ``TemperatureScaling``.

    Raises
    ------
    ValueError
        The model cannot be streamed, or has a part that is not known here.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> model = DualLevelClassifier(n_classes=2, p=0.0).eval()
    >>> step = ExportableStep(model)
    >>> states = step.initial_state(batch=1)
    >>> found, *states = step(
    ...     torch.randn(1, step.samples), torch.tensor(0), states
    ... )
    >>> found.shape, step.state_names[0]
    (torch.Size([1, 2]), 'mfcc_samples')
    """

    def __init__(self, model, calibrate=None):
        super().__init__()
        check_streamable(model)
        self.model = model.eval()
        self.calibrate = calibrate or torch.nn.Identity()
        unit = samples_per_step(model)
        self.samples = unit * -(-SHORTEST_STEP // unit)
        # A dry run finds the states and their shapes
        tape = _Tape(None)
        with torch.no_grad():
            self._run(torch.zeros(1, self.samples), torch.tensor(0), tape)
        self.state_names = tape.names
        self.state_shapes = [tuple(state.shape) for state in tape.new]
        self.state_types = [state.dtype for state in tape.new]

    def batch_axis(self, name):
        """Which axis of a state counts the batch.

        Arguments
        ---------
        name : str
            Name of a state.

        Returns
        -------
        int
            1 for the states of recurrences, [layers, batch, hidden], else 0.
        """
        return 1 if name.endswith(("_h", "_c")) else 0

    def initial_state(self, batch=1):
        """States of a stream that has heard nothing.

        Arguments
        ---------
        batch : int
            Streams run side by side.

        Returns
        -------
        tuple of torch.Tensor
            Zeros, in the order of ``state_names``.
        """
        states = []
        for name, shape, dtype in zip(
            self.state_names, self.state_shapes, self.state_types, strict=True
        ):
            shape = list(shape)
            shape[self.batch_axis(name)] = batch
            states.append(torch.zeros(shape, dtype=dtype))
        return tuple(states)

    def forward(self, chunk, step, states):
        """Hear the next samples.

        Arguments
        ---------
        chunk : torch.Tensor, [batch, samples]
            Exactly ``samples`` of them, in [-1, 1].
        step : torch.Tensor, int64, []
            Steps before this one.
        states : tuple of torch.Tensor
            Those of ``initial_state``, or of the step before.

        Returns
        -------
        tuple of torch.Tensor
            Log-posteriors [batch, n_classes] of all that was heard, then the
            states. After a chunk with NaN, infinity or samples above 1000
            the posteriors of its stream are NaN.
        """
        tape = _Tape(states)
        sound = (chunk.abs() <= LOUDEST).all(dim=1, keepdim=True)
        tape.spoiled = torch.zeros(()).where(sound, math.nan)
        return (self._run(chunk, step, tape), *tape.new)

    def _run(self, chunk, step, tape):
        flows = {
            name: self._features(name, stream, chunk, step, tape)
            for name, stream in self.model.streams.items()
        }
        logits = {}
        for name, branch in self.model.branches.items():
            run = (
                self._spectrogram
                if type(branch) is SpectrogramBranch
                else self._mfcc
            )
            logits[name] = run(name, branch, flows, step, tape)
        fused = self.model.fuse(logits)
        return self.calibrate(fused.log_softmax(dim=-1))

    def _features(self, name, stream, chunk, step, tape):
        extractor = stream.extractor
        flow = _Flow(chunk, self.samples, 0)
        hop = extractor.hop_length
        if isinstance(extractor, MFCC39):
            around = extractor.delta_window

            def static(wavs):
                """Cepstra and energy of frames that begin at their sample."""
                return extractor.static(wavs)

            flow = _window(
                f"{name}_samples",
                static,
                flow,
                hop,
                0,
                extractor.win_length - 1,
                step,
                tape,
            )
            parts = [flow]
            for order in ("delta", "acceleration"):
                parts.append(
                    _window(
                        f"{name}_{order}",
                        extractor.slope,
                        parts[-1],
                        1,
                        around,
                        around,
                        step,
                        tape,
                        trimmed=True,
                    )
                )
            flow = _join(name, parts, tape)
        else:
            half = extractor.n_fft // 2

            def mel(wavs):
                """Frames around multiples of the hop."""
                return extractor.static(wavs)

            flow = _window(
                f"{name}_samples", mel, flow, hop, half, half - 1, step, tape
            )
        return self._normalize(name, stream.normalization, flow, step, tape)

    def _normalize(self, name, norm, flow, step, tape):
        index = _index(flow, step)
        feats = flow.values
        counts = torch.full((1,), flow.size)
        running = isinstance(norm, RunningNormalization)
        if running:
            feats = FeatureNormalization.forward(norm, feats, counts)
            feats = torch.where(index >= 0, feats, 0.0)
            total = tape.read(
                f"{name}_heard",
                feats.double(),
                feats.shape[0],
                1,
                feats.shape[2],
            )
            feats, (_, total) = norm.step(feats, (index[0, 0, 0], total))
            tape.write(total)
        else:
            feats = norm(feats, counts)
        return flow._replace(values=torch.where(index >= 0, feats, 0.0))

    def _spectrogram(self, name, branch, flows, step, tape):
        x = _cnn("mel_x", branch.cnn_x, flows["mel_x"], step, tape)
        y = _cnn("mel_y", branch.cnn_y, flows["mel_y"], step, tape)
        align = branch.alignment

        def average(x):
            """The alignment of x."""
            return torch.nn.functional.avg_pool1d(
                x.transpose(1, 2), align.width, align.stride
            ).transpose(1, 2)

        x = _window(
            "aligned_x",
            average,
            x,
            align.stride,
            0,
            align.min_frames - 1,
            step,
            tape,
        )
        both = _join("aligned", [x, y], tape)
        size_x = x.values.shape[2]
        x, y = both.values[..., :size_x], both.values[..., size_x:]
        layer = branch.ds_lstm

        def recurrence(hx, valid):
            """The DS-LSTM."""
            return scan_ds_lstm(layer, x, y, hx, valid)

        return _recurrent(name, branch, layer, recurrence, both, step, tape)

    def _mfcc(self, name, branch, flows, step, tape):
        flow, lstm = flows["mfcc"], branch.lstm

        def recurrence(hx, valid):
            """The LSTM."""
            return scan_lstm(lstm, flow.values, hx, valid)

        return _recurrent(name, branch, lstm, recurrence, flow, step, tape)


def _index(flow, step):
    """Which frames a step holds, [1, size, 1]."""
    frames = torch.arange(flow.size) + flow.delay
    return (frames + flow.size * step).view(1, -1, 1)


def _window(
    name, function, flow, stride, left, right, step, tape, trimmed=False
):
    """Run a stage on the held and the new inputs.

    ``trimmed``: it gives no output whose view reaches past its input, and
    wants copies of the first frame before the first one.
    """
    context = -(-left // stride)
    size = flow.size // stride
    delay = (flow.delay - 1 - right) // stride + 1
    keep = flow.delay - stride * (delay - context)
    x = flow.values
    rest = x.shape[2:]
    held = tape.read(name, x, x.shape[0], keep, *rest)
    x = torch.cat([held, x], dim=1)
    tape.write(x[:, -keep:] if keep else x[:, :0])
    if trimmed:
        start = flow.delay - keep + flow.size * step
        first = (-start).clamp(min=0)
        first = first.clamp(max=x.shape[1] - 1)
        places = torch.arange(x.shape[1]).maximum(first)
        x = x.index_select(1, places)
        context = 0
    out = function(x)[:, context : context + size]
    return _Flow(out, size, delay)


def _join(name, flows, tape):
    """Put side by side what runs behind by different delays."""
    delay = min(flow.delay for flow in flows)
    values = []
    for k, flow in enumerate(flows):
        x, late = flow.values, flow.delay - delay
        if late:
            held = tape.read(f"{name}_late{k}", x, x.shape[0], late, x.shape[2])
            x = torch.cat([held, x], dim=1)
            tape.write(x[:, -late:])
            x = x[:, : flow.size]
        values.append(x)
    return _Flow(torch.cat(values, dim=2), flows[0].size, delay)


def _cnn(name, cnn, flow, step, tape):
    flow = flow._replace(values=flow.values.unsqueeze(-1))
    for k, block in enumerate(cnn.blocks):
        kernel, padding = block.kernel_size[0], block.padding[0]

        def run(x, block=block):
            """One block on [batch, time, frequency, channel]."""
            return run_block(block, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

        flow = _window(
            f"{name}_block{k}",
            run,
            flow,
            block.pool_size,
            padding,
            block.pool_size - 1 - padding + kernel - 1,
            step,
            tape,
        )
        valid = (_index(flow, step) >= 0).unsqueeze(-1)
        # What stands before the first frame is silence for the next block
        values = torch.where(valid, flow.values, 0.0)
        flow = flow._replace(values=values)
    return flow._replace(values=flow.values.flatten(2))


def _recurrent(name, branch, layer, recurrence, flow, step, tape):
    """Logits of the mean over all steps so far."""
    batch, hidden = flow.values.shape[0], layer.hidden_size
    shape = (layer.num_layers, batch, hidden)
    h = tape.read(f"{name}_h", flow.values, *shape)
    c = tape.read(f"{name}_c", flow.values, *shape)
    valid = _index(flow, step)[0, :, 0] >= 0
    out, state = recurrence((h, c), valid)
    for value in state:
        tape.write(value)
    out = torch.where(valid.view(1, -1, 1), out, 0.0)
    total = tape.read(f"{name}_sum", out, batch, hidden)
    total = total + out.sum(dim=1) + tape.spoiled
    tape.write(total)
    heard = (flow.size * (step + 1) + flow.delay).clamp(min=0)
    return branch.head(total / heard)
