"""Read a model folder as the start of another model, and name it in its card.

Only data is read: ``model.json`` and the weights. Of a folder without
``model.json``, the YAML is parsed as text, and no tag in it is run.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from ruamel.yaml import YAML, YAMLError
from speechbrain.dataio.encoder import CategoricalEncoder

from speechbrain_dslstm.pretrained.architecture import describe
from speechbrain_dslstm.pretrained.card import read_card
from speechbrain_dslstm.pretrained.model_folder import (
    HYPERPARAMS,
    read_weights,
)
from speechbrain_dslstm.pretrained.safe_format import (
    DESCRIPTION,
    OLDER_WEIGHTS,
    WEIGHTS,
    load_model,
)
from speechbrain_dslstm.pretrained.sources import fetch_folder
from speechbrain_dslstm.pretrained.untrusted_files import shorten

__all__ = ["Origin", "read_origin"]

LABELS = "label_encoder.ckpt"


@dataclass(frozen=True)
class Origin:
    """A model that another one starts from.

    ``parts`` describes the layers as ``architecture.describe`` does, as far as
    the folder says; ``card`` is the first paragraph of its model card, and
    ``licence`` the entry "license" of the card's header.
    """

    source: str
    sha256: str
    sample_rate: int
    labels: list[str]
    state: dict[str, torch.Tensor] = field(repr=False)
    parts: dict[str, object] = field(repr=False)
    card: str | None = None
    licence: str | None = None

    def facts(self) -> dict[str, object]:
        """What a record names: source, hash, classes, licence, first lines."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "labels": self.labels,
            "licence": self.licence,
            "card": self.card,
        }


def read_origin(source: str | Path) -> Origin:
    """Read a model from a folder, "pretrained/NAME" or the id of a hub.

    Raises FileNotFoundError if there is none, and ValueError for a folder that
    cannot be read as data.
    """
    folder = fetch_folder(source)
    path = folder / OLDER_WEIGHTS
    path = path if path.is_file() else folder / WEIGHTS
    if (folder / DESCRIPTION).is_file():
        model, data = load_model(folder)
        known = {
            "sample_rate": data["sample_rate"],
            "labels": data["labels"],
            "state": model.state_dict(),
            "parts": describe(model),
        }
    else:
        known = _read_undescribed(folder, path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Origin(str(source), sha256, **known, **read_card(folder))


def _read_undescribed(folder: Path, path: Path) -> dict[str, object]:
    """Read a folder that has a YAML but no model.json."""
    for name in (HYPERPARAMS, LABELS, path.name):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is no model folder: it has neither {DESCRIPTION} "
                f"nor {name}"
            )
    file = folder / HYPERPARAMS
    try:
        # Of type "rt": tags stay text, nothing is built
        settings = YAML(typ="rt").load(file.read_text("utf-8"))
        rate = int(settings["sample_rate"])
        streams = settings["model"]["streams"]
        hooks = settings.get("pretrainer", {}).get("custom_hooks", {})
        sha256 = hooks.get("model", {}).get("sha256")
        dimensions = _plain(settings["model"].get("dimensions") or [])
        parts = {"streams": _plain(streams), "dimensions": dimensions}
    except (YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} is not the YAML of a model folder: {shorten(error)}"
        ) from error
    encoder = CategoricalEncoder()
    encoder.load(str(folder / LABELS))
    return {
        "sample_rate": rate,
        "labels": [encoder.ind2lab[k] for k in range(len(encoder))],
        "state": read_weights(path, sha256),
        "parts": parts,
    }


def _plain(node: object) -> object:
    """A node of parsed YAML as ``architecture.describe`` would give it."""
    if isinstance(node, dict):
        plain = {str(key): _plain(value) for key, value in node.items()}
        tag = node.tag.value or ""
        if tag.startswith("!new:"):
            plain["class"] = tag.rpartition(".")[2]
        return plain
    return [_plain(item) for item in node] if isinstance(node, list) else node
