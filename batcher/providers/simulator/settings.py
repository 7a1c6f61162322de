"""What a simulator can be told to be."""

from dataclasses import dataclass, field
from typing import Literal

from batcher.errors import UsageError
from batcher.providers.simulator.fault_plan import FaultPlan
from batcher.types import ModelInfo

LimiterKind = Literal["token-bucket", "fixed-window", "sliding-window"]
LatencyShape = Literal["fixed", "uniform", "exponential", "lognormal"]

DEFAULT_MODELS: tuple[ModelInfo, ...] = (
    ModelInfo(id="openai/gpt-oss-20b", owner="OpenAI", context_tokens=131_072, max_output_tokens=65_536),
    ModelInfo(id="openai/gpt-oss-120b", owner="OpenAI", context_tokens=131_072, max_output_tokens=65_536),
    ModelInfo(id="simulated/embedding", owner="batcher", context_tokens=8_192),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """How a simulator behaves.

    Attributes:
        latency_s: mean time from request to answer in seconds, >= 0.
        latency_shape: how latencies spread around the mean.
        seed: equal seeds give each request the same latency, length and faults, in whatever order.
        rpm: requests per minute for each key and model; None is no limit. So are `tpm` (tokens per minute),
            `itpm` and `otpm` (input and output tokens apart), `rpd` and `tpd` (per day).
        limiter: how the limits are kept.
        output_tokens: shortest and longest answer in tokens.
        faults: where faults strike.
        models: what `/v1/models` lists, with context sizes.
        any_model: answer for models that are not listed, too.
        keys: the keys that are let in; empty lets in every key and none.
        fast: one canned answer for each endpoint, without limits, faults or counts by id.
        log_size: how many admissions `/admin/log` remembers.

    Raises:
        UsageError: a number out of range.
    """

    latency_s: float = 0.0
    latency_shape: LatencyShape = "lognormal"
    seed: int = 0
    rpm: int | None = None
    tpm: int | None = None
    itpm: int | None = None
    otpm: int | None = None
    rpd: int | None = None
    tpd: int | None = None
    limiter: LimiterKind = "token-bucket"
    output_tokens: tuple[int, int] = (8, 32)
    faults: FaultPlan = field(default_factory=FaultPlan)
    models: tuple[ModelInfo, ...] = DEFAULT_MODELS
    any_model: bool = True
    keys: frozenset[str] = frozenset()
    fast: bool = False
    log_size: int = 100_000

    def __post_init__(self) -> None:
        if not 0 <= self.latency_s <= 86_400:
            raise UsageError(f"latency must lie between 0 and 86400 seconds: {self.latency_s}")
        for name in ("rpm", "tpm", "itpm", "otpm", "rpd", "tpd"):
            limit: int | None = getattr(self, name)
            if limit is not None and limit < 1:
                raise UsageError(f"{name} must be 1 or more: {limit}")
        shortest, longest = self.output_tokens
        if not 1 <= shortest <= longest:
            raise UsageError(f"output tokens must be MIN..MAX with 1 <= MIN <= MAX: {shortest}..{longest}")
