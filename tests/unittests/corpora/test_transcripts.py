"""The text level: tokens of training transcripts, padding, and the guard."""

import pytest
import torch

from speechbrain_dslstm import DualLevelClassifier
from speechbrain_dslstm.corpora import CORPORA
from speechbrain_dslstm.corpora.transcripts import (
    FIXED_SENTENCES,
    check_transcripts,
    load_tokenizer,
    to_tokens,
    write_transcripts,
)
from speechbrain_dslstm.models import FeatureSequence, TextBranch

SAID = ["I can't read your mind.", "Nothing.", "What's wrong?", "", "Oh no!"]
ENTRIES = {str(k): {"text": text} for k, text in enumerate(SAID)}


def test_tokenizer_knows_the_training_transcripts_only(tmp_path):
    path = write_transcripts(ENTRIES, tmp_path)
    plain = str.maketrans("", "", "'.?!")
    expected = [text.lower().translate(plain) for text in SAID if text]
    assert path.read_text().splitlines() == expected
    tokenizer = load_tokenizer(tmp_path, 20, "unigram")
    for text in SAID[:3]:
        ids = to_tokens(tokenizer, text)
        assert ids.dtype == torch.int64 and 0 not in ids
        words = tokenizer.sp.decode(ids.tolist())
        assert words == text.lower().translate(plain)
    # A letter that training has not seen is the unknown token
    assert 0 in to_tokens(tokenizer, "zebra")
    assert to_tokens(tokenizer, "...").tolist() == [0]
    # The same folder gives the same tokens, whatever the transcripts are now
    path.write_text("zebra\n")
    again = load_tokenizer(tmp_path, 20, "unigram")
    assert torch.equal(to_tokens(again, SAID[0]), to_tokens(tokenizer, SAID[0]))


def test_more_tokens_than_the_embedding_has(tmp_path):
    write_transcripts(ENTRIES, tmp_path)
    with pytest.raises(ValueError, match="tokens of type char, .* only 5"):
        load_tokenizer(tmp_path, 5, "char")


def test_branch_ignores_padding():
    branch = TextBranch(3, vocab_size=20, hidden_size=6).eval()
    tokens, counts = torch.randint(20, (3, 9)), torch.tensor([9, 1, 5])
    out = branch({"text": FeatureSequence(tokens, counts)})
    for row, n in enumerate(counts.tolist()):
        one = FeatureSequence(tokens[row : row + 1, :n], counts[row, None])
        torch.testing.assert_close(out[row, None], branch({"text": one}))


def test_three_levels():
    """A third each with p = 1/2 and 1/3 of text; and text alone."""
    text = TextBranch(4, vocab_size=20)
    net = DualLevelClassifier(4, text=text, text_weight=1 / 3).eval()
    weights = net.branch_weights
    assert list(weights) == ["spectrogram", "mfcc", "text"]
    assert list(weights.values()) == pytest.approx([1 / 3] * 3)
    tokens = FeatureSequence(torch.randint(20, (2, 4)), torch.tensor([4, 2]))
    wavs = torch.randn(2, 8000)
    found, outputs = net(wavs, text=tokens, return_branches=True)
    mean = sum(outputs.values()) / 3
    torch.testing.assert_close(found, mean.log_softmax(1))
    with pytest.raises(ValueError, match="pass their tokens as text"):
        net(wavs)
    alone = DualLevelClassifier(4, text=text, text_weight=1.0).eval()
    assert alone.reads_text and not alone.streams
    expected = text({"text": tokens}).log_softmax(1)
    torch.testing.assert_close(alone(wavs, text=tokens), expected)
    assert not DualLevelClassifier(4).reads_text
    with pytest.raises(
        ValueError, match="text_weight is 0.5, but there is no text branch"
    ):
        DualLevelClassifier(4, text_weight=0.5)


@pytest.mark.parametrize("corpus", CORPORA)
def test_fixed_sentences_are_refused(corpus):
    if corpus not in FIXED_SENTENCES:
        assert corpus == "iemocap"
        assert check_transcripts(corpus, ENTRIES) == ""
        return
    with pytest.raises(ValueError, match=f"{corpus} has a few .* is a leak"):
        check_transcripts(corpus, ENTRIES)
    assert "is a leak" in check_transcripts(corpus, ENTRIES, True)
    with pytest.raises(ValueError, match="no transcripts"):
        check_transcripts(corpus, {"a": {"text": ""}}, True)
