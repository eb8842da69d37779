"""What a run is trained and tested on: read, split and written down, once.

Only one rank does it, before the model is made; what it writes into the save
folder is all that the others read.
"""

import json
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.corpora import prepare
from speechbrain_dslstm.corpora.manifest import (
    check_dimensions,
    write_left_out,
    write_manifest,
)
from speechbrain_dslstm.corpora.transcripts import (
    check_transcripts,
    write_transcripts,
)
from speechbrain_dslstm.hparams import IDENTITY
from speechbrain_dslstm.splits.leaks import (
    audio_hash,
    check_leaks,
    format_leak_table,
)
from speechbrain_dslstm.splits.protocols import make_split, split_hash
from speechbrain_dslstm.utils.files import replace_file

__all__ = ["prepare_data"]

logger = get_logger(__name__)
SIDES = ("train", "valid", "test")


def prepare_data(hparams, settings):
    """Read the corpus, split it, and write the manifests of this run.

    Arguments
    ---------
    hparams : dict
        The loaded hyperparameters of the recipe. In "save_folder" will be
        run.json, a manifest for each side, left_out.json, and the training
        side's transcripts, where the model reads them.
    settings : str
        Their hash, from ``hparams.hash_settings``, for run.json.

    Raises
    ------
    ValueError
        The output folder holds a trained run on another split, the corpus
        lacks a dimension, or the corpus or protocol cannot be had.

    Example
    -------
    >>> names = ["corpus", "data_folder", "label_set"]
    >>> hparams = dict.fromkeys(names, "casino") | {"corpus_options": {}}
    >>> prepare_data(hparams, settings="")
    Traceback (most recent call last):
        ...
    ValueError: unknown corpus 'casino'; expected one of ...
    """
    left_out = []
    entries, labels = prepare(
        hparams["corpus"],
        hparams["data_folder"],
        hparams["label_set"],
        left_out,
        **hparams["corpus_options"],
    )
    check_dimensions(entries, hparams["dimensions"], hparams["corpus"])
    split = make_split(
        entries,
        hparams["protocol"],
        hparams["fold"],
        hparams["seed"],
        hparams["n_folds"],
        hparams["valid_speakers"],
    )
    run = _describe(hparams, entries, labels, split)
    folder = Path(hparams["save_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    _check_same_run(hparams, path, run)
    # Others may resume it, and what they change is for cross_validate.py to say
    run["settings"] = settings
    for side in SIDES:
        ids = getattr(split, side)
        write_manifest(folder / f"{side}.json", {i: entries[i] for i in ids})
    write_left_out(folder / "left_out.json", left_out)
    if hparams["model"].reads_text:
        train = {i: entries[i] for i in split.train}
        write_transcripts(train, folder / "tokenizer")
    # Last: it stands for all of them
    replace_file(path, json.dumps(run, indent=2) + "\n")
    table = format_leak_table(run["leaks"])
    logger.info(f"split: {split.description}\n{table}")


def _describe(hparams, entries, labels, split):
    """What stands in run.json: which system is tested on what."""
    run = {name: hparams[name] for name in (*IDENTITY, "fold", "seed")}
    run.update(
        n_folds=split.n_folds,
        labels=labels,
        description=split.description,
        split_hash=split_hash(split),
        audio_hash=audio_hash(entries),
        clips={
            **{side: len(getattr(split, side)) for side in SIDES},
            "dropped": split.dropped,
        },
        leaks=check_leaks(split, entries),
    )
    if hparams["model"].reads_text:
        run["text_note"] = check_transcripts(
            hparams["corpus"], entries, hparams["allow_fixed_sentences"]
        )
    return run


def _check_same_run(hparams, path, run):
    """Refuse a folder that another run has trained in."""
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in run if before.get(name, run[name]) != run[name]]
    finished = Path(hparams["output_folder"], "results.json").exists()
    if changed and (finished or any(path.parent.glob("CKPT*"))):
        name = changed[0]
        raise ValueError(
            f"{hparams['output_folder']} holds a run with another {name} "
            f"({before[name]}, now {run[name]}): give another "
            "--output_folder, or remove that one"
        )
    if changed:
        # Its manifests will no longer be those of these hyperparameters
        path.unlink()
