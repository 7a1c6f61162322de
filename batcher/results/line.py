"""One result as one line: what is written, and how a reader knows that it is whole."""

import contextlib
import os
import random
import zlib

import orjson

from batcher.types import Failure, Reply, Result

_CRC_KEY = b',"crc32":'
_CRC_TAIL_MAX = len(_CRC_KEY) + 10 + len(b"}}\r\n")
_MESSAGE_MAX_BYTES = 2048
_random = random.Random()  # seeded by the system, whatever others do to the shared one
os.register_at_fork(after_in_child=_random.seed)


def encode_result(result: Result) -> bytes:
    """Return the line of `result`, newline included: an OpenAI Batch output line plus a `batcher` object.

    The last key is `crc32`: zlib's sum of the line as it would be without that key and without the newline.
    """
    job, answer = result.job, result.answer
    about: dict[str, object] = {
        "model": result.model,
        "provider": result.provider,
        "attempts": result.attempts,
        "latency_s": round(result.latency_s, 4),
        "queued_s": round(result.queued_s, 4),
        "cached": result.cached,
        "usage": None,
        "cost_usd": result.cost_usd,
        "request_sha256": job.request_sha256,
        "finished_at": result.finished_at,
    }
    error: dict[str, str] | None = None
    body: object
    if isinstance(answer, Reply):
        body = _on_one_line(answer.body)
        if (usage := answer.usage) is not None:
            about["usage"] = {
                "input_tokens": usage.input_tokens,
                "output_tokens": usage.output_tokens,
                "cached_tokens": usage.cached_tokens,
                "reasoning_tokens": usage.reasoning_tokens,
            }
        about["finish_reason"] = answer.finish_reason
    else:
        body = _failed_body(answer)
        error = {"code": answer.code, "message": answer.message}
    if job.metadata is not None:
        about["metadata"] = _on_one_line(job.metadata)
    response = {"status_code": answer.status, "request_id": answer.request_id, "body": body}
    line = orjson.dumps(
        {
            "id": f"batch_req_{_random.getrandbits(96):024x}",
            "custom_id": job.id,
            "response": response if answer.status else None,
            "error": error,
            "batcher": about,
        }
    )
    return b'%b,"crc32":%d}}\n' % (line[:-2], zlib.crc32(line))


def check_crc(line: bytes) -> bool:
    """Whether `line` is what `encode_result` made, byte for byte but for its end.

    The newline may be missing, or be the CRLF that an editor made of it.
    """
    cut = line.rfind(_CRC_KEY, -_CRC_TAIL_MAX)
    if cut < 0:
        return False
    crc = zlib.crc32(b"}}", zlib.crc32(memoryview(line)[:cut]))
    return line[cut:].rstrip(b"\r\n") == b"%b%d}}" % (_CRC_KEY, crc)


def _on_one_line(body: bytes) -> orjson.Fragment:
    return orjson.Fragment(body.replace(b"\n", b" ").replace(b"\r", b" "))


def _failed_body(failure: Failure) -> object:
    # Two lists around the body catch what is valid alone but too deep inside a line.
    with contextlib.suppress(orjson.JSONDecodeError):
        nested = orjson.loads(b"[[%b]]" % failure.body)
        if len(nested) == 1 == len(nested[0]):
            return _on_one_line(failure.body)
    return {"error": {"message": failure.body[:_MESSAGE_MAX_BYTES].decode(errors="replace")}}
