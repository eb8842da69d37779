"""Read Whisper's weights from a folder of transformers, a model of ours or a hub.

Only safetensors are read, so that no file runs code, and only the tensors that
the built layers need. transformers is not required.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from speechbrain_dslstm.models.whisper import TINY, WhisperEncoder

__all__ = ["load_whisper", "whisper_sizes"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
DESCRIPTION, OWN_WEIGHTS = "model.json", "model.ckpt"  # a model folder of ours
# Our names of the sizes, and those in the configuration of transformers
NAMES = {
    "n_mels": "num_mel_bins",
    "size": "d_model",
    "heads": "encoder_attention_heads",
    "ffn_size": "encoder_ffn_dim",
    "num_layers": "encoder_layers",
    "max_frames": "max_source_positions",
}


class _Source(NamedTuple):
    """Where an encoder's sizes and weights are."""

    sizes: dict[str, int]
    files: list[Path]
    prefix: str | None  # None: whatever precedes "conv1.weight"


def whisper_sizes(source: str | Path) -> dict[str, int]:
    """Read the sizes of a Whisper encoder, see ``WhisperFrames``."""
    return _find(source).sizes


def load_whisper(encoder: WhisperEncoder, source: str | Path) -> None:
    """Load weights of ``source``, see ``WhisperFrames``, into an encoder."""
    found = _find(source)
    if found.sizes != encoder.sizes:
        raise ValueError(
            f"{source} has the sizes {found.sizes}, but the encoder was built "
            f"with {encoder.sizes}"
        )
    expected = encoder.state_dict()
    with ExitStack() as stack:
        tensors = {}
        for file in found.files:
            try:
                opened = stack.enter_context(safe_open(file, "pt"))
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged: {error}") from error
            tensors |= dict.fromkeys(opened.keys(), opened)
        prefix = found.prefix
        if prefix is None:
            prefix = _prefix(tensors, source)
        state = {}
        for name, like in expected.items():
            if prefix + name not in tensors:
                raise ValueError(f"{source} has no weights {prefix + name}")
            value = tensors[prefix + name].get_tensor(prefix + name)
            if value.shape != like.shape or not value.isfinite().all():
                raise ValueError(
                    f"{source}: {prefix + name} must be finite and of shape "
                    f"{list(like.shape)}, got {list(value.shape)}"
                )
            state[name] = value.to(like.dtype)
    encoder.load_state_dict(state)


def _prefix(names, source):
    """Text before the names of the encoder's weights."""
    end = "encoder.conv1.weight"
    found = [name for name in names if name.endswith(end)]
    if len(found) != 1:
        raise ValueError(
            f"{source}: expected the weights of one Whisper encoder, "
            f"found {len(found)}"
        )
    return found[0].removesuffix("conv1.weight")


def _find(source: str | Path) -> _Source:
    """Find the files of a source, locally or on the hub."""
    folder = Path(source).expanduser()
    if (folder / DESCRIPTION).is_file():
        return _from_ours(folder)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(
                f"{folder} holds no encoder: expected {CONFIG} and {WEIGHTS}, "
                f"as transformers writes them, or {DESCRIPTION} of a model "
                "folder of this package"
            )
        return _from_transformers(folder.joinpath, source)
    parts = str(source).split("/")
    if isinstance(source, Path) or len(parts) != 2 or not all(parts):
        raise FileNotFoundError(
            f"no encoder {source}: it is neither a folder nor a hub id such as "
            "openai/whisper-tiny.en"
        )
    return _from_transformers(lambda name: _fetch(source, name), source)


def _fetch(source: str, name: str) -> Path:
    """Path of a file of the hub, downloaded on its first use."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError:
        return Path(source, name)
    except Exception as error:
        raise FileNotFoundError(
            f"no encoder {source}: there is no such folder, and the hub gave "
            f"{type(error).__name__}; check the name and the network"
        ) from error


def _from_transformers(locate: Callable[[str], Path], source) -> _Source:
    """Read a folder that transformers has written; ``locate`` finds its files."""
    path = locate(CONFIG)
    if not path.is_file():
        raise FileNotFoundError(f"{source} has no {CONFIG}")
    config = _read(path)
    if config.get("model_type") != "whisper":
        raise ValueError(
            f"{source} is a model of type {config.get('model_type')!r}, "
            "expected 'whisper'; other encoders are for ssl_ds_lstm.yaml"
        )
    sizes = {name: config.get(theirs) for name, theirs in NAMES.items()}
    if not all(type(size) is int and size > 0 for size in sizes.values()):
        raise ValueError(f"{path}: expected positive sizes, got {sizes}")
    if config.get("activation_function", "gelu") != "gelu":
        raise ValueError(
            f"{path}: expected the activation gelu, got "
            f"{config['activation_function']!r}"
        )
    weights = locate(WEIGHTS)
    if weights.is_file():
        return _Source(sizes, [weights], None)
    index = locate(INDEX)
    if not index.is_file():
        raise FileNotFoundError(
            f"{source} has no {WEIGHTS}; write one with save_pretrained of "
            "transformers"
        )
    files = sorted(set(_read(index)["weight_map"].values()))
    return _Source(sizes, [locate(file) for file in files], None)


def _from_ours(folder: Path) -> _Source:
    """Find the encoder in a model folder of this package."""
    for name, sizes in _encoders(_read(folder / DESCRIPTION).get("model")):
        # The folder's own loader checks the description as a whole
        if isinstance(sizes, dict) and sizes.keys() == TINY.keys():
            return _Source(sizes, [folder / OWN_WEIGHTS], f"{name}.encoder.")
    raise ValueError(f"the model in {folder} holds no Whisper encoder")


def _encoders(described, name="") -> Iterator[tuple[str, object]]:
    """Yield the module names of encoders in a description, and their sizes."""
    if not isinstance(described, dict):
        return
    if described.get("class") == "WhisperFrames":
        yield name, described.get("sizes")
    for key, value in described.items():
        yield from _encoders(value, f"{name}.{key}" if name else key)


def _read(path):
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
