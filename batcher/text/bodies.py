"""Request bodies as text: changed in one place, left as written everywhere else."""

import msgspec
import orjson

DEFAULT_OUTPUT_TOKENS = 1024
"""Reserved for an answer whose request sets no maximum."""

BYTES_PER_TOKEN = 3.2
"""Measured over English and code; a little low on purpose, so that an estimate errs towards more."""

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


class _OutputLimits(msgspec.Struct):
    max_completion_tokens: int | None = None
    max_tokens: int | None = None
    max_output_tokens: int | None = None
    n: int | None = None


_output_limits = msgspec.json.Decoder(_OutputLimits)


def with_model(body: bytes, model: str) -> bytes:
    """Return the JSON object `body` asking `model`, every other member as it was written."""
    members = {name: bytes(value) for name, value in _members.decode(body).items()}
    members["model"] = orjson.dumps(model)
    return b"{" + b",".join(orjson.dumps(name) + b":" + value for name, value in members.items()) + b"}"


def estimate_tokens(body: bytes, *, answers: bool) -> int:
    """Return the tokens that a request may use: its size over 3.2, plus the most it may answer.

    Args:
        body: the JSON object to be sent.
        answers: whether the endpoint writes text; embeddings do not.
    """
    prompt = int(len(body) / BYTES_PER_TOKEN * 1.1) + 1
    if not answers:
        return prompt
    try:
        limits = _output_limits.decode(body)
    except msgspec.ValidationError:
        limits = _OutputLimits()  # odd types are the provider's to refuse
    most = limits.max_completion_tokens or limits.max_tokens or limits.max_output_tokens
    return prompt + (most or DEFAULT_OUTPUT_TOKENS) * max(1, limits.n or 1)
