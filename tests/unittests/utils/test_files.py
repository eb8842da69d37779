"""Files are replaced whole or not at all."""

import errno
import os
import stat
import time

import pytest

from speechbrain_dslstm.utils.files import replace_file, replacement


@pytest.mark.parametrize("durable", [True, False])
def test_an_error_leaves_the_old_file_alone(tmp_path, durable):
    path = tmp_path / "new" / "a.txt"
    replace_file(path, "old", durable)
    with pytest.raises(KeyError):
        with replacement(path, durable) as temporary:
            temporary.write_text("half")
            raise KeyError
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    match = "No space left on device; make room and run .*a.txt"
    with pytest.raises(OSError, match=match):
        replace_file(tmp_path / "a.txt", b"new")
    assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    path = tmp_path / "[a].txt"
    mine, other, fresh = (
        tmp_path / name
        for name in (".[a].txt.1.tmp", ".a.txt.1.tmp", ".[a].txt.2.tmp")
    )
    for file in (mine, other, fresh):
        file.touch()
    for file in (mine, other):
        os.utime(file, (time.time() - 3600,) * 2)
    replace_file(path, "new")
    assert sorted(tmp_path.iterdir()) == sorted([path, other, fresh])


def test_the_clock_of_another_node(tmp_path, monkeypatch):
    """A node whose clock is ahead does not remove what another one writes."""
    path, fresh = tmp_path / "a.txt", tmp_path / ".a.txt.1.tmp"
    fresh.touch()
    monkeypatch.setattr(time, "time", lambda: fresh.stat().st_mtime + 3600)
    replace_file(path, "new")
    assert fresh.exists()


def test_synced_before_it_is_renamed(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def recorded_fsync(descriptor):
        calls.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        fsync(descriptor)

    def recorded_replace(*paths):
        calls.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    replace_file(tmp_path / "a.txt", "new")
    assert calls == [False, "rename", True]
