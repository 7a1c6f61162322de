"""Request bodies as text: changed in one place, left as written everywhere else."""

import msgspec
import orjson

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_model(body: bytes, model: str) -> bytes:
    """Return the JSON object `body` asking `model`, every other member as it was written."""
    members = {name: bytes(value) for name, value in _members.decode(body).items()}
    members["model"] = orjson.dumps(model)
    return b"{" + b",".join(orjson.dumps(name) + b":" + value for name, value in members.items()) + b"}"
