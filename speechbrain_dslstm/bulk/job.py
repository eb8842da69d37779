"""Classify any number of recordings with Ray Data, and go on after a stop."""

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from speechbrain_dslstm.audio.channels import Channel, check_channel
from speechbrain_dslstm.bulk.answers import Answers, Summary, answer_schema
from speechbrain_dslstm.bulk.reading import READ, SHARD, fetch, read_shards
from speechbrain_dslstm.bulk.sources import (
    find_recordings,
    is_local,
)
from speechbrain_dslstm.bulk.worker import Model, Worker
from speechbrain_dslstm.inference.classifier import EmotionClassifier
from speechbrain_dslstm.inference.files import LONGEST_FILE
from speechbrain_dslstm.inference.long_recordings import check_threshold
from speechbrain_dslstm.pretrained.names import DEFAULT_MODEL

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = ["classify_dataset"]

# Limits of a part: what a worker that dies has to do again
FILES = 256
BYTES = 2**26
# Bytes of local memory for recordings that wait; a running Ray has its own limit
STORE = 2**30


def classify_dataset(
    sources: str | os.PathLike | Iterable[str | os.PathLike],
    output: str | os.PathLike,
    model: str | os.PathLike = DEFAULT_MODEL,
    *,
    column: str = "file",
    unknown_below: float | None = None,
    speech_only: bool = True,
    channel: Channel = "mix",
    longest: float | None = LONGEST_FILE,
    workers: int | None = None,
    gpus: float = 0.0,
    address: str | None = None,
    files_at_once: int = FILES,
    retry: bool = False,
    trusted: bool = False,
    progress: bool | None = None,
) -> Summary:
    """Classify the recordings of folders, tables and shards into a folder.

    Ray starts on this machine, unless it runs already or has an ``address``.
    The answers are those of ``classify_files``, as Parquet files; each appears
    when it is complete. The same call goes on after a stop of any kind: what
    the files hold is not done again. Every node must reach the recordings, the
    model and the output under the same paths or addresses.

    Arguments
    ---------
    sources
        Audio files, folders, tables of files (Parquet, CSV, JSON Lines) and
        shards (``.tar``), local or at an address that fsspec opens.
    output
        Folder of the answers, local or at an address.
    model
        Model folder, or "pretrained/NAME".
    column
        Column of the tables that names the files.
    unknown_below
        Label a file "unknown" if its best posterior is below this.
    speech_only
        Give a file without speech a reason instead of an answer.
    channel
        "mix", an index from 0, or "each": a row for each channel.
    longest
        Seconds; a longer file is an error. None: no limit.
    workers
        Number of processes; if left out, one for each CPU, or as many as the
        GPUs are for.
    gpus
        GPUs for each worker, such as 1 or 0.25.
    address
        Of a Ray cluster, or "auto"; see ``ray.init``.
    files_at_once
        Largest number of recordings in a part; a worker that dies begins its
        part anew.
    retry
        Try the recordings again whose row is an error.
    trusted
        Load the model by its YAML, which can run any code.
    progress
        Show a progress bar; if left out, only on a terminal.

    Returns
    -------
    summary
        Counts of the rows, and times.

    Raises
    ------
    FileNotFoundError
        A source is missing or holds no recordings, or there is no model.
    ValueError
        A table without the column, or answers of another job in ``output``.
    OSError
        The answers cannot be written.

    Example
    -------
    >>> classify_dataset("missing.csv", "answers")
    Traceback (most recent call last):
    FileNotFoundError: no file or folder missing.csv
    """
    start = time.monotonic()
    check_threshold(unknown_below)
    options = {
        "unknown_below": unknown_below,
        "speech_only": speech_only,
        "channel": check_channel(channel),
        "longest": longest,
    }
    found = find_recordings(sources, column)
    answers, model = Answers(output), Model(os.fspath(model), trusted)
    classifier = model.load()
    schema = answer_schema(
        classifier.labels,
        classifier.dimensions,
        {"model": _digest(classifier), **options},
    )
    answers.check_job(schema)
    answers.drop_notes()
    answers.drop_duplicates()
    if retry:
        answers.drop_errors()
    done = pc.unique(answers.read("address")["address"])
    recordings = found.recordings.filter(
        pc.invert(pc.is_in(found.recordings["address"], done))
    )
    counts = {"seconds": 0.0, "workers": 0}
    if recordings.num_rows or found.shards:
        make = (model, answers.address, schema, options, gpus and "cuda")
        with _ray(address, workers, gpus) as size:
            bar = tqdm(
                total=None if found.shards else recordings.num_rows,
                unit="file",
                disable=None if progress is None else not progress,
            )
            with bar:
                # Several parts for each worker, so that all end at about a time
                share = math.ceil(recordings.num_rows / (4 * size))
                files = min(files_at_once, max(share, 1))
                if not found.shards:
                    size = min(size, math.ceil(recordings.num_rows / files))
                data = _dataset(recordings, found.shards, done, files)
                counts["seconds"] = _run(data, make, size, gpus, bar)
            counts["workers"] = size
        answers.drop_duplicates()
    answers.drop_notes()
    return answers.summarize(
        earlier=len(done),
        seconds=time.monotonic() - start,
        cpu_seconds=counts["seconds"],
        workers=counts["workers"],
        passed_over=found.summary,
    )


def _digest(classifier: EmotionClassifier) -> str:
    """Hash of a model's structure, classes and numbers."""
    digest = hashlib.sha256()
    digest.update(f"{classifier.mods}{classifier.labels}".encode())
    for name, value in sorted(classifier.mods.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _dataset(
    recordings: pa.Table, shards: list[str], done: pa.Array, files: int
) -> "Dataset":
    """Dataset whose blocks hold what a worker answers at a time.

    Local files are opened by the worker; others are read before, by tasks that
    wait for the network rather than for a CPU.
    """
    from ray.data import from_arrow

    addresses = recordings["address"].to_pylist()
    local = pa.array(map(is_local, addresses), pa.bool_())
    here = list(_cut(recordings.filter(local), files))
    away = list(_cut(recordings.filter(pc.invert(local)), files))
    reading = {"batch_size": None, "batch_format": "pyarrow", "num_cpus": 0}
    datasets = []
    if here:
        datasets.append(from_arrow(here))
    if away:
        datasets.append(from_arrow(away).map_batches(fetch, **reading))
    if shards:
        rows = [_shard(shard, done) for shard in shards]
        datasets.append(from_arrow(rows).map_batches(read_shards, **reading))
    return datasets[0].union(*datasets[1:]) if datasets[1:] else datasets[0]


def _cut(recordings: pa.Table, files: int) -> Iterator[pa.Table]:
    """Cut recordings into parts of bounded number and, if known, size."""
    sizes, start, size = recordings["size"].to_pylist(), 0, 0
    for k, one in enumerate([*sizes, None]):
        size += one or 0
        over = k - start >= files or (size > BYTES and k > start)
        if over or k == len(sizes) > start:
            # A slice would be sent with all that it was cut from
            rows = recordings.take(list(range(start, k)))
            nothing = [pa.nulls(k - start, READ.field(i).type) for i in (2, 3)]
            columns = [rows["file"], rows["address"], *nothing]
            yield pa.table(columns, schema=READ)
            start, size = k, one or 0


def _shard(shard: str, done: pa.Array) -> pa.Table:
    """Row of a shard, with its members that are done."""
    mine = done.filter(pc.ends_with(done, f"::{shard}"))
    return pa.table([[shard], [mine.to_pylist()]], schema=SHARD)


@contextmanager
def _ray(
    address: str | None, workers: int | None, gpus: float
) -> Iterator[int]:
    """Connect to Ray or start it; yield the number of workers."""
    import ray
    from ray.data import DataContext

    mine = not ray.is_initialized()
    if mine:
        # Not to print what the operator of a cluster reads, nor to phone home
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        remote = address or os.environ.get("RAY_ADDRESS")
        local = {"num_cpus": workers, "object_store_memory": STORE}
        with _silent():
            ray.init(
                address=remote,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if remote else {"include_dashboard": False, **local}),
            )
    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        there = ray.cluster_resources()
        most = there.get("GPU", 0) / gpus if gpus else there.get("CPU", 0)
        if most < (workers or 1):
            kind = f"{gpus:g} GPUs" if gpus else "a CPU"
            raise ValueError(
                f"Ray has resources for {int(most)} workers with {kind} each, "
                f"not for {workers or 1}"
            )
        yield workers or int(most)
    finally:
        context.enable_progress_bars = before[0]
        logger.setLevel(before[1])
        if mine:
            ray.shutdown()


@contextmanager
def _silent() -> Iterator[None]:
    """Discard what Ray's C++ code prints of its logs; errors are raised."""
    before = os.dup(2)
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def _run(
    data: "Dataset", make: tuple[Any, ...], workers: int, gpus: float, bar: tqdm
) -> float:
    """Have workers answer a dataset; return their CPU time in seconds."""
    from ray.data import ActorPoolStrategy

    reports = data.map_batches(
        Worker,
        fn_constructor_args=make,
        batch_format="pyarrow",
        # Ray Data requires a size where there are GPUs
        batch_size=FILES if gpus else None,
        num_cpus=1,
        num_gpus=gpus or None,
        compute=ActorPoolStrategy(size=workers),
    )
    seconds = 0.0
    for rows in reports.iter_batches(batch_size=None, batch_format="pyarrow"):
        for row in rows.to_pylist():
            if row["failure"]:
                raise OSError(row["failure"])
            bar.update(row["rows"])
            seconds += row["seconds"]
    return seconds
