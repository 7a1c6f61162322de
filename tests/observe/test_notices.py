"""Notices reach log, journal and summary: in a user's words, at their time, and never in floods."""

import asyncio
import itertools
import logging
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.api import arun_jobs
from batcher.errors import OutputError
from batcher.events import (
    AttemptFinished,
    BudgetReached,
    CircuitChanged,
    Event,
    FallbackTaken,
    JobStarted,
    KeyDisabled,
    LaneChanged,
    Listeners,
)
from batcher.observe.notices import (
    EQUAL_EVERY_S,
    HELD_BACK,
    NOTICES_KEPT,
    WRITTEN_A_RUN,
    WRITTEN_AT_ONCE,
    LogNotices,
    Notices,
    Throttle,
    Wording,
    WriteNotices,
)
from batcher.providers.simulator.server import start_embedded
from batcher.providers.simulator.settings import SimulatorSettings
from batcher.types import Outcome

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STARTED = JobStarted(job_id="j", model="a")
CALLED = AttemptFinished(
    job_id="j",
    call=1,
    route="a",
    outcome=Outcome.SUCCESS,
    code="",
    message="",
    status=200,
    latency_s=1.0,
    sent=True,
    usage=None,
)


def fallback(wanted: str, taken: str) -> FallbackTaken:
    return FallbackTaken(job_id="j", wanted=wanted, taken=taken, reason="its circuit is open")


EVENTS: list[Event] = [
    LaneChanged(route="a", message="a: pauses"),
    STARTED,
    CircuitChanged(route="a", state="open", message="a: fails"),
    fallback("a", "b"),
    fallback("a", "b"),
    fallback("a", "c"),
    KeyDisabled(account="main", message="K1 is dead"),
    BudgetReached(spent_usd=2.1, budget_usd=2),
]
WORDS = [
    "a: pauses",
    "",
    "a: fails",
    "a: jobs go on with b: its circuit is open",
    "",
    "a: jobs go on with c: its circuit is open",
    "K1 is dead",
    "the cost budget of $2 is reached",
]


def at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)


def test_each_event_is_put_into_words_and_a_fallback_once_for_each_pair() -> None:
    wording = Wording()
    assert [wording(event) for event in EVENTS] == WORDS


def test_the_log_tells_all_and_warns_of_what_a_person_must_mend(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="batcher")
    listener = LogNotices()
    for event in EVENTS:
        listener(event)
    assert caplog.messages == [words for words in WORDS if words]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == ["K1 is dead"]


@pytest.mark.real_loop
async def test_a_run_from_python_tells_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="batcher")
    async with start_embedded(SimulatorSettings(keys=frozenset({"k"}))) as server:
        await arun_jobs([{"id": "1", "model": "m", "prompt": "x"}], base_url=server.url + "/v1")
    assert [message for message in caplog.messages if "Invalid API Key" in message]


def test_equal_notices_are_folded_and_the_newest_stand_last() -> None:
    notices = Notices()
    for second in range(14):
        notices.add("a: pauses", at(second))
        notices.add(f"other {second % 2}", at(second))
    notices.add("new", at(20))
    local = {second: at(second).astimezone().isoformat(sep=" ") for second in (12, 13, 20)}
    assert notices.lines() == [
        f"other 0 (7 times, last {local[12]})",
        f"a: pauses (14 times, last {local[13]})",
        f"other 1 (7 times, last {local[13]})",
        f"new ({local[20]})",
    ]


def test_only_the_newest_different_notices_are_kept() -> None:
    notices = Notices()
    for number in range(200):
        notices.add(f"n{number}", at(number))
    lines = notices.lines()
    assert len(lines) == NOTICES_KEPT
    assert (lines[0].split()[0], lines[-1].split()[0]) == ("n150", "n199")


def test_equal_notices_pass_once_a_minute_and_the_last_state_is_not_lost() -> None:
    throttle = Throttle(0.0)
    passed: list[tuple[float, str, datetime]] = []
    for second in range(200):
        if second < 100:
            throttle.offer("open" if second % 2 else "closed", at(second))
        passed += [(second, *notice) for notice in throttle.take(float(second))]
    # What is told as the last state is what it was when the flapping ended.
    assert passed == [
        (0, "closed", at(0)),
        (1, "open", at(1)),
        (60, "closed", at(60)),
        (61, "open", at(61)),
        (120, "closed", at(98)),
        (121, "open", at(99)),
    ]
    assert not throttle.holds


def test_days_of_different_notices_fill_no_disk_and_stay_fresh() -> None:
    throttle = Throttle(0.0)
    passed: list[tuple[int, str]] = []
    for second in range(0, 10 * 86_400, 5):
        throttle.offer(f"n{second}", at(second))
        passed += [(second, message) for message, _ in throttle.take(float(second))]
    assert len(passed) == WRITTEN_A_RUN
    on_the_first_day = sum(second < 86_400 for second, _ in passed)
    assert on_the_first_day <= WRITTEN_AT_ONCE + 24 * 60
    after_the_burst = passed[WRITTEN_AT_ONCE + 20 :]
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(after_the_burst)]
    assert max(gaps) <= 60
    assert all(message == f"n{second}" for second, message in after_the_burst)


def test_of_those_held_back_the_newest_are_kept_and_come_first() -> None:
    throttle = Throttle(0.0)
    for number in range(WRITTEN_AT_ONCE):
        throttle.offer(f"n{number}", at(0))
        throttle.take(0.0)
    for second, message in enumerate("abcdeaf"):
        throttle.offer(message, at(second))
        assert throttle.take(0.0) == []
    passed = [throttle.take(60.0 * minute) for minute in range(1, HELD_BACK + 2)]
    assert passed == [[(m, at("abcdeaf".rindex(m)))] for m in "faedc"] + [[]]


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 7), st.sampled_from([0.0, 0.5, 20.0, 61.0])), max_size=400))
def test_no_equal_notices_within_a_minute_and_never_too_many(steps: list[tuple[int, float]]) -> None:
    throttle = Throttle(100.0)
    now, count, offered = 100.0, 0, dict[str, datetime]()
    last: dict[str, float] = {}
    for number, wait_s in steps:
        now += wait_s
        offered[f"n{number}"] = at(now)
        throttle.offer(f"n{number}", at(now))
        taken = throttle.take(now)
        assert len(taken) <= HELD_BACK
        for message, when in taken:
            assert when == offered[message]
            assert now - last.get(message, -1e9) >= EQUAL_EVERY_S
            last[message] = now
        count += len(taken)
        assert count <= WRITTEN_AT_ONCE + (now - 100) / 60


async def test_notices_are_written_down_short_and_keys_never_wait() -> None:
    written: list[str] = []
    listener = WriteNotices(lambda message, at: written.append(message))
    for _ in range(3):
        for event in EVENTS:
            listener(event)
    assert written == [words for words in WORDS if words] + ["K1 is dead"] * 2
    listener(LaneChanged(route="a", message="a:\n" + "long " * 1000))
    assert written[-1].startswith("a: long long")
    assert written[-1].endswith(" ...")
    assert len(written[-1]) <= 500


async def test_what_was_held_back_is_written_with_the_next_call() -> None:
    written: list[str] = []
    emit = Listeners()
    WriteNotices(lambda message, at: written.append(message)).join(emit)
    for message in ("open", "closed", "open"):
        emit(CALLED)
        emit(CircuitChanged(route="a", state="", message=message))
    assert written == ["open", "closed"]
    await asyncio.sleep(EQUAL_EVERY_S)
    emit(CALLED)
    assert written == ["open", "closed", "open"]


async def test_a_disk_that_is_full_does_not_make_a_lane_stumble() -> None:
    def write(message: str, at: datetime) -> None:
        raise OutputError("full")

    listener = WriteNotices(write)
    for event in EVENTS:
        listener(event)
