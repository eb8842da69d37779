"""Overrides find their key in either file, and a run its folder."""

from pathlib import Path

import pytest

from speechbrain_dslstm.hparams import load_hparams, nest_overrides, run_folder

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
    assert run_folder(hparams, fold=3, seed=9) == expected
    hparams = load_hparams(HPARAMS / "ds_lstm.yaml", "output_folder: here")
    assert run_folder(hparams) == "here"
