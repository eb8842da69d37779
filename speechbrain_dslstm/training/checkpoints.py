"""Checkpoints that survive kills, full disks, flipped bits and wrong clocks.

A checkpoint is a folder that SpeechBrain's own ``Checkpointer`` can load, with
one more file: ``SHA256SUMS``, in the format of ``sha256sum --check``.
"""

import hashlib
import logging
import math
import os
import shutil
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    METAFNAME,
    PARAMFILE_EXT,
    Checkpoint,
    Checkpointer,
    ckpt_recency,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    main_process_only,
)
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.utils.files import sync

__all__ = ["AtomicCheckpointer", "CheckpointError"]

logger = get_logger(__name__)

SUMS = "SHA256SUMS"
# In the meta file: a checkpoint without its sums must not pass for one that
# SpeechBrain's own Checkpointer has written
SUMS_KEY = "checksums"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be saved, or none can be loaded.

    Example
    -------
    >>> raise CheckpointError("disk full")
    Traceback (most recent call last):
        ...
    speechbrain_dslstm.training.checkpoints.CheckpointError: disk full
    """


class _Damaged(Exception):
    """A folder is not a complete checkpoint; the message says why."""


class AtomicCheckpointer(Checkpointer):
    """A checkpointer whose checkpoints exist either completely or not at all.

    SpeechBrain's own writes into the final folder, so a run that is killed
    while saving leaves an incomplete checkpoint, which the next start takes for
    the newest and cannot load. This one writes to another folder, records
    hashes, syncs, and renames. It checks what it loads: a damaged checkpoint is
    named in one warning, and the next best is loaded. A new checkpoint counts
    as newer than earlier ones whatever the clock says. Of several ranks, the
    first decides and writes.

    ``rescore``, where it is set, computes the "score" of a checkpoint from its
    meta data: a run of more epochs than were planned ranks the earlier ones anew.

    Checkpoints of SpeechBrain's own are loaded as well, after the checks that
    are possible without hashes. Arguments and methods are those of
    ``Checkpointer``; the docstrings here say only what differs.

    Arguments
    ---------
    *args
        As for ``Checkpointer``.
    **kwargs
        As for ``Checkpointer``.

    Example
    -------
    >>> import torch
    >>> folder = getfixture("tmp_path")
    >>> checkpointer = AtomicCheckpointer(
    ...     folder, {"model": torch.nn.Linear(1, 1)}
    ... )
    >>> saved = checkpointer.save_checkpoint(name="first")
    >>> saved.path.name, sorted(path.name for path in saved.path.iterdir())
    ('CKPT+first', ['CKPT.yaml', 'SHA256SUMS', 'model.ckpt'])
    """

    ASIDE = "SAVING"
    REPLACED = "REPLACED"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rescore: Callable[[Mapping], float] | None = None
        self._read_before = {}
        self._damaged = {}
        self._newest = None
        if if_main_process():
            # Undo the first rename of ``_put_in_place`` after a kill
            for old in self.checkpoints_dir.glob(f"{self.REPLACED}*"):
                final = _renamed(old, self.REPLACED, CKPT_PREFIX)
                if not final.exists():
                    os.rename(old, final)

    def _new_checkpoint_dirpath(self) -> Path:
        path = super()._new_checkpoint_dirpath()
        return _renamed(path, CKPT_PREFIX, self.ASIDE)

    def _custom_checkpoint_dirpath(self, name: str) -> Path:
        path = super()._custom_checkpoint_dirpath(name)
        return _renamed(path, CKPT_PREFIX, self.ASIDE)

    def _save_checkpoint_metafile(
        self,
        fpath: Path,
        meta_to_include: Mapping[str, Any] | None = None,
        end_of_epoch: bool = True,
    ) -> dict[str, Any]:
        """Write a meta file that YAML can read back, with a growing time."""
        if self._newest is None:
            times = map(ckpt_recency, self.list_checkpoints())
            self._newest = max(times, default=-math.inf)
        now = max(time.time(), math.nextafter(self._newest, math.inf))
        # YAML writes tensors and NumPy's numbers, but does not read them again
        given = {
            key: value.item() if hasattr(value, "item") else value
            for key, value in (meta_to_include or {}).items()
        }
        given = {"unixtime": now, SUMS_KEY: SUMS, **given}
        yaml.safe_dump(given)
        meta = super()._save_checkpoint_metafile(fpath, given, end_of_epoch)
        self._newest = max(self._newest, meta["unixtime"])
        return meta

    def save_checkpoint(
        self, *args: Any, verbosity: int = logging.INFO, **kwargs: Any
    ) -> Checkpoint | None:
        """Save atomically; ``verbosity`` is the log level of the message.

        A failure raises CheckpointError, and the earlier checkpoints are
        unchanged.
        """
        if if_main_process():
            self._remove_left_overs()
        try:
            saved = super().save_checkpoint(
                *args, verbosity=logging.DEBUG, **kwargs
            )
            if saved is not None:
                saved = self._put_in_place(saved)
        except (OSError, RuntimeError) as error:
            if not if_main_process():
                raise
            self._remove_left_overs()
            raise self._cannot_save(error) from error
        # All ranks must see the same folders afterwards
        ddp_barrier()
        if saved is not None:
            logger.log(verbosity, f"Saved a checkpoint in {saved.path}")
        return saved

    def _put_in_place(self, aside: Checkpoint) -> Checkpoint:
        """Hash, sync and rename the folder that has just been written."""
        files = sorted(aside.path.iterdir())
        lines = [f"{_sha256(path)}  {path.name}\n" for path in files]
        sums = aside.path / SUMS
        sums.write_text("".join(lines), encoding="utf-8")
        for path in [*files, sums, aside.path]:
            sync(path)
        final = _renamed(aside.path, self.ASIDE, CKPT_PREFIX)
        replaced = _renamed(final, CKPT_PREFIX, self.REPLACED)
        if final.exists():
            os.rename(final, replaced)
        os.rename(aside.path, final)
        sync(final.parent)
        self._damaged.pop(final, None)
        shutil.rmtree(replaced, ignore_errors=True)
        paths = {
            name: final / path.name for name, path in aside.paramfiles.items()
        }
        return aside._replace(path=final, paramfiles=paths)

    def _remove_left_overs(self) -> None:
        for prefix in (self.ASIDE, self.REPLACED):
            for left_over in self.checkpoints_dir.glob(f"{prefix}+*"):
                shutil.rmtree(left_over, ignore_errors=True)

    def _cannot_save(self, error: Exception) -> CheckpointError:
        free = shutil.disk_usage(self.checkpoints_dir).free / 2**20
        reason = str(error).split("\n")[0]
        # Torch's writer gives no reason for a file that cannot grow
        if "inline_container" in reason or "PytorchStreamWriter" in reason:
            reason = f"the disk or the quota is full ({reason})"
        return CheckpointError(
            f"could not save a checkpoint in {self.checkpoints_dir}: {reason}; "
            f"{free:.0f} MB are free there. The earlier checkpoints are intact: "
            "make room and run the same command again"
        )

    def save_and_keep_only(
        self, *args: Any, importance_keys: Iterable = (), **kwargs: Any
    ) -> None:
        """Save a checkpoint, then delete the less important ones.

        SpeechBrain's own appends to a list that all calls share, so that each
        save takes longer than the one before.
        """
        keys = list(importance_keys)
        super().save_and_keep_only(*args, importance_keys=keys, **kwargs)

    @main_process_only
    def delete_checkpoints(
        self,
        *,
        num_to_keep: int = 1,
        min_keys: Iterable[str] | None = None,
        max_keys: Iterable[str] | None = None,
        importance_keys: Iterable[Callable] = (ckpt_recency,),
        ckpt_predicate: Callable | None = None,
        verbosity: int = logging.INFO,
    ) -> None:
        """Delete checkpoints; a kill meanwhile leaves none in part.

        The last intact checkpoint stays, unless ``num_to_keep`` is 0.
        """
        if num_to_keep < 0:
            raise ValueError(f"num_to_keep must be >= 0, got {num_to_keep}")
        orders = [{"min_key": key} for key in min_keys or ()]
        orders += [{"max_key": key} for key in max_keys or ()]
        orders += [{"importance_key": key} for key in importance_keys]
        doomed, kept = set(), set()
        for order in orders:
            ranked = self.find_checkpoints(
                ckpt_predicate=ckpt_predicate, **order
            )
            doomed.update(ranked)
            kept.update(ranked[:num_to_keep])
        doomed = sorted(doomed - kept, key=ckpt_recency)
        if doomed and num_to_keep:
            gone = {checkpoint.path for checkpoint in doomed}
            left = [c for c in self.find_checkpoints() if c.path not in gone]
            if not any(map(self._is_intact, left)):
                intact = [c for c in doomed if self._is_intact(c)]
                doomed = [c for c in doomed if c not in intact[-1:]]
        for checkpoint in doomed:
            aside = _renamed(checkpoint.path, CKPT_PREFIX, self.ASIDE)
            os.rename(checkpoint.path, aside)
            shutil.rmtree(aside, ignore_errors=True)
            self._read_before.pop(checkpoint.path, None)
            logger.log(verbosity, f"Deleted checkpoint in {checkpoint.path}")

    def find_checkpoint(self, *args: Any, **kwargs: Any) -> Checkpoint | None:
        """Return the first intact checkpoint in the order asked for, or None.

        If there are checkpoints and all are damaged, it raises CheckpointError:
        starting anew could overwrite data that can still be rescued.
        """
        ranked = self.find_checkpoints(*args, **kwargs)
        for checkpoint in ranked:
            if self._is_intact(checkpoint):
                return checkpoint
        damaged = {p: why for p, why in self._damaged.items() if p.exists()}
        if damaged and (ranked or not self.list_checkpoints()):
            listed = "; ".join(f"{p.name}: {w}" for p, w in damaged.items())
            raise CheckpointError(
                f"every checkpoint in {self.checkpoints_dir} is damaged "
                f"({listed}): remove them to start anew"
            )
        return None

    def recover_if_possible(
        self, *args: Any, **kwargs: Any
    ) -> Checkpoint | None:
        """Load the result of ``find_checkpoint``, the same on every rank."""
        chosen, trouble = self._choose(*args, **kwargs)
        if trouble is not None:
            raise CheckpointError(trouble)
        if chosen is None:
            logger.info("there is no checkpoint to load")
        else:
            super().load_checkpoint(chosen)
        return chosen

    @main_process_only
    def _choose(
        self, *args: Any, **kwargs: Any
    ) -> tuple[Checkpoint | None, str | None]:
        """Broadcast the first rank's checkpoint and error message."""
        try:
            return self.find_checkpoint(*args, **kwargs), None
        except CheckpointError as error:
            return None, str(error)

    def load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint; if it is damaged, load nothing and raise."""
        try:
            self._check(checkpoint)
        except (_Damaged, OSError) as error:
            raise CheckpointError(
                f"{checkpoint.path} is damaged: {error}"
            ) from error
        super().load_checkpoint(checkpoint)

    def _list_checkpoint_dirs(self) -> list[Path]:
        folders = self.checkpoints_dir.glob(f"{CKPT_PREFIX}*")
        return [folder for folder in folders if folder.is_dir()]

    def _construct_checkpoint_objects(
        self, checkpoint_dirs: list[Path]
    ) -> list[Checkpoint]:
        """Make checkpoints of the folders whose meta file is intact."""
        found = []
        for folder in checkpoint_dirs:
            try:
                checkpoint = self._read(folder)
                if self.rescore is not None and "score" in checkpoint.meta:
                    checkpoint.meta["score"] = self.rescore(checkpoint.meta)
                found.append(checkpoint)
            except _Damaged as error:
                self._warn(folder, str(error))
        return found

    def _read(self, folder: Path) -> Checkpoint:
        """Read a folder's meta file, or return the result for the same file."""
        try:
            facts = os.stat(f"{folder}/{METAFNAME}")
        except FileNotFoundError:
            raise _Damaged(f"{METAFNAME} is missing") from None
        identity = facts.st_ino, facts.st_mtime_ns, facts.st_size
        before, checkpoint = self._read_before.get(folder, (None, None))
        if before != identity:
            checkpoint = Checkpoint(folder, *_read_meta(folder))
            self._read_before[folder] = identity, checkpoint
        return checkpoint

    def _is_intact(self, checkpoint: Checkpoint) -> bool:
        """Check all files; warn once if one of them is damaged."""
        try:
            self._check(checkpoint)
        except (_Damaged, OSError) as error:
            self._warn(checkpoint.path, str(error))
            return False
        return True

    def _check(self, checkpoint: Checkpoint) -> None:
        """Raise at the first damage to a checkpoint's files."""
        if SUMS_KEY in checkpoint.meta:
            _check_sums(checkpoint.path)
        else:
            self._check_without_sums(checkpoint)

    def _check_without_sums(self, checkpoint: Checkpoint) -> None:
        """Check a checkpoint that SpeechBrain's own Checkpointer has written."""
        for path in checkpoint.paramfiles.values():
            with open(path, "rb") as file:
                start = file.read(2)
            if not start:
                raise _Damaged(f"{path.name} is empty")
            # Torch writes zip archives, which hold checksums
            if start == b"PK":
                try:
                    with zipfile.ZipFile(path) as archive:
                        broken = archive.testzip()
                except (zipfile.BadZipFile, ValueError, EOFError) as error:
                    raise _Damaged(f"{path.name} is cut off") from error
                if broken is not None:
                    raise _Damaged(f"{path.name} is damaged at {broken}")
        if self.allow_partial_load:
            return
        for name in self.recoverables:
            optional = self.optional_recoverables.get(name)
            optional = optional or "dataloader" in name
            if name not in checkpoint.paramfiles and not optional:
                raise _Damaged(f"{name}{PARAMFILE_EXT} is missing")

    def _warn(self, folder: Path, reason: str) -> None:
        if folder not in self._damaged:
            self._damaged[folder] = reason
            logger.warning(
                f"{folder} is damaged ({reason}): an earlier checkpoint is "
                "used, and the folder is left as it is"
            )


def _renamed(path: Path, old: str, new: str) -> Path:
    """Path of the same folder with another prefix."""
    return path.with_name(new + path.name.removeprefix(old))


def _sha256(path: Path) -> str:
    """Hash a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read_meta(folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Read a checkpoint's meta data, and find its parameter files."""
    path = folder / METAFNAME
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, OSError) as error:
        raise _Damaged(f"{METAFNAME} cannot be read") from error
    if not isinstance(meta, dict):
        raise _Damaged(f"{METAFNAME} is empty")
    if (folder / SUMS).exists() or SUMS_KEY in meta:
        sums = _read_sums(folder)
        if sums.get(METAFNAME) != _sha256(path):
            raise _Damaged(f"{METAFNAME} differs from its recorded hash")
    recent = meta.get("unixtime")
    number = isinstance(recent, int | float) and math.isfinite(recent)
    if not number or not isinstance(meta.get("end-of-epoch"), bool):
        raise _Damaged(f"{METAFNAME} is cut off")
    files = folder.glob(f"*{PARAMFILE_EXT}")
    return meta, {file.stem: file for file in files}


def _read_sums(folder: Path) -> dict[str, str]:
    """Read the recorded hash of each file."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8")
    except (ValueError, OSError) as error:
        raise _Damaged(f"{SUMS} cannot be read") from error
    sums = {}
    for line in text.splitlines():
        digest, _, name = line.partition("  ")
        sums[name] = digest
    files = {METAFNAME, *(f.name for f in folder.glob(f"*{PARAMFILE_EXT}"))}
    unlisted = sorted(files - sums.keys())
    if unlisted or not text.endswith("\n"):
        raise _Damaged(f"{SUMS} is cut off")
    return sums


def _check_sums(folder: Path) -> None:
    """Compare every file with its recorded hash."""
    for name, digest in _read_sums(folder).items():
        path = folder / name
        if not path.is_file():
            raise _Damaged(f"{name} is missing")
        if _sha256(path) != digest:
            empty = path.stat().st_size == 0
            what = "is empty" if empty else "differs from its recorded hash"
            raise _Damaged(f"{name} {what}")
