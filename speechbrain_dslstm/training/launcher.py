"""Train several folds at a time, each in a process of its own."""

import collections
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from speechbrain_dslstm.settings.record import RunRecord

POLL_SECONDS = 0.1
# Between two updates of the progress bar
UPDATE_SECONDS = 2
# Between SIGTERM and SIGKILL
GRACE_SECONDS = 10


@dataclass
class Job:
    """One fold to train: the script, its YAML and options without the device.

    ``folder`` is the output folder, ``epochs`` the largest number of epochs,
    and ``record`` compares the settings with those of the folder.
    """

    script: Path
    arguments: list[str]
    folder: Path
    epochs: int
    record: RunRecord

    @property
    def done(self) -> bool:
        """Whether the fold has its results."""
        return self.record.finished

    @property
    def progress(self) -> float:
        """Share of the fold that is done, in [0, 1]."""
        if self.done:
            return 1.0
        log = self.folder / "save" / "epochs.jsonl"
        if not log.exists():
            return 0.0
        # Evaluation comes after the last epoch
        finished = log.read_bytes().count(b"\n")
        return min(finished / (self.epochs + 1), 0.99)


def run_jobs(
    jobs: Sequence[Job], devices: Iterable[str | None], threads: int
) -> list[str]:
    """Run all jobs that are not done, one at a time on each device.

    A device such as cuda:1 that is listed twice runs two jobs; None leaves the
    choice to the job's options. Each process has ``threads`` CPU threads. A
    job that fails does not stop the others; the result is a message for each
    failed job. A signal, or an error here, ends all processes.
    """
    waiting = collections.deque(job for job in jobs if not job.done)
    free, running, failed = list(devices), {}, []

    def leave(number: int, _: object) -> None:
        """Turn the signal into an exit, so that the children are ended."""
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    bar = tqdm(
        total=len(jobs),
        initial=sum(job.progress for job in jobs),
        unit="fold",
        bar_format="{percentage:3.0f}% |{bar}| {n:.1f}/{total} folds "
        "[{elapsed} < {remaining}]{postfix}",
        # A line for each minute is enough in a log file
        mininterval=1 if sys.stderr.isatty() else 60,
        miniters=0,
    )
    next_update = 0.0
    try:
        while waiting or running:
            while waiting and free:
                job, device = waiting.popleft(), free.pop(0)
                process = _start(job, device, threads)
                if process is None:
                    free.insert(0, device)
                    failed.append(
                        f"{job.folder}: another process is training this fold"
                    )
                else:
                    running[process] = job, device
            for process in [one for one in running if one.poll() is not None]:
                job, device = running.pop(process)
                free.append(device)
                if process.returncode or not job.done:
                    log = job.folder / "console.txt"
                    failed.append(f"{job.folder} failed, see {log}")
                    bar.write(failed[-1], file=sys.stderr)
                    bar.set_postfix_str(f"{len(failed)} failed", refresh=False)
            if time.monotonic() > next_update or not running:
                bar.update(sum(job.progress for job in jobs) - bar.n)
                next_update = time.monotonic() + UPDATE_SECONDS
            time.sleep(POLL_SECONDS)
    except BaseException:
        _stop(list(running))
        raise
    finally:
        bar.close()
        signal.signal(signal.SIGTERM, before)
    return failed


def _start(
    job: Job, device: str | None, threads: int
) -> subprocess.Popen | None:
    """Start a job; None if another process is training in its folder.

    The process holds a lock on the folder while it lives. It has a session of
    its own, so that Ctrl-C reaches the launcher only.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(job.script), *job.arguments]
    command += [f"--device={device}"] if device else []
    with (
        open(job.folder / ".lock", "w") as lock,
        open(job.folder / "console.txt", "a", encoding="utf-8") as log,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        job.record.set_aside()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            pass_fds=[lock.fileno()],
            start_new_session=True,
        )


def _stop(processes: list[subprocess.Popen]) -> None:
    """End processes and their children."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    deadline = time.monotonic() + GRACE_SECONDS
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, number)
        while any(one.poll() is None for one in processes):
            if number == signal.SIGTERM and time.monotonic() > deadline:
                break
            time.sleep(POLL_SECONDS)
