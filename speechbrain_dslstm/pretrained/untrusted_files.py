"""Files of strangers, read within bounds.

JSON may be a bomb without a single wrong character: a list of a million
items, a hundred thousand brackets, a number of a million digits. A file of
safetensors may announce a header of gigabytes. What is read here is bounded
before it is parsed, and parsed before anything is built of it.
"""

import hashlib
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load

__all__ = ["check_hash", "check_shapes", "read_json", "read_tensors"]

LARGEST_JSON = 1 << 20  # bytes
DEEPEST = 32  # containers in each other
LONGEST = 1000  # items of one list, keys of one object, letters of a string
MOST = 10_000  # values altogether
LARGEST_HEADER = 1 << 20  # bytes, of safetensors


def read_json(path):
    """Read a JSON file of bounded size, depth and number of values.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    object
        Its data.

    Raises
    ------
    ValueError
        It is too large, no JSON, or says a thing twice; the message names
        the file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.json"
    >>> _ = path.write_text('{"p": 1, "p": 2}')
    >>> read_json(path)
    Traceback (most recent call last):
    ValueError: ...a.json is no JSON: the key 'p' stands there twice
    """
    path = Path(path)
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ValueError(
            f"{path} is too large: {size} bytes, at most {LARGEST_JSON}"
        )
    try:
        data = json.loads(
            path.read_text("utf-8"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_repeats,
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {shorten(error)}") from error
    fault = _too_much(data)
    if fault:
        raise ValueError(f"{path} is too large: {fault}")
    return data


def shorten(text):
    """Cut a message whose length somebody else decides.

    Arguments
    ---------
    text : object
        What ``str`` makes a message of.

    Returns
    -------
    str
        At most 200 letters of it.

    Example
    -------
    >>> len(shorten("a" * 1000))
    212
    """
    text = str(text)
    return text if len(text) <= 200 else f"{text[:200]} (shortened)"


def _refuse_constant(name):
    raise ValueError(f"{name} is no number")


def _refuse_repeats(pairs):
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands there twice")
        found[key] = value
    return found


def _too_much(data):
    """What there is too much of, or None."""
    level, depth, values = [data], 0, 0
    while level:
        depth += 1
        values += len(level)
        if depth > DEEPEST:
            return f"more than {DEEPEST} containers in each other"
        if values > MOST:
            return f"more than {MOST} values"
        inner = []
        for value in level:
            if not isinstance(value, dict | list | str):
                continue
            if len(value) > LONGEST:
                kind = type(value).__name__
                return f"a {kind} of {len(value)}, at most {LONGEST}"
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
        level = inner
    return None


def check_hash(data, sha256, path, written_with):
    """Hold the bytes of a file to a hash that was recorded.

    Arguments
    ---------
    data : bytes
        The file's content.
    sha256 : str or None
        The recorded hash, 64 hexadecimal digits; None: nothing to hold to.
    path : str or pathlib.Path
        The file, for the message.
    written_with : str
        Where the hash was recorded, for the message.

    Raises
    ------
    ValueError
        Another hash.

    Example
    -------
    >>> check_hash(b"altered", "0" * 64, "model.ckpt", "hyperparams.yaml")
    Traceback (most recent call last):
    ValueError: model.ckpt is not the file that hyperparams.yaml was written ...
    """
    if sha256 is None:
        return
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the file that {written_with} was written with: "
            f"sha256 {found} instead of {sha256}"
        )


def read_tensors(path, largest, sha256, written_with):
    """Read a file of safetensors whose size and hash are known.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.
    largest : int
        Bytes that its tensors can have.
    sha256 : str
        The recorded hash.
    written_with : str
        Where it was recorded, for the message.

    Returns
    -------
    dict of str to torch.Tensor
        By name; on the CPU.

    Raises
    ------
    ValueError
        Too large, of another hash, or no safetensors; the message names the
        file.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.safetensors"
    >>> _ = path.write_bytes(b"cos\\nsystem\\n(S'true'\\ntR.")
    >>> read_tensors(path, 100, "0" * 64, "model.json")
    Traceback (most recent call last):
    ValueError: cannot read ...a.safetensors: a header of ... bytes, at most ...
    """
    path = Path(path)
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
        if header > LARGEST_HEADER:
            raise ValueError(
                f"cannot read {path}: a header of {header} bytes, at most "
                f"{LARGEST_HEADER}; no safetensors"
            )
        most = 8 + header + largest
        file.seek(0)
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(
            f"{path} does not fit the model: {path.stat().st_size} bytes, at "
            f"most {most}"
        )
    check_hash(data, sha256, path, written_with)
    try:
        return load(data)
    # KeyError: a type of numbers that torch does not have
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"cannot read {path}: {shorten(error)}") from error


def check_shapes(own, state, path):
    """Hold tensors to the names, shapes and kinds that a model has.

    Arguments
    ---------
    own : dict of str to torch.Tensor
        The model's; only names, shapes and types are looked at.
    state : dict of str to torch.Tensor
        Those of a file.
    path : str or pathlib.Path
        The file, for the message.

    Raises
    ------
    ValueError
        Missing, unexpected, mis-shaped or non-finite tensors; the message
        names them.

    Example
    -------
    >>> import torch
    >>> check_shapes({"bias": torch.ones(1)}, {"bias": torch.ones(2)}, "a")
    Traceback (most recent call last):
    ValueError: a does not fit the model: of another shape bias [2] instead ...
    """
    shared = sorted(own.keys() & state.keys())
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in shared
            if own[key].shape != state[key].shape
        ],
        "of another type": [
            f"{key} {state[key].dtype} instead of {own[key].dtype}"
            for key in shared
            if own[key].is_floating_point() != state[key].is_floating_point()
        ],
        "not finite": [
            key
            for key in shared
            if state[key].is_floating_point()
            and not bool(state[key].float().isfinite().all())
        ],
    }
    found = [f"{kind} {_first(keys)}" for kind, keys in faults.items() if keys]
    if found:
        raise ValueError(f"{path} does not fit the model: {'; '.join(found)}")


def _first(keys, shown=5):
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(shorten(key) for key in keys[:shown]) + more
