"""The simulator over real HTTP/1.1: one lean protocol object a connection, no task a request."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

from batcher.errors import UsageError
from batcher.providers.simulator.admin import Connections, admin_reply
from batcher.providers.simulator.bodies import error_body
from batcher.providers.simulator.calls import Call
from batcher.providers.simulator.delivery import Ending, ending, head, steps
from batcher.providers.simulator.fast import FastConnection, canned_answers
from batcher.providers.simulator.http import BadHttp, RequestReader
from batcher.providers.simulator.model import Plan, Simulation
from batcher.providers.simulator.settings import SimulatorSettings

_BACKLOG = 4096
_MAX_PIPELINED_BYTES = 1024 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection(asyncio.Protocol):
    """One client: reads requests, answers them in order, one at a time."""

    def __init__(self, simulation: Simulation, connections: Connections) -> None:
        self._simulation = simulation
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader()
        self._plan: Plan | None = None
        self._steps: Iterator[tuple[float, bytes]] = iter(())
        self._timer: asyncio.TimerHandle | None = None
        self._closes = False
        self._writable = True
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection."""
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._connections.opened(self._transport.abort, self._loop.time())

    def connection_lost(self, exc: Exception | None) -> None:
        """Give up what was being answered."""
        self._closes = True
        self._connections.open.discard(self._transport.abort)
        if self._timer is not None:
            self._timer.cancel()
        self._finish()

    def data_received(self, data: bytes) -> None:
        """Take bytes in; answer when a request is whole."""
        self._reader.feed(data)
        if self._plan is None:
            self._answer_buffered()
        elif self._reader.buffered > _MAX_PIPELINED_BYTES:
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Stop sending: the client does not keep up."""
        self._writable = False

    def resume_writing(self) -> None:
        """Go on sending."""
        self._writable = True
        if self._plan is not None and self._timer is None:
            self._send()
            self._answer_buffered()

    def _answer_buffered(self) -> None:
        while self._plan is None and not self._closes:
            try:
                call = self._reader.next()
            except BadHttp as error:
                self._refuse(error)
                return
            if call is None:
                if self._reader.expects_continue:
                    self._reader.expects_continue = False
                    self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._transport.resume_reading()
                return
            self._answer(call)

    def _answer(self, call: Call) -> None:
        now = self._loop.time()
        self._closes = call.headers.get("connection", "").lower() == "close"
        if reply := admin_reply(call, self._simulation, self._connections, now):
            self._transport.write(reply)
            if self._closes:
                self._transport.close()
            return
        self._plan = self._simulation.begin(call, now)
        self._steps = steps(self._plan)
        self._send()

    def _send(self) -> None:
        """Send until a step has to wait or the client does not keep up; then end the reply."""
        for delay_s, data in self._steps:
            if delay_s > 0:
                self._timer = self._loop.call_later(delay_s, self._send_after_pause, data)
                return
            self._transport.write(data)
            if not self._writable or self._transport.is_closing():
                return
        self._end()

    def _send_after_pause(self, data: bytes) -> None:
        self._timer = None
        self._transport.write(data)
        if self._writable:
            self._send()
            self._answer_buffered()

    def _end(self) -> None:
        assert self._plan is not None
        end = ending(self._plan)
        if end is Ending.HOLD:
            return
        self._finish()
        if end is Ending.RESET:
            self._closes = True
            tcp = self._transport.get_extra_info("socket")
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        elif end is Ending.CLOSE or self._closes:
            self._closes = True
            self._transport.close()

    def _finish(self) -> None:
        if self._plan is not None:
            self._simulation.finish(self._plan, self._loop.time())
            self._plan = None

    def _refuse(self, error: BadHttp) -> None:
        self._closes = True
        body = error_body(str(error), kind="invalid_request_error")
        headers = (("content-type", "application/json"), ("connection", "close"))
        self._transport.write(head(error.status, headers, len(body)) + body)
        self._transport.close()


class RunningServer:
    """A simulator that listens.

    Attributes:
        url: where, without a path: `http://127.0.0.1:PORT`.
        port: the port it listens on.
        simulation: the model behind it, for tests to look at.
        connections: counts of connections.
    """

    def __init__(
        self, server: asyncio.Server, host: str, simulation: Simulation, connections: Connections
    ) -> None:
        self._server = server
        self.port: int = server.sockets[0].getsockname()[1]
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        self.simulation = simulation
        self.connections = connections

    def __repr__(self) -> str:
        return f"<RunningServer {self.url} {len(self.connections.open)} connections>"

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        self._server.close()
        for drop in tuple(self.connections.open):
            drop()
        # A dropped connection tells its protocol in the loop's next round.
        await asyncio.sleep(0)
        await self._server.wait_closed()


async def serve(settings: SimulatorSettings, host: str = "127.0.0.1", port: int = 0) -> RunningServer:
    """Start a simulator on the running loop; port 0 picks a free one.

    Raises:
        UsageError: nothing can listen there.
    """
    loop = asyncio.get_running_loop()
    simulation, connections = Simulation(settings, now=loop.time()), Connections()
    connect: Callable[[], asyncio.Protocol] = partial(Connection, simulation, connections)
    if settings.fast:
        connect = partial(FastConnection, simulation, connections, canned_answers(settings))
    try:
        server = await loop.create_server(connect, host, port, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot listen on {host}:{port}: {error}; --port 0 picks a free port") from error
    return RunningServer(server, host, simulation, connections)


@asynccontextmanager
async def start_embedded(settings: SimulatorSettings) -> AsyncIterator[RunningServer]:
    """Run a simulator on a free loopback port of the running loop for as long as the context lasts."""
    server = await serve(settings)
    try:
        yield server
    finally:
        await server.close()
