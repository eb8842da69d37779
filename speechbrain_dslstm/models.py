"""From waveforms to log-posteriors: composition of the other modules only.

Source of the dual-level model: arXiv:1910.08874. A standard LSTM reads the
MFCCs, a DS-LSTM reads the local features of two mel-spectrograms, and the
logits are averaged::

    logits = p * spectrogram logits + (1 - p) * MFCC logits

Symbols: B batch, S samples, T frames, H hidden units, K classes, p weight.
"""

from typing import NamedTuple

import torch

from speechbrain_dslstm.alignment import AveragePoolAlignment
from speechbrain_dslstm.cnn import LocalFeatureCNN
from speechbrain_dslstm.ds_lstm import DSLSTM
from speechbrain_dslstm.features import MFCC39, LogMelSpectrogram
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.normalization import FeatureNormalization
from speechbrain_dslstm.pooling import MaskedMeanPooling

__all__ = [
    "Sequence",
    "FeatureStream",
    "MFCCBranch",
    "CNNLSTMBranch",
    "SpectrogramBranch",
    "DualLevelClassifier",
    "fusion_loss",
]

LSTM_GROUP = 16


class Sequence(NamedTuple):
    """A padded batch of feature sequences and how long each one is.

    Arguments
    ---------
    feats : torch.Tensor, [batch, time, features]
        Features, zero at padded frames.
    counts : torch.Tensor, int64, [batch]
        Valid frames.

    Example
    -------
    >>> Sequence(torch.zeros(1, 2, 39), torch.tensor([2])).counts
    tensor([2])
    """

    feats: torch.Tensor
    counts: torch.Tensor


class FeatureStream(torch.nn.Module):
    """An extractor, its normalisation and, as an option, a fixed length.

    Arguments
    ---------
    extractor : torch.nn.Module
        ``extractor(wavs, wav_lens) -> [batch, time, num_features]``, with
        ``num_frames(samples)``.
    num_features : int
        Features per frame.
    resize : int, optional
        Stretch every item to so many frames by nearest neighbour, as the
        paper's code does. None: native variable length.
    center_utterances : bool
        Take out each utterance's own mean, see ``FeatureNormalization``.
    normalization : str
        Whose statistics: "training", "speaker" or "none", see there.

    Example
    -------
    >>> stream = FeatureStream(LogMelSpectrogram(512), 128)
    >>> feats, counts = stream(
    ...     torch.randn(2, 16000), torch.tensor([16000, 400])
    ... )
    >>> feats.shape, counts
    (torch.Size([2, 63, 128]), tensor([63,  2]))
    """

    def __init__(
        self,
        extractor,
        num_features,
        resize=None,
        center_utterances=False,
        normalization="training",
    ):
        super().__init__()
        self.extractor = extractor
        self.normalization = FeatureNormalization(
            num_features,
            center_utterances=center_utterances,
            source=normalization,
        )
        self.resize = resize

    def extract(self, wavs, counts):
        """Features as the extractor gives them.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1].
        counts : torch.Tensor, int64, [batch]
            Valid samples.

        Returns
        -------
        Sequence
            Features and frame counts.
        """
        feats = self.extractor(wavs, counts)
        return Sequence(feats, self.extractor.num_frames(counts))

    def stretch(self, feats, counts):
        """Bring each item to ``resize`` frames, where that is set.

        Arguments
        ---------
        feats : torch.Tensor, [batch, time, num_features]
            Features as the extractor gives them.
        counts : torch.Tensor, int64, [batch]
            Valid frames.

        Returns
        -------
        Sequence
            Features and frame counts.
        """
        if self.resize is None:
            return Sequence(feats, counts)
        # Nearest neighbour of each item's own valid frames
        steps = torch.arange(self.resize, device=feats.device)
        index = steps * counts.unsqueeze(1) // self.resize
        index = index.unsqueeze(-1).expand(-1, -1, feats.shape[2])
        counts = torch.full_like(counts, self.resize)
        return Sequence(feats.gather(1, index), counts)

    def forward(self, wavs, counts):
        """Normalised features.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1].
        counts : torch.Tensor, int64, [batch]
            Valid samples.

        Returns
        -------
        Sequence
            Features and frame counts.
        """
        return self.normalize(*self.extract(wavs, counts))

    def normalize(self, feats, counts, moments=None):
        """Normalise what ``extract`` gave, and stretch it.

        Arguments
        ---------
        feats : torch.Tensor, [batch, time, num_features]
            Features as the extractor gives them.
        counts : torch.Tensor, int64, [batch]
            Valid frames.
        moments : tuple of two torch.Tensor, each [batch, features], optional
            Mean and deviation of each item's speaker.

        Returns
        -------
        Sequence
            Features and frame counts.
        """
        feats = self.normalization(feats, counts, moments)
        return self.stretch(feats, counts)


def _lstm(input_size, hidden_size, num_layers, dropout, forget_bias):
    """A standard LSTM, which warns of dropout with a single layer."""
    lstm = torch.nn.LSTM(
        input_size,
        hidden_size,
        num_layers,
        batch_first=True,
        dropout=dropout if num_layers > 1 else 0.0,
    )
    if forget_bias is not None:
        for name, bias in lstm.named_parameters():
            # Gates i f g o; torch adds two biases
            if name.startswith("bias"):
                forget = bias.detach()[hidden_size : 2 * hidden_size]
                forget.fill_(forget_bias if "_ih_" in name else 0.0)
    return lstm


def _lstm_mean(lstm, pooling, x, counts):
    """Pooled output of an LSTM, [batch, hidden], without work on padding.

    Frames after an item's end cannot reach those before it, so nothing is
    packed; but on a CPU long padding costs time, and items of similar length
    go through together.
    """
    share = counts.sum() / (len(x) * x.shape[1])
    if x.device.type != "cpu" or len(x) <= LSTM_GROUP or share > 0.9:
        return pooling(lstm(x)[0], counts)
    means, order = [], counts.argsort(descending=True)
    for group in order.split(LSTM_GROUP):
        longest = int(counts[group[0]])
        out, _ = lstm(x[group, :longest])
        means.append(pooling(out, counts[group]))
    return torch.cat(means)[order.argsort()]


def _recur(ds_lstm, x, y, counts):
    """Output of a DS-LSTM; torch.compile would unroll its loop over time."""
    if torch.compiler.is_compiling():
        return _recur_outside(ds_lstm, x, y, counts)
    return ds_lstm(x, y, counts)[0]


# torch.compiler.disable, but that the compiler is imported only when it runs
@torch._disable_dynamo
def _recur_outside(ds_lstm, x, y, counts):
    return ds_lstm(x, y, counts)[0]


class MFCCBranch(torch.nn.Module):
    """LSTM over the MFCCs, mean over the valid frames, linear layer.

    Arguments
    ---------
    n_classes : int
        Classes K.
    input_size : int
        Features per frame.
    hidden_size : int
        Hidden units of the LSTM.
    num_layers : int
        Layers of the LSTM.
    dropout : float
        Dropout probability between the layers and before the linear layer.
    forget_bias : float, optional
        Initial bias of the forget gates; 1 keeps what was read, and long
        sequences learnable (Jozefowicz et al. 2015). torch's own, around 0,
        if left out.

    Example
    -------
    >>> branch = MFCCBranch(n_classes=4)
    >>> feats = Sequence(torch.randn(2, 98, 39), torch.tensor([98, 50]))
    >>> branch({"mfcc": feats}).shape
    torch.Size([2, 4])
    """

    inputs = ("mfcc",)

    def __init__(
        self,
        n_classes=4,
        input_size=39,
        hidden_size=200,
        num_layers=2,
        dropout=0.0,
        forget_bias=None,
    ):
        super().__init__()
        self.lstm = _lstm(
            input_size, hidden_size, num_layers, dropout, forget_bias
        )
        self.pooling = MaskedMeanPooling()
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(hidden_size, n_classes)

    def forward(self, streams):
        """Logits of a batch.

        Arguments
        ---------
        streams : dict of str to Sequence
            Holds "mfcc", [batch, time, input_size].

        Returns
        -------
        torch.Tensor, [batch, n_classes]
            Logits.
        """
        mean = _lstm_mean(self.lstm, self.pooling, *streams["mfcc"])
        return self.head(self.dropout(mean))


class CNNLSTMBranch(torch.nn.Module):
    """CNN and LSTM on each stream, their means concatenated, linear layer.

    The paper's baselines: on one mel-spectrogram, or on both.

    Arguments
    ---------
    n_classes : int
        Classes K.
    cnns : dict of str to torch.nn.Module
        For each stream's name its ``LocalFeatureCNN``.
    hidden_size : int
        Hidden units of each LSTM.
    num_layers : int
        Layers of each LSTM.
    dropout : float
        Dropout probability on the CNNs' output, between the layers and before
        the linear layer.
    forget_bias : float, optional
        Initial bias of the forget gates; 1 keeps what was read, and long
        sequences learnable (Jozefowicz et al. 2015). torch's own, around 0,
        if left out.

    Example
    -------
    >>> cnns = {"mel_x": LocalFeatureCNN(128, kernel_size=(2, 4))}
    >>> branch = CNNLSTMBranch(n_classes=4, cnns=cnns)
    >>> x = Sequence(torch.randn(2, 100, 128), torch.tensor([100, 60]))
    >>> branch({"mel_x": x}).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        n_classes,
        cnns,
        hidden_size=200,
        num_layers=2,
        dropout=0.0,
        forget_bias=None,
    ):
        super().__init__()
        self.inputs = tuple(cnns)
        self.cnns = torch.nn.ModuleDict(cnns)
        self.lstms = torch.nn.ModuleDict(
            {
                name: _lstm(
                    cnn.output_size,
                    hidden_size,
                    num_layers,
                    dropout,
                    forget_bias,
                )
                for name, cnn in cnns.items()
            }
        )
        self.pooling = MaskedMeanPooling()
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(hidden_size * len(cnns), n_classes)

    def min_frames(self):
        """Frames of each stream that one frame of its LSTM needs.

        Returns
        -------
        dict of str to int
            Frames by stream name.
        """
        return {name: cnn.min_frames(1) for name, cnn in self.cnns.items()}

    def forward(self, streams):
        """Logits of a batch.

        Arguments
        ---------
        streams : dict of str to Sequence
            Holds every stream in ``inputs``, [batch, time, features].

        Returns
        -------
        torch.Tensor, [batch, n_classes]
            Logits.
        """
        means = []
        for name, cnn in self.cnns.items():
            x, counts = cnn(*streams[name])
            x = self.dropout(x)
            means.append(_lstm_mean(self.lstms[name], self.pooling, x, counts))
        return self.head(self.dropout(torch.cat(means, dim=-1)))


class SpectrogramBranch(torch.nn.Module):
    """CNN blocks on both spectrograms, alignment, DS-LSTM, mean, linear layer.

    Arguments
    ---------
    n_classes : int
        Classes K.
    cnn_x : torch.nn.Module, optional
        ``LocalFeatureCNN`` for mel x; the paper's sizes if left out.
    cnn_y : torch.nn.Module, optional
        ``LocalFeatureCNN`` for mel y; the paper's sizes if left out.
    alignment : torch.nn.Module, optional
        Brings both to one length.
    ds_lstm : torch.nn.Module, optional
        ``DSLSTM`` of the CNNs' output sizes; two layers of 200 if left out.
    dropout : float
        Dropout probability on the CNNs' output and before the linear layer.
    inputs : tuple of two str
        Streams that ``cnn_x`` and ``cnn_y`` read. Either may be any module
        with ``output_size`` and ``min_frames`` that maps features and counts
        to features and counts, such as ``SelfSupervisedFrames``.

    Example
    -------
    >>> branch = SpectrogramBranch(n_classes=4)
    >>> x = Sequence(torch.randn(2, 100, 128), torch.tensor([100, 60]))
    >>> y = Sequence(torch.randn(2, 50, 256), torch.tensor([50, 30]))
    >>> branch({"mel_x": x, "mel_y": y}).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        n_classes=4,
        cnn_x=None,
        cnn_y=None,
        alignment=None,
        ds_lstm=None,
        dropout=0.0,
        inputs=("mel_x", "mel_y"),
    ):
        super().__init__()
        self.inputs = tuple(inputs)
        self.cnn_x = cnn_x or LocalFeatureCNN(128, kernel_size=(2, 4))
        self.cnn_y = cnn_y or LocalFeatureCNN(256, kernel_size=(4, 2))
        self.alignment = alignment or AveragePoolAlignment()
        sizes = self.cnn_x.output_size, self.cnn_y.output_size
        self.ds_lstm = ds_lstm or DSLSTM(*sizes, hidden_size=200, num_layers=2)
        expected = self.ds_lstm.input_size_x, self.ds_lstm.input_size_y
        if sizes != expected:
            raise ValueError(
                f"the CNNs give {sizes} features a frame, the DS-LSTM was "
                f"built for {expected}"
            )
        self.pooling = MaskedMeanPooling()
        self.dropout = torch.nn.Dropout(dropout)
        self.head = torch.nn.Linear(self.ds_lstm.output_size, n_classes)

    def min_frames(self):
        """Frames of mel x and mel y that one aligned frame needs.

        Returns
        -------
        dict of str to int
            Frames by stream name.
        """
        frames_x = self.cnn_x.min_frames(self.alignment.min_frames)
        frames_y = self.cnn_y.min_frames(1)
        return dict(zip(self.inputs, (frames_x, frames_y), strict=True))

    def forward(self, streams):
        """Logits of a batch.

        Arguments
        ---------
        streams : dict of str to Sequence
            Holds both of ``inputs``, such as "mel_x", [batch, time, bands].

        Returns
        -------
        torch.Tensor, [batch, n_classes]
            Logits.
        """
        x, counts_x = self.cnn_x(*streams[self.inputs[0]])
        y, counts_y = self.cnn_y(*streams[self.inputs[1]])
        x, y, counts = self.alignment(x, y, counts_x, counts_y)
        out = _recur(self.ds_lstm, self.dropout(x), self.dropout(y), counts)
        return self.head(self.dropout(self.pooling(out, counts)))


class DualLevelClassifier(torch.nn.Module):
    """The dual-level model: waveforms in, log-posteriors of K classes out.

    Every part can be given, so that a YAML decides; what is left out has the
    paper's sizes. Normalisation statistics are part of the state: collect
    them with ``update_normalization`` before training.

    Arguments
    ---------
    n_classes : int
        Classes K.
    streams : dict of str to FeatureStream, optional
        "mfcc", "mel_x" and "mel_y"; 16 kHz and the paper's sizes if left out.
    spectrogram : torch.nn.Module, optional
        ``SpectrogramBranch``.
    mfcc : torch.nn.Module, optional
        ``MFCCBranch``.
    p : float
        Weight of the spectrogram branch; with 0 or 1 only one branch is built.
    resize : tuple of int, optional
        Frames of mel x and mel y that every clip is stretched to, [230, 120]
        in the paper's code; native variable length if left out.
    text : torch.nn.Module, optional
        ``TextBranch``: a third level that reads transcripts.
    text_weight : float
        Weight of the text; the others share the rest as ``p`` says. With 1
        only the text is read.

    Example
    -------
    >>> model = DualLevelClassifier(n_classes=4).eval()
    >>> with torch.no_grad():
    ...     log_posteriors = model(
    ...         torch.randn(2, 16000), torch.tensor([1.0, 0.6])
    ...     )
    >>> log_posteriors.shape
    torch.Size([2, 4])
    >>> torch.allclose(log_posteriors.exp().sum(1), torch.ones(2))
    True
    """

    def __init__(
        self,
        n_classes=4,
        streams=None,
        spectrogram=None,
        mfcc=None,
        p=0.5,
        resize=None,
        text=None,
        text_weight=0.0,
    ):
        super().__init__()
        for name, value in (("p", p), ("text_weight", text_weight)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if text_weight > 0 and text is None:
            raise ValueError(f"text_weight is {text_weight}, but text is None")
        if resize is not None and (len(resize) != 2 or min(resize) < 1):
            raise ValueError(
                f"resize must be the frames of mel x and mel y, got {resize}"
            )
        self.n_classes = n_classes
        self.p = p
        self.text_weight = text_weight
        self.branches = torch.nn.ModuleDict()
        acoustic = text_weight < 1
        if p > 0 and acoustic:
            spectrogram = spectrogram or SpectrogramBranch(n_classes)
            self.branches["spectrogram"] = spectrogram
        if p < 1 and acoustic:
            self.branches["mfcc"] = mfcc or MFCCBranch(n_classes)
        streams = streams or {
            "mfcc": FeatureStream(MFCC39(), 39),
            "mel_x": FeatureStream(LogMelSpectrogram(512), 128),
            "mel_y": FeatureStream(LogMelSpectrogram(1024), 256),
        }
        used = [
            name for branch in self.branches.values() for name in branch.inputs
        ]
        if text_weight > 0:
            self.branches["text"] = text
        self.streams = torch.nn.ModuleDict(
            {name: streams[name] for name in used}
        )
        if resize is not None and p > 0 and acoustic:
            for name, frames in zip(("mel_x", "mel_y"), resize, strict=True):
                self.streams[name].resize = frames
        self.min_samples = self._min_samples()

    def _min_samples(self):
        """Samples of the shortest clip that gives every stage a frame."""
        n = 1
        for branch in self.branches.values():
            for name, frames in getattr(branch, "min_frames", dict)().items():
                stream = self.streams[name]
                if stream.resize is None:
                    while stream.extractor.num_frames(n) < frames:
                        n += 1
        return n

    @property
    def reads_text(self):
        """Whether transcripts are needed beside the waveforms."""
        return "text" in self.branches

    def features(self, wavs, wav_lens=None):
        """Normalised features of every stream.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1]. A clip shorter than ``min_samples`` counts
            as followed by silence.
        wav_lens : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).

        Returns
        -------
        dict of str to Sequence
            Features by stream name.
        """
        return self.normalize(self.extract(wavs, wav_lens))

    def extract(self, wavs, wav_lens=None):
        """Features of every stream as the extractors give them.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1]. A clip shorter than ``min_samples`` counts
            as followed by silence.
        wav_lens : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).

        Returns
        -------
        dict of str to Sequence
            Features by stream name.
        """
        wavs, counts = self._prepare(wavs, wav_lens)
        return {
            name: stream.extract(wavs, counts)
            for name, stream in self.streams.items()
        }

    def normalize(self, extracted, moments=None):
        """Normalise, and stretch where that is wanted, what ``extract`` gave.

        Arguments
        ---------
        extracted : dict of str to Sequence
            Features by stream name; "text" stays as it is.
        moments : dict of str to tuple, optional
            For each stream mean and deviation of each item's speaker, both
            [batch, features]: for the normalisation "speaker".

        Returns
        -------
        dict of str to Sequence
            Features by stream name.
        """
        moments = moments or {}
        found = {
            name: stream.normalize(*extracted[name], moments.get(name))
            for name, stream in self.streams.items()
        }
        if "text" in extracted:
            found["text"] = extracted["text"]
        return found

    def update_normalization(self, wavs, wav_lens=None):
        """Add a batch of training waveforms to the feature statistics.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1].
        wav_lens : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).
        """
        with torch.no_grad():
            self.update_statistics(self.extract(wavs, wav_lens))

    def update_statistics(self, extracted):
        """Add a batch of the training side to the feature statistics.

        Arguments
        ---------
        extracted : dict of str to Sequence
            What ``extract`` gave.
        """
        for name, stream in self.streams.items():
            stream.normalization.update(*extracted[name])

    def _prepare(self, wavs, wav_lens):
        if wavs.dim() != 2 or not wavs.numel():
            raise ValueError(
                f"expected waveforms [batch, samples], got {list(wavs.shape)}"
            )
        batch, samples = wavs.shape
        counts = to_counts(wav_lens, samples, batch, wavs.device)
        if samples < self.min_samples:
            wavs = torch.nn.functional.pad(
                wavs, (0, self.min_samples - samples)
            )
        # What follows a short clip must be silence before it counts as valid
        steps = torch.arange(wavs.shape[1], device=wavs.device)
        wavs = wavs.masked_fill(steps >= counts.unsqueeze(1), 0)
        return wavs, counts.clamp(min=self.min_samples)

    def forward(
        self,
        wavs=None,
        wav_lens=None,
        streams=None,
        return_branches=False,
        text=None,
    ):
        """Log-posteriors of a batch of waveforms, or of their features.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms in [-1, 1].
        wav_lens : torch.Tensor, [batch], optional
            Relative lengths (floats) or sample counts (integers).
        streams : dict of str to Sequence, optional
            Instead of waveforms: normalised features by stream name, as
            ``features`` gives them.
        return_branches : bool
            Also return each branch's logits, which the loss needs.
        text : Sequence, optional
            Token ids [batch, tokens] and counts, where a branch reads them.

        Returns
        -------
        torch.Tensor, [batch, n_classes]
            Log-posteriors; with ``return_branches`` followed by a dict of
            each branch's outputs: logits, [batch, n_classes], and behind them
            further columns where its linear layer has more (dimensions).

        Raises
        ------
        ValueError
            A wrong shape or impossible lengths, or no text where it is read.
        """
        if streams is None:
            streams = self.features(wavs, wav_lens)
        if text is not None:
            streams = {**streams, "text": text}
        if self.reads_text and "text" not in streams:
            raise ValueError(
                "this model reads transcripts: give their tokens as text"
            )
        outputs = {
            name: branch(streams) for name, branch in self.branches.items()
        }
        logits = self.fuse(outputs)[:, : self.n_classes]
        log_posteriors = logits.log_softmax(dim=-1)
        return (log_posteriors, outputs) if return_branches else log_posteriors

    def fuse(self, outputs):
        """Weighted mean of the branches.

        Arguments
        ---------
        outputs : dict of str to torch.Tensor, [batch, outputs]
            What each branch gave.

        Returns
        -------
        torch.Tensor, [batch, outputs]
            Fused logits and, behind them, dimensions.
        """
        weights = self.branch_weights
        return sum(weights[name] * value for name, value in outputs.items())

    @property
    def branch_weights(self):
        """Weight of each branch in the fusion and in the loss."""
        rest = 1 - self.text_weight
        weights = {
            "spectrogram": rest * self.p,
            "mfcc": rest * (1 - self.p),
            "text": self.text_weight,
        }
        return {name: weights[name] for name in self.branches}


def fusion_loss(logits, targets, p=0.5, label_smoothing=0.0, weight=None):
    """Loss of the paper: p * CE(spectrogram) + (1 - p) * CE(MFCC).

    Arguments
    ---------
    logits : dict of str to torch.Tensor, [batch, classes]
        Logits of the branches "spectrogram" and "mfcc", or of one of them.
    targets : torch.Tensor, int64, [batch]
        True classes; or probabilities, [batch, classes], for soft labels.
    p : float or dict of str to float
        Weight of the spectrogram branch, or of each branch by its name.
    label_smoothing : float
        Probability spread evenly over the classes.
    weight : torch.Tensor, [classes], optional
        Weight of each class.

    Returns
    -------
    torch.Tensor, []
        Mean loss of the batch.

    Example
    -------
    >>> logits = {"mfcc": torch.zeros(1, 4), "spectrogram": torch.zeros(1, 4)}
    >>> fusion_loss(logits, torch.tensor([2]))
    tensor(1.3863)
    """
    weights = p if isinstance(p, dict) else {"spectrogram": p, "mfcc": 1 - p}
    return sum(
        weights[name]
        * torch.nn.functional.cross_entropy(
            value, targets, weight=weight, label_smoothing=label_smoothing
        )
        for name, value in logits.items()
    )
