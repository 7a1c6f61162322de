"""Keeps a key out of what a server sends back: nothing of it may reach a file, a log or a screen."""

import base64
import re
from collections.abc import Mapping
from urllib.parse import quote

from batcher.providers.keys import Secret

_SHORTEST_SECRET = 8
_SHOWN = 8
_REST = rb"[0-9A-Za-z_*.-]{0,256}"


class Blotter:
    """Replaces one key by `***`: as it is, as a URL and base64 would show it, and its start in failures.

    A key of fewer than 8 characters, such as the `none` or `EMPTY` that a local server is given, is no secret
    but a word of many answers, and stays.

    Args:
        key: None if there is none; then nothing is ever changed.
    """

    def __init__(self, key: Secret | None) -> None:
        text = key.reveal() if key is not None else ""
        shown = {text, quote(text, safe=""), base64.b64encode(text.encode()).decode()}
        self._texts = sorted(shown, key=len, reverse=True) if len(text) >= _SHORTEST_SECRET else []
        self._forms = [form.encode() for form in self._texts]
        # Providers name a key that they refuse by its first characters; those of a short one say nothing.
        long = len(text) >= 2 * _SHOWN
        self._start = re.compile(re.escape(text[:_SHOWN]).encode() + _REST) if long else None

    def __repr__(self) -> str:
        return f"Blotter({len(self._forms)} forms)"

    def answer(self, body: bytes) -> bytes:
        """Return the body of a good reply without the key."""
        for form in self._forms:
            if form in body:
                body = body.replace(form, b"***")
        return body

    def failure(self, body: bytes) -> bytes:
        """Return the body of a failed reply without the key and without its start."""
        body = self.answer(body)
        return self._start.sub(b"***", body) if self._start is not None else body

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers without the key in their values."""
        if not self._texts:
            return headers
        values = "\n".join(headers.values())
        if not any(text in values for text in self._texts):
            return headers
        return {name: self.answer(value.encode()).decode() for name, value in headers.items()}
