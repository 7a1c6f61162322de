"""Think blocks: what a reasoning model writes before its answer."""

import re

_BLOCK = re.compile(r"\A\s*<think(?:ing)?>(.*?)</think(?:ing)?>\s*", re.DOTALL)


def split_reasoning(text: str) -> tuple[str, str]:
    """Return (reasoning, answer); without a leading closed think block all of it is answer."""
    block = _BLOCK.match(text)
    if block is None:
        return "", text
    return block.group(1).strip(), text[block.end() :]
