"""The model of whole utterances in a form that ``torch.export`` can trace.

It uses the modules and weights of the trained model, and leaves out what a
trace cannot follow: checks of values, loops over time, and code that depends
on the machine. The recurrences are ``scan``, one body for any length. The
waveform is padded to a multiple of all strides, so that every number of
frames is a plain multiple, too.
"""

import math

import torch

from speechbrain_dslstm.audio.checks import LOUDEST
from speechbrain_dslstm.ds_lstm.kernel_scan import scan_ds_lstm, scan_layer
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.inference.receptive_field import (
    check_parts,
    samples_per_step,
)
from speechbrain_dslstm.layers.alignment import AveragePoolAlignment
from speechbrain_dslstm.layers.cnn import LocalFeatureBlock, LocalFeatureCNN
from speechbrain_dslstm.lengths import length_mask, zero_padding
from speechbrain_dslstm.models.branches import (
    CNNLSTMBranch,
    LinearBranch,
    MFCCBranch,
    SpectrogramBranch,
)
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.models.whisper_frames import (
    EncoderLayers,
    WhisperFrames,
)

__all__ = ["ExportableClassifier", "average_x", "run_block", "scan_lstm"]


class ExportableClassifier(torch.nn.Module):
    """Waveforms and sample counts -> log-posteriors.

    The model is in evaluation mode on the CPU; ``calibrate`` maps log-posteriors
    to log-posteriors. ``onnx`` uses ONNX's own LSTM operator, which is twice as
    fast as a scan but does not compute the right values in torch.

    >>> model = DualLevelClassifier(n_classes=2, p=0.0).eval()
    >>> wavs, counts = torch.randn(2, 16000), torch.tensor([16000, 9000])
    >>> found = ExportableClassifier(model)(wavs, counts)
    >>> torch.allclose(found, model(wavs, counts), atol=1e-5)
    True
    """

    def __init__(
        self,
        model: DualLevelClassifier,
        calibrate: torch.nn.Module | None = None,
        onnx: bool = False,
    ) -> None:
        super().__init__()
        check_parts(model, KNOWN, "an export", whole=True)
        self.model = model.eval()
        self.calibrate = calibrate or torch.nn.Identity()
        self.unit = samples_per_step(model)
        # Units that the shortest clip needs beyond the first
        self.more = -(-model.min_samples // self.unit) - 1
        self.lstm = onnx_lstm if onnx else scan_lstm
        # A trace takes a size of 1 as fixed, so an encoder needs two windows
        self.traced_samples = max(
            [16000]
            + [
                2 * stream.extractor.window
                for stream in model.streams.values()
                if isinstance(stream.extractor, WhisperFrames)
            ]
        )

    def forward(
        self, wavs: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Waveforms [batch, samples] and valid samples [batch] -> [batch, n_classes].

        The log-posteriors of an item are NaN if it holds NaN, infinity or
        samples above 1000. Samples after an utterance's end count as silence.
        A model with dimensions also returns these, [batch, dimensions].
        """
        samples = wavs.shape[1]
        units = (samples + self.unit - 1) // self.unit + self.more
        wavs = torch.nn.functional.pad(wavs, (0, self.unit * units - samples))
        wavs = zero_padding(wavs, counts)
        valid = (wavs.abs() <= LOUDEST).all(dim=1, keepdim=True)
        counts = counts.clamp(min=self.model.min_samples)
        streams = {
            name: _features(stream, wavs, counts)
            for name, stream in self.model.streams.items()
        }
        outputs = {
            name: KNOWN[type(branch)](branch, streams, self.lstm)
            for name, branch in self.model.branches.items()
        }
        log_posteriors = self.calibrate(self.model.log_posteriors(outputs))
        # A graph cannot raise the error of ``check_samples``
        log_posteriors = log_posteriors.where(valid, math.nan)
        if not self.model.dimensions:
            return log_posteriors
        values = self.model.dimension_values(outputs)
        return log_posteriors, values.where(valid, math.nan)


def _features(stream, wavs, counts):
    """Normalised features and their frame counts."""
    extractor = stream.extractor
    frames = extractor.count_frames(counts)
    if isinstance(extractor, WhisperFrames):
        mel = extractor.mel.of_batch(wavs, counts)
        feats = extractor.of_mel(mel, extractor.mel.count_frames(counts))
        return stream.refine(*stream.normalize(feats, frames))
    if isinstance(extractor, MFCC39):
        # The last frame ends with the waveform: no remainder to round
        rest = extractor.win_length % extractor.hop_length
        wavs = torch.nn.functional.pad(wavs, (0, rest))
    feats = zero_padding(extractor.static(wavs), frames)
    feats = zero_padding(extractor.append_deltas(feats, frames), frames)
    return stream.normalization(feats, frames), frames


def _run_cnn(
    cnn: LocalFeatureCNN | EncoderLayers, x: torch.Tensor, counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a CNN in evaluation mode on [batch, time, frequency]."""
    if isinstance(cnn, EncoderLayers):
        return cnn(x, counts)
    x = x.unsqueeze(1)
    for block in cnn.blocks:
        mask = length_mask(counts, x.shape[2])[:, None, :, None]
        x = run_block(block, x.masked_fill(~mask, 0))
        counts = block.num_frames(counts)
    return x.permute(0, 2, 3, 1).flatten(2), counts


def run_block(block: LocalFeatureBlock, x: torch.Tensor) -> torch.Tensor:
    """Run a block in evaluation mode on [batch, channel, time, frequency]."""
    scale, shift = (value.view(-1, 1, 1) for value in block.norm.affine())
    x = block.conv(x)
    if block.pool_first:
        return (block.pool(x) * scale + shift).relu()
    return block.pool((x * scale + shift).relu())


def average_x(alignment: AveragePoolAlignment, x: torch.Tensor) -> torch.Tensor:
    """Average the faster sequence, [batch, time, size], over aligned frames."""
    return torch.nn.functional.avg_pool1d(
        x.transpose(1, 2), alignment.width, alignment.stride
    ).transpose(1, 2)


def _spectrogram(branch, streams, lstm):
    name_x, name_y = branch.inputs
    x, counts_x = _run_cnn(branch.cnn_x, *streams[name_x])
    y, counts_y = _run_cnn(branch.cnn_y, *streams[name_y])
    counts = branch.alignment.num_frames(counts_x, counts_y)
    x = average_x(branch.alignment, x)
    time = torch.sym_min(x.shape[1], y.shape[1])
    out, _ = scan_ds_lstm(branch.ds_lstm, x[:, :time], y[:, :time])
    read = branch.read(out, counts, streams)
    return branch.head(
        torch.cat([branch.pooling(*one) for one in read], dim=-1)
    )


def _mfcc(branch, streams, lstm):
    feats, counts = streams["mfcc"]
    out, _ = lstm(branch.lstm, feats)
    return branch.head(branch.pooling(out, counts))


def _cnn_lstm(branch, streams, lstm):
    pooled = []
    for name, cnn in branch.cnns.items():
        x, counts = _run_cnn(cnn, *streams[name])
        out, _ = lstm(branch.lstms[name], x)
        pooled.append(branch.pooling(out, counts))
    return branch.head(torch.cat(pooled, dim=-1))


def _linear(branch, streams, lstm):
    pooled = [
        branch.pooling(*_run_cnn(front, *streams[name]))
        for name, front in branch.fronts.items()
    ]
    return branch.head(torch.cat(pooled, dim=-1))


KNOWN = {
    SpectrogramBranch: _spectrogram,
    CNNLSTMBranch: _cnn_lstm,
    MFCCBranch: _mfcc,
    LinearBranch: _linear,
}


def scan_lstm(
    lstm: torch.nn.LSTM,
    x: torch.Tensor,
    hx: tuple[torch.Tensor, torch.Tensor] | None = None,
    valid: torch.Tensor | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Run an LSTM, batch first and of one direction, as a scan over time.

    ``valid``, bool [time], marks the steps that change the state. Returns the
    output, [batch, time, hidden], and both states, [layers, batch, hidden].

    >>> lstm = torch.nn.LSTM(3, 5, 2, batch_first=True)
    >>> x = torch.randn(2, 6, 3)
    >>> torch.allclose(scan_lstm(lstm, x)[0], lstm(x)[0], atol=1e-6)
    True
    """

    def cell(z, c):
        """Apply the equations to z, the sums of all products and biases."""
        i, f, g, o = z.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    states = []
    for k in range(lstm.num_layers):
        weight_x, weight_h, bias_x, bias_h = _weights(lstm, k)
        projected = torch.nn.functional.linear(
            x.transpose(0, 1), weight_x, bias_x + bias_h
        )
        state = None if hx is None else (hx[0][k], hx[1][k])
        x, state = scan_layer(cell, projected, weight_h, state, valid)
        states.append(state)
    return x, tuple(torch.stack(s) for s in zip(*states, strict=True))


def onnx_lstm(
    lstm: torch.nn.LSTM, x: torch.Tensor
) -> tuple[torch.Tensor, None]:
    """Run an LSTM as ONNX's operator; in torch only the output's shape is right.

    >>> lstm = torch.nn.LSTM(3, 5, 2, batch_first=True)
    >>> onnx_lstm(lstm, torch.randn(2, 6, 3))[0].shape
    torch.Size([2, 6, 5])
    """

    def reorder(weight):
        """Reorder torch's blocks i f g o to those of ONNX: i o f g."""
        i, f, g, o = weight.chunk(4, dim=0)
        return torch.cat([i, o, f, g])

    x = x.transpose(0, 1)
    for k in range(lstm.num_layers):
        weight_x, weight_h, bias_x, bias_h = map(reorder, _weights(lstm, k))
        values = weight_x, weight_h, torch.cat([bias_x, bias_h])
        inputs = [x, *(value.unsqueeze(0) for value in values)]
        sizes = {"hidden_size": lstm.hidden_size}
        shape = [x.shape[0], 1, x.shape[1], lstm.hidden_size]
        x = torch.onnx.ops.symbolic(
            "LSTM", inputs, sizes, dtype=x.dtype, shape=shape
        ).squeeze(1)
    return x.transpose(0, 1), None


def _weights(lstm, k):
    """Weights and biases of one layer: input, hidden, input, hidden."""
    return tuple(
        getattr(lstm, f"{kind}_l{k}")
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
