"""The simulated provider itself: pure, seeded, and given the time."""

import hashlib
import math
import struct
from collections import Counter, deque
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import orjson

from batcher.providers.simulator.answers import Draft, answer, model_body, models_body
from batcher.providers.simulator.bodies import error_body
from batcher.providers.simulator.calls import Call, Refused, check_key, read_call
from batcher.providers.simulator.fault_plan import FaultChooser
from batcher.providers.simulator.faults import Fault, Wire, find_fault
from batcher.providers.simulator.limits import Admission, Gate, Refusal
from batcher.providers.simulator.settings import SimulatorSettings

_LOGNORMAL_SIGMA = 0.5
_NORMAL = NormalDist()
_EPOCH_S = 1_780_000_000
"""Where `created` starts, so that equal runs give equal bytes."""

_NO_FAULT = Fault(says="a good answer")


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is left to be done once an answer is out."""

    gate: Gate
    admission: Admission
    used_tokens: int
    used_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a call is answered: after `latency_s`, with these bytes, put on the wire in this manner.

    `fault` is the kind of fault, "" for none.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    latency_s: float = 0.0
    wire: Wire = Wire.WHOLE
    fault: str = ""
    request_id: str = ""
    settlement: Settlement | None = None


@dataclass(frozen=True, slots=True)
class _Draws:
    """Chance, fixed by seed, id and how often that id has asked: uniform in [0, 1)."""

    fault: float
    latency: float
    length: float
    hex: str


class Simulation:
    """A provider in memory: `begin` decides on an answer, `finish` says that it is out.

    Args:
        settings: how it behaves.
        now: the time at its start, in seconds on any clock; all later times are on the same.
    """

    def __init__(self, settings: SimulatorSettings, *, now: float) -> None:
        self.settings = settings
        self.in_flight = 0
        self.reset(now)

    def __repr__(self) -> str:
        return f"<Simulation {self.requests} requests, {self.in_flight} in flight>"

    def reset(self, now: float) -> None:
        """Forget all calls, counts and limits; what is in flight stays so."""
        self.started_at = now
        self.requests = 0
        self.in_flight_peak = self.in_flight
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.by_id: Counter[str] = Counter()
        self.by_status: Counter[int] = Counter()
        self.by_fault: Counter[str] = Counter()
        self.admissions: deque[tuple[float, int]] = deque(maxlen=self.settings.log_size)
        self._gates: dict[tuple[str, str], Gate] = {}
        self._faults = FaultChooser(self.settings.faults)

    def begin(self, call: Call, now: float) -> Plan:
        """Decide how a call is answered; each plan must come back through `finish` once."""
        self.requests += 1
        self.in_flight += 1
        self.in_flight_peak = max(self.in_flight_peak, self.in_flight)
        try:
            is_models = call.api_path == "/v1/models" or call.api_path.startswith("/v1/models/")
            plan = self._plan_models(call, now) if is_models else self._plan_call(call, now)
        except Refused as refused:
            if refused.request_id:
                self.by_id[refused.request_id] += 1
            plan = Plan(status=refused.status, headers=_json_headers(""), body=refused.body)
        self.by_status[plan.status] += 1
        if plan.fault:
            self.by_fault[plan.fault] += 1
        return plan

    def finish(self, plan: Plan, now: float) -> None:
        """The answer is out, or its client is gone: give back the tokens that were not used."""
        self.in_flight -= 1
        if plan.settlement is not None:
            done = plan.settlement
            done.gate.settle(
                done.admission, done.used_tokens, now, used_output_tokens=done.used_output_tokens
            )

    def stats(self, now: float) -> dict[str, Any]:
        """Return the counts so far; `by_status` counts what was to be sent, whether or not it got through."""
        return {
            "requests": self.requests,
            "in_flight": self.in_flight,
            "in_flight_peak": self.in_flight_peak,
            "tokens": {"prompt": self.prompt_tokens, "completion": self.completion_tokens},
            "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
            "by_fault": dict(sorted(self.by_fault.items())),
            "by_id": dict(self.by_id),
            "uptime_s": now - self.started_at,
        }

    def _plan_models(self, call: Call, now: float) -> Plan:
        if call.method != "GET":
            raise Refused(
                405, error_body("Use GET.", kind="invalid_request_error", code="method_not_allowed")
            )
        check_key(call, self.settings)
        name = call.api_path.removeprefix("/v1/models").removeprefix("/")
        draws = self._draw("GET /v1/models")
        kind = self._faults.outage(now - self.started_at)
        if not name:
            return self._plan(draws, kind, models_body(self.settings.models), ())
        known = next((model for model in self.settings.models if model.id == name), None)
        if known is None:
            message = f"The model `{name}` does not exist or you do not have access to it."
            raise Refused(404, error_body(message, kind="invalid_request_error", code="model_not_found"))
        return self._plan(draws, kind, orjson.dumps(model_body(known)), ())

    def _plan_call(self, call: Call, now: float) -> Plan:
        asked = read_call(call, self.settings)
        self.by_id[asked.id] += 1
        draws = self._draw(asked.id)
        gate = self._gate(asked.key, asked.model)
        kind = self._faults.choose(asked.id, draws.fault, now - self.started_at)
        fault = find_fault(kind, self.settings.faults.redirect_to) if kind else _NO_FAULT
        if not fault.charged:
            return self._plan(draws, kind, b"", tuple(gate.headers(now)))
        shortest, longest = self.settings.output_tokens
        most_output = (asked.max_tokens or longest) * (asked.endpoint != "/v1/embeddings")
        reserved = asked.prompt_tokens + most_output
        admission = gate.admit(reserved, now, output_tokens=most_output)
        if isinstance(admission, Refusal):
            return _plan_refusal(admission, draws, gate.headers(now))
        self.admissions.append((now - self.started_at, reserved))
        draft = Draft(
            id=draws.hex,
            created=_EPOCH_S + int(now - self.started_at),
            output_tokens=shortest + int(draws.length * (longest - shortest + 1)),
            latency_s=self._latency_s(draws.latency),
        )
        stream = asked.stream and fault.keeps_body
        body, used_tokens = answer(asked, draft, stream=stream)
        self.prompt_tokens += asked.prompt_tokens
        used_output_tokens = used_tokens - asked.prompt_tokens
        self.completion_tokens += used_output_tokens
        settlement = Settlement(gate, admission, used_tokens, used_output_tokens)
        return self._plan(draws, kind, body, tuple(gate.headers(now)), settlement, stream=stream)

    def _plan(
        self,
        draws: _Draws,
        kind: str,
        body: bytes,
        limit_headers: tuple[tuple[str, str], ...],
        settlement: Settlement | None = None,
        *,
        stream: bool = False,
    ) -> Plan:
        fault = find_fault(kind, self.settings.faults.redirect_to) if kind else _NO_FAULT
        content_type = "text/event-stream" if stream else fault.content_type
        return Plan(
            status=fault.status,
            headers=(*_json_headers(draws.hex, content_type), *limit_headers, *fault.headers),
            body=fault.reshape(body),
            latency_s=self._latency_s(draws.latency) + fault.delay_s,
            wire=Wire.STREAM if stream and fault.wire is Wire.WHOLE else fault.wire,
            fault=kind,
            request_id=draws.hex,
            settlement=settlement,
        )

    def _gate(self, key: str, model: str) -> Gate:
        gate = self._gates.get((key, model))
        if gate is None:
            gate = self._gates[key, model] = Gate(self.settings, model)
        return gate

    def _draw(self, request_id: str) -> _Draws:
        source = f"{self.settings.seed}\0{request_id}\0{self.by_id[request_id]}".encode("utf-8", "replace")
        digest = hashlib.blake2b(source, digest_size=24).digest()
        fault, latency, length = ((value >> 11) / 2**53 for value in struct.unpack("<3Q", digest))
        return _Draws(fault, latency, length, digest[:13].hex())

    def _latency_s(self, draw: float) -> float:
        mean_s = self.settings.latency_s
        match self.settings.latency_shape:
            case "uniform":
                return 2 * mean_s * draw
            case "exponential":
                return -mean_s * math.log1p(-draw)
            case "lognormal" if mean_s:
                deviation = _NORMAL.inv_cdf(min(max(draw, 1e-9), 1 - 1e-9))
                return mean_s * math.exp(_LOGNORMAL_SIGMA * (deviation - _LOGNORMAL_SIGMA / 2))
            case _:
                return mean_s


def _json_headers(request_id: str, content_type: str = "application/json") -> tuple[tuple[str, str], ...]:
    region = ("x-groq-region", "simulated")
    if not request_id:
        return (("content-type", content_type), region)
    return (("content-type", content_type), ("x-request-id", f"req_{request_id}"), region)


def _plan_refusal(refusal: Refusal, draws: _Draws, limit_headers: list[tuple[str, str]]) -> Plan:
    headers = [*_json_headers(draws.hex), *limit_headers]
    if refusal.wait_s is not None:
        headers.append(("retry-after", str(math.ceil(refusal.wait_s))))
    return Plan(
        status=refusal.status,
        headers=tuple(headers),
        body=error_body(refusal.message, kind=refusal.kind, code="rate_limit_exceeded"),
        request_id=draws.hex,
    )
