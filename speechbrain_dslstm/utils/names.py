"""Names that people give to classes, speakers and files."""

import unicodedata

__all__ = ["fits_on_line"]

TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def fits_on_line(name: str) -> bool:
    """Whether a name has no line break, control character or lone surrogate.

    Characters that turn the direction of the text around are refused as well,
    as they can make a name look like another one. Joined emoji are names.

    >>> fits_on_line("joie \\U0001f469\\u200d"), fits_on_line("a\\nb")
    (True, False)
    """
    return not any(
        unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(one) in TURNING
        for one in name
    )
