"""Start a training from the weights of another model.

Weights are copied by name. In the linear layers, the rows of classes that both
models know are copied by the name of the class; rows of other classes keep
their random start. A model of another architecture, or of other features, is
refused before anything is copied.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.models.freezing import FEATURES, find_parts, to_names
from speechbrain_dslstm.pretrained.architecture import UnknownPart, describe
from speechbrain_dslstm.pretrained.origin import Origin, read_origin
from speechbrain_dslstm.pretrained.sources import fetch_folder
from speechbrain_dslstm.pretrained.untrusted_files import check_shapes
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["check_start", "copy_weights", "initialise"]

logger = get_logger(__name__)

RECORD = "origin.json"
# Arguments of layers that may differ: they change no weight's meaning
MAY_DIFFER = {"n_classes", "dropout", "p", "text_weight", "dimensions"}
# Decides which frames are read, and not what a feature of a frame means
FRAMES = "active_speech"
SHOWN = 5  # differences that an error lists


def initialise(
    hparams: Mapping[str, Any], resumed: bool
) -> dict[str, Any] | None:
    """Copy the weights of ``init_from`` into a run's model.

    A record of the origin, with the hash of its weights, is written to the
    folder "save" in ``output_folder``. A resumed run takes its weights from the
    checkpoint and only reads the record.

    Arguments
    ---------
    hparams
        As ``hparams.load_hparams`` returns them; read are "init_from",
        "init_lr_factor", "freeze", "model", "labels", "features",
        "normalization" and "output_folder".
    resumed
        Whether the run's own checkpoint will be loaded.

    Returns
    -------
    dict
        The record: what ``Origin.facts`` names, the classes "kept" and "new",
        and "inherited", the names of the copied parameters. None without
        ``init_from``.

    Raises
    ------
    FileNotFoundError
        There is no such model.
    ValueError
        The model does not fit, ``freeze`` names an unknown part, or a resumed
        run has started from another model.

    Example
    -------
    >>> from speechbrain_dslstm import DualLevelClassifier
    >>> hparams = {"init_from": None, "freeze": "head", "init_lr_factor": 1.0}
    >>> hparams |= {"model": DualLevelClassifier(), "output_folder": "."}
    >>> initialise(hparams, resumed=False) is None
    True
    """
    source, names = hparams["init_from"], to_names(hparams["freeze"])
    find_parts(hparams["model"], names)
    factor = hparams["init_lr_factor"]
    if not factor > 0:
        raise ValueError(
            f"init_lr_factor must be positive, got {factor}; freeze names parts "
            "that are not trained at all"
        )
    _check_frozen_features(hparams, names)
    path = Path(hparams["output_folder"], "save", RECORD)
    if resumed:
        return _resume(source, path)
    if source is None:
        run_on_main(path.unlink, kwargs={"missing_ok": True})
        return None
    origin = _open_origin(hparams)
    record = origin.facts() | copy_weights(
        origin, hparams["model"], hparams["labels"], FEATURES in names
    )
    text = json.dumps(record, indent=2) + "\n"
    run_on_main(replace_file, args=[path, text])
    logger.info(
        f"weights from {source} (sha256 {origin.sha256[:12]}); classes kept: "
        f"{', '.join(record['kept']) or 'none'}; new: "
        f"{', '.join(record['new']) or 'none'}"
    )
    return record


def check_start(hparams: Mapping[str, Any]) -> None:
    """Refuse a missing model or one that does not fit, before data are read.

    ``hparams`` are those of ``initialise``, of a run that does not resume.
    """
    names = to_names(hparams["freeze"])
    find_parts(hparams["model"], names)
    _check_frozen_features(hparams, names)
    if hparams["init_from"] is not None:
        origin = _open_origin(hparams)
        _check_architecture(origin, hparams["model"], FEATURES in names)


def _open_origin(hparams: Mapping[str, Any]) -> Origin:
    """Read the model of ``init_from``, and compare its rate with the run's."""
    source = hparams["init_from"]
    # One process downloads; the others then find the files
    run_on_main(fetch_folder, args=[source])
    origin = read_origin(source)
    rate = hparams["features"]["sample_rate"]
    if origin.sample_rate != rate:
        raise ValueError(
            f"init_from={source} does not fit: it works at "
            f"{origin.sample_rate} Hz, this model at {rate} Hz"
        )
    return origin


def _check_frozen_features(
    hparams: Mapping[str, Any], names: list[str]
) -> None:
    """Refuse to keep feature statistics where there are none to keep."""
    if FEATURES not in names:
        return
    if hparams["init_from"] is None:
        raise ValueError(
            f"freeze={FEATURES} keeps the feature statistics of another model: "
            "name it by init_from"
        )
    if hparams["normalization"] != "training":
        raise ValueError(
            f"freeze={FEATURES} has no effect with normalization "
            f"{hparams['normalization']!r}: leave it out, or set "
            "normalization to training"
        )


def _resume(source: str | None, path: Path) -> dict[str, Any] | None:
    """Read the record of a run that resumes from its own checkpoint."""
    record = None
    if path.is_file():
        record = json.loads(path.read_text("utf-8"))
    before = None if record is None else record["source"]
    now = None if source is None else str(source)
    if before != now:
        raise ValueError(
            f"{path.parent.parent} holds a run with another init_from "
            f"({before}, now {now}): give another --output_folder, or remove "
            "that folder"
        )
    if source is not None:
        logger.info(
            f"the run goes on from its own checkpoint, not from {source}"
        )
    return record


def copy_weights(
    origin: Origin,
    model: torch.nn.Module,
    labels: list[str],
    keep_statistics: bool = False,
) -> dict[str, list[str]]:
    """Copy a model's weights into another of the same layers and features.

    ``labels`` are the classes of ``model``, in the order of its outputs. The
    feature statistics are copied with ``keep_statistics``; otherwise the model
    keeps its own. Returns the classes "kept" and "new", and "inherited", the
    names of the parameters of which nothing is new. Nothing is copied if a
    ValueError is raised.
    """
    _check_architecture(origin, model, keep_statistics)
    state = model.state_dict()
    heads = {name for name in state if name.split(".")[-2:-1] == ["head"]}
    expected = {
        # The number of rows may differ: that of the classes
        name: value[:1].expand(len(origin.state[name]), *value.shape[1:])
        if name in heads and name in origin.state and origin.state[name].dim()
        else value
        for name, value in state.items()
    }
    check_shapes(expected, origin.state, f"init_from={origin.source}")
    # A dimension is no class, even of the same name
    there = [(label,) for label in origin.labels]
    there += [(None, one) for one in origin.parts.get("dimensions", [])]
    here = [(label,) for label in labels]
    here += [(None, one) for one in getattr(model, "dimensions", [])]
    for name in heads:
        if len(origin.state[name]) != len(there):
            raise ValueError(
                f"init_from={origin.source}: {name} has "
                f"{len(origin.state[name])} rows, expected {len(there)}, one "
                "for each class and dimension"
            )
    shared = [one for one in here if one in there]
    rows = [here.index(one) for one in shared]
    theirs = [there.index(one) for one in shared]
    names = dict(model.named_parameters())
    inherited, new = [], {}
    for name, value in state.items():
        given = origin.state[name].to(value)
        if name in heads:
            new[name] = value.clone()
            new[name][rows] = given[theirs]
        elif keep_statistics or ".normalization." not in name:
            new[name] = given
        if name in names and (name not in heads or len(rows) == len(value)):
            inherited.append(name)
    model.load_state_dict(state | new)
    kept = [label for label in labels if label in origin.labels]
    fresh = [label for label in labels if label not in kept]
    return {"kept": kept, "new": fresh, "inherited": inherited}


def _check_architecture(
    origin: Origin, model: torch.nn.Module, keep_statistics: bool
) -> None:
    """Refuse a model whose layers or features have other settings."""
    try:
        here = describe(model)
    except UnknownPart:
        # The features can be compared all the same
        here = {"streams": {}}
        for name, stream in model.streams.items():
            try:
                here["streams"][name] = describe(stream)
            except UnknownPart:
                continue
    found = _differences(origin.parts, here)
    if not keep_statistics:
        frames = [one for one in found if one.startswith(f"model.{FRAMES}")]
        found = [one for one in found if one not in frames]
        if frames and not found:
            logger.warning(f"init_from={origin.source}: {'; '.join(frames)}")
    if found:
        more = f" and {len(found) - SHOWN} more" if found[SHOWN:] else ""
        raise ValueError(
            f"init_from={origin.source} does not fit this model: "
            f"{'; '.join(found[:SHOWN])}{more}. Give the options that it was "
            "trained with, or start from another model"
        )


def _differences(there: Any, here: Any, path: str = "model") -> list[str]:
    """Settings in two descriptions that differ, where both have them."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [key for key in here if key in there and key not in MAY_DIFFER]
        kinds = there.get("class"), here.get("class")
        if None not in kinds and kinds[0] != kinds[1]:
            return [f"{path} is a {kinds[0]} there and a {kinds[1]} here"]
        return [
            one
            for key in keys
            for one in _differences(there[key], here[key], f"{path}.{key}")
        ]
    if isinstance(there, dict) or isinstance(here, dict):
        kinds = ("a part" if isinstance(x, dict) else x for x in (there, here))
        there, here = kinds
    if there == here:
        return []
    return [f"{path} is {there} there and {here} here"]
