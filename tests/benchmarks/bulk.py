"""Time of ``classify_dataset`` with one worker and with two.

    python tests/benchmarks/bulk.py data/emodb --copies 4

Each number of workers classifies all clips of a folder, several times each. The
time runs from the first part of answers to the last, so that starting Ray and
loading the model are not in it; the CPU time is that of the workers alone.
"""

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import soundfile

from speechbrain_dslstm.bulk import classify_dataset


def measure(folder: Path, model: str, workers: int) -> tuple[int, float, float]:
    """Number of clips, their seconds of work and of CPU time."""
    with tempfile.TemporaryDirectory() as output:
        done = classify_dataset(
            folder,
            output,
            model,
            workers=workers,
            files_at_once=32,
            progress=False,
        )
        times = sorted(
            (path.stat().st_mtime, path.stat().st_size)
            for path in Path(output).glob("part-*")
        )
        # The first part of each worker began before the first time
        share = 1 - workers / len(times)
        seconds = (times[-1][0] - times[workers - 1][0]) / share
    return done.rows, seconds, done.cpu_seconds


def main() -> None:
    """Measure, and print a line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--model", default="pretrained/emotion-dslstm-emodb")
    parser.add_argument("--copies", type=int, default=4)
    parser.add_argument("--repeat", type=int, default=1)
    options = parser.parse_args()
    clips = [p for p in sorted(options.clips.iterdir()) if p.suffix == ".ogg"]
    audio = sum(soundfile.info(str(path)).duration for path in clips)
    print(f"{len(clips)} clips of {audio / len(clips):.2f} s on average")
    with tempfile.TemporaryDirectory() as folder:
        for k in range(options.copies):
            for path in clips:
                shutil.copy(path, Path(folder, f"{k}-{path.name}"))
        for _ in range(options.repeat):
            for workers in (1, 2):
                load = os.getloadavg()[0]
                rows, seconds, cpu = measure(
                    Path(folder), options.model, workers
                )
                print(
                    f"{workers} workers: {rows} clips, {seconds:.1f} s, "
                    f"{cpu:.1f} s of CPU time, {1000 * cpu / rows:.1f} ms a "
                    f"clip, {3600 * rows / cpu:.0f} an hour and core; load of "
                    f"the machine before: {load:.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
