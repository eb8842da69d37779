"""Jobs on a real Ray of two workers: killed, damaged, and gone on with."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from nightly import nightly

from speechbrain_dslstm.bulk import classify_dataset, job
from speechbrain_dslstm.bulk.worker import Worker
from speechbrain_dslstm.inference import load_safe
from speechbrain_dslstm.pretrained.safe_format import write_safe

ray = pytest.importorskip("ray", reason='pip install ".[ray]"')
LABELS = ["sadness", "anger", "neutral"]
# A driver whose workers take their time; its own class goes to them by value
DRIVER = """
import sys, time
import ray
from speechbrain_dslstm.bulk import classify_dataset, job

class Slow(job.Worker):
    def __call__(self, block):
        time.sleep(0.7)
        return super().__call__(block)

job.Worker = Slow
source, output, model, address = sys.argv[1:]
classify_dataset(source, output, model, workers=2, address=address, files_at_once=2)
"""


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two CPUs; yields its address."""
    # Workers must find the package where the tests do
    path = os.pathsep.join(map(str, sys.path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's own 15 starves workers beside the other tests
        patch.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="module")
def model(small_model, tmp_path_factory):
    """A model folder, and what ``classify_files`` loads from it."""
    folder = tmp_path_factory.mktemp("model")
    write_safe(folder, small_model(), LABELS, 16000, 1.5)
    return folder


class DiesOnce(Worker):
    """Ends its process, without a word, at the first of some recordings."""

    def _classify(self, block):
        flag = Path(self.answers.path + ".died")
        names = " ".join(block["file"].to_pylist())
        if "dies" in names and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._classify(block)


def check(output, model, paths):
    """One row for each path, with the answer of ``classify_files`` to 1e-5."""
    rows = pq.read_table(output).to_pylist()
    addresses = [row["address"].partition("::")[0] for row in rows]
    found = dict(zip(map(os.path.basename, addresses), rows, strict=True))
    assert len(found) == len(rows)
    expected = load_safe(model).classify_files(sorted(paths), progress=False)
    assert set(found) == {result.path.name for result in expected}
    for result in expected:
        row = found[result.path.name]
        assert row["label"] == result.label and row["reason"] == result.reason
        assert (row["error"] is None) == (result.error is None)
        if result.label:
            values = [row[label] for label in LABELS]
            posteriors = result.log_posteriors.exp().tolist()
            assert values == pytest.approx(posteriors, abs=1e-5)


def write_table(folder, paths):
    """A table of the addresses of files in a zip file, which may lack some."""
    with zipfile.ZipFile(folder / "in.zip", "w") as file:
        for path in filter(Path.exists, paths):
            file.write(path, path.name)
    rows = [f"zip://{path.name}::{folder}/in.zip" for path in paths]
    table = folder / "files.csv"
    table.write_text("\n".join(["file", *rows]))
    return table


def test_a_worker_is_killed_and_a_shard_damaged(
    cluster, model, speech_files, tmp_path, monkeypatch
):
    """Every recording has one row, and so has the damage."""
    monkeypatch.setattr(job, "Worker", DiesOnce)
    folder = tmp_path / "in"
    folder.mkdir()
    paths = [
        Path(shutil.copy(path, folder / f"{'dies' if k == 3 else k}.flac"))
        for k, path in enumerate(speech_files[:10])
    ]
    paths.append(folder / "broken.wav")
    paths[-1].write_text("no audio")
    for k in range(2):
        with tarfile.open(folder / f"{k}.tar", "w") as tar:
            for path in speech_files[10 + 8 * k : 18 + 8 * k]:
                tar.add(path, path.name)
    damaged = folder / "1.tar"
    with tarfile.open(damaged) as tar:
        members = tar.getmembers()
    os.truncate(damaged, members[5].offset_data + 10)
    table = write_table(tmp_path, [*speech_files[26:30], Path("gone.wav")])
    output = tmp_path / "out"

    def run(**more):
        sources = [folder, table]
        return classify_dataset(sources, output, model, workers=2, **more)

    summary = run(files_at_once=3)
    assert Path(f"{output}.died").exists()
    assert summary.failed == 3 and summary.workers == 2
    rows = pq.read_table(output, columns=["file", "error"]).to_pylist()
    said = {row["file"]: row["error"] for row in rows}[str(damaged)]
    assert said.endswith("unexpected end of data after 5 recordings")
    paths += [*speech_files[10:23], *speech_files[26:30]]
    check(output, model, [*paths, damaged, folder / "gone.wav"])
    with pytest.raises(ValueError, match="another job .*speech_only True"):
        run(speech_only=False)


@nightly
def test_the_driver_is_killed(cluster, model, speech_files, tmp_path):
    """The next start does the rest; nothing twice, and no worker stays."""
    output, source = tmp_path / "out", tmp_path / "files.parquet"
    pq.write_table(pa.table({"file": list(map(str, speech_files))}), source)
    arguments = [sys.executable, "-c", DRIVER, source, output, model, cluster]
    process = subprocess.Popen(
        list(map(str, arguments)), stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 300
    while not len(list(output.glob("part-*"))) >= 2:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    process.stderr.close()
    done = pq.read_table(output).num_rows
    assert 4 <= done < len(speech_files)
    summary = classify_dataset(source, output, model, workers=2)
    assert done <= summary.earlier < len(speech_files)
    check(output, model, speech_files)
    # Nothing is left to do, and no other file
    summary = classify_dataset(source, output, model, workers=2)
    assert (summary.workers, summary.earlier) == (0, len(speech_files))
    assert all(one.name.startswith("part-") for one in output.iterdir())


def test_more_workers_than_there_are(cluster, model, speech_files, tmp_path):
    with pytest.raises(ValueError, match="resources for 2 workers.*not for 9"):
        classify_dataset(speech_files, tmp_path, model, workers=9)
    with pytest.raises(ValueError, match="0 workers with 1 GPUs"):
        classify_dataset(speech_files, tmp_path, model, gpus=1)


@nightly
def test_5000_clips(recordings, tmp_path):
    """The command on EMO-DB, copied: a worker killed, a driver, a shard cut off."""
    folder, output, before = tmp_path / "in", tmp_path / "out", time.monotonic()
    source = "pretrained/emotion-dslstm-emodb"
    folder.mkdir()
    for k in range(4000):
        clip = recordings[k % len(recordings)]
        shutil.copy(clip, folder / f"{k:04}-{clip.name}")
    for shard in range(2):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for k in range(4000 + 500 * shard, 4500 + 500 * shard):
                clip = recordings[k % len(recordings)]
                tar.add(clip, f"{k:04}-{clip.name}")
    os.truncate(folder / "1.tar", (folder / "1.tar").stat().st_size // 2)

    def say(*words):
        print(f"{time.monotonic() - before:5.0f} s:", *words, flush=True)

    def start(*more):
        command = [sys.executable, "-m", "speechbrain_dslstm.cli"]
        command += ["classify-dataset", str(folder), "--output", str(output)]
        command += ["--workers=2", "--files-at-once=100", "-m", source, *more]
        say(" ".join(command[3:]))
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait_for_parts(count, process):
        """Wait for files of answers; return the workers' processes."""
        peak = 0
        while len(list(output.glob("part-*"))) < count:
            assert process.poll() is None
            for one in workers(process):
                with suppress(psutil.Error):
                    peak = max(peak, one.memory_info().rss)
            time.sleep(0.2)
        say(f"{count} parts; the largest worker had {peak / 2**20:.0f} MiB")
        return workers(process)

    def workers(process):
        family = psutil.Process(process.pid).children(recursive=True)
        return [one for one in family if "MapWorker" in one.name()]

    process = start()
    victim = wait_for_parts(4, process)[0]
    victim.kill()
    say(f"worker {victim.pid} killed")
    orphans = wait_for_parts(12, process)
    process.kill()
    process.wait()
    say("driver killed")
    psutil.wait_procs(orphans, timeout=60)
    assert not any(one.is_running() for one in orphans)
    say("its workers have ended")
    done = pq.read_table(output).num_rows
    assert 500 < done < 4000
    process = start()
    said, _ = process.communicate(timeout=3000)
    say(said.strip())
    assert process.returncode == 1  # the shard's row
    rows = pq.read_table(output).to_pylist()
    names = {row["address"].partition("::")[0]: row for row in rows}
    assert len(names) == len(rows)
    errors = [row["error"] for row in rows if row["error"]]
    assert len(errors) == 1 and "1.tar" in errors[0]
    say(errors[0])
    lost = 5000 - (len(rows) - 1)
    assert 200 < lost < 300  # behind the cut
    # The other half of the shard, once it is there
    with tarfile.open(folder / "1.tar", "w") as tar:
        for k in range(4500, 5000):
            clip = recordings[k % len(recordings)]
            tar.add(clip, f"{k:04}-{clip.name}")
    process = start("--retry")
    said, _ = process.communicate(timeout=3000)
    say(said.strip())
    assert process.returncode == 0
    rows = pq.read_table(output).to_pylist()
    found = {}
    for row in rows:
        number, name = os.path.basename(
            row["address"].partition("::")[0]
        ).split("-", 1)
        assert found.setdefault(int(number), (name, row))[1] is row
    assert sorted(found) == list(range(5000))
    expected = load_safe(source).classify_files(recordings, progress=False)
    by_name = {result.path.name: result for result in expected}
    labels = load_safe(source).labels
    largest = 0
    for name, row in found.values():
        posteriors = by_name[name].log_posteriors.exp().tolist()
        for label, value in zip(labels, posteriors, strict=True):
            largest = max(largest, abs(row[label] - value))
    say(f"largest difference from classify_files: {largest:.1e}")
    assert largest < 1e-5
