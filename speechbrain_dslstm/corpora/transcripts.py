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
    "normalise_text",
    "check_transcripts",
    "write_transcripts",
    "load_tokenizer",
    "to_tokens",
]

logger = get_logger(__name__)
# Corpora whose speakers all read the same few sentences
FIXED_SENTENCES = ("emodb", "ravdess", "nemo", "synthetic")
TRANSCRIPTS = "train.txt"


def normalise_text(text: str) -> str:
    """Reduce a transcript to lower-case letters, digits and single spaces.

    Two utterances with equal results are the same sentence.

    >>> normalise_text("[LAUGHTER] I don't -- know.")
    'laughter i dont know'
    """
    words = re.sub(r"['’]", "", text.lower())
    return " ".join(re.findall(r"[^\W_]+", words))


def check_transcripts(
    corpus: str,
    entries: dict[str, dict],
    allow_fixed_sentences: bool = False,
    fixed: bool = False,
) -> str:
    """Raise an error for a corpus on which the score of a text model is a leak.

    With ``allow_fixed_sentences``, meant for tests of the code, warn and return
    the caveat to print with the results. It is empty for the other corpora.
    ``corpus`` is a name or several with "+"; ``fixed`` says that a table has
    sentences of which most are said by several speakers.

    >>> entries = {"a": {"text": "Das will sie am Mittwoch abgeben."}}
    >>> check_transcripts("emodb", entries)
    Traceback (most recent call last):
        ...
    ValueError: emodb has a few fixed ... is a leak. Use ...
    """
    if not any(entry["text"] for entry in entries.values()):
        raise ValueError(
            f"{corpus} has no transcripts, which the text branch requires"
        )
    if not fixed and not set(corpus.split("+")) & set(FIXED_SENTENCES):
        return ""
    note = (
        f"{corpus} has a few fixed sentences, the same in all subsets and in "
        "some corpora tied to the emotion: a text model on them is a leak"
    )
    if not allow_fixed_sentences:
        raise ValueError(
            f"{note}. Use IEMOCAP, or a system without text; "
            "--allow_fixed_sentences=True is for tests of the code"
        )
    logger.warning(note)
    return note


def write_transcripts(entries: dict[str, dict], folder: str | Path) -> Path:
    """Write the transcripts on which the tokenizer is trained, one per line.

    ``entries`` are those of the training subset alone. Tokenizers of other
    transcripts are removed from the folder, which is made if needed.
    """
    lines = [normalise_text(entry["text"]) for entry in entries.values()]
    path = Path(folder, TRANSCRIPTS)
    text = "".join(f"{line}\n" for line in lines if line)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        # SpeechBrain loads any model it finds, even one of other transcripts
        for old in path.parent.glob("*.model"):
            old.unlink()
        replace_file(path, text)
    return path


def load_tokenizer(
    folder: str | Path, vocab_size: int, model_type: str = "unigram"
) -> SentencePiece:
    """Load SpeechBrain's tokenizer, trained on ``write_transcripts``' file if needed.

    ``model_type`` is "unigram", "bpe" or "char". SentencePiece refuses a
    ``vocab_size`` that the text cannot fill; more tokens are an error here.

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


def _train(folder: Path, vocab_size: int, options: dict[str, str]) -> None:
    """Train in a temporary folder, so that files appear complete or not at all."""
    if (folder / f"{vocab_size}_{options['model_type']}.model").exists():
        return
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        trained = SentencePiece(aside, vocab_size, **options)
        for ending in (".vocab", ".model"):
            file = Path(trained.prefix_model_file + ending)
            replace_file(folder / file.name, file.read_bytes())


def to_tokens(tokenizer: SentencePiece, text: str) -> torch.Tensor:
    """Convert a transcript to token ids, int64 [tokens].

    Case and punctuation do not matter. An empty transcript gives the unknown
    token.
    """
    ids = tokenizer.sp.encode_as_ids(normalise_text(text))
    return torch.tensor(ids or [tokenizer.sp.unk_id()])
