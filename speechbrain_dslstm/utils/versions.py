"""Check that installed packages belong together."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["check_pair"]


def check_pair() -> None:
    """Refuse a torchaudio that was built for another torch.

    Its own import would end with an undefined symbol. torchaudio 2.11 does not
    say which torch it needs, so pip may put it beside another one.

    Raises
    ------
    ImportError
        The two have different minor versions.
    """
    try:
        minors = {
            name: ".".join(version(name).split(".")[:2])
            for name in ("torch", "torchaudio")
        }
    except PackageNotFoundError:
        # Built by hand, perhaps; an import says what is missing
        return
    torch, torchaudio = minors.values()
    if torch != torchaudio:
        raise ImportError(
            f"torchaudio {torchaudio} does not work with torch {torch}: "
            f"pip install torchaudio=={torch}.*"
        )
