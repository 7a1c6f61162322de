"""Request bodies as text: changed in one place, left as written everywhere else."""

import msgspec
import orjson

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])


def with_member(body: bytes, name: str, value: str, *, replace: bool = True) -> bytes:
    """Return the JSON object `body` with a string member set, every other member as it was written.

    Args:
        body: a JSON object.
        name: of the member.
        value: its text.
        replace: set it also where the body has it already.
    """
    members = {key: bytes(raw) for key, raw in _members.decode(body).items()}
    if name in members and not replace:
        return body
    members[name] = orjson.dumps(value)
    return b"{" + b",".join(orjson.dumps(key) + b":" + raw for key, raw in members.items()) + b"}"
