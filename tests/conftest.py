"""Fixtures for all tests, and the choice of the event loop for each."""

import asyncio
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
