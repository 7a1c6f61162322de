"""Bodies that are no good answers: errors, web pages, and answers spoiled in one point."""

import gzip
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import orjson

Reshape = Callable[[bytes], bytes]
"""What becomes of the body of a good answer."""

_BOMB_BLOCK = 8 * 1024 * 1024
_BOMB_BLOCKS = 32


def unchanged(body: bytes) -> bytes:
    """Keep the good answer's body."""
    return body


def error_body(message: str, *, kind: str, code: str | None = None, **extra: str) -> bytes:
    """Write an error as Groq does: one object with message, type and, where there is one, a code."""
    error: dict[str, str] = {"message": message, "type": kind}
    if code is not None:
        error["code"] = code
    return orjson.dumps({"error": error | extra})


def instead(body: bytes) -> Reshape:
    """Send `body`, whatever the answer was."""
    return lambda _: body


def with_fields(**fields: Any) -> Reshape:
    """Set fields of the answer."""
    return lambda body: orjson.dumps(orjson.loads(body) | fields)


def with_choice(**fields: Any) -> Reshape:
    """Set fields of every choice."""

    def reshape(body: bytes) -> bytes:
        answer = orjson.loads(body)
        answer["choices"] = [choice | fields for choice in answer.get("choices", [{}])]
        return orjson.dumps(answer)

    return reshape


def half(body: bytes) -> bytes:
    """Cut the body in the middle."""
    return body[: max(1, len(body) // 2)]


def without_usage(body: bytes) -> bytes:
    """Leave the usage out."""
    return orjson.dumps({name: value for name, value in orjson.loads(body).items() if name != "usage"})


def with_usage(value: Any) -> Reshape:
    """Say `value` wherever the usage has a number."""
    return with_fields(usage={"prompt_tokens": value, "completion_tokens": value, "total_tokens": value})


def gzip_cut(body: bytes) -> bytes:
    """Compress, and lose the last quarter."""
    packed = gzip.compress(body, mtime=0)
    return packed[: len(packed) * 3 // 4]


def gzip_bad(body: bytes) -> bytes:
    """Compress, and overwrite the second half."""
    packed = bytearray(gzip.compress(body, mtime=0))
    packed[len(packed) // 2 :] = b"\xff" * (len(packed) - len(packed) // 2)
    return bytes(packed)


@lru_cache(maxsize=1)
def gzip_bomb() -> bytes:
    """Return one valid gzip member that holds 256 MB of spaces in about 270 KB."""
    # A block that ends in a full flush refers to nothing before it, so one block serves for all.
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    spaces = b" " * _BOMB_BLOCK
    block = deflate.compress(spaces) + deflate.flush(zlib.Z_FULL_FLUSH)
    checksum = 0
    for _ in range(_BOMB_BLOCKS):
        checksum = zlib.crc32(spaces, checksum)
    trailer = checksum.to_bytes(4, "little") + (_BOMB_BLOCK * _BOMB_BLOCKS).to_bytes(4, "little")
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + block * _BOMB_BLOCKS + deflate.flush() + trailer


def web_page(title: str) -> bytes:
    """Write a page as a firewall in front of an API shows it."""
    page = f"<!DOCTYPE html>\n<html><head><title>{title} | Cloudflare</title></head>"
    return f"{page}<body><h1>{title}</h1><p>Ray ID: 0123456789abcdef (simulated)</p></body></html>\n".encode()
