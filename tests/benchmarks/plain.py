"""The systems assembled from plain torch modules, as one writes them first.

nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d and nn.ReLU in default memory layout,
``ds_lstm_naive``, nn.LSTM over padded batches; with the parameters of a model
of this package, so that in evaluation both give the same log-posteriors.
"""

import torch
from torch import nn

from speechbrain_dslstm.ds_lstm.equations import ds_lstm_naive

__all__ = ["PlainCNN", "PlainClassifier"]


class PlainCNN(nn.Module):
    """The blocks of a ``LocalFeatureCNN`` of torch's own layers.

    Arguments
    ---------
    cnn : LocalFeatureCNN
        Gives sizes and parameters.

    Example
    -------
    >>> from speechbrain_dslstm.layers import LocalFeatureCNN
    >>> cnn = LocalFeatureCNN(128, kernel_size=(2, 4), pool_first=False)
    >>> x, counts = torch.randn(2, 50, 128), torch.tensor([50, 50])
    >>> plain = PlainCNN(cnn.eval()).eval()
    >>> torch.allclose(plain(x), cnn(x, counts)[0], atol=1e-4)
    True
    """

    def __init__(self, cnn):
        super().__init__()
        layers = []
        for block in cnn.blocks:
            conv = nn.Conv2d(
                block.conv.in_channels,
                block.conv.out_channels,
                block.kernel_size,
                padding=block.padding,
                bias=False,
            )
            weight = block.conv.weight.detach().clone()
            conv.weight.data = weight.contiguous()
            norm = nn.BatchNorm2d(block.conv.out_channels)
            norm.load_state_dict(block.norm.state_dict(), strict=False)
            rest = [norm, nn.ReLU(), nn.MaxPool2d(block.pool_size)]
            if block.pool_first:
                rest = [rest[2], *rest[:2]]
            layers += [conv, *rest]
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        """Features of a batch of spectrograms.

        Arguments
        ---------
        x : torch.Tensor, [batch, time, frequency]
            Spectrograms.

        Returns
        -------
        torch.Tensor, [batch, time', features]
            Features, frequency by channel.
        """
        return self.layers(x.unsqueeze(1)).permute(0, 2, 3, 1).flatten(2)


class PlainClassifier(nn.Module):
    """A dual-level model of plain parts.

    Arguments
    ---------
    model : DualLevelClassifier
        Gives sizes and parameters.
    """

    def __init__(self, model):
        super().__init__()
        spectrogram, mfcc = (
            model.branches[name] for name in ("spectrogram", "mfcc")
        )
        self.cnn_x = PlainCNN(spectrogram.cnn_x)
        self.cnn_y = PlainCNN(spectrogram.cnn_y)
        self.ds_lstm = spectrogram.ds_lstm
        self.lstm = mfcc.lstm
        self.heads = nn.ModuleList([spectrogram.head, mfcc.head])
        norms = [mfcc, *spectrogram.ds_lstm.output_norms]
        self.output_norms = nn.ModuleList(
            nn.BatchNorm1d(spectrogram.ds_lstm.hidden_size) for _ in norms[1:]
        )
        for plain, norm in zip(self.output_norms, norms[1:], strict=True):
            plain.load_state_dict(norm.state_dict(), strict=False)

    def forward(self, streams):
        """Logits of the two branches.

        Arguments
        ---------
        streams : dict of str to Sequence
            "mfcc", "mel_x" and "mel_y", [batch, time, features].

        Returns
        -------
        list of torch.Tensor, each [batch, classes]
            Logits of the spectrogram branch and of the MFCC branch.
        """
        x, y = self.cnn_x(streams["mel_x"].feats), streams["mel_y"].feats
        y = self.cnn_y(y)
        steps = min(x.shape[1] // 2 - 1, y.shape[1])
        x = torch.stack(
            [x[:, 2 * i : 2 * i + 3].mean(1) for i in range(steps)], 1
        )
        y = y[:, :steps]
        layer = self.ds_lstm
        for index in range(layer.num_layers):
            weights = [
                getattr(layer, f"{kind}_l{index}")
                for kind in ("weight_x", "weight_y", "weight_h", "bias")
            ]
            state = x.new_zeros(len(x), layer.hidden_size)
            name = f"l{index}"
            norm = layer.gate_norms[name] if layer.gate_norms else None
            x, _, _ = ds_lstm_naive(x, y, state, state, *weights, None, norm)
            if self.output_norms:
                x = self.output_norms[index](x.transpose(1, 2)).transpose(1, 2)
        feats, counts = streams["mfcc"]
        out, _ = self.lstm(feats)
        mean = torch.stack(
            [
                row[:count].mean(0)
                for row, count in zip(out, counts.tolist(), strict=True)
            ]
        )
        return [self.heads[0](x.mean(1)), self.heads[1](mean)]
