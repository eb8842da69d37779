"""Checkpoints that are whole and on the disk, or not there at all."""

import os
from pathlib import Path

import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_dslstm.training import AtomicCheckpointer

CHECKPOINTERS = [Checkpointer, AtomicCheckpointer]


class Slow(torch.nn.Linear):
    """Recoverable whose file is half written when the power fails."""


def power_fails(obj, path):
    path.write_bytes(b"half a")
    raise KeyboardInterrupt


def state(checkpointer):
    """Names of all folders, and of the files of each."""
    return {
        folder.name: sorted(file.name for file in folder.iterdir())
        for folder in checkpointer.checkpoints_dir.iterdir()
    }


def test_a_save_that_breaks_off_leaves_the_last_checkpoint(tmp_path):
    net = torch.nn.Linear(1, 1, bias=False)
    checkpointer = AtomicCheckpointer(tmp_path, {"net": net})
    torch.nn.init.constant_(net.weight, 1.0)
    whole = checkpointer.save_checkpoint().path
    torch.nn.init.constant_(net.weight, 2.0)
    checkpointer.add_recoverable(
        "slow", Slow(1, 1), custom_save_hook=power_fails
    )
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save_checkpoint(name="part")
    assert len(state(checkpointer)) == 2
    # The next start sees one checkpoint only, and cleans up when it saves
    again = AtomicCheckpointer(tmp_path, {"net": net})
    assert [found.path for found in again.list_checkpoints()] == [whole]
    again.recover_if_possible()
    torch.testing.assert_close(net.weight.data, torch.ones(1, 1))
    newest = again.save_checkpoint().path
    assert set(state(again)) == {whole.name, newest.name}


def test_atomic_checkpoints_are_those_of_speechbrain(tmp_path):
    """The same names, one file more, and each reads the other's."""
    found = []
    for kind in CHECKPOINTERS:
        net = torch.nn.Linear(1, 1)
        checkpointer = kind(tmp_path / kind.__name__, {"net": net})
        saved = [checkpointer.save_checkpoint() for _ in range(3)]
        assert len({one.path for one in saved}) == 3
        for one in saved:
            assert one.paramfiles["net"].parent == one.path
            assert one.paramfiles["net"].is_file()
        named = checkpointer.save_checkpoint(name="best", meta={"ua": 0.3})
        again = checkpointer.save_checkpoint(name="best", meta={"ua": 0.7})
        assert named.path == again.path
        best = checkpointer.find_checkpoint(max_key="ua")
        assert best.path == again.path and best.meta["ua"] == 0.7
        checkpointer.save_and_keep_only(meta={"ua": 0.1}, max_keys=["ua"])
        found.append(state(checkpointer))
        other = torch.nn.Linear(1, 1)
        reader = Checkpointer(tmp_path / kind.__name__, {"net": other})
        reader.recover_if_possible()
        torch.testing.assert_close(other.weight, net.weight)
    assert [len(folders) for folders in found] == [2, 2]
    more = sorted([*found[0]["CKPT+best"], "SHA256SUMS"])
    assert found[1]["CKPT+best"] == more


def test_a_checkpoint_is_on_the_disk_before_it_is_in_place(
    tmp_path, monkeypatch
):
    """A power cut after the rename loses none of its files."""
    events, fsync, rename = [], os.fsync, os.rename

    def recorded_fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        events.append(("sync", Path(path)))
        fsync(descriptor)

    def recorded_rename(old, new):
        events.append(("rename", Path(old)))
        rename(old, new)

    checkpointer = AtomicCheckpointer(
        tmp_path, {"net": torch.nn.Linear(1, 1), "other": torch.nn.Linear(1, 1)}
    )
    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    saved = checkpointer.save_checkpoint()
    (at,) = [n for n, (what, _) in enumerate(events) if what == "rename"]
    written = events[at][1]
    names = {path.name for path in saved.path.iterdir()}
    assert names == {"CKPT.yaml", "SHA256SUMS", "net.ckpt", "other.ckpt"}
    synced = [path for _, path in events[:at]]
    assert set(synced) == {written, *(written / name for name in names)}
    # The folder last, when all its files are there; the new name after it
    assert synced[-1] == written
    assert events[at + 1] == ("sync", tmp_path)
