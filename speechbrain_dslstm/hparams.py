"""Read a system's YAML, and identify the run that its settings define.

A system's YAML states what is particular to the system and includes
``recipe.yaml``, which holds what all systems share, under the key ``recipe``.
The functions here return the keys of both as one dict, and on the command line
each key is an option, whichever file it is in. ``overrides`` is the text that
``settings.arguments.parse_arguments`` makes of these options.
"""

import difflib
import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from hyperpyyaml import load_hyperpyyaml, resolve_references
from hyperpyyaml.core import recursive_update
from ruamel.yaml import YAML, MappingNode, Node
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from yaml.nodes import ScalarNode
from yaml.resolver import Resolver

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
# Keys and options that change no result: where the data is, what is written,
# how often, on which device, and how a run is watched
WITHOUT_EFFECT = (
    # The name of the corpus has a hash of what the table says
    "table",
    *("data_folder", "output_folder", "feature_cache", "num_workers"),
    "threads",
    "calibration",
    *("ckpt_interval_minutes", "ckpt_interval_steps", "ddp_timeout"),
    *("use_tensorboard", "half_precision_model", "eval_batch_size"),
    *("on_nonfinite", "nonfinite_patience", "device", "noprogressbar"),
    *("tqdm_colored_bar", "log_config", "test_only", "distributed_backend"),
    *("find_unused_parameters", "jit", "jit_module_keys", "compile"),
    *("compile_module_keys", "compile_mode", "compile_using_fullgraph"),
    *("compile_using_dynamic_shape_tracing", "profile_training"),
    *("profile_warmup", "profile_steps", "gradient_checkpointing"),
    "ssl_folder",
)


@cache
def run_options() -> dict[str, Any]:
    """SpeechBrain's own options and their defaults."""
    # Loaded here, so that a list of the systems need not load SpeechBrain
    from speechbrain.utils.run_opts import RunOptions

    other = ("param_file", "overridden_args", "distributed_launch")
    options = RunOptions().as_dict()
    return {k: value for k, value in options.items() if k not in other}


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
    return _merged(load_hyperpyyaml(_resolved(hparams_file, overrides)))


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


class UnknownKeyError(KeyError, ValueError):
    """A key that is in neither file of a system."""

    def __str__(self) -> str:
        return str(self.args[0])


def flat_yaml(hparams_file: str | Path, overrides: str = "") -> str:
    """Write a system and what it includes as one YAML, with its references.

    The overrides are applied. The text needs no other file, and its keys can be
    overridden again. An included file is looked for beside the one that
    includes it, then among the package's own.
    """
    tree = read_tree(hparams_file)
    given = YAML().load(overrides) or {}
    shared = tree.get(SHARED, {})
    for key, value in given.items():
        if key not in tree and key in shared:
            _update(shared, key, value)
        elif key in tree or key in run_options():
            _update(tree, key, value)
        else:
            raise UnknownKeyError(unknown_key(key, tree, hparams_file))
    yaml, out = YAML(), StringIO()
    # A folded line would be another text
    yaml.width = 10_000
    yaml.dump(tree, out)
    return out.getvalue()


def _update(tree: CommentedMap, key: str, value: Any) -> None:
    """Set a key; a mapping changes the keys it has, but replaces null."""
    if tree.get(key) is None:
        tree[key] = value
    else:
        recursive_update(tree, {key: value})


def unknown_key(key: str, tree: Mapping, hparams_file: str | Path) -> str:
    """Message on a key of no file, with the most similar ones."""
    known = [*tree, *tree.get(SHARED, {}), *run_options()]
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"no key {key!r} in {hparams_file} or recipe.yaml{hint}"


def read_tree(hparams_file: str | Path) -> CommentedMap:
    """Read a YAML with its tags and comments, each include in its place."""
    path = Path(hparams_file)
    try:
        tree = YAML().load(path.read_text(encoding="utf-8"))
    except YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8") from error
    if not isinstance(tree, CommentedMap):
        raise ValueError(f"{path} is not a YAML of keys and values")
    for key, value in tree.items():
        tag = getattr(getattr(value, "tag", None), "value", None) or ""
        if tag.startswith(INCLUDE):
            included = read_tree(_find_included(path, tag))
            _move_references(included, key)
            # The keys below the tag refer to the file that includes
            for name in value if isinstance(value, Mapping) else ():
                if name not in included:
                    raise UnknownKeyError(unknown_key(name, included, path))
                recursive_update(included, {name: value[name]})
            tree[key] = included
    return tree


def included_file(hparams_file: str | Path) -> Path | None:
    """File that a system's YAML includes as ``recipe``; None without one."""
    path = Path(hparams_file)
    match = re.search(
        rf"^{SHARED}:\s*{INCLUDE}(\S+)", path.read_text("utf-8"), re.M
    )
    return _find_included(path, match[1]) if match else None


def _find_included(path: Path, tag: str) -> Path:
    """File that a tag of a YAML includes."""
    name = tag.removeprefix(INCLUDE)
    places = [path.parent / name, recipe_root() / "hparams" / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(
        f"{path} includes {name}, which is neither beside it nor in the package"
    )


def recipe_root() -> Path:
    """Folder that holds hparams/ and recipes/: a checkout, or in the package."""
    package = Path(__file__).resolve().parent
    inside = package / "recipe_files"
    return inside if inside.is_dir() else package.parent


def _move_references(node: Any, key: str) -> None:
    """Let references inside an included file point below a key."""
    if isinstance(node, Mapping | list):
        children = node.values() if isinstance(node, Mapping) else node
        for child in children:
            _move_references(child, key)
    elif getattr(getattr(node, "tag", None), "value", "") in ("!ref", "!copy"):
        node.value = re.sub(r"<(\w+)", rf"<{key}[\1]", node.value)


def _resolved(hparams_file: str | Path, overrides: str) -> str:
    """Text of a YAML with its overrides, references and includes resolved."""
    text = resolve_references(flat_yaml(hparams_file, overrides)).getvalue()
    root = YAML().compose(text)
    if not _quote_words(root, set()):
        return text
    out = StringIO()
    YAML().serialize(root, out)
    return out.getvalue()


def _quote_words(node: Node, seen: set[int]) -> bool:
    """Quote texts such as on, which HyperPyYAML would read as True."""
    if id(node) in seen:
        return False
    seen.add(id(node))
    if isinstance(node.value, list):
        children = node.value
        if isinstance(node, MappingNode):
            children = [one for pair in children for one in pair]
        return sum(_quote_words(one, seen) for one in children) > 0
    plain = not node.style and str(node.tag).endswith(":str")
    resolved = Resolver().resolve(ScalarNode, node.value, (True, False))
    if not plain or resolved.endswith(":str"):
        return False
    node.style = "'"
    return True


def _merged(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the included file's keys with the system's own, which win."""
    return {**settings.get(SHARED, {}), **settings}


def plain_settings(
    hparams_file: str | Path, overrides: str = ""
) -> dict[str, Any]:
    """Resolve all keys to values that JSON can hold, for a record of a run.

    An object is a dict of its "tag" and "value". Options of SpeechBrain that
    no file has are at their defaults.
    """
    root = YAML().compose(_resolved(hparams_file, overrides))
    nodes = {key.value: node for key, node in root.value}
    if SHARED in nodes:
        shared = {key.value: node for key, node in nodes.pop(SHARED).value}
        nodes = {**shared, **nodes}
    return {**run_options(), **{key: _plain(one) for key, one in nodes.items()}}


def _plain(node: Node) -> Any:
    """Value of a YAML node, however it is written."""
    value = node.value
    if isinstance(node, MappingNode):
        value = {str(_plain(key)): _plain(one) for key, one in value}
    elif isinstance(value, list):
        value = [_plain(one) for one in value]
    tag = str(node.tag)
    if tag.startswith("!"):
        return {"tag": tag, "value": value}
    if isinstance(value, str) and not tag.endswith(":str"):
        value = YAML(typ="safe", pure=True).load(value)
        # JSON has neither infinity nor dates
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if not isinstance(value, bool | int | float | None):
            return str(value)
    return value


def shorten_command(
    arguments: Iterable[str], without: Sequence[str] = ()
) -> str:
    """Join a command line, each absolute path cut down to its last name.

    Options in ``without``, such as ``PER_FOLD``, are left out where they are
    written with "=" or alone.
    """
    arguments, kept = list(arguments), []
    # "dslstm train" is one entry of a command line, but two words
    if arguments and arguments[0].startswith("dslstm "):
        kept = arguments.pop(0).split()
    for argument in arguments:
        option = argument.startswith("--")
        if option and argument[2:].split("=")[0] in without:
            continue
        name, equals, value = argument.rpartition("=")
        path = Path(value)
        absolute = path.is_absolute()
        kept.append(f"{name}{equals}{path.name}" if absolute else argument)
    return shlex.join(kept)
