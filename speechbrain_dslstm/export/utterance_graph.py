"""The model once more, in a form that ``torch.export`` can trace.

The same modules and weights, without what a trace cannot follow: checks of
values, loops over time, and paths that depend on the machine. The recurrences
are ``scan``, one body however long the input; a waveform is lengthened to a
multiple of all hops, so that every number of frames is a plain multiple, too.
"""

import math

import torch

from speechbrain_dslstm.audio import LOUDEST
from speechbrain_dslstm.ds_lstm.kernel_scan import scan_ds_lstm, scan_layer
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.inference.receptive_field import check_parts
from speechbrain_dslstm.lengths import length_mask, zero_padding
from speechbrain_dslstm.models.branches import MFCCBranch, SpectrogramBranch

__all__ = ["ExportableClassifier", "samples_per_step"]


class ExportableClassifier(torch.nn.Module):
    """Waveforms and sample counts in, log-posteriors out.

    Arguments
    ---------
    model : DualLevelClassifier
        In evaluation mode, on the CPU.
    calibrate : torch.nn.Module, optional
        Maps log-posteriors to log-posteriors, ``TemperatureScaling``.
    onnx : bool
        Put ONNX's own operator in the place of an LSTM: twice as fast as a
        scan, but it computes nothing in torch.

    Raises
    ------
    ValueError
        The model has a part that is not known here.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> model = DualLevelClassifier(n_classes=2, p=0.0).eval()
    >>> wavs, counts = torch.randn(2, 16000), torch.tensor([16000, 9000])
    >>> found = ExportableClassifier(model)(wavs, counts)
    >>> torch.allclose(found, model(wavs, counts), atol=1e-5)
    True
    """

    def __init__(self, model, calibrate=None, onnx=False):
        super().__init__()
        check_parts(model, KNOWN, "an export")
        self.model = model.eval()
        self.calibrate = calibrate or torch.nn.Identity()
        self.unit = samples_per_step(model)
        # Units that the shortest clip needs above one
        self.more = -(-model.min_samples // self.unit) - 1
        self.lstm = run_lstm if onnx else scan_lstm

    def forward(self, wavs, counts):
        """Log-posteriors of a batch.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1]; whatever follows an utterance's end is taken
            for silence.
        counts : torch.Tensor, int64, [batch]
            Valid samples, 1 at least.

        Returns
        -------
        torch.Tensor, [batch, n_classes]
            Log-posteriors; NaN for an item with NaN, infinity or samples above
            1000.
        """
        samples = wavs.shape[1]
        units = (samples + self.unit - 1) // self.unit + self.more
        wavs = torch.nn.functional.pad(wavs, (0, self.unit * units - samples))
        wavs = zero_padding(wavs, counts)
        sound = (wavs.abs() <= LOUDEST).all(dim=1, keepdim=True)
        counts = counts.clamp(min=self.model.min_samples)
        streams = {
            name: _features(stream, wavs, counts)
            for name, stream in self.model.streams.items()
        }
        logits = {
            name: KNOWN[type(branch)](branch, streams, self.lstm)
            for name, branch in self.model.branches.items()
        }
        fused = self.model.fuse(logits)
        log_posteriors = self.calibrate(fused.log_softmax(dim=-1))
        # A graph cannot raise what ``check_samples`` raises
        return log_posteriors.where(sound, math.nan)


def samples_per_step(model):
    """Samples after which every stage has made a whole number of frames.

    Arguments
    ---------
    model : DualLevelClassifier
        A model.

    Returns
    -------
    int
        Samples.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> samples_per_step(DualLevelClassifier(n_classes=2))
    10240
    """
    hops = {
        name: stream.extractor.hop_length
        for name, stream in model.streams.items()
    }
    for branch in model.branches.values():
        if type(branch) is SpectrogramBranch:
            for block in branch.cnn_x.blocks:
                hops["mel_x"] *= block.pool_size
            for block in branch.cnn_y.blocks:
                hops["mel_y"] *= block.pool_size
            hops["mel_x"] *= branch.alignment.stride
    return math.lcm(*hops.values())


def _features(stream, wavs, counts):
    """Normalised features and their frame counts."""
    extractor = stream.extractor
    frames = extractor.count_frames(counts)
    if isinstance(extractor, MFCC39):
        # The last frame ends with the waveform: no remainder to round
        rest = extractor.win_length % extractor.hop_length
        wavs = torch.nn.functional.pad(wavs, (0, rest))
    feats = zero_padding(extractor.static(wavs), frames)
    feats = zero_padding(extractor.append_deltas(feats, frames), frames)
    return stream.normalization(feats, frames), frames


def run_cnn(cnn, x, counts):
    """A ``LocalFeatureCNN`` in evaluation mode.

    Arguments
    ---------
    cnn : LocalFeatureCNN
        The CNN.
    x : torch.Tensor, [batch, time, frequency]
        Normalised spectrograms, zero at padded frames.
    counts : torch.Tensor, int64, [batch]
        Valid frames of each item.

    Returns
    -------
    x : torch.Tensor, [batch, time', output_size]
        Features; padded frames hold no meaning.
    counts : torch.Tensor, int64, [batch]
        Valid frames of the output.

    Example
    -------
    >>> from speechbrain_dslstm.layers import LocalFeatureCNN
    >>> cnn = LocalFeatureCNN(128).eval()
    >>> x, counts = torch.randn(1, 40, 128), torch.tensor([40])
    >>> torch.allclose(run_cnn(cnn, x, counts)[0], cnn(x, counts)[0], atol=1e-6)
    True
    """
    x = x.unsqueeze(1)
    for block in cnn.blocks:
        mask = length_mask(counts, x.shape[2])[:, None, :, None]
        x = run_block(block, x.masked_fill(~mask, 0), counts)
        counts = block.num_frames(counts)
    return x.permute(0, 2, 3, 1).flatten(2), counts


def run_block(block, x, counts=None):
    """A ``LocalFeatureBlock`` in evaluation mode.

    Arguments
    ---------
    block : LocalFeatureBlock
        The block.
    x : torch.Tensor, [batch, in_channels, time, frequency]
        Images.
    counts : torch.Tensor, int64, [batch], optional
        Not needed in evaluation mode.

    Returns
    -------
    torch.Tensor, [batch, out_channels, time', frequency']
        Features.

    Example
    -------
    >>> from speechbrain_dslstm.layers import LocalFeatureBlock
    >>> block = LocalFeatureBlock(1, 8, kernel_size=(2, 4)).eval()
    >>> run_block(block, torch.randn(3, 1, 50, 128)).shape
    torch.Size([3, 8, 24, 63])
    """
    scale, shift = (value.view(-1, 1, 1) for value in block.norm.affine())
    x = block.conv(x)
    if block.pool_first:
        return (block.pool(x) * scale + shift).relu()
    return block.pool((x * scale + shift).relu())


def _spectrogram(branch, streams, lstm):
    x, counts_x = run_cnn(branch.cnn_x, *streams["mel_x"])
    y, counts_y = run_cnn(branch.cnn_y, *streams["mel_y"])
    align = branch.alignment
    counts = align.num_frames(counts_x, counts_y)
    x = torch.nn.functional.avg_pool1d(
        x.transpose(1, 2), align.width, align.stride
    ).transpose(1, 2)
    time = torch.sym_min(x.shape[1], y.shape[1])
    out, _ = scan_ds_lstm(branch.ds_lstm, x[:, :time], y[:, :time])
    return branch.head(branch.pooling(out, counts))


def _mfcc(branch, streams, lstm):
    feats, counts = streams["mfcc"]
    out, _ = lstm(branch.lstm, feats)
    return branch.head(branch.pooling(out, counts))


KNOWN = {SpectrogramBranch: _spectrogram, MFCCBranch: _mfcc}


def scan_lstm(lstm, x, hx=None, valid=None):
    """A ``torch.nn.LSTM``, batch first, of one direction, as a scan over time.

    Arguments
    ---------
    lstm : torch.nn.LSTM
        The layers.
    x : torch.Tensor, [batch, time, input_size]
        Sequences.
    hx : tuple of two torch.Tensor, each [layers, batch, hidden], optional
        Initial state; zeros if left out.
    valid : torch.Tensor, bool, [time], optional
        Steps that change the state.

    Returns
    -------
    out : torch.Tensor, [batch, time, hidden]
        Output of the last layer.
    state : tuple of two torch.Tensor, each [layers, batch, hidden]
        State after the last step.

    Example
    -------
    >>> lstm = torch.nn.LSTM(3, 5, 2, batch_first=True)
    >>> x = torch.randn(2, 6, 3)
    >>> torch.allclose(scan_lstm(lstm, x)[0], lstm(x)[0], atol=1e-6)
    True
    """

    def cell(z, c):
        """The equations, with all products done."""
        i, f, g, o = z.chunk(4, dim=-1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    states = []
    for k in range(lstm.num_layers):
        weight_x, weight_h, bias_x, bias_h = (
            getattr(lstm, f"{kind}_l{k}")
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        projected = torch.nn.functional.linear(
            x.transpose(0, 1), weight_x, bias_x + bias_h
        )
        state = None if hx is None else (hx[0][k], hx[1][k])
        x, state = scan_layer(cell, projected, weight_h, state, valid)
        states.append(state)
    return x, tuple(torch.stack(s) for s in zip(*states, strict=True))


def run_lstm(lstm, x):
    """A ``torch.nn.LSTM`` as the operator LSTM of ONNX.

    Arguments
    ---------
    lstm : torch.nn.LSTM
        The layers, batch first, of one direction.
    x : torch.Tensor, [batch, time, input_size]
        Sequences.

    Returns
    -------
    out : torch.Tensor, [batch, time, hidden]
        In torch nothing but the shape.
    state : None
        Not asked for.

    Example
    -------
    >>> lstm = torch.nn.LSTM(3, 5, 2, batch_first=True)
    >>> run_lstm(lstm, torch.randn(2, 6, 3))[0].shape
    torch.Size([2, 6, 5])
    """

    def reorder(weight):
        """Torch's blocks i f g o in the order of ONNX: i o f g."""
        i, f, g, o = weight.chunk(4, dim=0)
        return torch.cat([i, o, f, g])

    x = x.transpose(0, 1)
    for k in range(lstm.num_layers):
        weight_x, weight_h, bias_x, bias_h = (
            reorder(getattr(lstm, f"{kind}_l{k}"))
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        time, batch, _ = x.shape
        x = torch.onnx.ops.symbolic(
            "LSTM",
            [
                x,
                weight_x.unsqueeze(0),
                weight_h.unsqueeze(0),
                torch.cat([bias_x, bias_h]).unsqueeze(0),
            ],
            {"hidden_size": lstm.hidden_size},
            dtype=x.dtype,
            shape=[time, 1, batch, lstm.hidden_size],
        ).squeeze(1)
    return x.transpose(0, 1), None
