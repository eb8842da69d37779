"""The dual-level model: waveforms in, log-posteriors of emotion classes out.

Source: arXiv:1910.08874. A standard LSTM reads the MFCCs, a DS-LSTM reads the
local features of two mel-spectrograms, and their logits are averaged::

    logits = p * spectrogram logits + (1 - p) * MFCC logits

Symbols: B batch, S samples, T frames, H hidden units, K classes, p weight.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from speechbrain_dslstm.features.active_speech import ActiveSpeech
from speechbrain_dslstm.features.mel import LogMelSpectrogram
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.lengths import to_counts, zero_padding
from speechbrain_dslstm.models.branches import MFCCBranch, SpectrogramBranch
from speechbrain_dslstm.models.streams import (
    FeatureSequence,
    FeatureStream,
    Streams,
)

__all__ = ["DualLevelClassifier"]


class DualLevelClassifier(torch.nn.Module):
    """The dual-level model: waveforms in, log-posteriors of K classes out.

    Every part can be given, as from a YAML; parts left out have the paper's
    sizes. Normalisation statistics are part of the state: collect them with
    ``update_normalization`` before training.

    Arguments
    ---------
    n_classes
        Classes K.
    streams
        "mfcc", "mel_x" and "mel_y"; 16 kHz and the paper's sizes if left out.
    spectrogram
        ``SpectrogramBranch`` or ``CNNLSTMBranch``.
    mfcc
        ``MFCCBranch``.
    p
        Weight of the spectrogram branch; with 0 or 1 only one branch is built.
    resize
        Frames of mel x and mel y to which every clip is stretched, [230, 120]
        in the paper's code; native variable length if left out.
    text
        ``TextBranch``: a third level that reads transcripts.
    text_weight
        Weight of the text branch; the others share the rest by ``p``. With 1
        the model has only the text branch.
    dimensions
        Names of the values that each branch predicts after the logits, such as
        ["valence", "arousal", "dominance"].
    active_speech
        ``ActiveSpeech``, which cuts waveforms to their active part before any
        feature is computed; None: the features read pauses and silence, too.

    Raises
    ------
    ValueError
        A weight is outside [0, 1], text has a weight but no branch,
        ``resize`` is not two positive numbers, or a branch has another number
        of outputs than classes and dimensions.

    Example
    -------
    >>> model = DualLevelClassifier(n_classes=4).eval()
    >>> model(torch.randn(2, 16000), torch.tensor([1.0, 0.6])).shape
    torch.Size([2, 4])
    """

    def __init__(
        self,
        n_classes: int = 4,
        streams: Mapping[str, FeatureStream] | None = None,
        spectrogram: torch.nn.Module | None = None,
        mfcc: torch.nn.Module | None = None,
        p: float = 0.5,
        resize: Sequence[int] | None = None,
        text: torch.nn.Module | None = None,
        text_weight: float = 0.0,
        dimensions: Sequence[str] = (),
        active_speech: ActiveSpeech | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("p", p), ("text_weight", text_weight)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        if text_weight > 0 and text is None:
            raise ValueError(
                f"text_weight is {text_weight}, but there is no text branch"
            )
        if resize is not None and (len(resize) != 2 or min(resize) < 1):
            raise ValueError(
                "resize must be two positive numbers, the frames of mel x and "
                f"mel y, got {resize}"
            )
        self.n_classes = n_classes
        self.p = p
        self.text_weight = text_weight
        self.dimensions = list(dimensions)
        n_outputs = n_classes + len(self.dimensions)
        self.active_speech = active_speech
        self.branches = torch.nn.ModuleDict()
        acoustic = text_weight < 1
        if p > 0 and acoustic:
            spectrogram = spectrogram or SpectrogramBranch(n_outputs)
            self.branches["spectrogram"] = spectrogram
        if p < 1 and acoustic:
            self.branches["mfcc"] = mfcc or MFCCBranch(n_outputs)
        streams = streams or {
            "mfcc": FeatureStream(MFCC39(), 39),
            "mel_x": FeatureStream(LogMelSpectrogram(512), 128),
            "mel_y": FeatureStream(LogMelSpectrogram(1024), 256),
        }
        self.streams = torch.nn.ModuleDict()
        for branch in self.branches.values():
            self.streams.update({name: streams[name] for name in branch.inputs})
        if text_weight > 0:
            self.branches["text"] = text
        if resize is not None and p > 0 and acoustic:
            for name, frames in zip(("mel_x", "mel_y"), resize, strict=True):
                self.streams[name].resize = frames
        if self.dimensions:
            self._check_outputs(n_outputs)
        self.min_samples = self._min_samples()

    def _check_outputs(self, expected):
        """Refuse names of dimensions that the branches do not predict."""
        if len(set(self.dimensions)) < len(self.dimensions):
            raise ValueError(f"a dimension twice in {self.dimensions}")
        for name, branch in self.branches.items():
            found = getattr(branch, "level", branch).head.out_features
            if found != expected:
                raise ValueError(
                    f'the branch "{name}" has {found} outputs; '
                    f"expected {expected}, for {self.n_classes} classes and "
                    f"the dimensions {', '.join(self.dimensions)}"
                )

    def get_config(self) -> dict[str, object]:
        """Constructor arguments that build the same model, if it reads no text."""
        branches = dict(self.branches)
        return {
            "n_classes": self.n_classes,
            "streams": dict(self.streams),
            "spectrogram": branches.get("spectrogram"),
            "mfcc": branches.get("mfcc"),
            "p": self.p,
            "text": branches.get("text"),
            "dimensions": self.dimensions,
            "active_speech": self.active_speech,
        }

    def _min_samples(self):
        """Samples of the shortest clip that gives every layer at least one frame."""
        n = 1
        for branch in self.branches.values():
            for name, frames in getattr(branch, "min_frames", dict)().items():
                stream = self.streams[name]
                if stream.resize is None:
                    while stream.extractor.num_frames(n) < frames:
                        n += 1
        return n

    @property
    def reads_text(self) -> bool:
        """Whether the model reads transcripts beside the waveforms."""
        return "text" in self.branches

    def features(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Streams:
        """Normalised features of every stream; arguments as in ``forward``."""
        return self.normalize(self.extract(wavs, wav_lens))

    def extract(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Streams:
        """Raw features of every stream, by name.

        Arguments as in ``forward``. With ``active_speech`` only the active part
        counts; one shorter than ``min_samples`` is padded with silence.
        """
        wavs, counts = self._prepare(wavs, wav_lens)
        return {
            name: stream.extract(wavs, counts)
            for name, stream in self.streams.items()
        }

    def normalize(
        self, extracted: Streams, speakers: list[str] | None = None
    ) -> Streams:
        """Normalise and, with ``resize``, stretch the features of ``extract``.

        A stream "text" stays as it is. ``speakers`` names each item's speaker,
        for the normalization "speaker".
        """
        found = {
            name: stream.normalize(*extracted[name], speakers)
            for name, stream in self.streams.items()
        }
        if "text" in extracted:
            found["text"] = extracted["text"]
        return found

    def update_normalization(
        self, wavs: Tensor, wav_lens: Tensor | None = None
    ) -> None:
        """Add training waveforms to the feature statistics; see ``extract``."""
        with torch.no_grad():
            self.update_statistics(self.extract(wavs, wav_lens))

    def update_statistics(
        self, extracted: Streams, speakers: list[str] | None = None
    ) -> None:
        """Add the features of ``extract`` to the statistics; see ``normalize``."""
        for name, stream in self.streams.items():
            stream.update_statistics(*extracted[name], speakers)

    def _prepare(self, wavs, wav_lens):
        if wavs.dim() != 2 or not wavs.numel():
            raise ValueError(
                f"expected waveforms [batch, samples], got {list(wavs.shape)}"
            )
        counts = to_counts(wav_lens, wavs.shape[1], len(wavs), wavs.device)
        if self.active_speech is not None:
            wavs, counts = self.active_speech(wavs, counts)
        missing = self.min_samples - wavs.shape[1]
        if missing > 0:
            wavs = torch.nn.functional.pad(wavs, (0, missing))
        # Samples after a short clip become valid, so they must be silence
        return zero_padding(wavs, counts), counts.clamp(min=self.min_samples)

    def forward(
        self,
        wavs: Tensor | None = None,
        wav_lens: Tensor | None = None,
        streams: Streams | None = None,
        return_branches: bool = False,
        text: FeatureSequence | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Log-posteriors [batch, n_classes] of waveforms, or of their features.

        Arguments
        ---------
        wavs : [batch, samples]
            Waveforms in [-1, 1].
        wav_lens : [batch]
            Relative lengths (floats) or sample counts (integers).
        streams
            Normalised features from ``features``, instead of waveforms.
        return_branches
            Also return a dict with each branch's outputs, which the loss reads:
            logits, [batch, n_classes], then a column for each dimension that
            its linear layer predicts.
        text
            Token ids [batch, tokens] and counts, if a branch reads text.
        """
        if streams is None:
            streams = self.features(wavs, wav_lens)
        if text is not None:
            streams = {**streams, "text": text}
        if self.reads_text and "text" not in streams:
            raise ValueError(
                "this model reads transcripts: pass their tokens as text"
            )
        for name, stream in self.streams.items():
            if stream.is_trained:
                refined = stream.refine(*streams[name])
                streams = {**streams, name: refined}
        outputs = {
            name: branch(streams) for name, branch in self.branches.items()
        }
        log_posteriors = self.log_posteriors(outputs)
        return (log_posteriors, outputs) if return_branches else log_posteriors

    def fuse(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of the branches' outputs: logits and dimensions."""
        weights = self.branch_weights
        return sum(weights[name] * value for name, value in outputs.items())

    def log_posteriors(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Log-posteriors [batch, n_classes] of the branches' outputs."""
        logits = self.fuse(outputs)
        # An exported graph would keep a slice that changes nothing
        if logits.shape[1] > self.n_classes:
            logits = logits[:, : self.n_classes]
        return logits.log_softmax(dim=-1)

    def dimension_values(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Values [batch, dimensions] in the order of ``dimensions``.

        They are on the scale of the training, where -1 stands for the rating 1
        and 1 for the rating 5.
        """
        end = self.n_classes + len(self.dimensions)
        return self.fuse(outputs)[:, self.n_classes : end]

    def predict(
        self, wavs: Tensor, wav_lens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-posteriors [batch, n_classes], and values [batch, dimensions].

        Arguments as in ``forward``.
        """
        found, outputs = self(wavs, wav_lens, return_branches=True)
        return found, self.dimension_values(outputs)

    @property
    def branch_weights(self) -> dict[str, float]:
        """Weight of each branch in the fusion and in the loss."""
        rest = 1 - self.text_weight
        weights = {
            "spectrogram": rest * self.p,
            "mfcc": rest * (1 - self.p),
            "text": self.text_weight,
        }
        return {name: weights[name] for name in self.branches}
