"""Reading a system's YAML, and where its runs are kept.

A system's YAML says what is its own and includes ``recipe.yaml``, which holds
what all systems share, under the key ``recipe``. On the command line the keys
of both stand side by side.
"""

import os
from io import StringIO
from pathlib import Path

from hyperpyyaml import load_hyperpyyaml, resolve_references
from ruamel.yaml import YAML

__all__ = [
    "load_hparams",
    "nest_overrides",
    "plain_hparams",
    "resolve_hparams",
    "run_folder",
]

SHARED = "recipe"
INCLUDE = "!include:"


def nest_overrides(hparams_file, overrides):
    """Move each override to where its key stands.

    Arguments
    ---------
    hparams_file : str or pathlib.Path
        The system's YAML.
    overrides : str
        YAML of keys and values, as ``speechbrain.parse_arguments`` gives.

    Returns
    -------
    str
        YAML in which keys of the included file are below ``recipe``.

    Raises
    ------
    KeyError
        A key that stands in neither file.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = (folder / "recipe.yaml").write_text("fold: 0")
    >>> system = folder / "system.yaml"
    >>> _ = system.write_text("seed: 1\\nrecipe: !include:recipe.yaml {}")
    >>> print(nest_overrides(system, "seed: 2\\nfold: 3"), end="")
    seed: 2
    recipe:
      fold: 3
    """
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
        if key in own:
            nested[key] = value
        elif key in shared:
            below[key] = value
        else:
            raise KeyError(
                f"no key {key!r} in {hparams_file} or {included.name}"
            )
    if below:
        nested.setdefault(SHARED, {}).update(below)
    out = StringIO()
    yaml.dump(nested, out)
    return out.getvalue()


def load_hparams(hparams_file, overrides=""):
    """Load a system's YAML, the keys of the included file beside its own.

    Arguments
    ---------
    hparams_file : str or pathlib.Path
        The system's YAML.
    overrides : str
        YAML of keys and values that replace those of the files.

    Returns
    -------
    dict
        Every key of both files.

    Raises
    ------
    KeyError
        An override of a key that stands in neither file.

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
        hparams = load_hyperpyyaml(file, overrides)
    return {**hparams.get(SHARED, {}), **hparams}


def resolve_hparams(hparams_file, overrides=""):
    """A system's YAML as one text, for a model folder.

    Arguments
    ---------
    hparams_file : str or pathlib.Path
        The system's YAML.
    overrides : str
        YAML of keys and values that replace those of the files.

    Returns
    -------
    str
        YAML without references and includes, and with ``sample_rate``.

    Raises
    ------
    KeyError
        An override of a key that stands in neither file.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> shared = "{rate: 8000, features: {sample_rate: !ref <rate>}}"
    >>> _ = (folder / "recipe.yaml").write_text(shared)
    >>> system = folder / "system.yaml"
    >>> _ = system.write_text("recipe: !include:recipe.yaml {}")
    >>> print(resolve_hparams(system, "rate: 16000"), end="")
    recipe: {rate: 16000, features: {sample_rate: 16000}}
    sample_rate: 16000
    """
    overrides = nest_overrides(hparams_file, overrides)
    with open(hparams_file, encoding="utf-8") as file:
        text = resolve_references(file, overrides).getvalue()
    resolved = YAML().load(text)
    features = {**resolved.get(SHARED, {}), **resolved}["features"]
    return f"{text}sample_rate: {features['sample_rate']}\n"


def plain_hparams(hparams_file, overrides=""):
    """What ``load_hparams`` would read, before anything in it is built.

    Arguments
    ---------
    hparams_file : str or pathlib.Path
        The system's YAML.
    overrides : str
        YAML of keys and values that replace those of the files.

    Returns
    -------
    dict
        Every key of both files; numbers and texts are final.

    Raises
    ------
    KeyError
        An override of a key that stands in neither file.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> shared = "{rate: 8000, features: {sample_rate: !ref <rate>}}"
    >>> _ = (folder / "recipe.yaml").write_text(shared)
    >>> system = folder / "system.yaml"
    >>> _ = system.write_text("recipe: !include:recipe.yaml {}")
    >>> plain_hparams(system, "rate: 16000")["rate"]
    16000
    """
    resolved = YAML().load(resolve_hparams(hparams_file, overrides))
    return {**resolved.get(SHARED, {}), **resolved}


def run_folder(hparams, fold=None, seed=None):
    """Folder of one run: ``output_folder``, or one named after all it is.

    Arguments
    ---------
    hparams : dict
        What ``load_hparams`` gave.
    fold : int, optional
        Another fold than the one in ``hparams``.
    seed : int, optional
        Another seed.

    Returns
    -------
    str
        Such as runs/dual_level/emodb/session/training/fold0_seed1234.

    Example
    -------
    >>> names = ["system", "corpus", "protocol", "normalization"]
    >>> hparams = dict(zip(names, "abcd")) | {"output_folder": None}
    >>> run_folder(hparams, fold=1, seed=2)
    'runs/a/b/c/d/fold1_seed2'
    """
    if hparams["output_folder"] is not None:
        return str(hparams["output_folder"])
    names = ["system", "corpus", "protocol", "normalization"]
    fold = hparams["fold"] if fold is None else fold
    seed = hparams["seed"] if seed is None else seed
    parts = [str(hparams[name]) for name in names]
    return os.path.join("runs", *parts, f"fold{fold}_seed{seed}")
