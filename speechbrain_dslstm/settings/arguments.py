"""The command line of the recipe: a YAML, and options that are its keys.

SpeechBrain's own parser takes "=" inside a value for a blank, a folder that is
called 1234 for a number, and a lone ``--key`` for null. Here a text stays the
text that was typed, and a value of another type than the default is refused.
"""

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import speechbrain as sb
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import YAMLError
from speechbrain.utils.run_opts import RunOptions

from speechbrain_dslstm.hparams import (
    SHARED,
    WITHOUT_EFFECT,
    UnknownKeyError,
    included_file,
    read_tree,
    run_options,
    unknown_key,
)
from speechbrain_dslstm.settings.documentation import describe_keys, find_yaml

__all__ = ["parse_arguments"]

# Texts, although their default is null
TEXTS = ("label_set", "table", "init_from")
# Texts, or else a list or a mapping in brackets
NAMES = ("label_map", "classes")
TEXT_ENDINGS = ("_folder", "_file", "_cache", "_column", "_hub")
NULLS = ("", "~", "null", "Null", "NULL")


def parse_arguments(
    arguments: Sequence[str],
) -> tuple[str, RunOptions, str]:
    """Read the arguments of train.py: a system, ``--key=value`` and ``--flag``.

    The system is a YAML, or the name of one that comes with the package.

    Arguments
    ---------
    arguments
        Those behind the name of the script.

    Returns
    -------
    hparams_file : str
        The system's YAML.
    run_opts : RunOptions
        SpeechBrain's own options, such as ``--device``.
    overrides : str
        YAML of the others, for ``load_hparams``; SpeechBrain's options that
        change results are in it, too.

    Raises
    ------
    FileNotFoundError
        There is neither such a file nor such a system in the package.
    ValueError
        A key is in no file, a value has another type than the default, or an
        argument is not an option.

    Example
    -------
    >>> yaml = getfixture("tmp_path") / "system.yaml"
    >>> _ = yaml.write_text("output_folder: null\\nlr: 0.1\\n")
    >>> given = [str(yaml), "--output_folder=007", "--lr=1e-3", "--device=cpu"]
    >>> _, run_opts, overrides = parse_arguments(given)
    >>> print(overrides)
    output_folder: '007'
    lr: 1e-3
    <BLANKLINE>
    >>> run_opts["device"]
    'cpu'
    """
    own, others = _split(arguments)
    path, run_opts = _parse_run_options(others)
    path = str(find_yaml(path))
    tree = read_tree(path)
    keys = {**tree.get(SHARED, {}), **tree}
    described = describe_keys(Path(path), included_file(path))
    comments = {name: key.comment for name, key in described.items()}
    values = CommentedMap()
    for key, text in own:
        if key not in keys:
            raise UnknownKeyError(unknown_key(key, tree, path))
        values[key] = _read_value(key, text, keys[key], comments.get(key, ""))
    for key in sorted(run_opts.overridden_args):
        if key in run_options() and key not in WITHOUT_EFFECT:
            values[key] = run_opts[key]
    yaml, out = YAML(), io.StringIO()
    yaml.width = 10_000
    if values:
        yaml.dump(values, out)
    return path, run_opts, out.getvalue()


def _split(
    arguments: Sequence[str],
) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Split into keys with the texts of their values, and SpeechBrain's part."""
    own, others, waiting = [], [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name in run_options():
            # YAML writes infinity in another way than Python
            others.append(argument.replace("=.inf", "=inf"))
            # The value of SpeechBrain's option comes with it
            flag = run_options().get(name) is False
            if argument.startswith("--") and not equals and not flag:
                while waiting and not waiting[0].startswith("--"):
                    others.append(waiting.pop(0))
                    if not name.endswith("_module_keys"):
                        break
        elif equals:
            own.append((name, text))
        else:
            follows = waiting and not waiting[0].startswith("--")
            # The YAML may follow a lone flag
            follows = follows and not waiting[0].endswith((".yaml", ".yml"))
            own.append((name, waiting.pop(0) if follows else None))
    return own, others


def _parse_run_options(arguments: list[str]) -> tuple[str, RunOptions]:
    """Parse SpeechBrain's part; its usage of thirty lines becomes one line."""
    if arguments and arguments[0] in ("-h", "--help"):
        sb.parse_arguments(arguments)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            path, run_opts, left = sb.parse_arguments(arguments)
    except SystemExit as stop:
        message = said.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(message or f"exit {stop.code}") from stop
    if left:
        left = left.strip()
        typed = [one for one in arguments if one.replace("=", " ") == left]
        raise ValueError(
            f"unexpected argument {(typed or [left])[0]!r}: write options as "
            "--key=value"
        )
    return path, run_opts


def _read_value(key: str, text: str | None, default: Any, comment: str) -> Any:
    """Convert the text of an option to the type that the key has."""
    tag = getattr(getattr(default, "tag", None), "value", None)
    if text is None:
        if isinstance(default, bool):
            return True
        raise ValueError(f"--{key} has no value: write --{key}=VALUE")
    nullable = default is None or "null" in comment
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    if text in NULLS and nullable:
        return None
    if key in NAMES and text[:1] not in ("[", "{", "'", '"'):
        return text
    is_text = isinstance(default, str) and tag is None
    is_text |= default is None and (key in TEXTS or key.endswith(TEXT_ENDINGS))
    if is_text and not quoted and not text.startswith("!"):
        return text
    try:
        value = YAML().load(text)
    except YAMLError as error:
        why = str(error).split("\n")[0]
        raise ValueError(f"{key} is {text!r}, not valid YAML: {why}") from error
    if tag is None and not text.startswith("!"):
        expected = _expected(default)
        if expected and not isinstance(value, expected[0]):
            words = expected[1] + (" or null" if nullable else "")
            raise ValueError(f"{key} is {text!r}, expected {words}")
        if isinstance(value, bool) != isinstance(default, bool) and expected:
            raise ValueError(f"{key} is {text!r}, expected {expected[1]}")
    return value


def _expected(default: Any) -> tuple[tuple[type, ...], str] | None:
    """Types that may replace a default, and their name; None: any."""
    if isinstance(default, bool):
        return (bool,), "True or False"
    if isinstance(default, int):
        return (int,), "a whole number"
    if isinstance(default, float):
        return (int, float), "a number"
    if isinstance(default, str):
        return (str,), "a text"
    if isinstance(default, Mapping):
        return (Mapping,), "a mapping such as {key: value}"
    if isinstance(default, list):
        return (list,), "a list such as [1, 2]"
    return None
