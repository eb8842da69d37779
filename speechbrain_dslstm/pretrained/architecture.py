"""Describe a model as plain data, and build a model from such data.

``TABLE`` lists the classes that data of unknown origin may build, and the
values that each argument of their constructors may take; from it comes the
JSON schema that such data must meet. To add a class, give it a method
``get_config()`` that returns the arguments of its constructor, and an entry in
the table.
"""

from io import StringIO

import torch
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.tag import Tag

from speechbrain_dslstm.ds_lstm import DSLSTM
from speechbrain_dslstm.features.active_speech import ActiveSpeech
from speechbrain_dslstm.features.mel import LogMelSpectrogram
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.features.normalization import FeatureNormalization
from speechbrain_dslstm.layers.alignment import (
    AveragePoolAlignment,
    RateAlignment,
)
from speechbrain_dslstm.layers.cnn import LocalFeatureCNN
from speechbrain_dslstm.models.branches import (
    CNNLSTMBranch,
    LinearBranch,
    MFCCBranch,
    SpectrogramBranch,
)
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.models.streams import FeatureStream
from speechbrain_dslstm.models.whisper_frames import (
    EncoderLayers,
    WhisperFrames,
)

__all__ = [
    "TABLE",
    "UnknownPart",
    "build",
    "describe",
    "list_of",
    "schema",
    "to_yaml",
]

# Limits, so that a file of a hundred bytes cannot demand all memory
SIZE = {"type": "integer", "minimum": 1, "maximum": 8192}
SMALL = {**SIZE, "maximum": 64}
LAYERS = {**SIZE, "maximum": 16}
INPUTS = {**SIZE, "maximum": 65536}
SAMPLES = {"type": "integer", "minimum": 1, "maximum": 65536}
RATE = {"type": "integer", "minimum": 1000, "maximum": 384000}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
FLAG = {"type": "boolean"}
POSITIVE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}
FREQUENCY = {"type": "number", "minimum": 0, "maximum": 192000}
DECIBELS = {"type": "number", "minimum": 0, "maximum": 1000}
SECONDS = {"type": "number", "minimum": 0, "maximum": 1000}
NORM = {"enum": [None, "batch"]}
POOLING = {"enum": ["mean", "statistics"]}
LSTM = {"hidden_size": SIZE, "num_layers": LAYERS, "dropout": SHARE}
NOTHING = {"type": "null"}
NAME = {"type": "string", "pattern": r"^[ -~]{1,40}\Z"}


def list_of(item: dict, least: int, most: int) -> dict:
    """JSON schema of a list of ``least`` to ``most`` items."""
    return {"type": "array", "items": item, "minItems": least, "maxItems": most}


def _part(*names: str) -> dict:
    return {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in names]}


def _parts(name: str) -> dict:
    limits = {"minProperties": 1, "maxProperties": 8}
    return {"type": "object", "additionalProperties": _part(name), **limits}


def _optional(limits: dict) -> dict:
    return {"anyOf": [NOTHING, limits]}


def _object(**limits: dict) -> dict:
    return {
        "type": "object",
        "properties": limits,
        "required": list(limits),
        "additionalProperties": False,
    }


FRONT = _part("LocalFeatureCNN", "EncoderLayers")
FRONTS = {
    "type": "object",
    "additionalProperties": FRONT,
    "minProperties": 1,
    "maxProperties": 8,
}
ENCODER_LAYERS = list_of(LAYERS, 1, 16)

TABLE = {
    MFCC39: {
        "sample_rate": RATE,
        "win_length": SAMPLES,
        "hop_length": SAMPLES,
        "n_fft": SAMPLES,
        "n_mels": SIZE,
        "f_min": FREQUENCY,
        "f_max": FREQUENCY,
        "n_mfcc": SIZE,
        "preemphasis": SHARE,
        "lifter": SIZE,
        "delta_window": SMALL,
        "scale": POSITIVE,
    },
    LogMelSpectrogram: {
        "n_fft": SAMPLES,
        "hop_length": SAMPLES,
        "n_mels": SIZE,
        "sample_rate": RATE,
        "scale": POSITIVE,
        "floor": POSITIVE,
    },
    WhisperFrames: {
        "layers": ENCODER_LAYERS,
        "sizes": _object(
            n_mels={**SIZE, "maximum": 128},
            size={**SIZE, "maximum": 2048},
            heads=SMALL,
            ffn_size=SIZE,
            num_layers=SMALL,
            max_frames={**SIZE, "maximum": 4096},
        ),
        "trained_layers": {**LAYERS, "minimum": 0},
        "pool": SMALL,
        "level": _optional({"type": "number"}),
    },
    EncoderLayers: {
        "layers": ENCODER_LAYERS,
        "size": SIZE,
        "layer": {"anyOf": [NOTHING, LAYERS, {"const": "all"}]},
        "output_size": _optional(SIZE),
    },
    FeatureStream: {
        "extractor": _part("MFCC39", "LogMelSpectrogram", "WhisperFrames"),
        "num_features": SIZE,
        "resize": _optional(SIZE),
        "center_utterances": FLAG,
        "normalization": {"enum": list(FeatureNormalization.SOURCES)},
    },
    LocalFeatureCNN: {
        "input_size": SIZE,
        "channels": list_of(SIZE, 1, 8),
        "kernel_size": list_of(SMALL, 2, 2),
        "pool_size": SMALL,
        "pool_first": FLAG,
    },
    AveragePoolAlignment: {"width": SIZE, "stride": SIZE},
    RateAlignment: {
        "rate_x": POSITIVE,
        "rate_y": POSITIVE,
        "mode": {"enum": list(RateAlignment.MODES)},
        "target": {"enum": list(RateAlignment.TARGETS)},
    },
    DSLSTM: {
        "input_size_x": INPUTS,
        "input_size_y": INPUTS,
        **LSTM,
        "gate_norm": NORM,
        "output_norm": NORM,
        "bidirectional": FLAG,
    },
    MFCCBranch: {
        "n_classes": SIZE,
        "input_size": SIZE,
        **LSTM,
        "pooling": POOLING,
        "head_dropout": _optional(SHARE),
    },
    CNNLSTMBranch: {
        "n_classes": SIZE,
        "cnns": FRONTS,
        **LSTM,
        "pooling": POOLING,
        "head_dropout": _optional(SHARE),
    },
    LinearBranch: {
        "n_classes": SIZE,
        "fronts": FRONTS,
        "pooling": POOLING,
        "head_dropout": _optional(SHARE),
    },
    SpectrogramBranch: {
        "n_classes": SIZE,
        "cnn_x": FRONT,
        "cnn_y": FRONT,
        "alignment": _part("AveragePoolAlignment", "RateAlignment"),
        "ds_lstm": _part("DSLSTM"),
        "inputs": list_of(
            {"enum": ["mfcc", "mel_x", "mel_y", "encoder"]}, 2, 2
        ),
        "dropout": SHARE,
        "skip": FLAG,
        "pooling": POOLING,
        "head_dropout": _optional(SHARE),
    },
    DualLevelClassifier: {
        "n_classes": {**SIZE, "maximum": 1000},
        "streams": _parts("FeatureStream"),
        "spectrogram": _optional(
            _part("SpectrogramBranch", "CNNLSTMBranch", "LinearBranch")
        ),
        "mfcc": _optional(_part("MFCCBranch")),
        "p": SHARE,
        "text": NOTHING,
        "dimensions": list_of(NAME, 0, 16),
        "active_speech": _optional(_part("ActiveSpeech")),
    },
    ActiveSpeech: {
        "sample_rate": {**RATE, "minimum": 4000},
        "below": DECIBELS,
        "consonants": DECIBELS,
        "reach": SECONDS,
        "pause": SECONDS,
        "margin": SECONDS,
    },
}
# Arguments that a description may lack: those of models older than the argument
POOLED = {"pooling": "mean", "head_dropout": None}
DEFAULTS = {
    DualLevelClassifier: {"dimensions": [], "active_speech": None},
    MFCCBranch: POOLED,
    CNNLSTMBranch: POOLED,
    SpectrogramBranch: {**POOLED, "skip": False},
    WhisperFrames: {"level": None},
}


class UnknownPart(ValueError):
    """A model holds a module of a class that ``TABLE`` does not list."""


def describe(value: object) -> object:
    """Describe a module as plain data: its class and its constructor's arguments.

    Arguments that are modules themselves are described in the same way;
    numbers, strings, lists and dicts stay as they are.

    >>> describe(AveragePoolAlignment())
    {'class': 'AveragePoolAlignment', 'width': 3, 'stride': 2}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {name: describe(item) for name, item in value.items()}
    if type(value) not in TABLE:
        raise UnknownPart(
            f"cannot describe a {type(value).__name__} as plain data; known "
            f"classes are {', '.join(c.__name__ for c in TABLE)} (TABLE in "
            "speechbrain_dslstm/pretrained/architecture.py)"
        )
    config = value.get_config()
    defaults = DEFAULTS.get(type(value), {})
    arguments = {
        name: describe(config[name])
        for name in TABLE[type(value)]
        if name not in defaults or config[name] != defaults[name]
    }
    return {"class": type(value).__name__, **arguments}


def to_yaml(model: torch.nn.Module) -> str:
    """Write a model's layers as HyperPyYAML, under the key "model".

    Raises UnknownPart for a model that ``describe`` cannot describe.

    >>> print(to_yaml(AveragePoolAlignment()), end="")
    model: !new:speechbrain_dslstm.layers.AveragePoolAlignment
      width: 3
      stride: 2
    """
    out = StringIO()
    YAML().dump({"model": _to_node(describe(model))}, out)
    return out.getvalue()


def _to_node(data: object) -> object:
    """Described data as nodes of YAML, classes as tags."""
    if isinstance(data, list):
        return [_to_node(item) for item in data]
    if not isinstance(data, dict):
        return data
    node = CommentedMap(
        (name, _to_node(item)) for name, item in data.items() if name != "class"
    )
    if "class" in data:
        paths = {known.__name__: known.__module__ for known in TABLE}
        package, folder = paths[data["class"]].split(".")[:2]
        path = f"{package}.{folder}.{data['class']}"
        node.yaml_set_ctag(Tag(suffix=f"!new:{path}"))
    return node


def build(data: object, device: str = "cpu") -> object:
    """Build a module, with new weights, from data that meets the schema.

    On the device "meta" the weights have shapes and take no memory; the tables
    of the features are on the CPU. Sizes that do not fit raise a ValueError.

    >>> data = {"class": "AveragePoolAlignment", "width": 4, "stride": 4}
    >>> build(data).width
    4
    """
    if isinstance(data, list):
        return [build(item, device) for item in data]
    if not isinstance(data, dict):
        return data
    parts = {name: build(item, device) for name, item in data.items()}
    if "class" not in data:
        return parts
    classes = {known.__name__: known for known in TABLE}
    name = parts.pop("class")
    if name not in classes:
        raise ValueError(
            f"unknown class {name!r}; expected one of {', '.join(classes)}"
        )
    made = classes[name]
    # The extractors check the values of their tables, which meta lacks
    if made in (MFCC39, LogMelSpectrogram):
        device = "cpu"
    with torch.device(device):
        return made(**parts)


def schema(root: str = "DualLevelClassifier") -> dict:
    """JSON schema (draft 2020-12) of data that describes a ``root`` module.

    Every argument without an entry in ``DEFAULTS`` is required, and nothing
    else is allowed.

    >>> schema()["$defs"]["AveragePoolAlignment"]["required"]
    ['class', 'width', 'stride']
    """
    definitions = {
        known.__name__: {
            "type": "object",
            "properties": {"class": {"const": known.__name__}, **limits},
            "required": ["class", *_required(known)],
            "additionalProperties": False,
        }
        for known, limits in TABLE.items()
    }
    return {"$ref": f"#/$defs/{root}", "$defs": definitions}


def _required(known: type) -> list[str]:
    """Arguments that a description of this class must have."""
    return [
        name for name in TABLE[known] if name not in DEFAULTS.get(known, {})
    ]
