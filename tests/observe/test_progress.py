"""The figures of a run in motion."""

import asyncio
import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.observe.progress import PlainLines, RateMeter, Snapshot, line, watch

START = Snapshot(done=0, failed=0, total=100, in_flight=4, retries=0, refused_429=0, cost_usd=0.0)


@pytest.mark.parametrize(
    ("changes", "rate", "text"),
    [
        ({}, 0.0, "0 of 100 done, 0.0/s, 4 in flight"),
        ({"done": 40}, 2.0, "40 of 100 done, 2.0/s, 30 s left, 4 in flight"),
        ({"done": 40}, 0.0, "40 of 100 done, 0.0/s, 4 in flight"),
        ({"done": 100, "in_flight": 0}, 2.0, "100 of 100 done, 2.0/s, 0 in flight"),
        (
            {"done": 40, "failed": 1, "retries": 1200, "refused_429": 3, "cost_usd": 1.5, "total": 2000},
            1.0,
            "40 of 2,000 done, 1 failed, 1.0/s, 32 min 40 s left, 4 in flight, "
            "1,200 retries, 3 refused, $1.5000",
        ),
        (
            {"hindrances": ("m pauses for 9 s", "n is closed")},
            0.0,
            "0 of 100 done, 0.0/s, 4 in flight, m pauses for 9 s, n is closed",
        ),
    ],
    ids=["begun", "under way", "stuck", "ended", "everything", "hindered"],
)
def test_a_snapshot_as_a_line(changes: dict[str, Any], rate: float, text: str) -> None:
    assert line(replace(START, **changes), rate) == text


def test_the_rate_is_that_of_the_last_minute() -> None:
    meter = RateMeter()
    assert meter.rate(0, 10.0) == 0.0
    assert meter.rate(50, 20.0) == 5.0
    assert meter.rate(50, 70.0) == pytest.approx(50 / 60)
    assert meter.rate(50, 90.0) == 0.0


@given(steps=st.lists(st.tuples(st.floats(0.01, 30), st.integers(0, 50)), min_size=1, max_size=100))
def test_the_rate_lies_between_the_slowest_and_the_fastest_step(steps: list[tuple[float, int]]) -> None:
    meter, now, done = RateMeter(), 0.0, 0
    meter.rate(0, 0.0)
    for takes_s, brings in steps:
        now, done = now + takes_s, done + brings
        rate = meter.rate(done, now)
    slopes = [brings / takes_s for takes_s, brings in steps]
    assert min(slopes) * 0.999 <= rate <= max(slopes) * 1.001


async def test_plain_lines_come_once_a_minute_and_not_at_the_end() -> None:
    stream = io.StringIO()
    done = 0
    watching = asyncio.create_task(watch(lambda: replace(START, done=done, total=600), PlainLines(stream)))
    await asyncio.sleep(0.5)
    for _ in range(150):
        done += 2
        await asyncio.sleep(1)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    assert stream.getvalue().splitlines() == [
        "120 of 600 done, 2.0/s, 4 min 0 s left, 4 in flight",
        "240 of 600 done, 2.0/s, 3 min 0 s left, 4 in flight",
    ]


async def test_a_stream_that_has_gone_does_not_end_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str, /) -> int:
            raise BrokenPipeError

    display = PlainLines(Gone())
    watching = asyncio.create_task(watch(lambda: START, display))
    await asyncio.sleep(500)
    assert not watching.done()
    assert display.every_s > 1e9
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)


async def test_hindrances_cannot_steer_the_terminal() -> None:
    stream = io.StringIO()
    PlainLines(stream).show(replace(START, hindrances=("\x1b[2J\u202e",)), 1.0)
    assert not {"\x1b", "\u202e"} & set(stream.getvalue())
