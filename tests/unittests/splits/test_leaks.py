"""The leak guard, which trusts no split."""

import dataclasses

import pytest
from hypothesis import assume, given, strategies as st
from miniature_splits import NAMES, attempt, corpus, requests

from speechbrain_dslstm.corpora import prepare
from speechbrain_dslstm.splits import (
    PROTOCOLS,
    LeakError,
    Split,
    check_leaks,
    count_folds,
    make_split,
)
from speechbrain_dslstm.splits.leaks import (
    KINDS,
    audio_hash,
    format_leak_summary,
    format_leak_table,
    identical_recordings,
    leak_summary,
    leak_table,
)

# Written out, so that PROTOCOLS is compared with what the README promises
FORBIDDEN = {
    "speaker": {"speaker", "audio_hash"},
    "session": {"speaker", "session", "dialogue", "audio_hash"},
    "text": {"text_id", "audio_hash"},
    "speaker-text": set(KINDS),
    "random": set(),
    "paper": set(),
    "all": {"speaker", "audio_hash"},
    "corpus": {"corpus", "speaker", "audio_hash"},
    "split": {"audio_hash"},
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [*KINDS, "corpus"])
def test_each_protocol_forbids_what_it_promises(protocol, kind):
    """Splits by hand in which two clips share one kind and nothing else."""
    same = PROTOCOLS[protocol].valid_is_test
    for place in ("train",) if same else ("train", "valid"):
        entries = {
            key: {k: f"{k} {key}" for k in (*KINDS, "corpus")} for key in "abc"
        }
        entries["a" if place == "train" else "b"][kind] = f"{kind} c"
        valid = ["c"] if same else ["b"]
        split = Split(["a"], valid, ["c"], protocol, 0, 0, 1, "")
        if kind in FORBIDDEN[protocol]:
            shown = f"{kind} c"
            if kind == "audio_hash":
                one = "a" if place == "train" else "b"
                shown = f"{one} and c are the same recording"
            message = rf"{place} and test share 1 {kind} \({shown}\)$"
            with pytest.raises(LeakError, match=message):
                check_leaks(split, entries)
        else:
            table = check_leaks(split, entries)
            assert table[place][kind]["count"] == 1


def test_the_hash_of_a_corpus_says_which_clip_has_which_audio():
    entries = corpus()
    found = audio_hash(entries)
    assert audio_hash(dict(reversed(entries.items()))) == found
    one, two = list(entries)[:2]
    swapped = {one: entries[two], two: entries[one]}
    assert audio_hash(entries | swapped) != found


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
    subset = data.draw(st.sampled_from(["train", "valid"][: 1 + apart]))
    left = [k for k in split.test if k != key]
    subsets = {"test": left} if apart else {"test": left, "valid": left}
    subsets[subset] = sorted([*getattr(split, subset), key])
    tampered = dataclasses.replace(split, **subsets)
    entries = request["entries"]
    forbidden = PROTOCOLS[split.protocol].forbidden
    shared = any(
        entries[key][kind] in {entries[k][kind] for k in tampered.test}
        for kind in forbidden
    )
    if shared:
        with pytest.raises(LeakError, match=f"{subset} and test share"):
            check_leaks(tampered, entries)
    else:
        check_leaks(tampered, entries)


def test_guard_names_what_is_shared():
    entries = corpus()
    split = make_split(entries, "speaker", 0)
    stranger = split.train[0]
    entries[stranger]["audio_hash"] = entries[split.test[0]]["audio_hash"]
    message = (
        r"'speaker', fold 0: train and test share 1 audio_hash \(s.* and s00_t0"
    )
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
        for subset in ("train", "valid"):
            for kind, count in found[subset].items():
                assert count == max(t[subset][kind]["count"] for t in tables)
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
