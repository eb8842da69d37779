"""Which settings a rerun may change, and what is kept of the earlier ones."""

import json
from pathlib import Path

import pytest

from speechbrain_dslstm.settings import RunRecord, parse_arguments

HPARAMS = Path(__file__).resolve().parents[3] / "hparams"


@pytest.fixture
def trained(tmp_path):
    """Write the record of a run of five epochs, with its results."""
    compare(tmp_path).write()
    (tmp_path / "results.json").write_text("{}")
    return tmp_path


def compare(folder, *options, yaml=HPARAMS / "dual_level.yaml"):
    """Compare a command with the folder of a run."""
    given = [str(yaml), "--number_of_epochs=5", *options]
    path, _, overrides = parse_arguments(given)
    return RunRecord(path, overrides, folder)


def files(folder):
    """Contents of all files of a folder."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


REFUSED = {
    "--lr=1": "lr (0.003, now 1)",
    "--weight_decay=0.1": "weight_decay (0.0001, now 0.1)",
    "--batch_size=4": "batch_size (16, now 4)",
    "--number_of_epochs=4": "number_of_epochs (5, now 4)",
    "--seed=1": "seed (1234, now 1)",
    "--fold=1": "fold (0, now 1)",
    "--speeds=null": "speeds ([90, 95, 100, 105, 110], now null)",
    "--precision=bf16": "precision (fp32, now bf16)",
    "--grad_accumulation_factor=2": "grad_accumulation_factor (1, now 2)",
    "--channels=[2, 2]": "channels ([32, 16], now [2, 2])",
    "--fea_augment=null": "fea_augment (!new:speechbrain_dslstm.features",
    "--max_grad_norm=1": "max_grad_norm (5.0, now 1.0)",
    # It would write the scores of a few batches over those of the run
    "--debug": "debug (False, now True)",
}


@pytest.mark.parametrize("option", REFUSED)
def test_other_settings_are_refused_by_name(option, trained):
    before = files(trained)
    record = compare(trained, option)
    with pytest.raises(ValueError) as error:
        record.check()
    message = str(error.value)
    assert f"{trained} holds a run with another {REFUSED[option]}" in message
    assert "\n" not in message and files(trained) == before


def test_all_keys_are_named_at_once(trained):
    record = compare(trained, "--lr=1", "--seed=2", "--num_workers=2")
    assert record.refused == {"seed": (1234, 2), "lr": (0.003, 1)}


@pytest.mark.parametrize(
    "option",
    [
        # Defaults made explicit, and another way of writing them
        *("--lr=0.003", "--lr=3.0e-3", "--precision=fp32", "--label_set=null"),
        *("--channels=[32,16]", "--grad_accumulation_factor=1"),
        *("--output_folder=elsewhere", "--noprogressbar"),
    ],
)
def test_the_same_settings(option, trained):
    record = compare(trained, option)
    record.check()
    assert record.finished and not record.applied


def test_settings_without_effect_apply_and_are_recorded(trained):
    options = ["--num_workers=2", "--ckpt_interval_minutes=1", "--device=cpu"]
    record = compare(trained, *options)
    record.check()
    record.write()
    kept = json.loads((trained / "save" / "settings.json").read_text())
    assert kept["settings"]["num_workers"] == 2
    assert {"key": "num_workers", "before": 0, "now": 2} in kept["changes"]
    assert record.finished
    # The next call is compared with these
    assert compare(trained).applied["num_workers"] == (2, 0)


def test_more_epochs_are_planned_anew(trained):
    """Objects that follow from the number are no other difference."""
    path = trained.parent / "own.yaml"
    text = (HPARAMS / "dual_level.yaml").read_text()
    text += "other: !name:a.B\n  epochs: !ref <recipe[number_of_epochs]>\n"
    path.write_text(text)
    folder = trained.parent / "own"
    compare(folder, yaml=path).write()
    (folder / "results.json").write_text("{}")
    record = compare(folder, "--number_of_epochs=9", yaml=path)
    record.check()
    assert not record.finished
    record.write()
    assert (folder / "results_5_epochs.json").exists()
    assert not (folder / "results.json").exists()
    record = compare(folder, "--number_of_epochs=9", yaml=path)
    record.check()
    assert not record.applied
    # And an edited object is one, beside more epochs, too
    (folder / "results.json").write_text("{}")
    path.write_text(text.replace("a.B", "a.C"))
    with pytest.raises(ValueError, match="another other"):
        compare(folder, "--number_of_epochs=12", yaml=path).check()


def test_a_folder_without_a_training_takes_any_settings(tmp_path):
    compare(tmp_path).write()
    record = compare(tmp_path, "--lr=1")
    record.check()
    record.write()
    (tmp_path / "save" / "CKPT+1").mkdir()
    compare(tmp_path, "--lr=1").check()
    with pytest.raises(ValueError, match="another lr"):
        compare(tmp_path).check()


def test_its_own_yaml_runs_again_and_takes_overrides(trained):
    own = trained / "hyperparams.yaml"
    record = compare(trained, yaml=own)
    record.check()
    assert record.finished and not record.applied
    # Wherever it is, and through all references
    copied = trained.parent / "copied.yaml"
    copied.write_text(own.read_text())
    found = compare(trained.parent / "new", "--lr=0.5", yaml=copied)
    expected = compare(trained.parent / "new", "--lr=0.5")
    assert found.settings == expected.settings
    assert found.settings["opt_class"]["value"]["lr"] == 0.5


def test_a_key_that_a_version_has_added(trained):
    """It is noted; under the same code it is a difference as any other."""
    path = trained / "save" / "settings.json"
    kept = json.loads(path.read_text())
    del kept["settings"]["num_buckets"]
    path.write_text(json.dumps(kept))
    assert compare(trained).refused == {"num_buckets": (None, 4)}
    kept["code"] = {"version": "0.0.1"}
    path.write_text(json.dumps(kept))
    record = compare(trained)
    record.check()
    assert record.applied == {"num_buckets": (None, 4)}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": 1}'])
def test_a_damaged_record_is_named(text, trained):
    (trained / "save" / "settings.json").write_text(text)
    with pytest.raises(ValueError, match="settings.json is damaged"):
        compare(trained)
