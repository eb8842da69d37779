"""Frames of a Whisper encoder as features of a classifier.

``WhisperFrames`` maps waveforms to the outputs of chosen layers. Its frozen part
is an extractor, whose result a feature cache can keep; its trained part,
``refine``, runs in every step. ``EncoderLayers`` then picks one layer, or learns
a weighted sum of them.

Symbols: B batch, T frames, L layers, D encoder size.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from speechbrain_dslstm.features.whisper_mel import WhisperMel
from speechbrain_dslstm.lengths import to_counts
from speechbrain_dslstm.models.whisper import WhisperEncoder
from speechbrain_dslstm.models.whisper_weights import (
    load_whisper,
    whisper_sizes,
)

__all__ = ["EncoderLayers", "WhisperFrames"]


class WhisperFrames(torch.nn.Module):
    """Outputs of layers of a Whisper encoder, an extractor for ``FeatureStream``.

    Waveforms of 16 kHz become 50 frames per second, averaged by ``pool``; a
    frame holds the outputs of all ``layers``. Frames do not depend on the batch.

    Arguments
    ---------
    layers
        Numbers of the layers, from 1; those after the last are not built.
    sizes
        Sizes of the encoder, see ``WhisperEncoder``; those of the source, or of
        tiny.en, if left out.
    source
        The weights: a folder of transformers with ``config.json`` and
        ``model.safetensors``, a model folder of this package that holds an
        encoder, or a hub id such as "openai/whisper-tiny.en". None: random
        weights, for a model whose weights are loaded afterwards.
    trained_layers
        Number of the last built layers that are trained with the model. 0: the
        encoder is frozen; as many as are built: all of it is trained, the
        convolutions included.
    pool
        Frames that are averaged to one; 2 gives 25 per second.
    level
        See ``WhisperMel``: each clip's maximum, whatever its gain; None: as
        recorded.

    Raises
    ------
    ValueError
        There is no such layer, the layers are not in ascending order, the
        source is not a Whisper, or its weights have other sizes.
    FileNotFoundError
        There is no such folder, no such model on the hub, or no network.

    Example
    -------
    >>> frames = WhisperFrames(layers=[1, 2])
    >>> frames(torch.randn(2, 16000), torch.tensor([1.0, 0.5])).shape
    torch.Size([2, 25, 768])
    >>> frames.num_frames(16000), frames.output_size
    (25, 768)
    """

    sample_rate = 16000
    # Half the size on disk
    cache_dtype = torch.float16

    def __init__(
        self,
        layers: Sequence[int] = (1, 2, 3),
        sizes: Mapping[str, int] | None = None,
        source: str | Path | None = None,
        trained_layers: int = 0,
        pool: int = 2,
        level: float | None = None,
    ) -> None:
        super().__init__()
        layers = list(layers)
        if not layers or layers != sorted(set(layers)) or layers[0] < 1:
            raise ValueError(
                "layers must be ascending numbers from 1, such as [2, 3], got "
                f"{layers}"
            )
        if pool < 1:
            raise ValueError(f"pool must be at least 1, got {pool}")
        if not 0 <= trained_layers <= layers[-1]:
            raise ValueError(
                f"trained_layers must be in 0..{layers[-1]}, the layers that "
                f"are built, got {trained_layers}"
            )
        self.layers, self.pool, self.source = layers, pool, source
        self.trained_layers = trained_layers
        if sizes is None and source is not None:
            sizes = whisper_sizes(source)
        self.encoder = WhisperEncoder(sizes, layers[-1])
        # Its tables are read when it is built, which meta has no values for
        with torch.device("cpu"):
            self.mel = WhisperMel(self.encoder.sizes["n_mels"], level)
        self.size = self.encoder.sizes["size"]
        self.output_size = len(layers) * self.size
        self.frozen_layers = layers[-1] - trained_layers
        # Outputs of frozen layers that ``refine`` reads
        below = [k for k in layers if k <= self.frozen_layers]
        self.kept = sorted({*below, self.frozen_layers} - {0})
        if source is not None:
            load_whisper(self.encoder, source)
        frozen = [self.encoder.embed_positions]
        if self.frozen_layers:
            frozen += [self.encoder.conv1, self.encoder.conv2]
            frozen += self.encoder.layers[: self.frozen_layers]
        if not trained_layers:
            frozen = [self.encoder]
        for module in frozen:
            module.requires_grad_(False)

    @property
    def stride(self) -> int:
        """Samples from one frame to the next."""
        return self.mel.hop_length * 2 * self.pool

    @property
    def window(self) -> int:
        """Samples of the longest clip that is read as a whole: 30 s."""
        return self.mel.hop_length * 2 * self.encoder.max_frames

    def get_config(self) -> dict[str, object]:
        """Constructor arguments that build the same module, and a hash.

        "weights" identifies the weights of the frozen layers, for the cache.
        """
        digest = hashlib.sha256()
        for name, value in self.encoder.state_dict().items():
            number = name.split(".")[1] if name.startswith("layers.") else -1
            if int(number) < self.frozen_layers:
                digest.update(value.detach().cpu().float().numpy().tobytes())
        return {
            "layers": self.layers,
            "sizes": self.encoder.sizes,
            "trained_layers": self.trained_layers,
            "pool": self.pool,
            "level": self.mel.level,
            "weights": digest.hexdigest(),
        }

    def num_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames that ``forward`` makes of ``n`` samples, at least 1."""
        self.mel.num_frames(n)  # refuses an empty clip
        return self.count_frames(n)

    def count_frames(self, n: int | Tensor) -> int | Tensor:
        """Frames that ``forward`` makes, unchecked, so that it can be traced."""
        n = self.mel.count_frames(n)
        if self.frozen_layers:
            n = self.encoder.num_frames(n)
        return n if self.trained_layers else self._pooled(n)

    def _pooled(self, n):
        return (n + self.pool - 1) // self.pool

    def forward(self, wavs: Tensor, wav_lens: Tensor | None = None) -> Tensor:
        """Compute the frozen part for waveforms [batch, samples].

        Without trained layers these are the frames, [batch, time, output_size].
        Otherwise they are what ``refine`` reads: outputs of frozen layers, or
        the log-mel spectrogram. ``wav_lens``, [batch], are relative lengths
        (floats) or sample counts (integers).
        """
        mel = self.mel(wavs, wav_lens)
        batch, samples = wavs.shape
        counts = to_counts(wav_lens, samples, batch, wavs.device)
        return self.of_mel(mel, self.mel.count_frames(counts))

    def of_mel(self, mel: Tensor, counts: Tensor) -> Tensor:
        """Compute the frozen part for a log-mel spectrogram, as ``forward``."""
        if not self.frozen_layers:
            return mel
        with torch.no_grad():
            hidden, counts = self.encoder.embed(mel, counts)
            found = self.encoder.run(hidden, counts, 0, self.frozen_layers)
        feats = torch.cat([found[k - 1] for k in self.kept], dim=2)
        return feats if self.trained_layers else self._pool(feats, counts)

    def refine(self, feats: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Run the trained layers on the result of ``forward``.

        Returns the frames, [batch, time, output_size], and their valid numbers.
        """
        if not self.trained_layers:
            return feats, counts
        found = {}
        hidden = feats
        if self.frozen_layers:
            parts = feats.to(self.encoder.conv1.weight.dtype)
            found = dict(zip(self.kept, parts.split(self.size, 2), strict=True))
            hidden = found[self.frozen_layers]
        else:
            hidden, counts = self.encoder.embed(feats, counts)
        outputs = self.encoder.run(hidden, counts, self.frozen_layers)
        found |= dict(enumerate(outputs, self.frozen_layers + 1))
        feats = torch.cat([found[k] for k in self.layers], dim=2)
        return self._pool(feats, counts), self._pooled(counts)

    def _pool(self, x, counts):
        """Average ``pool`` frames to one, the last over the frames it has."""
        if self.pool == 1:
            return x
        time = self._pooled(x.shape[1])
        x = torch.nn.functional.pad(x, (0, 0, 0, self.pool - 1))
        last = self.pool * (time - 1) + 1
        total = sum(x[:, k : k + last : self.pool] for k in range(self.pool))
        steps = self.pool * torch.arange(time, device=x.device)
        held = (counts.unsqueeze(1) - steps).clamp(1, self.pool)
        return total / held.unsqueeze(2).to(total)


class EncoderLayers(torch.nn.Module):
    """Pick one of an encoder's layers, or learn a weighted sum of them.

    It takes the place of a ``LocalFeatureCNN`` in a branch that reads a stream
    of ``WhisperFrames``.

    Arguments
    ---------
    layers
        Numbers of the layers that each frame holds.
    size
        Size of one layer's output.
    layer
        The layer to pick; "all": every layer, one after the other. None: a sum
        with trained weights, equal at first.
    output_size
        Size of a trained linear map of the result; no map if left out.

    Raises
    ------
    ValueError
        The frames do not hold that layer.

    Example
    -------
    >>> mix = EncoderLayers(layers=[2, 3], size=1)
    >>> frames = torch.tensor([[[1.0, 5.0]]])
    >>> mix(frames, torch.tensor([1]))[0].item()
    3.0
    >>> EncoderLayers([2, 3], 1, layer=3)(frames, torch.tensor([1]))[0].item()
    5.0
    """

    def __init__(
        self,
        layers: Sequence[int],
        size: int,
        layer: int | str | None = None,
        output_size: int | None = None,
    ) -> None:
        super().__init__()
        self.layers, self.size, self.layer = list(layers), size, layer
        self.input_size = size * len(self.layers)
        if layer == "all":
            size = self.input_size
        self.output_size = output_size or size
        self.map = torch.nn.Identity()
        if output_size is not None:
            self.map = torch.nn.Linear(size, output_size)
        if layer is None:
            self.weights = torch.nn.Parameter(torch.zeros(len(self.layers)))
        elif layer != "all" and layer not in self.layers:
            raise ValueError(
                f"layer must be one of {self.layers}, the layers that the "
                f"frames hold, got {layer}"
            )

    def get_config(self) -> dict[str, object]:
        """Constructor arguments that build the same module."""
        return {
            "layers": self.layers,
            "size": self.size,
            "layer": self.layer,
            "output_size": getattr(self.map, "out_features", None),
        }

    def num_frames(self, n: int | Tensor) -> int | Tensor:
        """Output frames of ``n`` frames: the same number."""
        return n

    def min_frames(self, frames: int) -> int:
        """Frames that ``frames`` output frames need: the same number."""
        return frames

    def forward(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Frames [batch, time, layers * size] -> [batch, time, output_size].

        ``counts``, [batch], are the valid frames, which are returned as well.
        Later frames are undefined.
        """
        if self.layer == "all":
            return self.map(x), counts
        parts = x.unflatten(2, (len(self.layers), self.size))
        if self.layer is not None:
            return self.map(parts[:, :, self.layers.index(self.layer)]), counts
        weights = self.weights.softmax(0).to(parts)
        return self.map(torch.einsum("l,btld->btd", weights, parts)), counts
