"""Read a system's YAML, and identify the run that its settings define.

A system's YAML states what is particular to the system and includes
``recipe.yaml``, which holds what all systems share, under the key ``recipe``.
The functions here return the keys of both as one dict, and on the command line
each key is an option, whichever file it is in. ``overrides`` is the text that
``speechbrain.parse_arguments`` makes of these options.
"""

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import speechbrain as sb
from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML, MappingNode, Node

__all__ = ["load_hparams"]

# Key and tag by which a system's YAML includes recipe.yaml
SHARED = "recipe"
INCLUDE = "!include:"

# Runs on the same task distinguish the same classes
TASK = ("corpus", "label_set")
SETTING = (*TASK, "protocol", "normalization")
# All folds and seeds of a run share these; each fold has its own PER_FOLD
IDENTITY = (*SETTING, "system")
PER_FOLD = ("fold", "seed", "output_folder", "device", "noprogressbar")
# Options that change no result
WITHOUT_EFFECT = (
    *("data_folder", "feature_cache", "num_workers", "use_tensorboard"),
    *("ckpt_interval_minutes", "ckpt_interval_steps", "ddp_timeout"),
)


def load_hparams(
    hparams_file: str | Path, overrides: str = ""
) -> dict[str, Any]:
    """Load a system's YAML and build the objects in it.

    Arguments
    ---------
    hparams_file
        The system's YAML.
    overrides
        YAML of keys and values that replace those of the files; a key that is
        in neither file raises a KeyError.

    Returns
    -------
    dict
        The keys of both files.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "recipe.yaml").write_text("fold: 0")
    >>> system = folder / "system.yaml"
    >>> _ = system.write_text("seed: 1\\nrecipe: !include:recipe.yaml {}")
    >>> hparams = load_hparams(system, "fold: 3")
    >>> hparams["seed"], hparams["fold"]
    (1, 3)
    """
    overrides = nest_overrides(hparams_file, overrides)
    with open(hparams_file, encoding="utf-8") as file:
        return _merged(load_hyperpyyaml(file, overrides))


def read_hparams(
    hparams_file: str | Path, overrides: str = ""
) -> dict[str, Any]:
    """Read a system's YAML as ``load_hparams`` does, but build nothing.

    Numbers and texts are final; objects are YAML. A file that is not a
    system's raises a ValueError.
    """
    settings = YAML().load(_resolved(hparams_file, overrides))
    if "output_folder" not in settings:
        raise ValueError(
            f"{hparams_file} is not the YAML of a system: it has no key "
            "output_folder"
        )
    return _merged(settings)


def resolve_hparams(hparams_file: str | Path, overrides: str = "") -> str:
    """Resolve references and includes, for the YAML of a model folder.

    The key ``sample_rate`` is added at its end.
    """
    text = _resolved(hparams_file, overrides)
    features = _merged(YAML().load(text))["features"]
    return f"{text}sample_rate: {features['sample_rate']}\n"


def run_folder(hparams: Mapping[str, Any]) -> str:
    """Name the folder of a run: ``output_folder``, or one made of its settings.

    An example is runs/dual_level/emodb/session/training/fold0_seed1234.
    """
    if hparams["output_folder"] is not None:
        return str(hparams["output_folder"])
    parts = [hparams["system"], hparams["corpus"], hparams["protocol"]]
    parts.append(hparams["normalization"])
    fold = f"fold{hparams['fold']}_seed{hparams['seed']}"
    return os.path.join("runs", *map(str, parts), fold)


def nest_overrides(hparams_file: str | Path, overrides: str) -> str:
    """Move overrides of the included file's keys under the key ``recipe``."""
    yaml = YAML()
    given = yaml.load(overrides) or {}
    own = yaml.load(Path(hparams_file).read_text(encoding="utf-8"))
    tag = getattr(own.get(SHARED), "tag", None)
    if tag is None or not (tag.value or "").startswith(INCLUDE):
        return overrides
    included = Path(hparams_file).parent / tag.value.removeprefix(INCLUDE)
    shared = yaml.load(included.read_text(encoding="utf-8"))
    nested, below = {}, {}
    for key, value in given.items():
        if key not in own and key not in shared:
            raise KeyError(
                f"no key {key!r} in {hparams_file} or {included.name}"
            )
        (nested if key in own else below)[key] = value
    if below:
        nested.setdefault(SHARED, {}).update(below)
    out = StringIO()
    yaml.dump(nested, out)
    return out.getvalue()


def _resolved(hparams_file: str | Path, overrides: str) -> str:
    """Text of a YAML with its overrides, references and includes resolved."""
    overrides = nest_overrides(hparams_file, overrides)
    with open(hparams_file, encoding="utf-8") as file:
        return resolve_references(file, overrides).getvalue()


def _merged(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the included file's keys with the system's own, which win."""
    return {**settings.get(SHARED, {}), **settings}


def hash_settings(arguments: Sequence[str]) -> str:
    """Hash all that can change a fold's result in the arguments of train.py.

    Layout, comments, ``PER_FOLD`` and ``WITHOUT_EFFECT`` do not count.
    """
    path, run_opts, overrides = sb.parse_arguments(list(arguments))
    root = YAML().compose(_resolved(path, overrides))
    nodes = {key.value: node for key, node in root.value}
    if SHARED in nodes:
        shared = {key.value: node for key, node in nodes.pop(SHARED).value}
        nodes = {**shared, **nodes}
    settings = {key: _plain(node) for key, node in nodes.items()}
    # SpeechBrain's own options are not among the overrides
    settings |= {name: run_opts[name] for name in run_opts.overridden_args}
    counting = {
        key: value
        for key, value in settings.items()
        if value is not None and key not in (*PER_FOLD, *WITHOUT_EFFECT)
    }
    text = json.dumps(counting, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(node: Node) -> tuple[str, Any] | None:
    """Tag and value of a YAML node; None for null, however it is written."""
    if node.tag.endswith(":null"):
        return None
    value = node.value
    if isinstance(node, MappingNode):
        value = [(_plain(key), _plain(one)) for key, one in value]
    elif isinstance(value, list):
        value = [_plain(one) for one in value]
    return str(node.tag), value


def shorten_command(
    arguments: Iterable[str], without: Sequence[str] = ()
) -> str:
    """Join a command line, each absolute path cut down to its last name.

    Options in ``without``, such as ``PER_FOLD``, are left out where they are
    written with "=" or alone.
    """
    kept = []
    for argument in arguments:
        option = argument.startswith("--")
        if option and argument[2:].split("=")[0] in without:
            continue
        name, equals, value = argument.rpartition("=")
        path = Path(value)
        absolute = path.is_absolute()
        kept.append(f"{name}{equals}{path.name}" if absolute else argument)
    return shlex.join(kept)
