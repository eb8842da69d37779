"""Frames of a pretrained encoder (wav2vec2, HuBERT, WavLM, Whisper) as a stream.

The encoder is SpeechBrain's wrapper, which lets padding change the frames in
three ways. All are avoided here: waveforms are normalised over their valid
samples only; encoders whose first layer normalises over time
(``feat_extract_norm`` "group": the base models) read clips of different length
separately, since no mask reaches that layer; and the spectrogram of Whisper is
floored by each clip's own maximum. Whisper reads windows of 30 s, one after the
other; ``whisper_frames`` reads a clip at its own length, ten times as fast.

Symbols: B batch, S samples, T frames, L layers, D encoder size.
"""

import torch
from torch import Tensor

from speechbrain_dslstm.lengths import length_mask, to_relative, zero_padding
from speechbrain_dslstm.models.streams import FeatureSequence

__all__ = ["SelfSupervisedFrames", "Waveform", "open_encoder"]

WHISPER_WINDOW = 480000  # samples
WHISPER_HOP = 160  # samples of a frame of the spectrogram; two make a frame


class Waveform(torch.nn.Module):
    """Waveform as a feature of one value per sample, for ``FeatureStream``.

    Example
    -------
    >>> Waveform()(torch.zeros(2, 16000)).shape
    torch.Size([2, 16000, 1])
    """

    def get_config(self) -> dict[str, int]:
        """Constructor arguments, of which there are none."""
        return {}

    def num_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames of ``n`` samples: the same number."""
        return n

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Add a feature axis: [batch, samples] -> [batch, samples, 1]."""
        return wavs.unsqueeze(-1)


class SelfSupervisedFrames(torch.nn.Module):
    """Weighted sum over the layers of an encoder, the same in any padded batch.

    It replaces a ``LocalFeatureCNN`` in ``SpectrogramBranch``.

    Arguments
    ---------
    encoder
        ``Wav2Vec2``, ``HuBERT``, ``WavLM`` or ``Whisper`` of
        ``speechbrain.integrations.huggingface``, built with
        ``output_all_hiddens=True``; see ``open_encoder``. Its ``freeze``
        decides whether it is trained.
    layer
        Use the frames of this layer alone; 0 is the input of the first. None:
        a trained weighted sum over all layers.
    gradient_checkpointing
        Compute the layers again in the backward pass instead of storing them:
        less memory, more time. No effect on a frozen encoder.

    Raises
    ------
    ValueError
        The encoder returns its last layer only, or has no such layer.

    Example
    -------
    >>> from types import SimpleNamespace
    >>> class Encoder(torch.nn.Module):
    ...     freeze, normalize_wav, output_all_hiddens = True, False, True
    ...     config = SimpleNamespace(conv_kernel=[4], conv_stride=[2])
    ...     config.hidden_size = config.num_hidden_layers = 1
    ...     config.feat_extract_norm = "layer"
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

    def __init__(
        self,
        encoder: torch.nn.Module,
        layer: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not encoder.output_all_hiddens:
            raise ValueError("build the encoder with output_all_hiddens=True")
        # Not encoder.config: the model reads its own copy
        config = encoder.model.config
        layers = config.num_hidden_layers + 1
        if layer is not None and not 0 <= layer < layers:
            raise ValueError(f"layer must be in 0..{layers - 1}, got {layer}")
        self.encoder = encoder
        self.layer = layer
        self.output_size = config.hidden_size
        self.is_whisper = getattr(config, "model_type", "") == "whisper"
        if self.is_whisper:
            self.convolutions, self.normalize_wav = [], False
            self.one_length_at_a_time = False
            encoder.model.encoder.layerdrop = 0.0
        else:
            sizes = zip(config.conv_kernel, config.conv_stride, strict=True)
            self.convolutions = list(sizes)
            self.one_length_at_a_time = config.feat_extract_norm == "group"
            # Done here, because the wrapper's normalisation reads padding
            self.normalize_wav = encoder.normalize_wav
            encoder.normalize_wav = False
        # A layer dropped in training would be missing from the sum
        config.layerdrop = 0.0
        if layer is None:
            self.layer_weights = torch.nn.Parameter(torch.zeros(layers))
        if gradient_checkpointing and not encoder.freeze:
            options = {"use_reentrant": False}
            encoder.model.gradient_checkpointing_enable(options)

    def train(self, mode: bool = True) -> "SelfSupervisedFrames":
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.encoder.freeze:
            self.encoder.eval()
        return self

    def num_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames of ``n`` samples, never below 0."""
        if self.is_whisper:
            return (n // WHISPER_HOP + 1) // 2
        for kernel, stride in self.convolutions:
            n = (n - kernel) // stride + 1
        return n.clamp(min=0) if isinstance(n, Tensor) else max(0, n)

    def min_frames(self, frames: int) -> int:
        """Samples that ``frames`` frames need."""
        if self.is_whisper:
            return WHISPER_HOP * (2 * frames - 1)
        for kernel, stride in reversed(self.convolutions):
            frames = (frames - 1) * stride + kernel
        return frames

    def forward(self, wavs: Tensor, counts: Tensor) -> FeatureSequence:
        """Waveforms [batch, samples, 1] -> frames [batch, time, output_size].

        ``counts``, [batch], are the valid samples.
        """
        wavs = self._normalize(wavs.squeeze(-1), counts)
        frames = self.num_frames(counts)
        if not self.one_length_at_a_time:
            hidden = self._mix(wavs[:, : int(counts.max())], counts)
        else:
            size = len(wavs), int(frames.max()), self.output_size
            hidden = wavs.new_zeros(size)
            for n in counts.unique().tolist():
                rows = (counts == n).nonzero().squeeze(1)
                found = self._mix(wavs[rows, :n], counts[rows])
                missing = hidden.shape[1] - found.shape[1]
                found = torch.nn.functional.pad(found, (0, 0, 0, missing))
                hidden = hidden.index_copy(0, rows, found.to(hidden))
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
        """Reduce the encoder's layers [L, B, T, D] to one sequence [B, T, D]."""
        if self.is_whisper:
            layers = self._whisper_layers(wavs, counts)
        else:
            layers = self.encoder(wavs, to_relative(counts, wavs.shape[1]))
        if self.layer is not None:
            return layers[self.layer]
        weights = self.layer_weights.softmax(0).to(layers)
        return torch.einsum("l,lbtd->btd", weights, layers)

    def _whisper_layers(self, wavs, counts):
        """Layers [L, B, T, D] of windows of 30 s, the last padded with silence."""
        training = torch.is_grad_enabled() and not self.encoder.freeze
        found = []
        with torch.set_grad_enabled(training):
            for window in wavs.split(WHISPER_WINDOW, dim=1):
                # The wrapper floors a batch by the maximum of all its clips
                mel = [
                    self.encoder._get_mel(wav.unsqueeze(0)) for wav in window
                ]
                mel = torch.cat(mel).to(self.encoder.model.dtype)
                layers = self.encoder.forward_encoder(mel)
                found.append(layers[:, :, : self.num_frames(window.shape[1])])
        return torch.cat(found, dim=2)


def open_encoder(
    source: str, save_path: str, freeze: bool = True
) -> torch.nn.Module:
    """Open SpeechBrain's wrapper of an encoder for ``SelfSupervisedFrames``.

    Arguments
    ---------
    source
        A hub id or a local folder of a wav2vec2, HuBERT, WavLM or Whisper.
    save_path
        Folder for files from the hub.
    freeze
        False: the encoder is trained, too.

    Raises
    ------
    OSError
        There is no such model.

    Example
    -------
    >>> open_encoder("no/such folder", "")
    Traceback (most recent call last):
    OSError: ...
    """
    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(source, cache_dir=save_path).model_type
    options = {"freeze": freeze, "output_all_hiddens": True}
    if kind == "whisper":
        from speechbrain.integrations.huggingface.whisper import Whisper

        return Whisper(source, save_path, encoder_only=True, **options)
    from speechbrain.integrations.huggingface.wav2vec2 import Wav2Vec2

    return Wav2Vec2(source, save_path, freeze_feature_extractor=True, **options)
