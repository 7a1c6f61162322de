"""Fixtures for all tests, and the choice of the event loop for each."""

import asyncio
import itertools
from collections.abc import Callable, Mapping

import pytest
from virtual_clock import VirtualClockLoop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run a test on the virtual clock unless it is marked `real_loop`."""
    if item.get_closest_marker("real_loop"):
        return {"real": asyncio.new_event_loop}
    return {"virtual": VirtualClockLoop}


_NUMBERS = itertools.count()


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test share an account with another one, or with a run of the tester's own."""
    monkeypatch.setenv("BATCHER_STATE_DIR", f"{tmp_path_factory.getbasetemp()}/state/{next(_NUMBERS)}")
