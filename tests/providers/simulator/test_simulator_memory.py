"""The provider without sockets: the same faults, as the errors that a transport raises."""

import asyncio
import math
from typing import get_args

import pytest

from batcher.clock import monotonic
from batcher.errors import (
    AttemptTimeout,
    BadGeneration,
    BadReply,
    CallError,
    CapacityExceeded,
    ConnectFailed,
    ConnectionLost,
    HostBlocked,
    InvalidRequest,
    KeyRefused,
    ModelUnavailable,
    RateLimited,
    ServerError,
    TooLarge,
)
from batcher.providers.base import Provider
from batcher.providers.openai_compatible import OpenAICompatible
from batcher.providers.simulator.fault_plan import FaultPlan
from batcher.providers.simulator.faults import FAULTS, MIXED
from batcher.providers.simulator.memory import MemoryProvider
from batcher.providers.simulator.model import Simulation
from batcher.providers.simulator.server import start_embedded
from batcher.providers.simulator.settings import LimiterKind, SimulatorSettings
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings
from batcher.types import Reply, Request

MINUTE_S = 60.0


def _request(text: str = "Hello") -> Request:
    body = b'{"model":"m","messages":[{"role":"user","content":"%b"}],"max_completion_tokens":40}'
    return Request(endpoint="/v1/chat/completions", model="m", body=body % text.encode())


def _provider(settings: SimulatorSettings) -> MemoryProvider:
    return MemoryProvider(Simulation(settings, now=monotonic()))


async def _result(provider: Provider, text: str = "Hello", *, timeout_s: float = 20) -> Reply | CallError:
    try:
        return await provider.send(_request(text), timeout_s=timeout_s)
    except CallError as error:
        return error


async def test_it_answers_after_the_latency() -> None:
    provider: Provider = _provider(SimulatorSettings(latency_s=3, latency_shape="fixed"))
    reply = await provider.send(_request(), timeout_s=10)
    assert monotonic() == pytest.approx(3)
    assert reply.text == "[simulated] Answer to: Hello"
    assert reply.usage is not None
    assert reply.request_id.startswith("req_")
    assert provider.name == "simulator"
    assert "openai/gpt-oss-20b" in [model.id for model in await provider.models()]
    await provider.aclose()


async def test_it_times_out_exactly_then() -> None:
    provider = _provider(SimulatorSettings(latency_s=30, latency_shape="fixed"))
    with pytest.raises(AttemptTimeout):
        await provider.send(_request(), timeout_s=7)
    assert monotonic() == pytest.approx(7)
    assert provider.simulation.in_flight == 0


async def test_a_cancelled_call_frees_its_place() -> None:
    provider = _provider(SimulatorSettings(faults=FaultPlan(rates={"hang": 1})))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(provider.send(_request(), timeout_s=100), 1)
    assert (provider.simulation.in_flight, provider.simulation.in_flight_peak) == (0, 1)


ANSWERS = (
    "close-after long-body trickle slow extra-response early-hints huge-headers usage-missing usage-strings "
    "usage-negative usage-huge content-filter wrong-model"
)
ERRORS: dict[type[CallError], str] = {
    ConnectFailed: "refused",
    ConnectionLost: "reset close close-in-headers close-in-body chunks-cut chunks-bad",
    AttemptTimeout: "slow-loris hang",
    BadReply: "eof-body huge-body garbage http09 many-headers nul-header html200 empty200 json-null "
    "json-list json-string json-number json-object choices-empty choices-null message-null content-null "
    "truncated-json bad-utf8 gzip-truncated gzip-bad gzip-bomb encoding-unknown 204",
    BadGeneration: "json_validate_failed tool_use_failed",
    ModelUnavailable: "model_decommissioned model_not_found 403",
    KeyRefused: "401",
    TooLarge: "413",
    RateLimited: "429 429-bare 429-text 429-day",
    CapacityExceeded: "498",
    ServerError: "error-200 status:500 html:502 empty:503 truncated:504",
    HostBlocked: "html:403",
    InvalidRequest: "redirect:307 status:422",
}


@pytest.mark.parametrize(
    ("kind", "error"),
    [(kind, None) for kind in ANSWERS.split()]
    + [(kind, error) for error, kinds in ERRORS.items() for kind in kinds.split()],
)
async def test_a_fault_becomes_the_error_of_a_transport(kind: str, error: type[CallError] | None) -> None:
    provider = _provider(SimulatorSettings(faults=FaultPlan(by_id={"Hello": (kind,)})))
    assert type(await _result(provider)) is (error or Reply)
    assert provider.simulation.by_fault == {kind: 1}
    assert isinstance(await _result(provider), Reply)


def test_every_fault_has_its_row() -> None:
    assert set(FAULTS) <= {*" ".join([ANSWERS, *ERRORS.values()]).split()}


@pytest.mark.real_loop
async def test_it_raises_what_the_transport_raises() -> None:
    # A listening socket cannot refuse one call of many: the server resets that one.
    kinds = sorted({*FAULTS, *MIXED, "html:403", "redirect:307"} - {"refused"})
    timeouts_s = dict.fromkeys(["slow", *ERRORS[AttemptTimeout].split()], 0.5)
    settings = SimulatorSettings(faults=FaultPlan(by_id={kind: (kind,) for kind in kinds}))
    # No connection is used twice: one that closes as it is used would break a call that fails otherwise.
    pool = Pool(PoolSettings(max_connections=len(kinds), idle_timeout_s=0.001))
    async with start_embedded(settings) as server:
        over_http = OpenAICompatible(pool, f"{server.url}/v1", None)
        in_memory = _provider(settings)
        real, simulated = [
            await asyncio.gather(
                *(_result(provider, kind, timeout_s=timeouts_s.get(kind, 20)) for kind in kinds)
            )
            for provider in (over_http, in_memory)
        ]
        await over_http.aclose()
        await pool.aclose()
    assert {kind: type(result) for kind, result in zip(kinds, simulated, strict=True)} == {
        kind: type(result) for kind, result in zip(kinds, real, strict=True)
    }


@pytest.mark.parametrize("kind", MIXED)
async def test_another_try_cures_every_mixed_fault(kind: str) -> None:
    provider = _provider(SimulatorSettings(faults=FaultPlan(by_id={"Hello": (kind,)})))
    result = await _result(provider)
    assert isinstance(result, Reply) or result.retryable
    assert isinstance(await _result(provider), Reply)


@pytest.mark.parametrize("limiter", get_args(LimiterKind))
async def test_who_waits_as_told_is_let_in_at_the_full_rate_and_never_above(limiter: LimiterKind) -> None:
    provider = _provider(SimulatorSettings(rpm=30, tpm=6000, limiter=limiter))
    answered = refused = 0
    while monotonic() < 5 * MINUTE_S:
        try:
            await provider.send(_request(), timeout_s=20)
            answered += 1
        except RateLimited as error:
            refused += 1
            await asyncio.sleep(error.retry_after_s or math.nan)
    times = [at_s for at_s, _ in provider.simulation.admissions]
    assert len(times) == answered
    assert refused > 0
    assert answered >= 5 * 30 * 0.9
    burst = 60 if limiter == "token-bucket" else 30
    for start in times:
        if limiter == "fixed-window":
            start = start // MINUTE_S * MINUTE_S  # noqa: PLW2901 - its windows begin on the minute
        assert sum(start <= at_s < start + MINUTE_S - 1e-6 for at_s in times) <= burst
