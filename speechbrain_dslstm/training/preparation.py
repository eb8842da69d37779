"""Prepare the data of a run: read the corpus, split it, write the manifests.

Only one rank does this, before the model is trained; the manifests in the save
folder are all that the other ranks read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.corpora import Source
from speechbrain_dslstm.corpora.manifest import (
    check_dimensions,
    write_left_out,
    write_manifest,
)
from speechbrain_dslstm.corpora.transcripts import (
    check_transcripts,
    write_transcripts,
)
from speechbrain_dslstm.hparams import IDENTITY, run_folder
from speechbrain_dslstm.settings.record import RunRecord
from speechbrain_dslstm.splits.leaks import (
    audio_hash,
    check_leaks,
    format_leak_table,
)
from speechbrain_dslstm.splits.protocols import Split, make_split, split_hash
from speechbrain_dslstm.utils.files import replace_file

logger = get_logger(__name__)
# Entries of run.json that another version may word in another way
PROSE = ("description", "text_note")


def prepare_data(
    hparams: Mapping[str, Any], record: RunRecord | None = None
) -> None:
    """Read the corpus, split it, and write the manifests of a run.

    The folder "save" in ``output_folder`` receives a manifest of each subset,
    left_out.json, run.json, the ``record`` of the settings and, if the model
    reads them, the training transcripts. A folder that holds a trained run on
    another split raises a ValueError.
    """
    left_out, source = [], Source(hparams)
    source.check_protocol(hparams["protocol"])
    if hparams["soft_labels"] and not source.is_plain:
        raise ValueError(
            f"soft_labels needs the votes of annotators, and {source.name} "
            "has none that fit its classes: set soft_labels to 0"
        )
    entries = source.prepare(left_out)
    unnamed = [key for key in entries if not entries[key]["speaker"]]
    if unnamed and hparams["normalization"] == "speaker":
        raise ValueError(
            f"{unnamed[0]}: no speaker, whose statistics normalization: "
            "speaker needs; use normalization: training"
        )
    dimensions, scale = hparams["dimensions"], hparams["dimension_range"]
    check_dimensions(entries, dimensions, source.name, scale)
    split = make_split(
        entries,
        hparams["protocol"],
        hparams["fold"],
        hparams["seed"],
        hparams["n_folds"],
        hparams["valid_speakers"],
    )
    if hparams["patience"] is not None and not split.valid:
        raise ValueError(
            "patience waits for a better validation UA, but valid_speakers: "
            f"{hparams['valid_speakers']} leaves no clip for validation; set "
            "patience to null, or valid_speakers to 1 or more"
        )
    run = _describe(hparams, source, entries, split)
    folder = Path(hparams["output_folder"], "save")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.json"
    _check_same_run(hparams, path, run)
    for subset, ids in split.subsets.items():
        write_manifest(folder / f"{subset}.json", {i: entries[i] for i in ids})
    write_left_out(folder / "left_out.json", left_out)
    if hparams["model"].reads_text:
        train = {i: entries[i] for i in split.train}
        write_transcripts(train, folder / "tokenizer")
    # Last: with run.json, all the other files are complete
    replace_file(path, json.dumps(run, indent=2) + "\n")
    if record is not None:
        record.write()
    table = format_leak_table(run["leaks"])
    logger.info(f"split: {split.description}\n{table}")


def check_data(hparams: Mapping[str, Any], record: RunRecord) -> None:
    """Refuse what the settings alone show to be wrong, before anything is written.

    That are a protocol that the data do not allow, missing folders and files,
    and a folder trained on another table.
    """
    source = Source(hparams)
    source.check_protocol(hparams["protocol"])
    source.check_files()
    path = record.folder / "save" / "run.json"
    if record.trained and path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        _refuse_other(record.folder, before, {"corpus": source.name})


def name_run_folder(hparams: Mapping[str, Any]) -> str:
    """Name the folder of a run; a table is named after what it says."""
    return run_folder({**hparams, "corpus": Source(hparams).name})


def _describe(
    hparams: Mapping[str, Any],
    source: Source,
    entries: Mapping[str, dict],
    split: Split,
) -> dict[str, Any]:
    """Describe the system and its data, as the content of run.json."""
    run = {name: hparams[name] for name in (*IDENTITY, "fold", "seed")}
    run.update(
        corpus=source.name,
        n_folds=split.n_folds,
        labels=source.labels,
        description=split.description,
        split_hash=split_hash(split),
        audio_hash=audio_hash(entries),
        clips={
            **{subset: len(ids) for subset, ids in split.subsets.items()},
            "dropped": split.dropped,
        },
        leaks=check_leaks(split, entries),
    )
    if hparams["model"].reads_text:
        run["text_note"] = check_transcripts(
            hparams["corpus"],
            entries,
            hparams["allow_fixed_sentences"],
            source.fixed_sentences,
        )
    return run


def _check_same_run(
    hparams: Mapping[str, Any], path: Path, run: Mapping[str, Any]
) -> None:
    """Refuse a folder that another run has been trained in."""
    if not path.exists():
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    facts = {name: run[name] for name in run if name not in PROSE}
    changed = any(before.get(k, fact) != fact for k, fact in facts.items())
    finished = Path(hparams["output_folder"], "results.json").exists()
    if finished or any(path.parent.glob("CKPT*")):
        _refuse_other(hparams["output_folder"], before, facts)
    elif changed:
        # It describes manifests that are about to be replaced
        path.unlink()


def _refuse_other(
    folder: str | Path, before: Mapping[str, Any], now: Mapping[str, Any]
) -> None:
    """Raise the error for a folder trained on other data."""
    for name, fact in now.items():
        if before.get(name, fact) != fact:
            raise ValueError(
                f"{folder} holds a run with another {name} ({before[name]}, "
                f"now {fact}): give another --output_folder, or remove that "
                "folder"
            )
