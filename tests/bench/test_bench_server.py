"""What the bench learns from the simulator about the process that it measures."""

import http.client
import time
from pathlib import Path

import pytest
from command_line import simulator_thread

from batcher.bench.server import Server, running
from batcher.errors import BatcherError
from batcher.providers.simulator.settings import SimulatorSettings

BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}'

pytestmark = pytest.mark.real_loop


def post(port: int, times: int) -> None:
    """Make calls over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    for _ in range(times):
        connection.request("POST", "/v1/chat/completions", BODY)
        connection.getresponse().read()
    connection.close()


@pytest.mark.parametrize("fast", [True, False])
def test_only_what_comes_between_the_marks_counts(fast: bool) -> None:
    with simulator_thread(SimulatorSettings(fast=fast, rpm=None if fast else 4)) as running_server:
        server = Server(running_server.port)
        try:
            post(running_server.port, 1)
            mark = server.mark()
            assert server.since(mark).first_at is None
            before_s = time.monotonic()
            for _ in range(3):
                post(running_server.port, 2)
            served = server.since(mark)
        finally:
            server.close()
    assert (served.requests, served.connections) == (6, 3)
    assert served.refused == (0 if fast else 2)
    assert served.first_at is not None
    assert before_s - 0.1 < served.first_at <= time.monotonic()
    assert served.cpu_s > 0


def test_a_simulator_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(BatcherError, match=r"the simulator did not start: .*latency must lie between"),
        running(["--latency", "-1", "--fast"], tmp_path, None),
    ):
        pass
