"""A model <-> plain data that says how to build it.

``describe`` reads a model's sizes, ``build`` makes a model of them. Both know
only the classes of one table, so that data from a stranger can build nothing
else, and the table gives the JSON schema that such data must meet. A new class
is one more entry: its constructor's arguments, the values they may take, and
where they are found on a built module.
"""

from operator import attrgetter
from typing import NamedTuple

import torch

from speechbrain_dslstm.ds_lstm import DSLSTM
from speechbrain_dslstm.features.mel import LogMelSpectrogram
from speechbrain_dslstm.features.mfcc import MFCC39
from speechbrain_dslstm.features.normalization import FeatureNormalization
from speechbrain_dslstm.layers.alignment import AveragePoolAlignment
from speechbrain_dslstm.layers.cnn import LocalFeatureCNN
from speechbrain_dslstm.models.branches import (
    CNNLSTMBranch,
    MFCCBranch,
    SpectrogramBranch,
)
from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.models.streams import FeatureStream

__all__ = ["Field", "TABLE", "UnknownPart", "describe", "build", "schema"]

# Limits, so that a file of a hundred bytes cannot ask for all memory
SIZE = {"type": "integer", "minimum": 1, "maximum": 8192}
SAMPLES = {"type": "integer", "minimum": 1, "maximum": 65536}
RATE = {"type": "integer", "minimum": 1000, "maximum": 384000}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
FLAG = {"type": "boolean"}
POSITIVE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e9}
FREQUENCY = {"type": "number", "minimum": 0, "maximum": 192000}
NORM = {"enum": [None, "batch"]}


class Field(NamedTuple):
    """An argument of a constructor.

    Arguments
    ---------
    schema : dict
        JSON schema of its value.
    read : callable, optional
        Finds the value on a module; its attribute of the argument's name if
        left out.

    Example
    -------
    >>> Field(FLAG).schema
    {'type': 'boolean'}
    """

    schema: dict
    read: object = None


def _list_of(item, **limits):
    return {"type": "array", "items": item, **limits}


def _part(*names):
    return {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in names]}


def _branch(name):
    return lambda model: (
        model.branches[name] if name in model.branches else None
    )


def _first_lstm(name):
    return lambda branch: getattr(next(iter(branch.lstms.values())), name)


NOTHING = {"type": "null"}
TABLE = {
    MFCC39: {
        "sample_rate": Field(RATE),
        "win_length": Field(SAMPLES),
        "hop_length": Field(SAMPLES),
        "n_fft": Field(SAMPLES),
        "n_mels": Field(SIZE),
        "f_min": Field(FREQUENCY),
        "f_max": Field(FREQUENCY),
        "n_mfcc": Field(SIZE),
        "preemphasis": Field(SHARE),
        "lifter": Field(SIZE),
        "delta_window": Field({**SIZE, "maximum": 64}),
        "scale": Field(POSITIVE),
    },
    LogMelSpectrogram: {
        "n_fft": Field(SAMPLES),
        "hop_length": Field(SAMPLES),
        "n_mels": Field(SIZE),
        "sample_rate": Field(RATE),
        "scale": Field(POSITIVE),
        "floor": Field(POSITIVE),
    },
    FeatureStream: {
        "extractor": Field(_part("MFCC39", "LogMelSpectrogram")),
        "num_features": Field(SIZE, attrgetter("normalization.num_features")),
        "resize": Field({"anyOf": [NOTHING, SIZE]}),
        "center_utterances": Field(
            FLAG, attrgetter("normalization.center_utterances")
        ),
        "normalization": Field(
            {"enum": list(FeatureNormalization.SOURCES)},
            attrgetter("normalization.source"),
        ),
    },
    LocalFeatureCNN: {
        "input_size": Field(SIZE),
        "channels": Field(
            _list_of(SIZE, minItems=1, maxItems=8),
            lambda cnn: [block.conv.out_channels for block in cnn.blocks],
        ),
        "kernel_size": Field(
            _list_of({**SIZE, "maximum": 64}, minItems=2, maxItems=2),
            lambda cnn: list(cnn.blocks[0].kernel_size),
        ),
        "pool_size": Field(
            {**SIZE, "maximum": 64}, lambda cnn: cnn.blocks[0].pool_size
        ),
        "pool_first": Field(FLAG, lambda cnn: cnn.blocks[0].pool_first),
    },
    AveragePoolAlignment: {"width": Field(SIZE), "stride": Field(SIZE)},
    DSLSTM: {
        "input_size_x": Field({**SIZE, "maximum": 65536}),
        "input_size_y": Field({**SIZE, "maximum": 65536}),
        "hidden_size": Field(SIZE),
        "num_layers": Field({**SIZE, "maximum": 16}),
        "dropout": Field(SHARE, attrgetter("dropout.p")),
        "gate_norm": Field(
            NORM, lambda layer: "batch" if layer.gate_norms else None
        ),
        "output_norm": Field(
            NORM, lambda layer: "batch" if layer.output_norms else None
        ),
        "bidirectional": Field(FLAG),
    },
    MFCCBranch: {
        "n_classes": Field(SIZE, attrgetter("head.out_features")),
        "input_size": Field(SIZE, attrgetter("lstm.input_size")),
        "hidden_size": Field(SIZE, attrgetter("lstm.hidden_size")),
        "num_layers": Field(
            {**SIZE, "maximum": 16}, attrgetter("lstm.num_layers")
        ),
        "dropout": Field(SHARE, attrgetter("dropout.p")),
    },
    CNNLSTMBranch: {
        "n_classes": Field(SIZE, attrgetter("head.out_features")),
        "cnns": Field(
            {
                "type": "object",
                "additionalProperties": _part("LocalFeatureCNN"),
                "minProperties": 1,
                "maxProperties": 8,
            },
            lambda branch: dict(branch.cnns),
        ),
        "hidden_size": Field(SIZE, _first_lstm("hidden_size")),
        "num_layers": Field({**SIZE, "maximum": 16}, _first_lstm("num_layers")),
        "dropout": Field(SHARE, attrgetter("dropout.p")),
    },
    SpectrogramBranch: {
        "n_classes": Field(SIZE, attrgetter("head.out_features")),
        "cnn_x": Field(_part("LocalFeatureCNN")),
        "cnn_y": Field(_part("LocalFeatureCNN")),
        "alignment": Field(_part("AveragePoolAlignment")),
        "ds_lstm": Field(_part("DSLSTM")),
        "inputs": Field(
            _list_of(
                {"enum": ["mfcc", "mel_x", "mel_y"]}, minItems=2, maxItems=2
            ),
            lambda branch: list(branch.inputs),
        ),
        "dropout": Field(SHARE, attrgetter("dropout.p")),
    },
    DualLevelClassifier: {
        "n_classes": Field({**SIZE, "maximum": 1000}),
        "streams": Field(
            {
                "type": "object",
                "additionalProperties": _part("FeatureStream"),
                "minProperties": 1,
                "maxProperties": 8,
            },
            lambda model: dict(model.streams),
        ),
        "spectrogram": Field(
            {
                "anyOf": [
                    NOTHING,
                    _part("SpectrogramBranch", "CNNLSTMBranch"),
                ]
            },
            _branch("spectrogram"),
        ),
        "mfcc": Field(
            {"anyOf": [NOTHING, _part("MFCCBranch")]}, _branch("mfcc")
        ),
        "p": Field(SHARE),
        "text": Field(NOTHING, _branch("text")),
    },
}


class UnknownPart(ValueError):
    """A module that the table does not know.

    Example
    -------
    >>> import torch
    >>> describe(torch.nn.Linear(1, 1))
    Traceback (most recent call last):
    speechbrain_dslstm.pretrained.architecture.UnknownPart: cannot describe a Linear ...
    """


def describe(value):
    """Say how to build a module.

    Arguments
    ---------
    value : torch.nn.Module
        A module of a class in the table.

    Returns
    -------
    dict
        Plain data: "class" and the constructor's arguments.

    Raises
    ------
    ValueError
        A class that is not in the table.

    Example
    -------
    >>> describe(AveragePoolAlignment())
    {'class': 'AveragePoolAlignment', 'width': 3, 'stride': 2}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, dict):
        return {name: describe(item) for name, item in value.items()}
    fields = TABLE.get(type(value))
    if fields is None:
        raise UnknownPart(
            f"cannot describe a {type(value).__name__} as plain data; known "
            f"are {', '.join(c.__name__ for c in TABLE)} (add it to TABLE in "
            "speechbrain_dslstm/architecture.py)"
        )
    return {
        "class": type(value).__name__,
        **{
            name: describe((field.read or attrgetter(name))(value))
            for name, field in fields.items()
        },
    }


def build(data, device="cpu"):
    """Build a module from data that meets the ``schema``.

    Arguments
    ---------
    data : dict
        What ``describe`` returns.
    device : str
        Where its weights go; "meta": nowhere, which tells their shapes and
        takes no memory for them. The tables of the features are on the CPU.

    Returns
    -------
    torch.nn.Module
        The same architecture with new weights.

    Raises
    ------
    ValueError
        A class that is not in the table, or sizes that do not fit.

    Example
    -------
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
        raise ValueError(f"unknown class {name!r}")
    made = classes[name]
    # What looks at the numbers of its own tables cannot do without them
    with torch.device("cpu" if made in (MFCC39, LogMelSpectrogram) else device):
        return made(**parts)


def schema(root="DualLevelClassifier"):
    """JSON schema of an architecture.

    Arguments
    ---------
    root : str
        Class of the whole model.

    Returns
    -------
    dict
        Draft 2020-12. Every argument is required, nothing else is allowed.

    Example
    -------
    >>> schema()["$defs"]["AveragePoolAlignment"]["required"]
    ['class', 'width', 'stride']
    """
    definitions = {
        known.__name__: {
            "type": "object",
            "properties": {
                "class": {"const": known.__name__},
                **{name: field.schema for name, field in fields.items()},
            },
            "required": ["class", *fields],
            "additionalProperties": False,
        }
        for known, fields in TABLE.items()
    }
    return {"$ref": f"#/$defs/{root}", "$defs": definitions}
