"""From waveforms to log-posteriors: composition of the other modules only.

Source of the dual-level model: arXiv:1910.08874. A standard LSTM reads the
MFCCs, a DS-LSTM reads the local features of two mel-spectrograms, and the
logits are averaged::

    logits = p * spectrogram logits + (1 - p) * MFCC logits

Symbols: B batch, S samples, T frames, H hidden units, K classes, p weight.
"""

import torch

from speechbrain_dslstm.features.mel import LogMelSpectrogram
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.models.branches import MFCCBranch, SpectrogramBranch
from speechbrain_dslstm.models.streams import FeatureStream

__all__ = ["DualLevelClassifier"]


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

    def get_config(self) -> dict:
        """Constructor arguments that build the same model; not the text's weight."""
        branches = dict(self.branches)
        return {
            "n_classes": self.n_classes,
            "streams": dict(self.streams),
            "spectrogram": branches.get("spectrogram"),
            "mfcc": branches.get("mfcc"),
            "p": self.p,
            "text": branches.get("text"),
        }

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
        dict of str to FeatureSequence
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
        dict of str to FeatureSequence
            Features by stream name.
        """
        wavs, counts = self._prepare(wavs, wav_lens)
        return {
            name: stream.extract(wavs, counts)
            for name, stream in self.streams.items()
        }

    def normalize(self, extracted, speakers=None):
        """Normalise, and stretch where that is wanted, what ``extract`` gave.

        Arguments
        ---------
        extracted : dict of str to FeatureSequence
            Features by stream name; "text" stays as it is.
        speakers : list of str, optional
            Speaker of each item, for the normalisation "speaker".

        Returns
        -------
        dict of str to FeatureSequence
            Features by stream name.
        """
        found = {
            name: stream.normalize(*extracted[name], speakers)
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

    def update_statistics(self, extracted, speakers=None):
        """Add a batch to the feature statistics.

        Arguments
        ---------
        extracted : dict of str to FeatureSequence
            What ``extract`` gave.
        speakers : list of str, optional
            Speaker of each item, for the normalisation "speaker".
        """
        for name, stream in self.streams.items():
            stream.normalization.update(*extracted[name], speakers)

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
        streams : dict of str to FeatureSequence, optional
            Instead of waveforms: normalised features by stream name, as
            ``features`` gives them.
        return_branches : bool
            Also return each branch's logits, which the loss needs.
        text : FeatureSequence, optional
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
