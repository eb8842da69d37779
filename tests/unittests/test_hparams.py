"""Overrides reach their key in either file; what says which run it is."""

import json
from pathlib import Path

import pytest
from hyperpyyaml import resolve_references

from speechbrain_dslstm.hparams import (
    PER_FOLD,
    flat_yaml,
    load_hparams,
    plain_settings,
    read_hparams,
    resolve_hparams,
    run_folder,
    shorten_command,
)

HPARAMS = Path(__file__).resolve().parents[2] / "hparams"


def test_overrides_reach_both_files():
    overrides = "{seed: 7, fold: 2, channels: [4, 2], corpus: ravdess}"
    hparams = load_hparams(HPARAMS / "dual_level.yaml", overrides)
    assert (hparams["seed"], hparams["fold"]) == (7, 2)
    assert hparams["n_classes"] == len(hparams["labels"]) == 8
    blocks = hparams["model"].branches["spectrogram"].cnn_x.blocks
    assert [block.conv.out_channels for block in blocks] == [4, 2]


def test_an_override_wins_over_what_a_system_states():
    path = HPARAMS / "paper.yaml"
    hparams = load_hparams(path, "{hidden_size: 5, normalization: training}")
    assert hparams["hidden_size"] == 5 and hparams["batch_size"] == 128
    assert hparams["normalization"] == "training"


def test_unknown_keys_are_named():
    with pytest.raises(
        KeyError,
        match="no key 'hiden_size' in .*recipe.yaml; did you mean hidden_size",
    ):
        load_hparams(HPARAMS / "dual_level.yaml", "hiden_size: 5")


def test_a_yaml_without_recipe_stays_as_it_is(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("output_folder: x\nsize: 3\n")
    assert flat_yaml(path, "size: 4") == "output_folder: x\nsize: 4\n"
    hparams = load_hparams(path, "size: 4")
    assert hparams == {"output_folder": "x", "size": 4}
    assert run_folder(hparams) == "x"


def test_folder_names_all_that_a_run_is():
    hparams = load_hparams(HPARAMS / "ds_lstm.yaml", "protocol: random")
    expected = "runs/ds_lstm/synthetic/random/training/fold3_seed9"
    assert run_folder(hparams | {"fold": 3, "seed": 9}) == expected
    hparams = load_hparams(HPARAMS / "ds_lstm.yaml", "output_folder: here")
    assert run_folder(hparams) == "here"


@pytest.mark.parametrize("system", ["dual_level", "paper", "ds_lstm"])
def test_reading_finds_what_loading_does(system):
    path, overrides = HPARAMS / f"{system}.yaml", "{fold: 2, corpus: emodb}"
    loaded, read = (f(path, overrides) for f in (load_hparams, read_hparams))
    # !apply is done by loading alone
    assert loaded.keys() == read.keys() - {"__set_seed"}
    for key, value in loaded.items():
        if isinstance(value, int | float | str) and key not in (
            *("n_classes", "n_outputs"),
        ):
            assert read[key] == value, key


def test_a_resolved_yaml_has_no_references(tmp_path):
    shared = "{rate: 8000, features: {sample_rate: !ref <rate>}}"
    (tmp_path / "recipe.yaml").write_text(shared)
    system = tmp_path / "system.yaml"
    system.write_text("recipe: !include:recipe.yaml {}")
    assert resolve_hparams(system, "rate: 16000") == (
        "recipe: {rate: 16000, features: {sample_rate: 16000}}\n"
        "sample_rate: 16000\n"
    )


def test_an_included_file_is_no_system():
    with pytest.raises(ValueError, match="features.yaml is not .* a system"):
        read_hparams(HPARAMS / "features.yaml")


SYSTEMS = ["dual_level", "paper", "ssl_ds_lstm", "tri_level"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_flat_yaml_is_the_system_and_takes_overrides(system, tmp_path):
    """The includes of HyperPyYAML itself give the same values."""
    path, flat = HPARAMS / f"{system}.yaml", tmp_path / "flat.yaml"
    with open(path, encoding="utf-8") as file:
        flat.write_text(resolve_references(file).getvalue())
    expected = plain_settings(path)
    assert plain_settings(flat) == expected
    flat.write_text(flat_yaml(path, "{lr: 0.5, seed: 3}"))
    assert "# groups of similar length" in flat.read_text()
    given = "{lr: 0.5, seed: 3, hidden_size: 9, corpus: emodb}"
    found = plain_settings(flat, "{hidden_size: 9, corpus: emodb}")
    assert found == plain_settings(path, given) != expected
    assert found["opt_class"]["value"]["lr"] == 0.5


def test_a_yaml_in_another_folder_includes_that_of_the_package(tmp_path):
    folder = tmp_path / "with blank, ümlaut"
    folder.mkdir()
    path = folder / "own.yaml"
    path.write_text("output_folder: x\nrecipe: !include:recipe.yaml\n  lr: 7\n")
    assert read_hparams(path)["lr"] == 7
    # One beside it is taken first
    (folder / "recipe.yaml").write_text("lr: 1\nsize: 2\n")
    assert read_hparams(path) == {
        **{"lr": 7, "size": 2, "output_folder": "x"},
        "recipe": {"lr": 7, "size": 2},
    }
    path.write_text("recipe: !include:nothing.yaml\noutput_folder: x\n")
    with pytest.raises(FileNotFoundError, match="own.yaml includes nothing"):
        read_hparams(path)
    path.write_text("output_folder: x\nrecipe: !include:recipe.yaml {sizes: 1}")
    with pytest.raises(ValueError, match="no key 'sizes' .*did you mean size"):
        read_hparams(path)


@pytest.mark.parametrize("text", ["- a", "a: [", "a: !ref <a", ""])
def test_a_yaml_that_cannot_be_read_is_named(text, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="own.yaml"):
        read_hparams(path)


def test_words_of_an_older_yaml_stay_words(tmp_path):
    """HyperPyYAML reads YAML 1.1, where on, no and 1:30 are no texts."""
    path = tmp_path / "own.yaml"
    path.write_text("output_folder: 'on'\nlabels: ['no', 1_000:x, '1:30']\n")
    words = {"output_folder": "on", "labels": ["no", "1_000:x", "1:30"]}
    assert load_hparams(path) == read_hparams(path) == words


def test_settings_do_not_depend_on_layout(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("lr: 0.1  # large\nsizes: [1, 2]\nlayer: !new:a.B\n  c: 1")
    before = plain_settings(path)
    assert json.loads(json.dumps(before)) == before
    path.write_text("layer: !new:a.B {c: 1.0}\nlr: 1e-1\nsizes:\n- 1\n- 2\n")
    assert plain_settings(path) == before
    path.write_text("layer: !new:a.C {c: 1}\nlr: 0.1\nsizes: [1, 2]")
    assert plain_settings(path)["layer"] != before["layer"]
    path.write_text("limit: .inf\nprecision: bf16\n")
    found = plain_settings(path)
    assert found["limit"] == "inf" and found["precision"] == "bf16"
    # Options of SpeechBrain are at their defaults
    assert found["grad_accumulation_factor"] == 1


def test_commands_are_shortened():
    command = ["/a/b/train.py", "c.yaml", "--data_folder=/a/b/emodb"]
    command += ["--lr=0.1", "--channels=[2, 2]", "--fold=3", "--noprogressbar"]
    short = "train.py c.yaml --data_folder=emodb --lr=0.1 '--channels=[2, 2]'"
    assert shorten_command(command, PER_FOLD) == short
    assert shorten_command(command) == f"{short} --fold=3 --noprogressbar"
    command = ["dslstm train", "paper", "--data_folder=/a/b c"]
    short = "dslstm train paper '--data_folder=b c'"
    assert shorten_command(command) == short
