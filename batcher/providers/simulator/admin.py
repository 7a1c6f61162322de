"""What tests ask the simulator about itself."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from batcher.providers.simulator.calls import Call
from batcher.providers.simulator.delivery import head
from batcher.providers.simulator.model import Simulation


@dataclass(slots=True)
class Connections:
    """The server's connections: how many came, and how to drop each that is open."""

    accepted: int = 0
    open: set[Callable[[], None]] = field(default_factory=set)


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
            connections.accepted = len(connections.open)
            return _json(200, {"status": "reset"})
        case _:
            known = "GET /admin/stats, GET /admin/log, POST /admin/reset"
            return _json(404, {"error": {"message": f"unknown: {call.method} {path}; there are {known}"}})


def stats(simulation: Simulation, connections: Connections, now: float) -> dict[str, Any]:
    """Return the simulation's counts, its connections, and the CPU seconds of this process."""
    cpu = os.times()
    return simulation.stats(now) | {
        "connections": {"accepted": connections.accepted, "open": len(connections.open)},
        "cpu_s": cpu.user + cpu.system,
    }


def _json(status: int, body: dict[str, Any]) -> bytes:
    data = orjson.dumps(body)
    return head(status, (("content-type", "application/json"),), len(data)) + data
