"""Tokens that a request will use, estimated before it is sent and learned from the answers."""

import math
from bisect import bisect_left, insort
from collections import deque

import msgspec

from batcher.types import Usage

DEFAULT_OUTPUT_TOKENS = 1024
"""Reserved for an answer whose request sets no maximum."""

BYTES_PER_TOKEN = 3.2
"""Measured over English and code; a little low on purpose, so that an estimate errs towards more."""

START_FACTOR = 1.1
LEAST_FACTOR, MOST_FACTOR = 0.5, 2.0
LEAST_WEIGHT = 0.05
ANSWERS_NEEDED = 30
ANSWERS_KEPT = 300
QUANTILE = 0.95


class _OutputLimits(msgspec.Struct):
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None


_output_limits = msgspec.json.Decoder(_OutputLimits)


def most_output(body: bytes) -> tuple[int | None, int]:
    """Read the maximum of tokens that an answer to the JSON object `body` may have, and how many it asks for.

    The maximum is None where the request sets none.
    """
    try:
        limits = _output_limits.decode(body)
    except msgspec.ValidationError:
        return None, 1  # odd types are the provider's to refuse
    choices = 1 if limits.n is None else max(1, limits.n)
    for most in (limits.max_completion_tokens, limits.max_tokens, limits.max_output_tokens):
        # Some servers take -1 for "no maximum"; a reservation below zero would create tokens.
        if most is not None and most > 0:
            return most, choices
    return None, choices


class TokenEstimator:
    """Learns from one model's answers how many tokens its requests use.

    Input is the request's size over 3.2 bytes a token, times a factor that starts at 1.1 and follows the
    provider's own counts. Output is what 95 of 100 answers stay below, once 30 have come; until then, and
    never above it, the maximum that the request sets.

    Args:
        mirrors_admission: the provider admits a request only if its whole maximum is free (Groq), so a
            smaller reservation would run into a refusal.
    """

    def __init__(self, *, mirrors_admission: bool = False) -> None:
        self._mirrors_admission = mirrors_admission
        self._factor = START_FACTOR
        self._answers = 0
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def __repr__(self) -> str:
        return f"<TokenEstimator x{self._factor:.2f} p95={self._usual_output()} of {self._answers}>"

    @property
    def is_practised(self) -> bool:
        """Whether it has seen as many answers as it remembers."""
        return self._answers >= ANSWERS_KEPT

    def estimate(self, body: bytes, *, answers: bool) -> tuple[int, int]:
        """Return the input and output tokens to reserve for a request.

        Args:
            body: the JSON object to be sent.
            answers: whether the endpoint writes text; embeddings do not.
        """
        prompt = int(len(body) / BYTES_PER_TOKEN * self._factor) + 1
        if not answers:
            return prompt, 0
        most, choices = most_output(body)
        usual = self._usual_output()
        if most is None:
            return prompt, DEFAULT_OUTPUT_TOKENS * choices if usual is None else usual
        if usual is None or self._mirrors_admission:
            return prompt, most * choices
        return prompt, min(usual, most * choices)

    def learn(self, sent_bytes: int, usage: Usage) -> None:
        """Take note of what an answer to a body of `sent_bytes` cost."""
        self._answers += 1
        if sent_bytes > 0 and usage.input_tokens > 0:
            ratio = usage.input_tokens * BYTES_PER_TOKEN / sent_bytes
            ratio = min(MOST_FACTOR, max(LEAST_FACTOR, ratio))
            self._factor += max(LEAST_WEIGHT, 1 / (self._answers + 1)) * (ratio - self._factor)
        if len(self._recent) == ANSWERS_KEPT:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        self._recent.append(usage.output_tokens)
        insort(self._sorted, usage.output_tokens)

    def _usual_output(self) -> int | None:
        if len(self._sorted) < ANSWERS_NEEDED:
            return None
        return self._sorted[math.ceil(QUANTILE * len(self._sorted)) - 1]
