"""What tests ask the simulator about itself."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from batcher.providers.simulator.calls import Call
from batcher.providers.simulator.delivery import head
from batcher.providers.simulator.model import Simulation


@dataclass(slots=True)
class Connections:
    """The server's connections: how many came, the first of them when, and how to drop each that is open."""

    accepted: int = 0
    first_at: float | None = None
    open: set[Callable[[], None]] = field(default_factory=set)

    def opened(self, drop: Callable[[], None], now: float) -> None:
        """Count a new connection."""
        self.accepted += 1
        self.open.add(drop)
        if self.first_at is None:
            self.first_at = now

    def reset(self) -> None:
        """Count those that are open now and, as the first, the next to come."""
        self.accepted = len(self.open)
        self.first_at = None


def admin_reply(call: Call, simulation: Simulation, connections: Connections, now: float) -> bytes | None:
    """Answer `/healthz` and `/admin/...`; None for every other path."""
    path = call.path.partition("?")[0]
    if path == "/healthz":
        return _json(200, {"status": "ok", "simulated": True})
    if not path.startswith("/admin/"):
        return None
    match call.method, path:
        case "GET", "/admin/stats":
            return _json(200, stats(simulation, connections, now))
        case "GET", "/admin/log":
            fields = ("at_s", "tokens")
            log = [dict(zip(fields, entry, strict=True)) for entry in simulation.admissions]
            return _json(200, {"admissions": log})
        case "POST", "/admin/reset":
            simulation.reset(now)
            connections.reset()
            return _json(200, {"status": "reset"})
        case _:
            known = "GET /admin/stats, GET /admin/log, POST /admin/reset"
            return _json(404, {"error": {"message": f"unknown: {call.method} {path}; there are {known}"}})


def stats(simulation: Simulation, connections: Connections, now: float) -> dict[str, Any]:
    """Return the simulation's counts, its connections, and the CPU seconds of this process."""
    first_at = connections.first_at
    return simulation.stats(now) | {
        "connections": {
            "accepted": connections.accepted,
            "open": len(connections.open),
            "first_s_ago": None if first_at is None else now - first_at,
        },
        "cpu_s": time.process_time(),
    }


def _json(status: int, body: dict[str, Any]) -> bytes:
    data = orjson.dumps(body)
    return head(status, (("content-type", "application/json"),), len(data)) + data
