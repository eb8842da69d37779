"""Overrides reach their key in either file; what says which run it is."""

from pathlib import Path

import pytest

from speechbrain_dslstm.hparams import (
    PER_FOLD,
    hash_settings,
    load_hparams,
    nest_overrides,
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
    with pytest.raises(KeyError, match="no key 'hiden_size' in .*recipe.yaml"):
        load_hparams(HPARAMS / "dual_level.yaml", "hiden_size: 5")


def test_a_yaml_without_recipe_stays_as_it_is(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("output_folder: x\nsize: 3\n")
    assert nest_overrides(path, "size: 4") == "size: 4"
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


BASE = ["--corpus=emodb", "--fold=1"]


@pytest.mark.parametrize(
    ("options", "same"),
    [
        # Neither the fold nor what changes no result
        ([*BASE, "--device=cuda:1", "--output_folder=x"], True),
        ([*BASE, "--data_folder=x", "--num_workers=2"], True),
        ([*BASE, "--feature_cache=x", "--ckpt_interval_minutes=1"], True),
        (["--fold=1", "--corpus=emodb", "--noprogressbar"], True),
        # The default, written out
        ([*BASE, "--lr=0.003", "--protocol=session"], True),
        # A key of either file, and an option of SpeechBrain's alone
        ([*BASE, "--lr=0.1"], False),
        ([*BASE, "--channels=[4, 2]"], False),
        ([*BASE, "--fusion_weight=0.4"], False),
        ([*BASE, "--grad_accumulation_factor=2"], False),
        (["--corpus=nemo"], False),
    ],
)
def test_hash_is_of_what_changes_a_result(options, same):
    path = str(HPARAMS / "dual_level.yaml")
    found = hash_settings([path, *options]) == hash_settings([path, *BASE])
    assert found == same


def test_hash_does_not_see_layout(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("lr: 0.1  # large\nsizes: [1, 2]\nlayer: !new:a.B\n  c: 1")
    before = hash_settings([str(path)])
    path.write_text("layer: !new:a.B {c: 1}\nnew: null\nlr: 0.1\nsizes: [1, 2]")
    assert hash_settings([str(path)]) == before
    path.write_text("layer: !new:a.C {c: 1}\nlr: 0.1\nsizes: [1, 2]")
    assert hash_settings([str(path)]) != before


def test_commands_are_shortened():
    command = ["/a/b/train.py", "c.yaml", "--data_folder=/a/b/emodb"]
    command += ["--lr=0.1", "--channels=[2, 2]", "--fold=3", "--noprogressbar"]
    short = "train.py c.yaml --data_folder=emodb --lr=0.1 '--channels=[2, 2]'"
    assert shorten_command(command, PER_FOLD) == short
    assert shorten_command(command) == f"{short} --fold=3 --noprogressbar"
