"""Parts of answers: no recording twice, none lost, one job in a folder."""

import fsspec
import pyarrow.parquet as pq
import pytest
import torch

from speechbrain_dslstm.bulk.answers import (
    Answers,
    answer_row,
    answer_schema,
    part_name,
)
from speechbrain_dslstm.inference import FileResult, Segment
from speechbrain_dslstm.inference.answer import Answer

LABELS = ["sad", "label"]
SCHEMA = answer_schema(LABELS, ["valence"], {"model": "a", "channel": "mix"})


def result(**more):
    posteriors = torch.tensor([[0.25, 0.75]]).log()
    answer = Answer(
        posteriors,
        posteriors.max(1)[0],
        posteriors.argmax(1),
        ["label"],
        {"valence": torch.tensor([0.5])},
    )
    return FileResult(None, answer, **more)


def table(*addresses, of=None):
    import pyarrow as pa

    found = of or result()
    rows = [answer_row(one, one, LABELS, found) for one in addresses]
    return pa.Table.from_pylist(rows, SCHEMA)


@pytest.fixture(params=["local", "memory"])
def answers(request, tmp_path):
    """An empty folder, on disk or in memory."""
    if request.param == "local":
        yield Answers(tmp_path / "out")
    else:
        yield Answers("memory://out/here")
        fsspec.filesystem("memory").rm("/", recursive=True)


def test_rows(tmp_path):
    """A class that is named like a column gets another; windows are kept."""
    segment = Segment(0.0, 6.0, "sad", torch.tensor([0.5, 0.5]).log())
    answers = Answers(tmp_path)
    answers.write("part-1.parquet", table("a", of=result(segments=(segment,))))
    (row,) = pq.read_table(tmp_path).to_pylist()
    assert row["label"] == "label" and row["sad"] == pytest.approx(0.25)
    assert row["class_label"] == pytest.approx(0.75)
    assert row["valence"] == 0.5 and row["error"] is row["channel"] is None
    (window,) = row["segments"]
    assert (window["start"], window["end"]) == (0.0, 6.0)
    assert window["label"] == "sad" and window["class_label"] == 0.5


def test_one_part_for_a_recording(answers):
    """Rows of a recording in one part, such as its channels, all stay."""
    assert answers.read("address").num_rows == 0
    answers.drop_duplicates()
    answers.write("part-1.parquet", table("a", "b", "b"))
    answers.write("part-2.parquet", table("b", "c"))
    answers.write("part-3.parquet", table("a"))
    answers.write("part-3.parquet", table("a"))
    answers.drop_duplicates()
    found = sorted(answers.read("address")["address"].to_pylist())
    assert found == ["a", "b", "b", "c"]
    assert len(answers._parts()) == 2


def test_errors_are_forgotten(answers):
    answers.write("part-1.parquet", table("a"))
    answers.write("part-2.parquet", table("b", of=FileResult(None, error="x")))
    silent = FileResult(None, error="silent", reason="silence")
    answers.write("part-3.parquet", table("c", of=silent))
    summary = answers.summarize()
    assert (summary.rows, summary.answered) == (3, 1)
    assert (summary.without_speech, summary.failed) == (1, 1)
    answers.drop_errors()
    found = sorted(answers.read("address")["address"].to_pylist())
    assert found == ["a", "c"]


def test_another_job(answers):
    answers.check_job(SCHEMA)
    answers.write("part-1.parquet", table("a"))
    answers.check_job(SCHEMA)
    other = answer_schema(LABELS, [], {"model": "b", "channel": "mix"})
    with pytest.raises(ValueError, match="another job .model 'a' there, 'b'"):
        answers.check_job(other)


def test_notes(answers):
    assert answers.notes("part-1") is None
    answers.note("part-1", ["x", "x"])
    assert answers.notes("part-1") == ["x", "x"]
    answers.drop_notes("part-1")
    answers.drop_notes("part-1")
    assert answers.notes("part-1") is None
    answers.note("part-2", [])
    answers.drop_notes()
    answers.drop_notes()
    assert answers.notes("part-2") is None


def test_names_and_places(tmp_path):
    assert part_name(["a", "b"]) == part_name(["b", "a"]) != part_name(["a"])
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        Answers(tmp_path / "file")


def test_nothing_is_left_of_a_write_that_failed(answers, monkeypatch):
    def fail(path, *rest, **more):
        raise OSError("no room")

    monkeypatch.setattr("os.replace", fail)
    monkeypatch.setattr(type(answers.system), "mv", fail)
    with pytest.raises(OSError, match="no room"):
        answers.write("part-1.parquet", table("a"))
    assert answers.system.find(answers.path) == []
