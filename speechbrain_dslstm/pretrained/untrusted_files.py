"""Read files of unknown origin within bounds.

JSON can exhaust memory or the stack without one wrong character: a list of a
million items, a hundred thousand brackets, a number of a million digits. A
safetensors file can announce a header of gigabytes. Sizes are therefore
checked before parsing, and the data before anything is built from it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

__all__ = ["check_hash", "check_shapes", "read_json", "read_tensors", "shorten"]

LARGEST_JSON = 1 << 20  # bytes
DEEPEST = 32  # nested containers
LONGEST = 1000  # items of a list, keys of an object, characters of a string
MOST = 10_000  # values in the whole file
LARGEST_HEADER = 1 << 20  # bytes, of a safetensors file


def read_json(path: str | Path) -> object:
    """Read a JSON file of bounded size, depth and number of values.

    Also refused are duplicate keys and the constants NaN and Infinity. Each
    ValueError names the file.

    >>> path = getfixture("tmp_path") / "a.json"
    >>> _ = path.write_text('{"p": 1, "p": 2}')
    >>> read_json(path)
    Traceback (most recent call last):
    ValueError: ...a.json is not valid JSON: duplicate key 'p'
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
            object_pairs_hook=_refuse_duplicates,
        )
    except (ValueError, RecursionError) as error:
        message = f"{path} is not valid JSON: {shorten(error)}"
        raise ValueError(message) from error
    excess = _first_excess(data)
    if excess:
        raise ValueError(f"{path} is too large: {excess}")
    return data


def shorten(text: object) -> str:
    """Limit a message to 200 characters; a file may have chosen its length."""
    text = str(text)
    return text if len(text) <= 200 else f"{text[:200]} (shortened)"


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"duplicate key {key!r}")
        found[key] = value
    return found


def _first_excess(data: object) -> str | None:
    """First limit that the data exceeds, or None."""
    level, depth, values = [data], 0, 0
    while level:
        depth += 1
        values += len(level)
        if depth > DEEPEST:
            return f"more than {DEEPEST} nested containers"
        if values > MOST:
            return f"more than {MOST} values"
        inner = []
        for value in level:
            if not isinstance(value, dict | list | str):
                continue
            if len(value) > LONGEST:
                kind = type(value).__name__
                return f"a {kind} of length {len(value)}, at most {LONGEST}"
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
        level = inner
    return None


def check_hash(
    data: bytes, sha256: str | None, path: str | Path, written_with: str
) -> None:
    """Compare a file's content with the SHA-256 that ``written_with`` records.

    ``path`` and ``written_with`` are named in the ValueError; None as the hash
    means that none was recorded.
    """
    if sha256 is None:
        return
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ValueError(
            f"{path} is not the file that {written_with} was written with: "
            f"sha256 {found} instead of {sha256}"
        )


def read_tensors(
    path: str | Path, largest: int, sha256: str, written_with: str
) -> dict[str, torch.Tensor]:
    """Read a safetensors file to the CPU, at most ``largest`` bytes of tensors.

    A ValueError that names the file refuses one that is larger, has another
    SHA-256 than ``written_with`` records, or is not safetensors.
    """
    path = Path(path)
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
        if header > LARGEST_HEADER:
            raise ValueError(
                f"cannot read {path}: a header of {header} bytes, at most "
                f"{LARGEST_HEADER}; not a safetensors file"
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
    # KeyError: a number type that torch does not have
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"cannot read {path}: {shorten(error)}") from error


def check_shapes(
    own: Mapping[str, torch.Tensor],
    state: Mapping[str, torch.Tensor],
    path: str | Path,
) -> None:
    """Compare the tensors of a file with the model's own; all must be finite.

    Only names, shapes and types of the model's tensors are read, so they may
    be on the meta device. The ValueError lists every kind of difference.

    >>> check_shapes({"bias": torch.ones(1)}, {"bias": torch.ones(2)}, "a")
    Traceback (most recent call last):
    ValueError: a does not fit the model: wrong shape bias [2] instead of [1]
    """
    shared = sorted(own.keys() & state.keys())
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "wrong shape": [
            f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
            for key in shared
            if own[key].shape != state[key].shape
        ],
        "wrong type": [
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


def _first(keys: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(keys) - shown} more" if len(keys) > shown else ""
    return ", ".join(shorten(key) for key in keys[:shown]) + more
