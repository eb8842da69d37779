"""Which runs a folder with checkpoints can go on with."""

import json

import pytest

from speechbrain_dslstm.training.preparation import _check_same_run


def test_other_words_for_the_same_split_are_the_same_run(tmp_path):
    save = tmp_path / "save"
    (save / "CKPT+1").mkdir(parents=True)
    path = save / "run.json"
    path.write_text(json.dumps({"description": "one", "split_hash": "a"}))
    hparams = {"output_folder": str(tmp_path)}
    _check_same_run(hparams, path, {"description": "two", "split_hash": "a"})
    with pytest.raises(ValueError, match="another split_hash"):
        _check_same_run(
            hparams, path, {"description": "one", "split_hash": "b"}
        )
