"""Request bodies as text: changed in one place, left as written everywhere else."""

import msgspec
import orjson

from batcher.text.tokens import BYTES_PER_TOKEN, DEFAULT_OUTPUT_TOKENS, most_output

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


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
    most, choices = most_output(body)
    return prompt + (most or DEFAULT_OUTPUT_TOKENS) * choices
