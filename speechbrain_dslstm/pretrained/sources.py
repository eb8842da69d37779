"""Find a model in the package, in a local folder or on a hub."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    constants,
    snapshot_download,
    try_to_load_from_cache,
)

from speechbrain_dslstm.pretrained.untrusted_files import read_json

__all__ = ["check_hub_id", "claim_folder", "fetch_folder", "find_folder"]

ORIGIN = ".model_source.json"
# Files of a model folder that are read as data
DATA_FILES = ("model.json", "model.ckpt", "model.safetensors", "README.md")
DATA_FILES += ("hyperparams.yaml", "label_encoder.ckpt")
SHIPPED = Path(__file__).parents[1] / "shipped"


def find_folder(source: str | Path) -> Path | None:
    """Return the full path of a model folder on this machine, or None.

    Arguments
    ---------
    source
        A path, or "pretrained/NAME" for a model of the package.

    Example
    -------
    >>> find_folder("pretrained/emotion-dslstm-emodb").name
    'emotion-dslstm-emodb'
    >>> find_folder("user/model") is None
    True
    """
    local = Path(source).expanduser()
    if str(source) and local.is_dir():
        return local.resolve()
    if local.parts[:1] == ("pretrained",) and len(local.parts) == 2:
        shipped = SHIPPED / local.name
        return shipped if shipped.is_dir() else None
    return None


def check_hub_id(
    source: str | Path, hparams_file: str, savedir: str | Path | None
) -> None:
    """Refuse a mistyped path before SpeechBrain searches a hub for minutes.

    ``source`` passes if it has the form "user/model" and can be a hub id: either
    ``savedir`` or the hub's cache holds its ``hparams_file``, or the network may
    be used and no local folder is called "user".
    """
    if isinstance(source, Path) or not re.fullmatch(
        r"\w[\w.-]*/\w[\w.-]*", str(source), re.ASCII
    ):
        raise FileNotFoundError(f"no model folder {source}")
    kept = savedir is not None and (Path(savedir) / hparams_file).is_file()
    cached = try_to_load_from_cache(source, hparams_file)
    if kept or isinstance(cached, str):
        return
    parent = Path(source).parent
    if parent.is_dir() or str(parent) == "pretrained":
        raise FileNotFoundError(
            f"no model folder {source}; if it is a hub id, load it from a "
            f"working directory without a folder {parent}"
        )
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"no model folder {source}, and the hub's cache does not hold it; "
            "HF_HUB_OFFLINE forbids a download"
        )


def fetch_folder(source: str | Path) -> Path:
    """Return the path of a model folder; that of a hub is downloaded first.

    A source that is neither raises FileNotFoundError.
    """
    folder = find_folder(source)
    if folder is None:
        check_hub_id(source, "model.ckpt", None)
        folder = snapshot_download(str(source), allow_patterns=DATA_FILES)
    return Path(folder)


@contextmanager
def claim_folder(
    savedir: Path, source: str, revision: str | None
) -> Iterator[None]:
    """Record in ``savedir`` which hub model it keeps; refuse a second model.

    SpeechBrain takes any file of the right name in ``savedir`` for the one it
    needs, so two models in one folder would be mixed up. If the block leaves
    no file in the folder, the record is removed.
    """
    note = savedir / ORIGIN
    wanted = {"source": source, "revision": revision}
    savedir.mkdir(parents=True, exist_ok=True)
    held = [path for path in savedir.iterdir() if path != note]
    if held and not note.exists():
        # SpeechBrain links the files it downloads to the hub's cache
        cache = f"models--{source.replace('/', '--')}"
        if not all(cache in path.resolve().parts for path in held):
            raise ValueError(
                f"savedir {savedir} holds files of unknown origin, such as "
                f"{held[0].name}; choose an empty folder for {source}, or load "
                "the model in it with from_hparams(savedir)"
            )
    try:
        with open(note, "x", encoding="utf-8") as file:
            json.dump(wanted, file)
    except FileExistsError:
        found = read_json(note)
        if found != wanted:
            raise ValueError(
                f"savedir {savedir} holds the files of {found}, not those of "
                f"{wanted}; choose another folder for each model"
            ) from None
    try:
        yield
    finally:
        if list(savedir.iterdir()) == [note]:
            note.unlink(missing_ok=True)
