"""The simulator as a provider without sockets, for tests on a virtual clock."""

import asyncio

from batcher.clock import monotonic
from batcher.errors import AttemptTimeout, BadReply, ConnectFailed, ConnectionLost
from batcher.providers.failures import classify, no_answer
from batcher.providers.replies import parse_reply
from batcher.providers.simulator.calls import Call
from batcher.providers.simulator.delivery import duration_s
from batcher.providers.simulator.faults import Wire
from batcher.providers.simulator.model import Plan, Simulation
from batcher.types import ModelInfo, Reply, Request

_LOST = {
    Wire.RESET: "the connection was reset before the answer",
    Wire.CLOSE: "the connection was closed before the answer",
    Wire.CUT_HEADERS: "the connection was closed amid the headers",
    Wire.CUT_BODY: "the connection was closed amid the body",
    Wire.CUT_CHUNKS: "the connection was closed amid the body",
    Wire.BAD_CHUNKS: "the body's chunks cannot be read",
}
_MAX_HEADERS = 100
"""As many as the transport's HTTP library reads."""


class MemoryProvider:
    """Answers as the simulator's server would, through the same checks as a provider over HTTP.

    Args:
        simulation: the model that answers; may be shared.
        name: the provider's name in result lines.
    """

    def __init__(self, simulation: Simulation, *, name: str = "simulator") -> None:
        self.simulation = simulation
        self._name = name

    @property
    def name(self) -> str:
        """The provider's name."""
        return self._name

    async def send(self, request: Request, *, timeout_s: float) -> Reply:
        """Answer after the simulated latency.

        Raises:
            CallError: a simulated fault, or the answer takes longer than `timeout_s`.
        """
        call = Call(method="POST", path=request.endpoint, headers={}, body=request.body)
        plan = self.simulation.begin(call, monotonic())
        try:
            takes_s = duration_s(plan)
            await asyncio.sleep(min(takes_s, timeout_s))
            if takes_s >= timeout_s:
                raise AttemptTimeout(f"no answer within {timeout_s:g} s", code="timeout")
            return _received(request, plan)
        finally:
            self.simulation.finish(plan, monotonic())

    async def models(self) -> list[ModelInfo]:
        """List the models of the settings."""
        return list(self.simulation.settings.models)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to release."""


def _received(request: Request, plan: Plan) -> Reply:
    if plan.wire is Wire.REFUSED:
        raise ConnectFailed("the connection was refused", code="connect_failed", sent=False)
    if message := _LOST.get(plan.wire):
        raise ConnectionLost(message, code="connection_lost")
    headers = dict(plan.headers)
    if plan.wire is Wire.GARBAGE or _unreadable(headers):
        raise BadReply("what came back is not HTTP", code="bad_http")
    if plan.wire is Wire.ENDLESS:
        raise no_answer(plan.status, headers, b"", "it does not end", code="body_too_large")
    if "content-encoding" in headers:
        raise no_answer(plan.status, headers, b"", "it cannot be unpacked")
    body = plan.body[: len(plan.body) // 2] if plan.wire is Wire.EOF_BODY else plan.body
    if not 200 <= plan.status < 300:
        raise classify(plan.status, headers, body, dialect="groq")
    return parse_reply(request.endpoint, plan.status, headers, body, dialect="groq")


def _unreadable(headers: dict[str, str]) -> bool:
    return len(headers) > _MAX_HEADERS or any("\0" in value for value in headers.values())
