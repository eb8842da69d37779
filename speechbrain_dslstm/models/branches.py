"""Branches of a classifier: feature streams in, logits out.

``MFCCBranch`` and ``SpectrogramBranch`` are the two levels of arXiv:1910.08874,
``CNNLSTMBranch`` is its baseline, ``TextBranch`` a further level that reads
transcripts. ``LinearBranch`` is the baseline of an encoder: no recurrence.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from speechbrain_dslstm.ds_lstm import DSLSTM
from speechbrain_dslstm.layers.alignment import AveragePoolAlignment
from speechbrain_dslstm.layers.cnn import LocalFeatureCNN
from speechbrain_dslstm.layers.pooling import make_pooling
from speechbrain_dslstm.models.streams import FeatureSequence, Streams

__all__ = [
    "MFCCBranch",
    "CNNLSTMBranch",
    "LinearBranch",
    "SpectrogramBranch",
    "TextBranch",
]

LSTM_GROUP = 16  # items of similar length that go through an LSTM together


def _lstm(input_size, hidden_size, num_layers, dropout, forget_bias):
    """Build a standard LSTM; torch warns of dropout in one with a single layer."""
    sizes = input_size, hidden_size, num_layers
    dropout = dropout if num_layers > 1 else 0.0
    lstm = torch.nn.LSTM(*sizes, batch_first=True, dropout=dropout)
    for name, bias in lstm.named_parameters():
        if forget_bias is not None and name.startswith("bias"):
            # Gates in the order i f g o; torch adds two biases
            forget = bias.detach()[hidden_size : 2 * hidden_size]
            forget.fill_(forget_bias if "_ih_" in name else 0.0)
    return lstm


def _head(n_classes, size, pooling, dropout, head_dropout):
    """Build a branch's pooling, dropout and linear layer."""
    layer = make_pooling(pooling)
    chosen = dropout if head_dropout is None else head_dropout
    linear = torch.nn.Linear(layer.parts * size, n_classes)
    return layer, torch.nn.Dropout(chosen), linear


def _head_config(branch, dropout):
    """Arguments of ``_head`` that a branch was built with."""
    chosen = branch.head_dropout.p
    return {
        "pooling": branch.pooling.name,
        "head_dropout": None if chosen == dropout else chosen,
    }


def _run_lstm(lstm, x):
    """Outputs of an LSTM, [batch, time, hidden].

    In bfloat16, oneDNN's LSTM is an error on a CPU without that arithmetic, so there
    it stays in the precision of its weights.
    """
    if (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
        and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        with torch.autocast("cpu", enabled=False):
            return lstm(x.to(lstm.weight_ih_l0.dtype))[0]
    return lstm(x)[0]


def _lstm_pooled(lstm, pooling, x, counts):
    """Pooled output of an LSTM, [batch, hidden], with little work on padding.

    Padding cannot change the frames before it, so nothing is packed. On a CPU
    long padding costs time, so items of similar length are grouped.
    """
    share = counts.sum() / (len(x) * x.shape[1])
    if x.device.type != "cpu" or len(x) <= LSTM_GROUP or share > 0.9:
        return pooling(_run_lstm(lstm, x), counts)
    means, order = [], counts.argsort(descending=True)
    for group in order.split(LSTM_GROUP):
        longest = int(counts[group[0]])
        out = _run_lstm(lstm, x[group, :longest])
        means.append(pooling(out, counts[group]))
    return torch.cat(means)[order.argsort()]


def _recur(ds_lstm, x, y, counts):
    """Run a DS-LSTM outside torch.compile, which would unroll its loop over time."""
    if torch.compiler.is_compiling():
        return _recur_outside(ds_lstm, x, y, counts)
    return ds_lstm(x, y, counts)[0]


# The same as torch.compiler.disable, which would import the compiler at once
@torch._disable_dynamo
def _recur_outside(ds_lstm, x, y, counts):
    return ds_lstm(x, y, counts)[0]


class MFCCBranch(torch.nn.Module):
    """LSTM over the MFCCs, mean over the valid frames, linear layer.

    Arguments
    ---------
    n_classes
        Classes K.
    input_size
        Features per frame.
    hidden_size, num_layers
        Units of a layer, and layers, of the LSTM.
    dropout
        Dropout probability between the layers and before the linear layer.
    forget_bias
        Initial bias of the forget gates; 1 makes long sequences learnable
        (Jozefowicz et al. 2015). None: torch's default, around 0.
    pooling
        "mean" of the frames, or "statistics": mean and standard deviation.
    head_dropout
        Dropout probability before the linear layer; ``dropout`` if left out.

    Example
    -------
    >>> branch = MFCCBranch(n_classes=4)
    >>> feats = FeatureSequence(torch.randn(2, 98, 39), torch.tensor([98, 50]))
    >>> branch({"mfcc": feats}).shape
    torch.Size([2, 4])
    """

    inputs = ("mfcc",)

    def __init__(
        self,
        n_classes: int = 4,
        input_size: int = 39,
        hidden_size: int = 200,
        num_layers: int = 2,
        dropout: float = 0.0,
        forget_bias: float | None = None,
        pooling: str = "mean",
        head_dropout: float | None = None,
    ) -> None:
        super().__init__()
        sizes = input_size, hidden_size, num_layers
        self.lstm = _lstm(*sizes, dropout, forget_bias)
        self.dropout = dropout
        self.pooling, self.head_dropout, self.head = _head(
            n_classes, hidden_size, pooling, dropout, head_dropout
        )

    def get_config(self) -> dict[str, object]:
        """Constructor arguments that build the same layers."""
        return {
            "n_classes": self.head.out_features,
            "input_size": self.lstm.input_size,
            "hidden_size": self.lstm.hidden_size,
            "num_layers": self.lstm.num_layers,
            "dropout": self.dropout,
            **_head_config(self, self.dropout),
        }

    def forward(self, streams: Streams) -> Tensor:
        """Stream "mfcc" [batch, time, features] -> logits [batch, n_classes]."""
        pooled = _lstm_pooled(self.lstm, self.pooling, *streams["mfcc"])
        return self.head(self.head_dropout(pooled))


class CNNLSTMBranch(torch.nn.Module):
    """CNN and LSTM on each stream, their means concatenated, linear layer.

    The paper's baselines: on one mel-spectrogram, or on both.

    Arguments
    ---------
    n_classes
        Classes K.
    cnns
        The ``LocalFeatureCNN`` of each stream by its name.
    hidden_size, num_layers
        Units of a layer, and layers, of each LSTM.
    dropout
        Dropout probability after the CNNs and after each LSTM layer.
    forget_bias, pooling, head_dropout
        See ``MFCCBranch``.

    Example
    -------
    >>> cnns = {"mel_x": LocalFeatureCNN(128, kernel_size=(2, 4))}
    >>> branch = CNNLSTMBranch(n_classes=4, cnns=cnns)
    >>> x = FeatureSequence(torch.randn(2, 100, 128), torch.tensor([100, 60]))
    >>> branch({"mel_x": x}).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        n_classes: int,
        cnns: Mapping[str, torch.nn.Module],
        hidden_size: int = 200,
        num_layers: int = 2,
        dropout: float = 0.0,
        forget_bias: float | None = None,
        pooling: str = "mean",
        head_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.inputs = tuple(cnns)
        self.cnns = torch.nn.ModuleDict(cnns)
        sizes = hidden_size, num_layers, dropout, forget_bias
        self.lstms = torch.nn.ModuleDict(
            {name: _lstm(cnn.output_size, *sizes) for name, cnn in cnns.items()}
        )
        self.dropout = torch.nn.Dropout(dropout)
        self.pooling, self.head_dropout, self.head = _head(
            n_classes, hidden_size * len(cnns), pooling, dropout, head_dropout
        )

    def get_config(self) -> dict[str, object]:
        """Constructor arguments that build the same layers."""
        first = next(iter(self.lstms.values()))
        return {
            "n_classes": self.head.out_features,
            "cnns": dict(self.cnns),
            "hidden_size": first.hidden_size,
            "num_layers": first.num_layers,
            "dropout": self.dropout.p,
            **_head_config(self, self.dropout.p),
        }

    def min_frames(self) -> dict[str, int]:
        """Frames of each stream that one frame of its LSTM needs."""
        return {name: cnn.min_frames(1) for name, cnn in self.cnns.items()}

    def forward(self, streams: Streams) -> Tensor:
        """Streams [batch, time, features] -> logits [batch, n_classes]."""
        pooled = []
        for name, cnn in self.cnns.items():
            x, counts = cnn(*streams[name])
            x, lstm = self.dropout(x), self.lstms[name]
            pooled.append(_lstm_pooled(lstm, self.pooling, x, counts))
        return self.head(self.head_dropout(torch.cat(pooled, dim=-1)))


class LinearBranch(torch.nn.Module):
    """Pooling over each stream and a linear layer, without a recurrence.

    The baseline of an encoder: its frames, averaged, already separate emotions.

    Arguments
    ---------
    n_classes
        Classes K.
    fronts
        Module of each stream by its name, such as ``EncoderLayers``.
    pooling, head_dropout
        See ``MFCCBranch``.

    Example
    -------
    >>> cnns = {"mel_x": LocalFeatureCNN(128, kernel_size=(2, 4))}
    >>> branch = LinearBranch(n_classes=4, fronts=cnns)
    >>> x = FeatureSequence(torch.randn(2, 100, 128), torch.tensor([100, 60]))
    >>> branch({"mel_x": x}).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        n_classes: int,
        fronts: Mapping[str, torch.nn.Module],
        pooling: str = "statistics",
        head_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.inputs = tuple(fronts)
        self.fronts = torch.nn.ModuleDict(fronts)
        size = sum(front.output_size for front in fronts.values())
        self.pooling, self.head_dropout, self.head = _head(
            n_classes, size, pooling, head_dropout, None
        )

    def get_config(self) -> dict[str, object]:
        """Constructor arguments that build the same layers."""
        return {
            "n_classes": self.head.out_features,
            "fronts": dict(self.fronts),
            "pooling": self.pooling.name,
            "head_dropout": self.head_dropout.p,
        }

    def min_frames(self) -> dict[str, int]:
        """Frames of each stream that one frame of its module needs."""
        return {name: m.min_frames(1) for name, m in self.fronts.items()}

    def forward(self, streams: Streams) -> Tensor:
        """Streams [batch, time, features] -> logits [batch, n_classes]."""
        pooled = [
            self.pooling(*front(*streams[name]))
            for name, front in self.fronts.items()
        ]
        return self.head(self.head_dropout(torch.cat(pooled, dim=-1)))


class SpectrogramBranch(torch.nn.Module):
    """CNN blocks on both spectrograms, alignment, DS-LSTM, pooling, linear layer.

    Arguments
    ---------
    n_classes
        Classes K.
    cnn_x, cnn_y
        ``LocalFeatureCNN`` for mel x and for mel y; the paper's if left out.
        Another module, such as ``EncoderLayers``, must map features and counts
        to new ones and have ``output_size`` and ``min_frames``.
    alignment
        Layer that brings both to one length; ``AveragePoolAlignment`` if left out.
    ds_lstm
        ``DSLSTM`` of the CNNs' output sizes; two layers of 200 units if left out.
    dropout
        Dropout probability after the CNNs and before the linear layer.
    inputs
        Names of the streams that ``cnn_x`` and ``cnn_y`` read; both may read
        the same one.
    pooling, head_dropout
        See ``MFCCBranch``.
    skip
        Whether the linear layer also reads the pooled frames of the inputs,
        past the DS-LSTM: frames of an encoder separate emotions by themselves.

    Raises
    ------
    ValueError
        The DS-LSTM was built for other sizes than the CNNs' outputs.

    Example
    -------
    >>> branch = SpectrogramBranch(n_classes=4)
    >>> x = FeatureSequence(torch.randn(2, 100, 128), torch.tensor([100, 60]))
    >>> y = FeatureSequence(torch.randn(2, 50, 256), torch.tensor([50, 30]))
    >>> branch({"mel_x": x, "mel_y": y}).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        n_classes: int = 4,
        cnn_x: torch.nn.Module | None = None,
        cnn_y: torch.nn.Module | None = None,
        alignment: torch.nn.Module | None = None,
        ds_lstm: DSLSTM | None = None,
        dropout: float = 0.0,
        inputs: Sequence[str] = ("mel_x", "mel_y"),
        pooling: str = "mean",
        head_dropout: float | None = None,
        skip: bool = False,
    ) -> None:
        super().__init__()
        self.inputs = tuple(inputs)
        self.skip = skip
        self.cnn_x = cnn_x or LocalFeatureCNN(128, kernel_size=(2, 4))
        self.cnn_y = cnn_y or LocalFeatureCNN(256, kernel_size=(4, 2))
        self.alignment = alignment or AveragePoolAlignment()
        sizes = self.cnn_x.output_size, self.cnn_y.output_size
        self.ds_lstm = ds_lstm or DSLSTM(*sizes, hidden_size=200, num_layers=2)
        expected = self.ds_lstm.input_size_x, self.ds_lstm.input_size_y
        if sizes != expected:
            raise ValueError(
                f"the CNNs give {sizes} features per frame, but the DS-LSTM "
                f"was built for {expected}"
            )
        self.dropout = torch.nn.Dropout(dropout)
        size = self.ds_lstm.output_size
        if skip:
            read = zip(self.inputs, (self.cnn_x, self.cnn_y), strict=True)
            size += sum({name: cnn.input_size for name, cnn in read}.values())
        self.pooling, self.head_dropout, self.head = _head(
            n_classes, size, pooling, dropout, head_dropout
        )

    def get_config(self) -> dict[str, object]:
        """Constructor arguments that build the same layers."""
        return {
            "n_classes": self.head.out_features,
            "cnn_x": self.cnn_x,
            "cnn_y": self.cnn_y,
            "alignment": self.alignment,
            "ds_lstm": self.ds_lstm,
            "inputs": list(self.inputs),
            "dropout": self.dropout.p,
            "skip": self.skip,
            **_head_config(self, self.dropout.p),
        }

    def min_frames(self) -> dict[str, int]:
        """Frames of each stream that one aligned frame needs."""
        name_x, name_y = self.inputs
        frames_x = self.cnn_x.min_frames(self.alignment.min_frames)
        frames_y = self.cnn_y.min_frames(1)
        if name_x == name_y:
            return {name_x: max(frames_x, frames_y)}
        return {name_x: frames_x, name_y: frames_y}

    def forward(self, streams: Streams) -> Tensor:
        """Both ``inputs`` [batch, time, bands] -> logits [batch, n_classes]."""
        x, counts_x = self.cnn_x(*streams[self.inputs[0]])
        y, counts_y = self.cnn_y(*streams[self.inputs[1]])
        x, y, counts = self.alignment(x, y, counts_x, counts_y)
        out = _recur(self.ds_lstm, self.dropout(x), self.dropout(y), counts)
        pooled = [
            self.pooling(*read) for read in self.read(out, counts, streams)
        ]
        return self.head(self.head_dropout(torch.cat(pooled, dim=-1)))

    def read(
        self, out: Tensor, counts: Tensor, streams: Streams
    ) -> list[tuple[Tensor, Tensor]]:
        """List the sequences, with counts, whose pooled frames the head reads.

        They are the DS-LSTM's outputs [batch, time, features] and, with
        ``skip``, each input.
        """
        skipped = dict.fromkeys(self.inputs) if self.skip else ()
        return [(out, counts), *(streams[name] for name in skipped)]


class TextBranch(torch.nn.Module):
    """Embedding, LSTM, mean over the valid tokens, linear layer.

    Arguments
    ---------
    n_classes
        Classes K.
    vocab_size
        Number of token ids; at least as many as the tokenizer has tokens.
    embedding_size
        Features per token.
    hidden_size, num_layers
        Units of a layer, and layers, of the LSTM.
    dropout
        Dropout probability after the embedding and after each LSTM layer.

    Example
    -------
    >>> branch = TextBranch(n_classes=4, vocab_size=50)
    >>> tokens = torch.randint(50, (2, 7))
    >>> branch({"text": FeatureSequence(tokens, torch.tensor([7, 3]))}).shape
    torch.Size([2, 4])
    """

    inputs = ("text",)

    def __init__(
        self,
        n_classes: int = 4,
        vocab_size: int = 1000,
        embedding_size: int = 64,
        hidden_size: int = 128,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(vocab_size, embedding_size)
        self.dropout = torch.nn.Dropout(dropout)
        # The same stack as over MFCCs: LSTM, masked mean, linear layer
        self.level = MFCCBranch(
            n_classes, embedding_size, hidden_size, num_layers, dropout
        )

    def forward(self, streams: Streams) -> Tensor:
        """Token ids "text" [batch, tokens] -> logits [batch, n_classes]."""
        tokens, counts = streams["text"]
        feats = self.dropout(self.embedding(tokens))
        return self.level({"mfcc": FeatureSequence(feats, counts)})
