"""Transcripts of a corpus: normalisation, the SentencePiece tokenizer and its tokens."""

import re
import tempfile
from pathlib import Path

import torch
from speechbrain.tokenizers.SentencePiece import SentencePiece
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.utils.files import replace_file

__all__ = [
    "check_transcripts",
    "write_transcripts",
    "load_tokenizer",
    "to_tokens",
    "normalise_text",
]


def normalise_text(text):
    """Reduce words to what makes two of them the same sentence.

    Arguments
    ---------
    text : str
        A transcribed turn.

    Returns
    -------
    str
        Lower-case letters and digits, single spaces.

    Example
    -------
    >>> normalise_text("[LAUGHTER] I don't -- know.")
    'laughter i dont know'
    """
    words = re.sub(r"['’]", "", text.lower())
    return " ".join(re.findall(r"[^\W_]+", words))


logger = get_logger(__name__)
FIXED_SENTENCES = ("emodb", "ravdess", "nemo", "synthetic")
TRANSCRIPTS = "train.txt"


def check_transcripts(corpus, entries, allow_fixed_sentences=False):
    """Refuse a text model where its score would be a leak.

    Arguments
    ---------
    corpus : str
        Name of the corpus.
    entries : dict
        Utterance id -> manifest entry.
    allow_fixed_sentences : bool
        Warn instead, for tests of the code.

    Returns
    -------
    str
        What must be said of the results; empty where nothing must.

    Raises
    ------
    ValueError
        A corpus of fixed sentences, or one without transcripts.

    Example
    -------
    >>> entries = {"a": {"text": "Das will sie am Mittwoch abgeben."}}
    >>> check_transcripts("emodb", entries)
    Traceback (most recent call last):
        ...
    ValueError: emodb has a few fixed ... is a leak. Take ...
    """
    if not any(entry["text"] for entry in entries.values()):
        raise ValueError(f"{corpus} has no transcripts to read")
    if corpus not in FIXED_SENTENCES:
        return ""
    note = (
        f"{corpus} has a few fixed sentences, the same on both sides and in "
        "some corpora tied to the emotion: a text model on them is a leak"
    )
    if not allow_fixed_sentences:
        raise ValueError(
            f"{note}. Take IEMOCAP, or a system without text; "
            "--allow_fixed_sentences=True is there for tests of the code"
        )
    logger.warning(note)
    return note


def write_transcripts(entries, folder):
    """Write what the tokenizer is trained on.

    Arguments
    ---------
    entries : dict
        Utterance id -> manifest entry, of the training side alone.
    folder : str or pathlib.Path
        Made if needed.

    Returns
    -------
    pathlib.Path
        The file, a transcript a line.

    Example
    -------
    >>> entries = {"a": {"text": "No!"}, "b": {"text": ""}}
    >>> write_transcripts(entries, getfixture("tmp_path")).read_text()
    'no\\n'
    """
    lines = [normalise_text(entry["text"]) for entry in entries.values()]
    path = Path(folder, TRANSCRIPTS)
    text = "".join(f"{line}\n" for line in lines if line)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        # Those of other transcripts; SpeechBrain takes what lies there
        for old in path.parent.glob("*.model"):
            old.unlink()
        replace_file(path, text)
    return path


def load_tokenizer(folder, vocab_size, model_type="unigram"):
    """Train the tokenizer on ``write_transcripts``' file, or load it.

    Arguments
    ---------
    folder : str or pathlib.Path
        Holds that file; gets the model.
    vocab_size : int
        Tokens wanted; SentencePiece refuses more than the text can give.
    model_type : str
        "unigram", "bpe" or "char".

    Returns
    -------
    SentencePiece
        SpeechBrain's tokenizer.

    Raises
    ------
    ValueError
        More tokens than ``vocab_size``.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = write_transcripts({"a": {"text": "abba"}}, folder)
    >>> tokenizer = load_tokenizer(folder, 10, "char")
    >>> tokens = to_tokens(tokenizer, "Ab? Ba!")
    >>> len(tokens), tokenizer.sp.decode(tokens.tolist())
    (6, 'ab ba')
    """
    options = {
        "model_type": model_type,
        "text_file": str(Path(folder, TRANSCRIPTS)),
    }
    run_on_main(_train, (Path(folder), vocab_size, options))
    tokenizer = SentencePiece(str(folder), vocab_size, **options)
    size = tokenizer.sp.vocab_size()
    if size > vocab_size:
        raise ValueError(
            f"the transcripts have {size} tokens of type {model_type}, but "
            f"the embedding only {vocab_size}: raise the vocabulary size"
        )
    return tokenizer


def _train(folder, vocab_size, options):
    """Train a tokenizer aside, so that a kill leaves no part of one."""
    if (folder / f"{vocab_size}_{options['model_type']}.model").exists():
        return
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        trained = SentencePiece(aside, vocab_size, **options)
        for ending in (".vocab", ".model"):
            file = Path(trained.prefix_model_file + ending)
            replace_file(folder / file.name, file.read_bytes())


def to_tokens(tokenizer, text):
    """Token ids of a transcript.

    Arguments
    ---------
    tokenizer : SentencePiece
        From ``load_tokenizer``.
    text : str
        As people write it; case and punctuation do not count.

    Returns
    -------
    torch.Tensor, int64, [tokens]
        At least one: the unknown token stands for silence.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> _ = write_transcripts({"a": {"text": "no"}}, folder)
    >>> to_tokens(load_tokenizer(folder, 10, "char"), "").tolist()
    [0]
    """
    ids = tokenizer.sp.encode_as_ids(normalise_text(text))
    return torch.tensor(ids or [tokenizer.sp.unk_id()])
