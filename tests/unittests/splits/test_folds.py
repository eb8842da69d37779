"""Which speakers validate: women and men in turn, far from the test speaker."""

import numpy as np
import pytest

from speechbrain_dslstm.splits.folds import validation_speakers


def choose(speakers, number, seed):
    """Choose among speakers (name -> gender, session); "t" is tested."""
    entries = {
        name: {"speaker": name, "gender": gender, "session": session}
        for name, (gender, session) in speakers.items()
    }
    train = [name for name in entries if name != "t"]
    rng = np.random.default_rng(seed)
    left, valid, words = validation_speakers(entries, train, ["t"], number, rng)
    assert sorted(left + valid) == sorted(train)
    assert words.split(maxsplit=1)[1] == ", ".join(valid)
    return valid


@pytest.mark.parametrize("seed", range(20))
def test_who_is_heard_with_the_test_speaker_comes_last(seed):
    """Even where that is the only man, and the sexes take turns."""
    speakers = {"t": "F0", "m": "M0", "a": "F1", "b": "F1", "c": "F2"}
    assert "m" not in choose(speakers, 2, seed)
    assert choose(speakers, 3, seed) == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(20))
def test_the_sexes_take_turns_among_the_others(seed):
    """The test speaker's partner does not use up a turn of her sex."""
    speakers = {"t": "M0", "p": "F0", "a": "F1", "b": "M1", "c": "M2"}
    chosen = choose(speakers, 2, seed)
    assert "a" in chosen and "p" not in chosen


def test_every_far_speaker_is_chosen_by_some_seed():
    speakers = {"t": "M0", "a": "F1", "b": "M1", "c": "F2", "d": "M2"}
    chosen = {name for seed in range(20) for name in choose(speakers, 2, seed)}
    assert chosen == set("abcd")
