"""Which reason ends a run, and how hard."""

import itertools

import pytest

from batcher.engines.stop import Stop, StopReason
from batcher.errors import (
    BatcherError,
    ConfigError,
    InputMissing,
    InterruptedRun,
    KeyMissing,
    KeysRefused,
    LockHeld,
    OutputError,
    Unreachable,
)

STRONGEST_FIRST = [70, 74, 66, 78, 77, 130, 143, 4, 75, 69]


def test_the_order_of_the_reasons() -> None:
    assert [int(reason) for reason in StopReason] == STRONGEST_FIRST


@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(StopReason, 2)))
async def test_the_strongest_reason_wins_whatever_came_first(first: StopReason, second: StopReason) -> None:
    stop = Stop()
    stop.drain(first, first.name, resume_in_s=1.0)
    stop.drain(second, second.name)
    stronger = min(first, second, key=list(StopReason).index)
    assert (stop.reason, stop.message) == (stronger, stronger.name)
    assert stop.resume_in_s == (1.0 if stronger is first else None)


async def test_draining_is_gentle_and_aborting_includes_it() -> None:
    stop = Stop()
    assert (stop.reason, stop.draining.is_set(), stop.aborting.is_set()) == (None, False, False)
    stop.drain(StopReason.INTERRUPTED, "SIGTERM received")
    assert (stop.draining.is_set(), stop.aborting.is_set()) == (True, False)
    assert repr(stop) == "<Stop <StopReason.INTERRUPTED: 75> 'SIGTERM received'>"
    stop.abort(StopReason.FORCED_TERM, "a second signal")
    assert stop.aborting.is_set()
    assert stop.reason is StopReason.FORCED_TERM


async def test_an_abort_drains_too() -> None:
    stop = Stop()
    stop.abort(StopReason.FORCED_INT, "at once")
    assert stop.draining.is_set()


@pytest.mark.parametrize(
    "error",
    [
        BatcherError,
        OutputError,
        InputMissing,
        ConfigError,
        KeyMissing,
        KeysRefused,
        InterruptedRun,
        LockHeld,
        Unreachable,
    ],
)
async def test_an_error_ends_the_run_at_once_with_its_own_code(error: type[BatcherError]) -> None:
    stop = Stop()
    stop.fail(error("what was seen"))
    assert (stop.reason, stop.message) == (error.exit_code, "what was seen")
    assert stop.aborting.is_set()
