"""Ray Data's actor: loads the model once and answers one part after the other."""

import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from speechbrain_dslstm.audio.inputs import FileSource
from speechbrain_dslstm.bulk.answers import Answers, answer_row, part_name
from speechbrain_dslstm.bulk.sources import is_local, open_system
from speechbrain_dslstm.inference.classifier import (
    EmotionClassifier,
    load_safe,
)
from speechbrain_dslstm.inference.files import FileResult

__all__ = ["Model", "RemoteSource", "Worker"]

DEATHS = 2  # of a worker at the same recording, which is then given up


@dataclass(frozen=True)
class Model:
    """Where a model is, and how it is loaded."""

    source: str
    trusted: bool = False

    def load(self, device: str | None = None) -> EmotionClassifier:
        """Load it."""
        load = EmotionClassifier.from_hparams if self.trusted else load_safe
        return load(
            self.source, run_opts={"device": device} if device else None
        )


class RemoteSource(FileSource):
    """A file at an address, opened when it is read and closed again."""

    def __init__(self, name: str, address: str) -> None:
        super().__init__(name, address)

    def open(self) -> Any:
        """Open it at its beginning."""
        try:
            system, path = open_system(self.content)
            return system.open(path, "rb")
        except OSError:
            raise
        # Each protocol has errors of its own
        except Exception as error:
            raise OSError(str(error)) from error


class Worker:
    """Answers the recordings of a block, and writes them as one part.

    Arguments
    ---------
    model
        The model, which every worker loads.
    folder
        Address of the answers.
    schema
        Their columns.
    options
        Arguments of ``classify_files``.
    device
        Such as "cuda".
    """

    def __init__(
        self,
        model: Model,
        folder: str,
        schema: pa.Schema,
        options: dict[str, Any],
        device: str | None = None,
    ) -> None:
        # Each worker has one CPU
        torch.set_num_threads(1)
        self.classifier = model.load(device)
        self.answers, self.schema = Answers(folder), schema
        self.options = options

    def __call__(self, block: pa.Table) -> pa.Table:
        """Write the answers; return their number and the CPU time in seconds."""
        if not block.num_rows:
            return _report(0, 0.0)
        start = time.process_time()
        name = part_name(block["address"].to_pylist())
        notes = self.answers.notes(name)
        if notes is None:
            self.answers.note(name, [])
            rows = self._classify(block)
        else:
            rows = self._classify_each(block, name, notes)
        # Disk or network trouble ends the job, and is no reason to try again
        try:
            self.answers.write(name, pa.Table.from_pylist(rows, self.schema))
            self.answers.drop_notes(name)
        except OSError as error:
            return _report(0, 0.0, str(error))
        return _report(block.num_rows, time.process_time() - start)

    def _classify(self, block: pa.Table) -> list[dict]:
        """Rows for the recordings of a block."""
        rows, given = [], []
        for row in block.to_pylist():
            if row.get("error") is not None:
                rows.append(
                    self._row(row, FileResult(None, error=row["error"]))
                )
            else:
                given.append(row)
        if not given:
            return rows
        results = self.classifier.classify_files(
            [_source(row) for row in given],
            progress=False,
            threads=1,
            **self.options,
        )
        each, position = self.options.get("channel") == "each", -1
        for result in results:
            # The first result of a recording; others are for its channels
            position += not (each and result.channel)
            rows.append(self._row(given[position], result))
        return rows

    def _classify_each(self, block, name, notes):
        """Rows for recordings one by one, as a worker has died with this part."""
        rows = []
        for k in range(block.num_rows):
            row = block.slice(k, 1)
            address = row["address"][0].as_py()
            if notes.count(address) >= DEATHS:
                error = (
                    f"cannot classify {address}: the process died {DEATHS} "
                    "times (out of memory, or a crash of the decoder)"
                )
                given = row.to_pylist()[0]
                rows.append(self._row(given, FileResult(None, error=error)))
                continue
            self.answers.note(name, [*notes, address])
            rows += self._classify(row)
        return rows

    def _row(self, given, result):
        labels = self.classifier.labels
        return answer_row(given["file"], given["address"], labels, result)


def _source(row: dict[str, Any]) -> FileSource:
    """Audio input of a row."""
    address = row["address"]
    if row.get("data") is not None:
        return FileSource(address, io.BytesIO(row["data"]))
    if is_local(address):
        return FileSource(address, Path(address))
    return RemoteSource(address, address)


def _report(rows: int, seconds: float, failure: str | None = None) -> pa.Table:
    columns = {"rows": [rows], "seconds": [seconds]}
    return pa.table({**columns, "failure": pa.array([failure], pa.string())})
