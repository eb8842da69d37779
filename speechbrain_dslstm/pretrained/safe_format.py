"""The part of a model folder that is data only, and so safe to load.

A model YAML may call any importable function, and an old checkpoint may be a
pickle. Here the architecture is JSON that must meet a schema, and the weights
are safetensors whose hash the JSON holds. Both are checked before memory is
taken for the model, so that a bad folder is refused within a second.
"""

import hashlib
import json
from pathlib import Path

import jsonschema
import torch
from safetensors.torch import save

from speechbrain_dslstm.models.dual_level import DualLevelClassifier
from speechbrain_dslstm.pretrained import architecture
from speechbrain_dslstm.pretrained.untrusted_files import (
    check_shapes,
    read_json,
    read_tensors,
    shorten,
)
from speechbrain_dslstm.utils.files import replace_file
from speechbrain_dslstm.utils.names import fits_on_line

__all__ = ["load_model", "read_description", "write_safe", "write_weights"]

DESCRIPTION = "model.json"
# SpeechBrain requires the name model.ckpt; the content is safetensors. Older
# folders hold a copy for load_safe under the second name.
WEIGHTS, OLDER_WEIGHTS = "model.ckpt", "model.safetensors"
FORMAT = "speechbrain-dslstm/1"
LARGEST_MODEL = 1 << 26  # numbers; 32 times the model of the paper
LARGEST_TABLE = 1 << 22  # numbers of a feature's mel matrix; 16 times
# JSON Schema accepts 3.0 as an integer, a constructor does not
_draft = jsonschema.Draft202012Validator
_types = _draft.TYPE_CHECKER.redefine("integer", lambda _, v: type(v) is int)
_Validator = jsonschema.validators.extend(_draft, type_checker=_types)


def _schema() -> dict:
    model = architecture.schema()
    label = {"type": "string", "minLength": 1, "maxLength": 100}
    properties = {
        "format": {"const": FORMAT},
        "sample_rate": architecture.RATE,
        "labels": architecture.list_of(label, 1, 1000),
        "temperature": architecture.POSITIVE,
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "model": {"$ref": model["$ref"]},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        "$defs": model["$defs"],
    }


def read_description(folder: str | Path) -> dict:
    """Read and validate the ``model.json`` of a folder.

    Returns "format", "sample_rate" in Hz, "labels", "temperature", "sha256" of
    the weights, and "model", the architecture. Raises FileNotFoundError for a
    folder without the file, and ValueError for content that is not valid JSON
    or that the schema does not allow.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(
            f"no {DESCRIPTION} in {folder}; load_safe reads this file, which "
            "save_pretrained writes, and not the YAML"
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
        raise ValueError(f"{path}: labels: two classes have the same name")
    strange = [label for label in labels if not fits_on_line(label)]
    if strange:
        raise ValueError(f"{path}: labels: {strange[0]!r} cannot be printed")
    if len(labels) != model["n_classes"]:
        raise ValueError(
            f"{path}: {len(labels)} labels for {model['n_classes']} classes"
        )
    for name, stream in model["streams"].items():
        sizes = stream["extractor"]
        if "n_mels" not in sizes:  # the schema bounds the table of an encoder
            continue
        size = sizes["n_mels"] * max(sizes["n_fft"], sizes.get("n_mfcc", 0))
        if size > LARGEST_TABLE:
            raise ValueError(
                f"{path}: $.model.streams.{shorten(name)}: n_mels times n_fft "
                f"is {size}, at most {LARGEST_TABLE}"
            )
    return data


def load_model(folder: str | Path) -> tuple[DualLevelClassifier, dict]:
    """Build the model of a folder with its weights; also return its description.

    The weights are read only after the sizes of the architecture were found
    within bounds, and the model takes memory only if the weights fit.
    """
    folder = Path(folder)
    data = read_description(folder)
    path = folder / OLDER_WEIGHTS
    if not path.is_file():
        path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}")
    expected = _expected_state(data["model"], folder / DESCRIPTION)
    # No number of a model takes more than 8 bytes
    largest = 8 * sum(value.numel() for value in expected.values())
    state = read_tensors(path, largest, data["sha256"], DESCRIPTION)
    check_shapes(expected, state, path)
    model = architecture.build(data["model"])
    model.load_state_dict(state)
    return model, data


def _expected_state(described: dict, path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a described model on the meta device, which takes no memory."""
    try:
        state = architecture.build(described, "meta").state_dict()
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path}: the sizes do not fit: {error}") from error
    numbers = sum(value.numel() for value in state.values())
    if numbers > LARGEST_MODEL:
        raise ValueError(
            f"{path}: a model with {numbers} numbers, at most {LARGEST_MODEL}"
        )
    return state


def write_weights(
    folder: str | Path, model: torch.nn.Module, half: bool = False
) -> str:
    """Write the weights of a model as safetensors; return the file's SHA-256.

    ``half`` rounds the parameters, but not the statistics, to 16 bits.
    """
    state = model.state_dict()
    if half:
        state |= {name: p.half() for name, p in model.named_parameters()}
    # safetensors stores the order of the axes, not of the memory
    content = save({k: v.detach().cpu().contiguous() for k, v in state.items()})
    replace_file(Path(folder) / WEIGHTS, content)
    return hashlib.sha256(content).hexdigest()


def write_safe(
    folder: str | Path,
    model: DualLevelClassifier,
    labels: list[str],
    sample_rate: int = 16000,
    temperature: float = 1.0,
    half: bool = False,
) -> None:
    """Write ``model.json`` and ``model.ckpt``, which ``load_safe`` reads.

    The arguments are those of ``save_pretrained``, but the folder must exist.
    Raises ValueError for a model that plain data cannot describe, and for data
    that the schema does not allow, such as two classes of the same name.
    """
    folder = Path(folder)
    described = architecture.describe(model)
    numbers = sum(value.numel() for value in model.state_dict().values())
    if numbers > LARGEST_MODEL:
        raise architecture.UnknownPart(
            f"the model has {numbers} numbers; load_safe accepts at most "
            f"{LARGEST_MODEL}"
        )
    data = {
        "format": FORMAT,
        "sample_rate": int(sample_rate),
        "labels": list(labels),
        "temperature": float(temperature),
        "sha256": write_weights(folder, model, half),
        "model": described,
    }
    replace_file(folder / DESCRIPTION, json.dumps(data, indent=1) + "\n")
    (folder / OLDER_WEIGHTS).unlink(missing_ok=True)
    read_description(folder)
