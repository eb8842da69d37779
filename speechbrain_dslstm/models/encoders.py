"""Frames of a self-supervised encoder (wav2vec2, HuBERT, WavLM) as a stream.

The encoder itself is SpeechBrain's wrapper of it. Two things it leaves to the
caller are done here: the waveforms are normalised over their valid samples,
not over the padding, and encoders whose first layer normalises over time
(``feat_extract_norm`` "group": the base models) read clips of equal length
together, since no mask reaches that layer. So padding changes no frame.

Symbols: B batch, S samples, T frames, L layers, D encoder size.
"""

import torch

from speechbrain_dslstm.lengths import length_mask, to_relative, zero_padding
from speechbrain_dslstm.models.streams import FeatureSequence

__all__ = ["SelfSupervisedFrames", "Waveform"]


class Waveform(torch.nn.Module):
    """The waveform as a feature of one value a sample, for ``FeatureStream``.

    Example
    -------
    >>> Waveform()(torch.zeros(2, 16000)).shape
    torch.Size([2, 16000, 1])
    """

    def get_config(self) -> dict:
        """Constructor arguments: there are none."""
        return {}

    def num_frames(self, n):
        """Frames of ``n`` samples.

        Arguments
        ---------
        n : int or torch.Tensor
            Samples.

        Returns
        -------
        int or torch.Tensor
            The same number.
        """
        return n

    def forward(self, wavs, wav_lens=None):
        """Add a feature axis.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples]
            Waveforms.
        wav_lens : torch.Tensor, optional
            Not used.

        Returns
        -------
        torch.Tensor, [batch, samples, 1]
            The same values.
        """
        return wavs.unsqueeze(-1)


class SelfSupervisedFrames(torch.nn.Module):
    """Weighted sum over the layers of an encoder, padding-free.

    Takes the place of a ``LocalFeatureCNN`` in ``SpectrogramBranch``.

    Arguments
    ---------
    encoder : torch.nn.Module
        One of ``speechbrain.integrations.huggingface``: ``Wav2Vec2``,
        ``HuBERT`` or ``WavLM``, built with ``output_all_hiddens=True``. Its
        ``freeze`` decides whether it is trained.
    layer : int, optional
        Take this layer's frames alone; 0 is the input of the first. None: a
        trained weighted sum over all layers.
    gradient_checkpointing : bool
        Compute the layers again on the way back instead of keeping them:
        less memory, more time. Only where the encoder is trained.

    Raises
    ------
    ValueError
        An encoder that returns its last layer only, or no such layer.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> class Encoder(torch.nn.Module):
    ...     freeze, normalize_wav, output_all_hiddens = True, False, True
    ...     config = SimpleNamespace(
    ...         conv_kernel=[4],
    ...         conv_stride=[2],
    ...         hidden_size=1,
    ...         num_hidden_layers=1,
    ...         feat_extract_norm="layer",
    ...     )
    ...     model = SimpleNamespace(config=config)
    ...
    ...     def forward(self, wavs, wav_lens):
    ...         frames = wavs.unfold(1, 4, 2).mean(2, keepdim=True)
    ...         return torch.stack([frames, 3 * frames])
    >>> frames = SelfSupervisedFrames(Encoder())
    >>> feats, counts = frames(torch.ones(2, 10, 1), torch.tensor([10, 5]))
    >>> feats[..., 0].detach(), counts
    (tensor([[2., 2., 2., 2.],
            [2., 0., 0., 0.]]), tensor([4, 1]))
    """

    def __init__(self, encoder, layer=None, gradient_checkpointing=False):
        super().__init__()
        if not encoder.output_all_hiddens:
            raise ValueError("build the encoder with output_all_hiddens=True")
        # Not encoder.config, of which the model has a copy
        config = encoder.model.config
        layers = config.num_hidden_layers + 1
        if layer is not None and not 0 <= layer < layers:
            raise ValueError(f"layer must be in 0..{layers - 1}, got {layer}")
        self.encoder = encoder
        self.layer = layer
        self.convolutions = list(
            zip(config.conv_kernel, config.conv_stride, strict=True)
        )
        self.output_size = config.hidden_size
        self.alone = config.feat_extract_norm == "group"
        # The wrapper's own normalisation reads padding
        self.normalize_wav = encoder.normalize_wav
        encoder.normalize_wav = False
        # A layer that training leaves out would be missing from the sum
        config.layerdrop = 0.0
        if layer is None:
            self.layer_weights = torch.nn.Parameter(torch.zeros(layers))
        if gradient_checkpointing and not encoder.freeze:
            encoder.model.gradient_checkpointing_enable(
                {"use_reentrant": False}
            )

    def train(self, mode=True):
        """Set the mode; a frozen encoder stays in evaluation.

        Arguments
        ---------
        mode : bool
            Training or evaluation.

        Returns
        -------
        SelfSupervisedFrames
            Itself.
        """
        super().train(mode)
        if self.encoder.freeze:
            self.encoder.eval()
        return self

    def num_frames(self, n):
        """Frames of ``n`` samples.

        Arguments
        ---------
        n : int or torch.Tensor
            Samples.

        Returns
        -------
        int or torch.Tensor
            Frames, never below 0.
        """
        for kernel, stride in self.convolutions:
            n = (n - kernel) // stride + 1
        return n.clamp(min=0) if isinstance(n, torch.Tensor) else max(0, n)

    def min_frames(self, frames):
        """Smallest number of samples that gives so many frames.

        Arguments
        ---------
        frames : int
            Frames wanted.

        Returns
        -------
        int
            Samples.
        """
        for kernel, stride in reversed(self.convolutions):
            frames = (frames - 1) * stride + kernel
        return frames

    def forward(self, wavs, counts):
        """Frames of a batch.

        Arguments
        ---------
        wavs : torch.Tensor, [batch, samples, 1]
            Waveforms in [-1, 1], as ``Waveform`` gives them.
        counts : torch.Tensor, int64, [batch]
            Valid samples.

        Returns
        -------
        FeatureSequence
            Frames [batch, time, output_size] and their counts.
        """
        wavs = self._normalize(wavs.squeeze(-1), counts)
        frames = self.num_frames(counts)
        if not self.alone:
            hidden = self._mix(wavs[:, : int(counts.max())], counts)
        else:
            hidden = wavs.new_zeros(
                len(wavs), int(frames.max()), self.output_size
            )
            for n in counts.unique().tolist():
                rows = (counts == n).nonzero().squeeze(1)
                found = self._mix(wavs[rows, :n], counts[rows])
                padded = torch.nn.functional.pad(
                    found, (0, 0, 0, hidden.shape[1] - found.shape[1])
                )
                hidden = hidden.index_copy(0, rows, padded.to(hidden))
        return FeatureSequence(zero_padding(hidden, frames), frames)

    def _normalize(self, wavs, counts):
        """Zero mean and unit variance of each item's valid samples."""
        wavs = zero_padding(wavs, counts)
        if not self.normalize_wav:
            return wavs
        n = counts.unsqueeze(1)
        mean = wavs.sum(1, keepdim=True) / n
        centred = (wavs - mean) * length_mask(counts, wavs.shape[1])
        variance = centred.square().sum(1, keepdim=True) / n
        return centred / (variance + 1e-7).sqrt()

    def _mix(self, wavs, counts):
        """Layers of the encoder [L, B, T, D] -> one sequence [B, T, D]."""
        layers = self.encoder(wavs, to_relative(counts, wavs.shape[1]))
        if self.layer is not None:
            return layers[self.layer]
        weights = self.layer_weights.softmax(0).to(layers)
        return torch.einsum("l,lbtd->btd", weights, layers)
