"""The bodies of good answers, in Groq's shapes and plainly marked as simulated."""

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from batcher.providers.simulator.calls import Asked
from batcher.providers.simulator.schemas import example_answer
from batcher.types import ModelInfo

_QUOTED_CHARACTERS = 200
_CHARACTERS_A_TOKEN = 4
_DEFAULT_DIMENSIONS = 8
_MAX_DIMENSIONS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What an answer needs beside the request.

    Attributes:
        id: hex digits, unique for each call.
        created: Unix time in seconds.
        output_tokens: as long as the answer would be if nobody bounded it.
        latency_s: what the usage says about time.
    """

    id: str
    created: int
    output_tokens: int
    latency_s: float


def answer(asked: Asked, draft: Draft, *, stream: bool) -> tuple[bytes, int]:
    """Return the body of the answer, as events if it is to `stream`, and the tokens used, prompt and all."""
    if asked.endpoint == "/v1/embeddings":
        return _embeddings(asked), asked.prompt_tokens
    count = asked.fields.get("n")
    choices = count if isinstance(count, int) and 1 <= count <= 128 else 1
    cut = asked.max_tokens is not None and asked.max_tokens < draft.output_tokens
    tokens = min(draft.output_tokens, asked.max_tokens or draft.output_tokens)
    text = answer_text(asked)
    if cut:
        text = text[: tokens * _CHARACTERS_A_TOKEN]
    if asked.endpoint == "/v1/responses":
        return _response(asked, draft, text, tokens, cut=cut), asked.prompt_tokens + tokens
    body = _chat(asked, draft, text, tokens, choices, cut=cut)
    if stream:
        return _events(body), asked.prompt_tokens + tokens * choices
    return orjson.dumps(body), asked.prompt_tokens + tokens * choices


def answer_text(asked: Asked) -> str:
    """Return the answer's text: it quotes the request, so that a test can tell whose it is."""
    quoted = asked.text[:_QUOTED_CHARACTERS]
    wanted = asked.fields.get("response_format") or _responses_format(asked.fields)
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "json_object":
        return orjson.dumps({"simulated": True, "answer": quoted}).decode()
    if kind == "json_schema":
        # Chat nests the schema once more than responses do.
        holder = wanted.get("json_schema", wanted)
        schema = holder.get("schema") if isinstance(holder, dict) else None
        return orjson.dumps(example_answer(schema, quoted)).decode()
    return f"[simulated] Answer to: {quoted}"


def _responses_format(fields: dict[str, Any]) -> Any:
    text = fields.get("text")
    return text.get("format") if isinstance(text, dict) else None


def _chat(asked: Asked, draft: Draft, text: str, tokens: int, choices: int, *, cut: bool) -> dict[str, Any]:
    prompt_s = draft.latency_s / 10
    return {
        "id": f"chatcmpl-{draft.id}",
        "object": "chat.completion",
        "created": draft.created,
        "model": asked.model,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": None,
                "finish_reason": "length" if cut else "stop",
            }
            for index in range(choices)
        ],
        "usage": {
            "queue_time": 0.0,
            "prompt_tokens": asked.prompt_tokens,
            "prompt_time": prompt_s,
            "completion_tokens": tokens * choices,
            "completion_time": draft.latency_s - prompt_s,
            "total_tokens": asked.prompt_tokens + tokens * choices,
            "total_time": draft.latency_s,
        },
        "usage_breakdown": None,
        "system_fingerprint": "fp_simulated",
        "x_groq": {"id": f"req_{draft.id}"},
        "service_tier": "on_demand",
    }


def _events(body: dict[str, Any]) -> bytes:
    """Tell a chat completion as server-sent events: a word each, the usage in the last."""
    shared = {name: body[name] for name in ("id", "created", "model", "system_fingerprint")}
    shared["object"] = "chat.completion.chunk"
    chunks: list[dict[str, Any]] = []
    for choice in body["choices"]:
        index, words = choice["index"], choice["message"]["content"].split(" ")
        deltas = [{"role": "assistant", "content": ""}]
        deltas += [{"content": word if at == 0 else f" {word}"} for at, word in enumerate(words)]
        chunks += [_chunk(shared, index, delta, None) for delta in deltas]
        chunks.append(_chunk(shared, index, {}, choice["finish_reason"]))
    chunks[-1] |= {"x_groq": {"id": body["x_groq"]["id"], "usage": body["usage"]}, "usage": body["usage"]}
    return b"".join(b"data: %b\n\n" % orjson.dumps(chunk) for chunk in chunks) + b"data: [DONE]\n\n"


def _chunk(shared: dict[str, Any], index: int, delta: dict[str, str], finish: str | None) -> dict[str, Any]:
    return shared | {"choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]}


def _response(asked: Asked, draft: Draft, text: str, tokens: int, *, cut: bool) -> bytes:
    status = "incomplete" if cut else "completed"
    content: dict[str, Any] = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    return orjson.dumps(
        {
            "id": f"resp_{draft.id}",
            "object": "response",
            "created_at": draft.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": asked.model,
            "output": [
                {
                    "type": "message",
                    "id": f"msg_{draft.id}",
                    "status": status,
                    "role": "assistant",
                    "content": [content],
                }
            ],
            "usage": {
                "input_tokens": asked.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": asked.prompt_tokens + tokens,
            },
        }
    )


def _embeddings(asked: Asked) -> bytes:
    given = asked.fields["input"]
    # A list of numbers is one text in tokens; any other list is one text an item.
    texts = given if isinstance(given, list) and not isinstance(given[0], int) else [given]
    wanted = asked.fields.get("dimensions")
    dimensions = wanted if isinstance(wanted, int) and 1 <= wanted <= _MAX_DIMENSIONS else _DEFAULT_DIMENSIONS
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(str(text), dimensions)}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens}
    return orjson.dumps({"object": "list", "data": data, "model": asked.model, "usage": usage})


def _vector(text: str, dimensions: int) -> list[float]:
    """Return a vector of length 1 that depends on the text alone."""
    raw = hashlib.shake_128(text.encode("utf-8", "replace")).digest(2 * dimensions)
    values = [int.from_bytes(raw[at : at + 2]) / 32767.5 - 1 for at in range(0, len(raw), 2)]
    norm = sum(value * value for value in values) ** 0.5 or 1.0
    return [round(value / norm, 6) for value in values]


def model_body(model: ModelInfo) -> dict[str, Any]:
    """Describe a model as `/v1/models` lists it."""
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": model.owner,
        "active": model.active,
        "context_window": model.context_tokens,
        "public_apps": None,
        "max_completion_tokens": model.max_output_tokens,
    }


def models_body(models: tuple[ModelInfo, ...]) -> bytes:
    """Write the list of models."""
    return orjson.dumps({"object": "list", "data": [model_body(model) for model in models]})
