"""Write and read the card of a model folder: what it is, and what it came from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from speechbrain.utils.logger import get_logger

from speechbrain_dslstm.utils.files import replace_file

__all__ = [
    "describe_licence",
    "describe_origin",
    "log_licence",
    "read_card",
    "write_adapted_card",
    "write_card",
]

logger = get_logger(__name__)
CARD = "README.md"
LONGEST_QUOTE = 600  # characters of another model's card
LARGEST_CARD = 1 << 20  # bytes

LICENCE = (
    "**Licence.** The conditions of the training data hold for the model, too: "
    "read them before you share it."
)


def write_card(folder: str | Path, results: Mapping[str, Any]) -> None:
    """Write the card of a trained model.

    Arguments
    ---------
    folder
        The model folder; it receives README.md.
    results
        The content of the run's results.json.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> results = {"system": "dual_level", "corpus": "emodb", "note": ""}
    >>> results |= {"labels": ["anger", "fear"], "ua": 0.7, "wa": 0.68}
    >>> results |= {"description": "speaker, fold 0 of 10", "init_from": None}
    >>> write_card(folder, results)
    >>> (folder / "README.md").read_text("utf-8").splitlines()[0]
    '# dual_level on emodb'
    """
    note = f" ({results['note']})" if results["note"] else ""
    parts = [
        f"# {results['system']} on {results['corpus']}",
        f"The system `{results['system']}`, trained on the corpus "
        f"{results['corpus']}. Classes: {', '.join(results['labels'])}.",
        f"**Test.** UA {results['ua']:.1%}, WA {results['wa']:.1%}{note}. "
        f"Split: {results['description']}.",
    ]
    if results["init_from"]:
        kept = ", ".join(results["init_from"]["kept"]) or "none"
        parts.append(
            "**Start.** The training started from another model, of which "
            f"these classes were kept: {kept}."
        )
        parts.append(describe_origin(results["init_from"]))
    replace_file(Path(folder) / CARD, "\n\n".join([*parts, LICENCE]) + "\n")


def write_adapted_card(
    folder: str | Path,
    facts: Mapping[str, Any],
    amounts: str,
    labels: list[str],
) -> None:
    """Write the card of a model adapted without labels, from ``Origin.facts``."""
    parts = [
        f"# {Path(facts['source']).name}, adapted",
        "A model whose feature statistics were adapted to recordings without "
        f"labels: {amounts}. The weights and the temperature are those of "
        f"the original model. Classes: {', '.join(labels)}.",
        describe_origin(facts),
    ]
    replace_file(Path(folder) / CARD, "\n\n".join([*parts, LICENCE]) + "\n")


def describe_origin(facts: Mapping[str, Any]) -> str:
    """Paragraphs of a card on another model, given by ``Origin.facts``."""
    lines = [
        f"That model is `{facts['source']}`, its weights have the SHA-256 "
        f"`{facts['sha256']}`, its classes are {', '.join(facts['labels'])}."
    ]
    if facts["licence"]:
        lines.append(f"Its licence: {facts['licence']}.")
    if facts["card"]:
        lines.append(f"Its card begins:\n\n> {facts['card']}")
    else:
        lines.append("It has no card that says on which data it was trained.")
    return "\n\n".join(lines)


def read_card(folder: Path) -> dict[str, str | None]:
    """First paragraph of a model card, and the licence in its header."""
    path = folder / CARD
    if not path.is_file() or path.stat().st_size > LARGEST_CARD:
        return {}
    text = path.read_text("utf-8", errors="replace").replace("\r\n", "\n")
    licence = None
    if text.startswith("---\n"):
        header, _, text = text[4:].partition("\n---\n")
        for line in header.splitlines():
            key, colon, value = line.partition(":")
            if colon and key.strip() in ("license", "licence"):
                licence = _one_line(value).strip("'\"") or None
    blocks = [block.strip() for block in text.split("\n\n")]
    prose = [b for b in blocks if b and b[0] not in "#`|<!-*>["]
    return {"card": _one_line(prose[0]) if prose else None, "licence": licence}


def _one_line(text: str) -> str:
    """Printable text on one line, of limited length."""
    words = " ".join(text.split())
    words = "".join(c for c in words if c.isprintable())
    if len(words) > LONGEST_QUOTE:
        words = f"{words[:LONGEST_QUOTE]} (shortened)"
    return words


def describe_licence(folder: Path) -> str | None:
    """Name a model and the licence in its card's header; None without one.

    >>> from speechbrain_dslstm.pretrained import find_folder
    >>> describe_licence(find_folder("pretrained/emotion-dslstm-whisper"))
    'emotion-dslstm-whisper: licence cc-by-nc-sa-4.0'
    """
    licence = read_card(folder).get("licence")
    return f"{folder.name}: licence {licence}" if licence else None


def log_licence(folder: Path) -> None:
    """Log the line of ``describe_licence``, if there is one."""
    line = describe_licence(folder)
    if line:
        logger.info(line)
