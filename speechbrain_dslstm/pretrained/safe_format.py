"""Load a model without running anything that its folder says.

A model YAML may call any importable function, and an old checkpoint may be a
pickle. Here the architecture is JSON that must meet a schema, the weights are
safetensors whose hash stands in it, and both are checked before memory is
taken for the model: what is refused is refused within a second.
"""

import hashlib
import json
from pathlib import Path

import jsonschema
from safetensors.torch import save

from speechbrain_dslstm.pretrained import architecture
from speechbrain_dslstm.pretrained.untrusted_files import (
    check_shapes,
    read_json,
    shorten,
)
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["read_description", "write_safe", "load_state"]

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
FORMAT = "speechbrain-dslstm/1"
LARGEST_MODEL = 1 << 26  # numbers; 32 times the model of the paper
LARGEST_TABLE = 1 << 22  # numbers of a feature's mel matrix; 16 times
# JSON Schema takes 3.0 for an integer, a constructor does not
_Validator = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: type(value) is int
    ),
)


def _schema():
    model = architecture.schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "format": {"const": FORMAT},
            "sample_rate": architecture.RATE,
            "labels": {
                "type": "array",
                "items": {"type": "string", "minLength": 1, "maxLength": 100},
                "minItems": 1,
                "maxItems": 1000,
            },
            "temperature": architecture.POSITIVE,
            "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "model": {"$ref": model["$ref"]},
        },
        "required": [
            "format",
            "sample_rate",
            "labels",
            "temperature",
            "sha256",
            "model",
        ],
        "additionalProperties": False,
        "$defs": model["$defs"],
    }


def read_description(folder):
    """Read and validate a ``model.json``.

    Arguments
    ---------
    folder : str or pathlib.Path
        The folder it lies in.

    Returns
    -------
    dict
        "format", "sample_rate", "labels", "temperature", "sha256", "model".

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        It is no JSON, or not what the schema allows.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "model.json").write_text('{"format": "other/1"}')
    >>> read_description(folder)
    Traceback (most recent call last):
    ValueError: ...model.json: expected format 'speechbrain-dslstm/1', got ...
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"no {DESCRIPTION} in {folder}; load_safe reads that and "
            f"{WEIGHTS}, as save_pretrained writes them, and no YAML"
        )
    data = read_json(path)
    given = data.get("format") if isinstance(data, dict) else None
    if given != FORMAT:
        given = shorten(repr(given))
        raise ValueError(f"{path}: expected format {FORMAT!r}, got {given}")
    validator = _Validator(_schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(data))
    if error is not None:
        raise ValueError(f"{path}: {error.json_path}: {shorten(error.message)}")
    labels, model = data["labels"], data["model"]
    if len(set(labels)) < len(labels):
        raise ValueError(f"{path}: labels: two classes of one name")
    strange = [label for label in labels if not label.isprintable()]
    if strange:
        raise ValueError(f"{path}: labels: {strange[0]!r} cannot be printed")
    if len(labels) != model["n_classes"]:
        raise ValueError(
            f"{path}: {len(labels)} labels for {model['n_classes']} classes"
        )
    for name, stream in model["streams"].items():
        sizes = stream["extractor"]
        size = sizes["n_mels"] * max(sizes["n_fft"], sizes.get("n_mfcc", 0))
        if size > LARGEST_TABLE:
            raise ValueError(
                f"{path}: $.model.streams.{shorten(name)}: n_mels times n_fft "
                f"is {size}, at most {LARGEST_TABLE}"
            )
    return data


def expected_shapes(described, path):
    """Names and shapes of a model's weights, and bytes they can take."""
    try:
        state = architecture.build(described, "meta").state_dict()
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: the sizes do not fit: {error}") from error
    numbers = sum(value.numel() for value in state.values())
    if numbers > LARGEST_MODEL:
        raise ValueError(
            f"{path}: a model of {numbers} numbers, at most {LARGEST_MODEL}"
        )
    return state, 8 * numbers


def state_to_save(model, half=False):
    """Weights as a file of safetensors wants them.

    Arguments
    ---------
    model : torch.nn.Module
        The model.
    half : bool
        Round the parameters to 16 bits, which halves the file. Statistics
        keep their precision.

    Returns
    -------
    dict of str to torch.Tensor
        By name; on the CPU.

    Example
    -------
    >>> import torch
    >>> state = state_to_save(torch.nn.BatchNorm1d(1), half=True)
    >>> state["weight"].dtype, state["running_mean"].dtype
    (torch.float16, torch.float32)
    """
    parameters = {name for name, _ in model.named_parameters()}
    # safetensors stores the order of the axes, not of the memory
    return {
        key: (value.half() if half and key in parameters else value)
        .detach()
        .cpu()
        .contiguous()
        for key, value in model.state_dict().items()
    }


def write_safe(
    folder, model, labels, sample_rate=16000, temperature=1.0, half=False
):
    """Write ``model.json`` and ``model.safetensors``.

    Arguments
    ---------
    folder : str or pathlib.Path
        An existing folder.
    model : DualLevelClassifier
        The trained model.
    labels : list of str
        Names of the classes in the order of their indices.
    sample_rate : int
        In Hz.
    temperature : float
        See ``speechbrain_dslstm.calibration``.
    half : bool
        Round the parameters to 16 bits, see ``state_to_save``.

    Raises
    ------
    ValueError
        The model has a part that plain data cannot describe, or the data is
        not what the schema allows, such as two classes of one name.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> folder = getfixture("tmp_path")
    >>> write_safe(folder, DualLevelClassifier(n_classes=1), ["anger"])
    >>> sorted(path.name for path in folder.iterdir())
    ['model.json', 'model.safetensors']
    """
    folder = Path(folder)
    described = architecture.describe(model)
    state = state_to_save(model, half)
    numbers = sum(value.numel() for value in state.values())
    if numbers > LARGEST_MODEL:
        raise architecture.UnknownPart(
            f"{numbers} numbers; load_safe takes models of at most "
            f"{LARGEST_MODEL}"
        )
    # Not save_file, whose files only their owner may read
    weights = save(state)
    replace_file(folder / WEIGHTS, weights)
    data = {
        "format": FORMAT,
        "sample_rate": int(sample_rate),
        "labels": list(labels),
        "temperature": float(temperature),
        "sha256": hashlib.sha256(weights).hexdigest(),
        "model": described,
    }
    replace_file(folder / DESCRIPTION, json.dumps(data, indent=1) + "\n")
    read_description(folder)


def load_state(model, state, path):
    """Load weights that fit a model exactly; nothing is left at random.

    Arguments
    ---------
    model : torch.nn.Module
        Gets the weights.
    state : dict of str to torch.Tensor
        The weights.
    path : str or pathlib.Path
        Where they are from, for the message.

    Raises
    ------
    ValueError
        Missing, unexpected, mis-shaped or non-finite ones; the message names
        them.

    Example
    -------
    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> load_state(model, {"weight": torch.ones(2, 1)}, "a.safetensors")
    Traceback (most recent call last):
    ValueError: a.safetensors does not fit the model: of another shape ...
    """
    check_shapes(model.state_dict(), state, path)
    model.load_state_dict(state)
