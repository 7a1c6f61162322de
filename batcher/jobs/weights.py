"""The model of a line that names none, where several share such lines."""

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from batcher.errors import BadLine
from batcher.jobs.malformed import TOO_DEEP
from batcher.types import Endpoint

_HASH_BYTES = 8


def choose_model(weights: Mapping[str, float], job_id: str, endpoint: Endpoint, body: dict[str, Any]) -> str:
    """Choose a model in proportion to the weights: always the same one for the same line.

    Args:
        weights: each model's share (> 0); at least one, in any order.
        job_id: "" if the line names none.
        endpoint: where the request goes.
        body: the request as the line gives it, without a model.

    Raises:
        BadLine: the request is nested too deep.
    """
    try:
        canonical = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        raise BadLine(TOO_DEEP) from None
    digest = hashlib.sha256(f"{job_id}\n{endpoint}".encode() + canonical).digest()
    drawn = int.from_bytes(digest[:_HASH_BYTES]) / (1 << 8 * _HASH_BYTES)
    models = sorted(weights)
    left = drawn * sum(weights[model] for model in models)
    for model in models:
        left -= weights[model]
        if left < 0:
            return model
    return models[-1]
