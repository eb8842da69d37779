"""Show which resolution the DS-LSTM reads at each moment of a recording.

The gate i_T admits the spectrogram of fine time, i_F that of fine frequency.
``ds_lstm_naive`` gives both at each step; their means over the hidden units are
drawn below the spectrograms and the posterior.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive
from speechbrain_dslstm.ds_lstm.layer import DSLSTM
from speechbrain_dslstm.evaluation.plots import COLORS, FAINT, INK, save_figure
from speechbrain_dslstm.inference.receptive_field import block_field
from speechbrain_dslstm.models.branches import SpectrogramBranch
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.models.whisper_frames import (
    EncoderLayers,
    WhisperFrames,
)
from speechbrain_dslstm.utils.files import check_output

__all__ = ["explain", "plot_explanation"]


@dataclass(frozen=True)
class Explanation:
    """Spectrograms, posteriors and gates over time, as ``explain`` finds them."""

    # dB; of an encoder, the spectrogram that it reads
    mel_x: torch.Tensor  # [time_x, bands_x], fine time
    mel_y: torch.Tensor  # [time_y, bands_y], fine frequency
    seconds: float  # length of the recording
    times: torch.Tensor  # [steps], end of each step of the DS-LSTM in seconds
    # [steps, n_classes]: posterior of all audio up to each step; the last row
    # is the answer
    posteriors: torch.Tensor
    # [layers, steps]: input gates i_T and i_F, mean over the hidden units
    gate_x: torch.Tensor
    gate_y: torch.Tensor
    # Start and end in the recording, in seconds, of the parts that were used
    speech: tuple[tuple[float, float], ...] = ()
    # Names of x and y
    names: tuple[str, str] = ("fine time", "fine frequency")


@torch.no_grad()
def explain(
    model: DualLevelClassifier,
    wav: torch.Tensor,
    calibrate: torch.nn.Module | None = None,
    sample_rate: int = 16000,
) -> Explanation:
    """Follow a model, in evaluation mode, through one recording.

    ``wav`` is [samples] in [-1, 1]; ``calibrate`` maps log-posteriors to
    log-posteriors, such as ``TemperatureScaling``. With ``active_speech`` the
    times are those of the speech that is kept. Models without a DS-LSTM, or
    with a bidirectional one, raise ``ValueError``.

    >>> model = DualLevelClassifier(n_classes=2).eval()
    >>> found = explain(model, torch.randn(16000))
    >>> found.posteriors.shape, found.gate_x.shape
    (torch.Size([6, 2]), torch.Size([2, 6]))
    """
    branches = getattr(model, "branches", {})
    branch = branches["spectrogram"] if "spectrogram" in branches else None
    if type(branch) is not SpectrogramBranch:
        raise ValueError(
            "only a model with a DS-LSTM has gates to show; the branches of "
            "this one are: "
            + (", ".join(type(b).__name__ for b in branches.values()) or "none")
        )
    if branch.ds_lstm.bidirectional:
        raise ValueError(
            "a bidirectional DS-LSTM also reads backwards, so its steps have "
            "no order in time"
        )
    spans = [(0, len(wav))]
    if model.active_speech is not None:
        spans = model.active_speech.find(wav)
        wav = model.active_speech.cut(wav)
    samples = torch.tensor([max(len(wav), model.min_samples)])
    padded = torch.nn.functional.pad(wav, (0, int(samples) - len(wav)))[None]
    extracted = {
        name: stream.extract(padded, samples)
        for name, stream in model.streams.items()
    }
    streams = model.normalize(extracted)
    streams = {
        name: model.streams[name].refine(*value)
        for name, value in streams.items()
    }
    name_x, name_y = branch.inputs
    x, counts_x = branch.cnn_x(*streams[name_x])
    y, counts_y = branch.cnn_y(*streams[name_y])
    x, y, _ = branch.alignment(x, y, counts_x, counts_y)
    out, gate_x, gate_y = _gates(branch.ds_lstm, x, y)
    steps = out.shape[1]
    read = branch.read(out, torch.tensor([steps]), streams)
    pooled = [_pool_so_far(branch.pooling, one, steps) for one, _ in read]
    outputs = {"spectrogram": branch.head(torch.cat(pooled, dim=-1))}
    if "mfcc" in branches:
        feats, _ = streams["mfcc"]
        mfcc = branches["mfcc"]
        out, _ = mfcc.lstm(feats)
        outputs["mfcc"] = mfcc.head(_pool_so_far(mfcc.pooling, out, steps))
    log_posteriors = model.log_posteriors(outputs)
    if calibrate is not None:
        log_posteriors = calibrate(log_posteriors)
    seconds = int(samples) / sample_rate
    hop = _hop(model, branch, sample_rate) or seconds / steps
    times = torch.arange(1, steps + 1) * hop
    times[-1] = seconds
    mels = (
        _spectrogram(model.streams[name], padded, samples)
        for name in branch.inputs
    )
    names = (
        _name(branch.cnn_x, "fine time"),
        _name(branch.cnn_y, "fine frequency"),
    )
    posteriors = log_posteriors.exp()
    speech = tuple((a / sample_rate, b / sample_rate) for a, b in spans)
    return Explanation(
        *mels, seconds, times, posteriors, gate_x, gate_y, speech, names
    )


def _hop(model, branch, sample_rate):
    """Seconds from step to step of the DS-LSTM; None if a clip is stretched."""
    kept_x = getattr(branch.alignment, "target", "y") == "x"
    cnn = branch.cnn_x if kept_x else branch.cnn_y
    stream = model.streams[branch.inputs[0 if kept_x else 1]]
    if stream.resize is not None:
        return None
    extractor = stream.extractor
    if isinstance(extractor, WhisperFrames):
        return extractor.stride / sample_rate
    strides = (block_field(block).stride for block in cnn.blocks)
    return extractor.hop_length / sample_rate * math.prod(strides)


def _spectrogram(stream, wavs, counts):
    """Spectrogram in dB, [time, bands], that a stream reads or is."""
    if isinstance(stream.extractor, WhisperFrames):
        return 40 * stream.extractor.mel(wavs, counts)[0] - 40
    return stream.extract(wavs, counts).feats[0]


def _name(cnn, resolution):
    """Name of a sequence: its resolution, or the encoder's layers."""
    if not isinstance(cnn, EncoderLayers):
        return resolution
    chosen = cnn.layers if cnn.layer in (None, "all") else [cnn.layer]
    several = "layers" if len(chosen) > 1 else "layer"
    return f"encoder {several} {', '.join(map(str, chosen))}"


def _gates(
    layer: DSLSTM, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Output of the last layer, and the mean input gates of every layer."""
    gate_x, gate_y = [], []
    for k in range(layer.num_layers):
        name = f"l{k}"
        weights = layer.weights(name)
        norm = layer.gate_norms[name] if name in layer.gate_norms else None
        seen = []

        def record(gates, step, valid, norm=norm, seen=seen):
            """Record the gates as the cell uses them."""
            if norm is not None:
                gates = norm(gates, step, valid)
            seen.append(gates[0].view(4, -1).mean(dim=1))
            return gates

        zeros = x.new_zeros(1, layer.hidden_size)
        x, _, _ = ds_lstm_naive(
            x, y, zeros, zeros, *weights, None, gate_norm=record
        )
        if layer.output_norms:
            x = layer.output_norms[k](x)
        _, i_x, i_y, _ = torch.stack(seen).unbind(1)
        gate_x.append(i_x)
        gate_y.append(i_y)
    return x, torch.stack(gate_x), torch.stack(gate_y)


def _pool_so_far(pooling, x: torch.Tensor, steps: int) -> torch.Tensor:
    """Pool the frames of x [1, frames, features] up to the end of each step.

    Returns [steps, features]; the last step has all frames.
    """
    values = x[0].double()
    # At least one frame, also where a step ends before the first one
    ends = (torch.arange(1, steps + 1) * len(values) // steps).clamp(min=1)
    sums = (part.cumsum(dim=0)[ends - 1] for part in (values, values.square()))
    return pooling.from_sums(*sums, ends.unsqueeze(1)).float()


def plot_explanation(
    found: Explanation,
    labels: list[str],
    path: str | Path,
    title: str | None = None,
    overwrite: bool = False,
) -> None:
    """Draw spectrograms, posterior and input gates above one another.

    ``found`` is the result of ``explain``; ``labels`` are the names of the
    classes. The suffix of ``path`` chooses the format: .png, .svg or .pdf. A
    file of that name raises FileExistsError, unless ``overwrite`` is set.
    """
    from matplotlib.figure import Figure

    check_output(path, overwrite)

    if len(labels) != found.posteriors.shape[1]:
        raise ValueError(
            f"{len(labels)} labels for {found.posteriors.shape[1]} classes"
        )
    figure = Figure(figsize=(9, 9), layout="constrained")
    mel_x, mel_y, posterior, gates = figure.subplots(
        4, 1, sharex=True, height_ratios=[1, 1.4, 1.3, 1.1]
    )
    for axes, mel, name in [
        (mel_x, found.mel_x, f"mel x\n{found.names[0]}"),
        (mel_y, found.mel_y, f"mel y\n{found.names[1]}"),
    ]:
        top = float(mel.max())
        extent = (0, found.seconds, 0, mel.shape[1])
        image = {"origin": "lower", "aspect": "auto", "cmap": "magma"}
        image |= {"extent": extent, "interpolation": "nearest"}
        axes.imshow(mel.T.numpy(), vmin=top - 70, vmax=top, **image)
        axes.set_ylabel(f"{name}\n(mel band)", color=FAINT)

    # A value holds from the end of the step before to the end of its own
    edges = np.concatenate([[0.0], found.times.numpy()])
    colors = list(COLORS) * (1 + len(labels) // len(COLORS))
    answer = int(found.posteriors[-1].argmax())
    for k, label in enumerate(labels):
        values = found.posteriors[:, k].numpy()
        posterior.stairs(
            values,
            edges,
            baseline=None,
            color=colors[k],
            linewidth=2.6 if k == answer else 1.2,
            label=f"{label} {values[-1]:.2f}",
        )
    posterior.set_ylim(0, 1.02)
    posterior.set_ylabel("posterior of\nthe audio so far", color=FAINT)

    layers = len(found.gate_x)
    for k in range(layers):
        style = ["-", "--", ":"][min(k, 2)]
        layer = f", layer {k + 1}" if layers > 1 else ""
        for gate, color, name in [
            (found.gate_x, COLORS[0], f"$i_T$ ({found.names[0]})"),
            (found.gate_y, COLORS[1], f"$i_F$ ({found.names[1]})"),
        ]:
            gates.stairs(
                gate[k].numpy(),
                edges,
                baseline=None,
                color=color,
                linestyle=style,
                linewidth=1.8,
                label=f"{name}{layer}",
            )
    gates.set_ylabel("mean input gate", color=FAINT)
    parts = ", ".join(f"{a:.2f}-{b:.2f}" for a, b in found.speech[:6])
    more = ", ..." if len(found.speech) > 6 else ""
    gates.set_xlabel(
        f"seconds of speech (of the recording: {parts}{more} s)", color=FAINT
    )
    joins = np.cumsum([b - a for a, b in found.speech])[:-1]
    for axes in (mel_x, mel_y, posterior, gates):
        for join in joins:
            axes.axvline(join, color=FAINT, linewidth=0.8, linestyle=":")
    gates.set_xlim(0, found.seconds)
    for axes in (posterior, gates):
        axes.set_axisbelow(True)
        axes.grid(color="#e4e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        axes.legend(**place, frameon=False, fontsize=9)
    for axes in (mel_x, mel_y, posterior, gates):
        axes.tick_params(colors=INK)
    if title:
        figure.suptitle(title, color=INK, fontsize=13, fontweight="bold")
    save_figure(figure, path)
