"""Foreign text on its way to a terminal or a log."""

import unicodedata

_STEERING = ("Cc", "Cf", "Cs", "Co")


def printable(text: str) -> str:
    """Return `text` with control, format and other steering characters replaced by a mark.

    Newlines and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _STEERING else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def on_one_line(text: str) -> str:
    """Return printable `text` with newlines spelled out, so that no part of it passes for another message."""
    return printable(text).replace("\n", "\\n")
