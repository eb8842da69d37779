"""Where a model comes from: the package, a local folder or a hub."""

import json
import re
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from speechbrain_dslstm.pretrained.untrusted_files import read_json

__all__ = ["find_folder"]

ORIGIN = ".model_source.json"
SHIPPED = Path(__file__).parents[1] / "shipped"


def find_folder(source):
    """Find a model folder on this machine.

    Arguments
    ---------
    source : str or pathlib.Path
        A folder, or the name of one that comes with the package.

    Returns
    -------
    pathlib.Path or None
        Its full path; None where there is no such folder.

    Example
    -------
    >>> find_folder(getfixture("tmp_path")).is_absolute()
    True
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


def check_hub_id(source, hparams_file, savedir):
    """Tell a mistyped path from a hub id before minutes of retries."""
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
            f"no model folder {source}; if it is the id of a hub, load it "
            f"from a place without a folder {parent}"
        )
    if constants.HF_HUB_OFFLINE:
        raise FileNotFoundError(
            f"no model folder {source}, and none of that id in the cache of "
            "the hub, which is offline (HF_HUB_OFFLINE)"
        )


def claim_folder(savedir, source, revision):
    """Note whose files a folder keeps; refuse it to another model.

    The host takes any file of the right name in there for the one it wants.
    """
    note = savedir / ORIGIN
    wanted = {"source": source, "revision": revision}
    savedir.mkdir(parents=True, exist_ok=True)
    held = [path for path in savedir.iterdir() if path != note]
    if held and not note.exists():
        # Files of the hub that the host fetched before link to its cache
        cache = f"models--{source.replace('/', '--')}"
        if not all(cache in path.resolve().parts for path in held):
            raise ValueError(
                f"savedir {savedir} holds files of unknown origin, such as "
                f"{held[0].name}; for {source} give an empty one, or load "
                "what is in there with from_hparams(savedir)"
            )
    try:
        with open(note, "x", encoding="utf-8") as file:
            json.dump(wanted, file)
    except FileExistsError:
        found = read_json(note)
        if found != wanted:
            raise ValueError(
                f"savedir {savedir} holds the files of {found}, not those of "
                f"{wanted}; give each model one of its own"
            ) from None


def release_folder(savedir):
    """Leave no claim on a folder where nothing was fetched."""
    if [path.name for path in savedir.iterdir()] == [ORIGIN]:
        (savedir / ORIGIN).unlink(missing_ok=True)
