"""Splits: disjoint, complete and repeatable."""

import dataclasses
import logging

import pytest
from hypothesis import given, strategies as st
from miniature_splits import NAMES, attempt, corpus, requests

from speechbrain_dslstm.splits import PROTOCOLS, count_folds, make_split
from speechbrain_dslstm.splits.protocols import split_hash


@given(requests())
def test_subsets_are_disjoint_and_nothing_gets_lost(request):
    split = attempt(request)
    subsets = [split.train, split.valid, split.test]
    for subset in subsets:
        assert subset and subset == sorted(set(subset))
    together = {key for subset in subsets for key in subset}
    assert together <= set(request["entries"])
    assert len(together) + split.dropped == len(request["entries"])
    if PROTOCOLS[split.protocol].valid_is_test:
        assert split.valid == split.test
        subsets = [split.train, split.test]
    assert len(together) == sum(map(len, subsets))
    if split.protocol != "speaker-text":
        assert split.dropped == 0


@given(requests(), st.randoms(use_true_random=False))
def test_order_of_entries_does_not_matter(request, rng):
    split = attempt(request)
    items = list(request["entries"].items())
    rng.shuffle(items)
    again = make_split(**{**request, "entries": dict(items)})
    assert again == split
    assert split_hash(again) == split_hash(split)


@pytest.mark.parametrize(
    "protocol", [n for n in NAMES if n not in ("all", "split")]
)
def test_every_clip_is_tested_once(protocol):
    entries = corpus()
    total = count_folds(entries, protocol)
    splits = [make_split(entries, protocol, f, 3) for f in range(total)]
    tested = [key for split in splits for key in split.test]
    assert sorted(tested) == sorted(entries)
    assert len({split_hash(split) for split in splits}) == total
    assert {split.n_folds for split in splits} == {total}


@pytest.mark.parametrize(
    ("protocol", "folds"),
    list(zip(NAMES, [10, 5, 5, 25, 5, 5, 1, 2, 1], strict=True)),
)
def test_count_folds(protocol, folds):
    assert count_folds(corpus(), protocol) == folds


@pytest.mark.parametrize(
    "protocol", [n for n in NAMES if n not in ("all", "split")]
)
def test_seed_changes_random_choices_and_nothing_else_does(protocol):
    entries = corpus()
    hashes = {split_hash(make_split(entries, protocol, 1, s)) for s in range(8)}
    assert len(hashes) > 1
    assert make_split(entries, protocol, 1, 5) == make_split(
        entries, protocol, 1, 5
    )


@pytest.mark.parametrize("protocol", NAMES)
def test_without_validation_speakers_all_other_clips_are_trained_on(protocol):
    entries = corpus()
    usual = make_split(entries, protocol, 0, 3)
    split = make_split(entries, protocol, 0, 3, valid_speakers=0)
    if protocol in ("paper", "split"):
        assert split == usual  # the test fold, and the clips of the table
    elif protocol == "all":
        assert len(values(entries, split.valid, "speaker")) == 1
    else:
        assert split.valid == [] and split.test == usual.test
        assert split.train == sorted(usual.train + usual.valid)
        assert split.description.endswith("; no validation")


def values(entries, ids, key):
    """Values of some ids."""
    return {entries[i][key] for i in ids}


@pytest.mark.parametrize("seed", range(5))
def test_speaker_validation(seed):
    entries = corpus()
    for fold in range(10):
        split = make_split(entries, "speaker", fold, seed)
        [speaker] = values(entries, split.test, "speaker")
        assert speaker == f"s{fold:02}"
        chosen = values(entries, split.valid, "speaker")
        assert len(chosen) == 2
        assert not chosen & values(entries, split.train, "speaker")
        assert values(entries, split.valid, "gender") == {"F", "M"}
        # never the partner, who is heard in the test speaker's recordings
        assert not values(entries, split.valid, "session") & values(
            entries, split.test, "session"
        )


def test_session_validation():
    entries = corpus(sessions=4)
    split = make_split(entries, "session", 2)
    assert values(entries, split.test, "session") == {"S2"}
    [session] = values(entries, split.valid, "session")
    assert session not in values(entries, split.train, "session")
    # too few sessions to give one away
    entries = corpus(sessions=3)
    split = make_split(entries, "session", 0)
    assert len(values(entries, split.valid, "speaker")) == 2
    assert len(values(entries, split.train, "speaker")) == 2
    with pytest.raises(ValueError, match="4 validation .* 4 training speak"):
        make_split(entries, "session", 0, valid_speakers=4)


def test_text_validation():
    entries = corpus()
    split = make_split(entries, "text", 0)
    subsets = [
        values(entries, ids, "text_id")
        for ids in (split.train, split.valid, split.test)
    ]
    assert sum(map(len, subsets)) == len(set.union(*subsets)) == 6
    # with two sentences, speakers tell training from validation
    entries = corpus(texts=2)
    assert count_folds(entries, "text") == 2
    split = make_split(entries, "text", 1)
    assert not values(entries, split.valid, "speaker") & values(
        entries, split.train, "speaker"
    )
    assert "speakers s" in split.description


def test_speaker_text_drops_the_rest():
    entries = corpus()
    split = make_split(entries, "speaker-text", 0)
    texts = len(values(entries, split.test, "text_id"))
    # the test speakers' other sentences, the others' test sentences
    assert split.dropped == 4 * (2 * (6 - texts) + 8 * texts)
    first = [make_split(entries, "speaker-text", f) for f in range(5)]
    sessions = [values(entries, s.test, "session") for s in first]
    assert sessions == [{f"S{n}"} for n in range(5)]


def test_random_is_stratified():
    entries = corpus()
    split = make_split(entries, "random", 0)
    for ids in (split.train, split.valid, split.test):
        counts = [
            sum(entries[i]["emotion"] == f"e{n}" for i in ids) for n in range(4)
        ]
        assert max(counts) - min(counts) <= 1


def test_all_trains_on_everyone_but_the_validation_speakers():
    entries = corpus()
    split = make_split(entries, "all", 0, valid_speakers=2)
    assert split.valid == split.test and split.dropped == 0
    assert len(values(entries, split.valid, "speaker")) == 2
    assert len(split.train) + len(split.valid) == len(entries)
    assert "no test subset" in split.description


def test_paper_says_what_it_is():
    text = make_split(corpus(), "paper", 0).description
    assert "speakers and sentences in all subsets" in text
    assert "best epoch chosen on the test fold" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"protocol": "loso"},
            "'loso'; expected one of speaker, session, text",
        ),
        ({"fold": 10}, r"fold is 10, but protocol 'speaker' has 10 folds"),
        ({"fold": -1}, "fold is -1"),
        ({"fold": 1.0}, "fold is 1.0"),
        ({"fold": True}, "fold is True"),
        ({"seed": -1}, "seed is -1, expected 0 to 4294967295"),
        ({"seed": None}, "seed is None"),
        ({"n_folds": 1}, "n_folds is 1, expected 2 to the 240 clips"),
        ({"n_folds": 241}, "n_folds is 241"),
        ({"valid_speakers": -1}, "valid_speakers is -1"),
        ({"valid_speakers": 9}, "9 validation speakers .* 9 training"),
        ({"protocol": "random", "n_folds": 61}, "no class has more than 60"),
    ],
)
def test_bad_requests(change, message):
    request = {"protocol": "speaker", "fold": 0, **change}
    with pytest.raises(ValueError, match=message):
        make_split(corpus(), **request)


def test_too_little_data():
    one = corpus(sessions=1)
    with pytest.raises(ValueError, match="at least 2 sessions, .* have 1"):
        count_folds(one, "session")
    with pytest.raises(ValueError, match="2 validation .* 1 training"):
        make_split(one, "speaker", 0)
    entries = corpus()
    next(iter(entries.values()))["text_id"] = ""
    with pytest.raises(ValueError, match="s00_t0_e0: text_id is empty"):
        count_folds(entries, "text")
    assert count_folds(entries, "session") == 5
    with pytest.raises(ValueError, match="the 0 clips"):
        count_folds({}, "random")


def test_class_missing_from_training(caplog):
    entries = corpus()
    for entry in entries.values():
        if entry["speaker"] == "s00":
            entry["emotion"] = "rare"
    with caplog.at_level(logging.WARNING):
        make_split(entries, "speaker", 0)
    assert caplog.messages == ["speaker, fold 0: no training clip of rare"]
    caplog.clear()
    make_split(corpus(), "speaker", 0)
    assert not caplog.messages


def test_hash_tells_subsets_apart():
    split = make_split(corpus(), "random", 0)
    swapped = dataclasses.replace(split, valid=split.test, test=split.valid)
    backwards = dataclasses.replace(split, train=split.train[::-1])
    assert split_hash(swapped) != split_hash(split) == split_hash(backwards)
    assert len(split_hash(split)) == 12
