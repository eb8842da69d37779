"""Splits: disjoint, complete, repeatable; and the guard, which trusts none."""

import dataclasses
import logging
import random

import pytest
from hypothesis import assume, given, strategies as st

from speechbrain_dslstm.corpora import prepare
from speechbrain_dslstm.splits import (
    PROTOCOLS,
    LeakError,
    check_leaks,
    count_folds,
    format_leak_summary,
    format_leak_table,
    identical_recordings,
    leak_summary,
    leak_table,
    make_split,
    split_hash,
)

NAMES = list(PROTOCOLS)


def corpus(sessions=5, texts=6, emotions=4, keep=1.0, seed=0):
    """Two speakers a session, each with every sentence and emotion."""
    rng = random.Random(seed)
    entries = {}
    for speaker in range(2 * sessions):
        for text in range(texts):
            for emotion in range(emotions):
                key = f"s{speaker:02}_t{text}_e{emotion}"
                if rng.random() > keep:
                    continue
                entries[key] = {
                    "speaker": f"s{speaker:02}",
                    "gender": "FM"[speaker % 2],
                    "session": f"S{speaker // 2}",
                    "dialogue": f"S{speaker // 2}_d",
                    "text_id": f"t{text}",
                    "emotion": f"e{emotion}",
                    "audio_hash": key,
                }
    return entries


@st.composite
def requests(draw):
    """A corpus with holes, a protocol and a fold it has."""
    entries = corpus(
        draw(st.integers(2, 5)),
        draw(st.integers(2, 6)),
        draw(st.integers(2, 4)),
        draw(st.sampled_from([0.5, 0.8, 1.0])),
        draw(st.integers(0, 99)),
    )
    protocol = draw(st.sampled_from(NAMES))
    n_folds = draw(st.integers(2, 6))
    assume(len(entries) >= n_folds)
    try:
        total = count_folds(entries, protocol, n_folds)
    except ValueError:
        assume(False)
    return {
        "entries": entries,
        "protocol": protocol,
        "fold": draw(st.integers(0, total - 1)),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "n_folds": n_folds,
        "valid_speakers": draw(st.integers(1, 3)),
    }


def attempt(request):
    """Make the split, or give the example up where data is too scarce."""
    try:
        return make_split(**request)
    except LeakError:
        raise
    except ValueError:
        assume(False)


@given(requests())
def test_sides_are_disjoint_and_nothing_gets_lost(request):
    split = attempt(request)
    sides = [split.train, split.valid, split.test]
    for side in sides:
        assert side and side == sorted(set(side))
    together = {key for side in sides for key in side}
    assert together <= set(request["entries"])
    assert len(together) + split.dropped == len(request["entries"])
    if PROTOCOLS[split.protocol].valid_is_test:
        assert split.valid == split.test
        sides = [split.train, split.test]
    assert len(together) == sum(map(len, sides))
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


@given(requests())
def test_own_splits_pass_the_guard(request):
    split = attempt(request)
    table = check_leaks(split, request["entries"])
    rule = PROTOCOLS[split.protocol]
    for kind in rule.forbidden:
        assert table["train"][kind]["count"] == 0
        if not rule.valid_is_test:
            assert table["valid"][kind]["count"] == 0


@given(requests(), st.data())
def test_guard_finds_a_moved_clip(request, data):
    split = attempt(request)
    assume(PROTOCOLS[split.protocol].forbidden and len(split.test) > 1)
    key = data.draw(st.sampled_from(split.test))
    apart = not PROTOCOLS[split.protocol].valid_is_test
    side = data.draw(st.sampled_from(["train", "valid"][: 1 + apart]))
    left = [k for k in split.test if k != key]
    sides = {"test": left} if apart else {"test": left, "valid": left}
    sides[side] = sorted([*getattr(split, side), key])
    tampered = dataclasses.replace(split, **sides)
    entries = request["entries"]
    forbidden = PROTOCOLS[split.protocol].forbidden
    shared = any(
        entries[key][kind] in {entries[k][kind] for k in tampered.test}
        for kind in forbidden
    )
    if shared:
        with pytest.raises(LeakError, match=f"{side} and test share"):
            check_leaks(tampered, entries)
    else:
        check_leaks(tampered, entries)


@pytest.mark.parametrize("protocol", [n for n in NAMES if n != "all"])
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
    list(zip(NAMES, [10, 5, 5, 25, 5, 5, 1], strict=True)),
)
def test_count_folds(protocol, folds):
    assert count_folds(corpus(), protocol) == folds


@pytest.mark.parametrize("protocol", [n for n in NAMES if n != "all"])
def test_seed_changes_random_choices_and_nothing_else_does(protocol):
    entries = corpus()
    hashes = {split_hash(make_split(entries, protocol, 1, s)) for s in range(8)}
    assert len(hashes) > 1
    assert make_split(entries, protocol, 1, 5) == make_split(
        entries, protocol, 1, 5
    )


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
    sides = [
        values(entries, ids, "text_id")
        for ids in (split.train, split.valid, split.test)
    ]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 6
    # with two sentences, speakers tell training from validation
    entries = corpus(texts=2)
    assert count_folds(entries, "text") == 2
    split = make_split(entries, "text", 1)
    assert not values(entries, split.valid, "speaker") & values(
        entries, split.train, "speaker"
    )
    assert "speakers s" in split.description


def test_speaker_text_drops_what_is_on_neither_side():
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
    assert "no test side" in split.description


def test_paper_says_what_it_is():
    text = make_split(corpus(), "paper", 0).description
    assert "speakers and sentences on both sides" in text
    assert "best epoch chosen on the test fold" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "loso"}, "'loso'; there are: speaker, session, text"),
        ({"fold": 10}, r"fold is 10, but protocol 'speaker' has 10 folds"),
        ({"fold": -1}, "fold is -1"),
        ({"fold": 1.0}, "fold is 1.0"),
        ({"fold": True}, "fold is True"),
        ({"seed": -1}, "seed is -1, expected 0 to 4294967295"),
        ({"seed": None}, "seed is None"),
        ({"n_folds": 1}, "n_folds is 1, expected 2 to the 240 clips"),
        ({"n_folds": 241}, "n_folds is 241"),
        ({"valid_speakers": 0}, "valid_speakers is 0"),
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


def test_guard_names_what_is_shared():
    entries = corpus()
    split = make_split(entries, "speaker", 0)
    stranger = split.train[0]
    entries[stranger]["audio_hash"] = entries[split.test[0]]["audio_hash"]
    message = r"'speaker', fold 0: train and test share 1 audio_hash \(s00_t0"
    with pytest.raises(LeakError, match=message):
        check_leaks(split, entries)
    table = leak_table(split, entries)
    assert table["train"]["session"] == {"count": 1, "examples": ["S0"]}
    assert table["train"]["text_id"]["count"] == 6
    lines = format_leak_table(table).splitlines()
    assert len(lines) == 6
    assert lines[5].split() == ["audio_hash", "1", "0", "s00_t0_e0"]
    # the same is only reported where the protocol lets it be
    loose = dataclasses.replace(split, protocol="random")
    assert check_leaks(loose, entries)["train"]["audio_hash"]["count"] == 1


def test_guard_refuses_broken_splits():
    entries = corpus()
    split = make_split(entries, "random", 0)
    for change, message in (
        ({"test": []}, "no clip is left for test"),
        ({"test": split.valid}, "39 clips in valid and test"),
        ({"train": split.valid}, "clips in train and valid"),
        ({"test": ["x"]}, "1 test clips have no entry, such as x"),
        ({"protocol": "loso"}, "unknown protocol 'loso'"),
    ):
        with pytest.raises(ValueError, match=message):
            check_leaks(dataclasses.replace(split, **change), entries)
    paper = make_split(entries, "paper", 0)
    check_leaks(paper, entries)
    with pytest.raises(LeakError, match="clips in train and test"):
        check_leaks(dataclasses.replace(paper, train=paper.test), entries)


def test_hash_tells_sides_apart():
    split = make_split(corpus(), "random", 0)
    swapped = dataclasses.replace(split, valid=split.test, test=split.valid)
    backwards = dataclasses.replace(split, train=split.train[::-1])
    assert split_hash(swapped) != split_hash(split) == split_hash(backwards)
    assert len(split_hash(split)) == 12


def test_real_recordings_under_two_names(ravdess_folder):
    entries, _ = prepare("ravdess", ravdess_folder)
    names = ("03-01-03-01-02-01-07", "03-01-03-01-02-02-07")
    reported = set()
    for fold in range(5):
        split = make_split(entries, "random", fold)
        table = check_leaks(split, entries)
        tested = [name in split.test for name in names]
        count = sum(table[s]["audio_hash"]["count"] for s in ("train", "valid"))
        assert count == (1 if any(tested) and not all(tested) else 0)
        reported.add(count)
    assert reported == {0, 1}
    for protocol in ("speaker", "session", "text", "speaker-text"):
        for fold in range(count_folds(entries, protocol)):
            check_leaks(make_split(entries, protocol, fold), entries)


def test_leak_summary_is_the_most_of_any_fold():
    entries = corpus(sessions=3)
    summary = leak_summary(entries, seed=3)
    assert list(summary) == NAMES
    for protocol, found in summary.items():
        assert found["folds"] == count_folds(entries, protocol)
        tables = [
            leak_table(make_split(entries, protocol, fold, 3), entries)
            for fold in range(found["folds"])
        ]
        for side in ("train", "valid"):
            for kind, count in found[side].items():
                assert count == max(t[side][kind]["count"] for t in tables)
    rows = format_leak_summary(summary).splitlines()
    assert len(rows) == 2 + len(NAMES)
    assert len({row.count("|") for row in rows}) == 1
    assert "| `random` | 5 | 6 / 6 | 3 / 3 |" in "\n".join(rows)


def test_ravdess_holds_a_recording_twice(ravdess_folder):
    """Under two names; every protocol but the random ones keeps it together."""
    entries, _ = prepare("ravdess", ravdess_folder)
    pair = ["03-01-03-01-02-01-07", "03-01-03-01-02-02-07"]
    assert identical_recordings(entries) == [pair]
    summary = leak_summary(entries, seed=1234)
    for protocol, found in summary.items():
        leaky = protocol in ("random", "paper")
        assert found["train"]["audio_hash"] == int(leaky)
        apart = "speaker" in PROTOCOLS[protocol].forbidden
        assert (found["train"]["speaker"] == 0) == apart
