"""Load a model without running anything that its folder says.

A model YAML may call any importable function, and an old checkpoint may be a
pickle. Here the architecture is JSON that must meet a schema, the weights are
safetensors whose hash stands in it, and both are checked before anything is
built.
"""

import hashlib
import json
import os
from pathlib import Path

import jsonschema
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from speechbrain_dslstm import architecture

__all__ = ["load_safe", "write_safe", "load_state", "read_description"]

DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
FORMAT = "speechbrain-dslstm/1"
LARGEST_DESCRIPTION = 1 << 20  # bytes


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
                "uniqueItems": True,
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


def load_safe(source, run_opts=None):
    """Load a model folder as data only.

    Arguments
    ---------
    source : str or pathlib.Path
        A local folder with ``model.json`` and ``model.safetensors``.
    run_opts : dict, optional
        Run options of SpeechBrain, such as {"device": "cuda"}.

    Returns
    -------
    EmotionClassifier
        The same as ``EmotionClassifier.from_hparams`` gives of the folder.

    Raises
    ------
    FileNotFoundError
        No such folder, or one of the two files is missing.
    ValueError
        The data is not what the schema allows, the weights are not those it
        was written with, or they do not fit. The message says where.

    Example
    -------
    >>> import torch
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> folder = getfixture("tmp_path")
    >>> model = DualLevelClassifier(n_classes=2, p=0.0)
    >>> write_safe(folder, model, ["anger", "sadness"])
    >>> classifier = load_safe(folder)
    >>> classifier.classify_batch(torch.randn(1, 16000))[0].shape
    torch.Size([1, 2])
    """
    # These two import this module
    from speechbrain_dslstm.inference import EmotionClassifier, find_folder
    from speechbrain_dslstm.pretrained import make_label_encoder

    folder = find_folder(source)
    if folder is None:
        raise FileNotFoundError(
            f"no model folder {source}; the safe loader reads local folders"
        )
    data = read_description(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"no {WEIGHTS} in {folder}")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    if found != data["sha256"]:
        raise ValueError(
            f"{weights} is not the file that {DESCRIPTION} was written with: "
            f"sha256 {found} instead of {data['sha256']}"
        )
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise ValueError(f"cannot read {weights}: {error}") from error
    try:
        model = architecture.build(data["model"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / DESCRIPTION}: the sizes do not fit: {error}"
        ) from error
    load_state(model, state, weights)
    return EmotionClassifier.from_model(
        model.eval(),
        make_label_encoder(data["labels"]),
        data["sample_rate"],
        data["temperature"],
        run_opts,
    )


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
        raise FileNotFoundError(f"no {DESCRIPTION} in {folder}")
    if path.stat().st_size > LARGEST_DESCRIPTION:
        raise ValueError(f"{path} is too large for a description of a model")
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    given = data.get("format") if isinstance(data, dict) else None
    if given != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT!r}, got {given!r}")
    validator = jsonschema.Draft202012Validator(_schema())
    error = jsonschema.exceptions.best_match(validator.iter_errors(data))
    if error is not None:
        message = error.message
        if len(message) > 200:
            message = f"{message[:200]} (shortened)"
        raise ValueError(f"{path}: {error.json_path}: {message}")
    if len(data["labels"]) != data["model"]["n_classes"]:
        raise ValueError(
            f"{path}: {len(data['labels'])} labels for "
            f"{data['model']['n_classes']} classes"
        )
    return data


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
    aside = folder / f"{WEIGHTS}.part"
    # Not save_file, whose files only their owner may read
    aside.write_bytes(save(state))
    digest = hashlib.sha256(aside.read_bytes()).hexdigest()
    os.replace(aside, folder / WEIGHTS)
    data = {
        "format": FORMAT,
        "sample_rate": int(sample_rate),
        "labels": list(labels),
        "temperature": float(temperature),
        "sha256": digest,
        "model": described,
    }
    aside = folder / f"{DESCRIPTION}.part"
    aside.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    os.replace(aside, folder / DESCRIPTION)
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
        Missing, unexpected or mis-shaped keys; the message names them.

    Example
    -------
    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> load_state(model, {"weight": torch.ones(2, 1)}, "a.safetensors")
    Traceback (most recent call last):
    ValueError: a.safetensors does not fit the model: of another shape ...
    """
    own = model.state_dict()
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(
            f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in own.keys() & state.keys()
            if own[key].shape != state[key].shape
        ),
    }
    found = [
        f"{kind} {', '.join(keys)}" for kind, keys in faults.items() if keys
    ]
    if found:
        raise ValueError(f"{path} does not fit the model: {'; '.join(found)}")
    model.load_state_dict(state)
