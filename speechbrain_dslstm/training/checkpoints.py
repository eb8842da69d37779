"""Checkpoints that outlive kills, full disks, flipped bits and wrong clocks.

A checkpoint is a folder as SpeechBrain's own ``Checkpointer`` writes and reads
it, with one file more: ``SHA256SUMS``, as ``sha256sum --check`` reads it.
"""

import hashlib
import logging
import math
import os
import shutil
import time
import zipfile

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
# In the meta, so that a checkpoint whose sums are gone is not taken for one
# of SpeechBrain's own
SUMS_KEY = "checksums"


class CheckpointError(RuntimeError):
    """A checkpoint that could not be saved, or none that can be loaded.

    Example
    -------
    >>> raise CheckpointError("disk full")
    Traceback (most recent call last):
        ...
    speechbrain_dslstm.training.checkpoints.CheckpointError: disk full
    """


class _Damaged(Exception):
    """Why a folder is no complete checkpoint."""


class AtomicCheckpointer(Checkpointer):
    """A checkpointer whose checkpoints are there whole or not at all.

    SpeechBrain's own writes into the final folder, so a run that is killed
    while it saves leaves a part that the next start takes for the newest
    checkpoint, and fails. This one writes aside, records hashes, syncs, and
    renames. What is loaded is checked first; a damaged checkpoint is named in
    one warning, and the next best one is loaded. A checkpoint counts as newer
    than those before it whatever the clock says. Of several ranks the first
    one decides and writes.

    Checkpoints of SpeechBrain's own are loaded, too, after what checks are
    possible without hashes.

    Arguments
    ---------
    *args : tuple
        As of ``Checkpointer``.
    **kwargs : dict
        As of ``Checkpointer``.

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

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._read_before = {}
        self._damaged = {}
        self._newest = None
        if if_main_process():
            # Killed between the two renames of a checkpoint of the same name
            for old in self.checkpoints_dir.glob(f"{self.REPLACED}*"):
                final = _renamed(old, self.REPLACED, CKPT_PREFIX)
                if not final.exists():
                    os.rename(old, final)

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        return _renamed(path, CKPT_PREFIX, self.ASIDE)

    def _custom_checkpoint_dirpath(self, name):
        path = super()._custom_checkpoint_dirpath(name)
        return _renamed(path, CKPT_PREFIX, self.ASIDE)

    def _save_checkpoint_metafile(
        self, fpath, meta_to_include=None, end_of_epoch=True
    ):
        """Write a meta file that can be read back, with a growing time."""
        if self._newest is None:
            times = map(ckpt_recency, self.list_checkpoints())
            self._newest = max(times, default=-math.inf)
        now = max(time.time(), math.nextafter(self._newest, math.inf))
        # Tensors and numpy's numbers would save, and then never load
        given = {
            key: value.item() if hasattr(value, "item") else value
            for key, value in (meta_to_include or {}).items()
        }
        given = {"unixtime": now, SUMS_KEY: SUMS, **given}
        yaml.safe_dump(given)
        meta = super()._save_checkpoint_metafile(fpath, given, end_of_epoch)
        self._newest = max(self._newest, meta["unixtime"])
        return meta

    def save_checkpoint(self, *args, verbosity=logging.INFO, **kwargs):
        """Save as ``Checkpointer.save_checkpoint`` does, but atomically.

        Arguments
        ---------
        *args : tuple
            As of ``Checkpointer.save_checkpoint``.
        verbosity : int
            Level of the line in the log.
        **kwargs : dict
            As of ``Checkpointer.save_checkpoint``.

        Returns
        -------
        Checkpoint
            What was saved; None on every rank but the first.

        Raises
        ------
        CheckpointError
            It could not be written; the checkpoints before are as they were.
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
        # Not before all ranks see the same folders
        ddp_barrier()
        if saved is not None:
            logger.log(verbosity, f"Saved a checkpoint in {saved.path}")
        return saved

    def _put_in_place(self, aside):
        """Hash, sync and rename what was written aside."""
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

    def _remove_left_overs(self):
        for prefix in (self.ASIDE, self.REPLACED):
            for left_over in self.checkpoints_dir.glob(f"{prefix}+*"):
                shutil.rmtree(left_over, ignore_errors=True)

    def _cannot_save(self, error):
        free = shutil.disk_usage(self.checkpoints_dir).free / 2**20
        reason = str(error).split("\n")[0]
        # What torch's writer says of a file that cannot grow
        if "inline_container" in reason or "PytorchStreamWriter" in reason:
            reason = f"the disk or the quota is full ({reason})"
        return CheckpointError(
            f"could not save a checkpoint in {self.checkpoints_dir}: {reason}; "
            f"{free:.0f} MB are free there. Those saved before are as they "
            "were: make room and run the same command again"
        )

    def save_and_keep_only(
        self,
        meta=None,
        end_of_epoch=True,
        name=None,
        num_to_keep=1,
        keep_recent=True,
        importance_keys=(),
        **kwargs,
    ):
        """Save, then delete, as ``Checkpointer.save_and_keep_only`` does.

        SpeechBrain's own appends to a list that all calls share, so every
        save took longer than the one before.

        Arguments
        ---------
        meta : mapping, optional
            As of ``Checkpointer.save_and_keep_only``.
        end_of_epoch : bool
            As of ``Checkpointer.save_and_keep_only``.
        name : str, optional
            As of ``Checkpointer.save_and_keep_only``.
        num_to_keep : int
            As of ``Checkpointer.save_and_keep_only``.
        keep_recent : bool
            As of ``Checkpointer.save_and_keep_only``.
        importance_keys : list of callable
            As of ``Checkpointer.save_and_keep_only``.
        **kwargs : dict
            As of ``Checkpointer.save_and_keep_only``.
        """
        super().save_and_keep_only(
            meta=meta or {},
            end_of_epoch=end_of_epoch,
            name=name,
            num_to_keep=num_to_keep,
            keep_recent=keep_recent,
            importance_keys=list(importance_keys),
            **kwargs,
        )

    @main_process_only
    def delete_checkpoints(
        self,
        *,
        num_to_keep=1,
        min_keys=None,
        max_keys=None,
        importance_keys=(ckpt_recency,),
        ckpt_predicate=None,
        verbosity=logging.INFO,
    ):
        """Delete as ``Checkpointer.delete_checkpoints`` does, but safely.

        A kill leaves no part of a checkpoint, and the last one that is intact
        stays, whatever is asked for, unless nothing is to be kept.

        Arguments
        ---------
        num_to_keep : int
            As of ``Checkpointer.delete_checkpoints``.
        min_keys : list of str, optional
            As of ``Checkpointer.delete_checkpoints``.
        max_keys : list of str, optional
            As of ``Checkpointer.delete_checkpoints``.
        importance_keys : list of callable
            As of ``Checkpointer.delete_checkpoints``.
        ckpt_predicate : callable, optional
            As of ``Checkpointer.delete_checkpoints``.
        verbosity : int
            Level of the lines in the log.

        Raises
        ------
        ValueError
            A negative number to keep.
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

    def find_checkpoint(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
    ):
        """Pick as ``Checkpointer.find_checkpoint`` does the first intact one.

        Arguments
        ---------
        importance_key : callable, optional
            As of ``Checkpointer.find_checkpoint``.
        max_key : str, optional
            As of ``Checkpointer.find_checkpoint``.
        min_key : str, optional
            As of ``Checkpointer.find_checkpoint``.
        ckpt_predicate : callable, optional
            As of ``Checkpointer.find_checkpoint``.

        Returns
        -------
        Checkpoint or None
            None where there is none that was asked for.

        Raises
        ------
        CheckpointError
            There are some, and all are damaged: to start anew without a word
            would throw away what can perhaps be saved.
        """
        ranked = self.find_checkpoints(
            importance_key, max_key, min_key, ckpt_predicate
        )
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

    def recover_if_possible(self, *args, **kwargs):
        """Load what ``find_checkpoint`` picks; the same on every rank.

        Arguments
        ---------
        *args : tuple
            As of ``find_checkpoint``.
        **kwargs : dict
            As of ``find_checkpoint``.

        Returns
        -------
        Checkpoint or None
            What was loaded.

        Raises
        ------
        CheckpointError
            All are damaged.
        """
        chosen, trouble = self._choose(*args, **kwargs)
        if trouble is not None:
            raise CheckpointError(trouble)
        if chosen is None:
            logger.info("Would load a checkpoint here, but none found yet.")
        else:
            super().load_checkpoint(chosen)
        return chosen

    @main_process_only
    def _choose(self, *args, **kwargs):
        """Checkpoint and error message of the first rank, on all ranks."""
        try:
            return self.find_checkpoint(*args, **kwargs), None
        except CheckpointError as error:
            return None, str(error)

    def load_checkpoint(self, checkpoint):
        """Load a checkpoint, or nothing of it where it is damaged.

        Arguments
        ---------
        checkpoint : Checkpoint
            From this checkpointer.

        Raises
        ------
        CheckpointError
            It is damaged.
        """
        trouble = self._trouble(checkpoint)
        if trouble is not None:
            raise CheckpointError(f"{checkpoint.path} is damaged: {trouble}")
        super().load_checkpoint(checkpoint)

    def _list_checkpoint_dirs(self):
        with os.scandir(self.checkpoints_dir) as entries:
            return [
                self.checkpoints_dir / entry.name
                for entry in entries
                if entry.name.startswith(CKPT_PREFIX) and entry.is_dir()
            ]

    def _construct_checkpoint_objects(self, checkpoint_dirs):
        """Checkpoints of those folders that are complete at first sight."""
        found = []
        for folder in checkpoint_dirs:
            try:
                found.append(self._read(folder))
            except _Damaged as error:
                self._warn(folder, str(error))
        return found

    def _read(self, folder):
        """A checkpoint, from its meta file; read again only if it changed."""
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

    def _is_intact(self, checkpoint):
        """Check all files; one warning where something is wrong."""
        trouble = self._trouble(checkpoint)
        if trouble is not None:
            self._warn(checkpoint.path, trouble)
        return trouble is None

    def _trouble(self, checkpoint):
        """What is wrong with a checkpoint's files, or None."""
        try:
            if SUMS_KEY in checkpoint.meta:
                _check_sums(checkpoint.path)
            else:
                self._check_without_sums(checkpoint)
        except (_Damaged, OSError) as error:
            return str(error)
        return None

    def _check_without_sums(self, checkpoint):
        """What can be seen in a checkpoint of SpeechBrain's own."""
        for path in checkpoint.paramfiles.values():
            with open(path, "rb") as file:
                start = file.read(2)
            if not start:
                raise _Damaged(f"{path.name} is empty")
            # What torch writes is a zip archive, which has checksums
            if start == b"PK":
                try:
                    with zipfile.ZipFile(path) as archive:
                        broken = archive.testzip()
                except (zipfile.BadZipFile, ValueError, EOFError) as error:
                    raise _Damaged(f"{path.name} is cut") from error
                if broken is not None:
                    raise _Damaged(f"{path.name} is damaged at {broken}")
        if self.allow_partial_load:
            return
        for name in self.recoverables:
            optional = self.optional_recoverables.get(name)
            optional = optional or "dataloader" in name
            if name not in checkpoint.paramfiles and not optional:
                raise _Damaged(f"{name}{PARAMFILE_EXT} is missing")

    def _warn(self, folder, reason):
        if self._damaged.get(folder) is None:
            self._damaged[folder] = reason
            logger.warning(
                f"{folder} is damaged ({reason}): it is left alone, and an "
                "earlier checkpoint is used"
            )


def _renamed(path, old, new):
    """The path of the same folder under another prefix."""
    return path.with_name(new + path.name.removeprefix(old))


def _sha256(path):
    """Hexadecimal digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read_meta(folder):
    """Meta data and parameter files of a checkpoint's folder."""
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
            raise _Damaged(f"{METAFNAME} has not the recorded hash")
    recent = meta.get("unixtime")
    number = isinstance(recent, int | float) and math.isfinite(recent)
    if not number or not isinstance(meta.get("end-of-epoch"), bool):
        raise _Damaged(f"{METAFNAME} is cut")
    files = folder.glob(f"*{PARAMFILE_EXT}")
    return meta, {file.stem: file for file in files}


def _read_sums(folder):
    """Name of each file -> its recorded hash."""
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
        raise _Damaged(f"{SUMS} is cut")
    return sums


def _check_sums(folder):
    """Compare every file with its recorded hash."""
    for name, digest in _read_sums(folder).items():
        path = folder / name
        if not path.is_file():
            raise _Damaged(f"{name} is missing")
        if _sha256(path) != digest:
            empty = path.stat().st_size == 0
            what = "is empty" if empty else "has not the recorded hash"
            raise _Damaged(f"{name} {what}")
