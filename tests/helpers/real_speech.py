"""Where real emotional speech is: EMO-DB in the repository, others if named."""

from pathlib import Path

__all__ = ["EMODB", "clips_in"]

EMODB = Path(__file__).resolve().parents[2] / "data" / "emodb"


def clips_in(folder: Path) -> list[Path]:
    """List the clips of a corpus, sorted by name."""
    return sorted([*folder.glob("*.flac"), *folder.glob("*.ogg")])
