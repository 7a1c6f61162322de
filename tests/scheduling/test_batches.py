"""Jobs that share a prefix stand back to back, and the first of them goes ahead of the rest."""

import pytest
from test_queue import queue_of

from batcher.scheduling.batches import LOOK_AHEAD_BATCHES, Batches, BatchPolicy
from batcher.scheduling.prefixes import WARM_S
from batcher.scheduling.queue import JobQueue

NO_WAIT = BatchPolicy(wait_s=0)


def ready(batches: Batches, now: float = 0.0) -> list[int]:
    """Take the rows that may be started now, in order."""
    rows = []
    while run := batches.refill(now):
        rows.append(run.rows[-1])
        batches.advance()
    return rows


def groups_of(queue: JobQueue) -> tuple[int, ...]:
    """Return the group of each row."""
    return tuple(queue.prefix_group(row) for row in range(len(queue)))


@pytest.mark.parametrize(
    ("prefixes", "size", "order"),
    [
        ("ABCABCABC", 256, [0, 3, 6, 1, 4, 7, 2, 5, 8]),
        ("---------", 256, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("-A-B-A-B-", 256, [0, 1, 5, 2, 3, 7, 4, 6, 8]),
        ("ABABABABA", 4, [0, 2, 1, 3, 4, 6, 5, 7, 8]),
        ("AAAAAAAAA", 2, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
    ],
    ids=["interleaved", "none", "some", "within a batch only", "one group over all batches"],
)
def test_each_batch_is_put_in_order_by_groups(prefixes: str, size: int, order: list[int]) -> None:
    named = {number: ord(name) for number, name in enumerate(prefixes) if name != "-"}
    with queue_of([("a", 0)] * len(prefixes), prefixes=named) as queue:
        assert ready(Batches(queue, "a", BatchPolicy(size=size, wait_s=0))) == order


def test_priorities_are_never_mixed() -> None:
    listed = [("a", number % 3) for number in range(9)]
    with queue_of(listed, prefixes=dict.fromkeys(range(9), 1)) as queue:
        batches = Batches(queue, "a", NO_WAIT)
        assert ready(batches) == [2, 5, 8, 1, 4, 7, 0, 3, 6]
        assert batches.next_run is None


def test_the_first_of_each_group_goes_ahead_and_the_rest_follow_once_it_has_ended() -> None:
    named = {number: number % 2 for number in range(6)}
    with queue_of([("a", 0)] * 6 + [("a", -1)] * 2, prefixes={**named, 6: 0}) as queue:
        even, odd = groups_of(queue)[:2]
        batches = Batches(queue, "a", BatchPolicy())
        assert ready(batches) == [0, 1, 7]
        assert repr(batches) == "<Batches a 0 ready, 5 held back>"
        batches.warmed(odd, 1.0)
        assert ready(batches) == [3, 5]
        batches.warmed(even, 1.0)
        assert ready(batches) == [2, 4, 6], "each with its own priority"
        assert repr(batches) == "<Batches a 0 ready, 0 held back>"


def test_what_is_released_goes_before_what_is_less_urgent_or_came_later() -> None:
    listed = [("a", 1)] * 4 + [("a", 0)] * 4
    with queue_of(listed, prefixes=dict.fromkeys(range(4), 1)) as queue:
        group = queue.prefix_group(0)
        batches = Batches(queue, "a", BatchPolicy(size=2))
        assert batches.refill(0.0)
        batches.advance()
        run = batches.refill(0.0)
        assert run is not None
        assert run.urgency == 0
        batches.warmed(group, 0.0)
        assert ready(batches) == [1, 2, 3, 4, 5, 6, 7]


def test_a_prefix_that_was_used_a_short_while_ago_needs_no_leader() -> None:
    with queue_of([("a", 0)] * 12, prefixes=dict.fromkeys(range(12), 1)) as queue:
        group = queue.prefix_group(0)
        batches = Batches(queue, "a", BatchPolicy(size=4))
        batches.warmed(group, 0.0)
        run = batches.refill(WARM_S - 1)
        assert run is not None
        assert not run.leads
        for _ in range(4):
            batches.advance()
        run = batches.refill(WARM_S)
        assert run is not None
        assert (run.leads, run.rows) == (True, [4])


def test_a_bounded_number_of_rows_is_held_back() -> None:
    size = 4
    with queue_of([("a", 0)] * 200 + [("a", 0)], prefixes=dict.fromkeys(range(200), 1)) as queue:
        batches = Batches(queue, "a", BatchPolicy(size=size))
        assert ready(batches) == [0]
        assert repr(batches) == f"<Batches a 0 ready, {LOOK_AHEAD_BATCHES * size + size - 1} held back>"
        batches.warmed(queue.prefix_group(0), 0.0)
        assert ready(batches) == list(range(1, 201))


def test_a_leader_that_was_dropped_holds_nothing_back() -> None:
    with queue_of([("a", 0)] * 3, prefixes=dict.fromkeys(range(3), 1)) as queue:
        batches = Batches(queue, "a", BatchPolicy(size=2))
        run = batches.refill(0.0)
        assert run is not None
        assert (run.leads, run.rows) == (True, [0])
        batches.advance()
        batches.release(run.group)
        run = batches.refill(0.0)
        assert run is not None
        assert (run.leads, run.rows) == (False, [1])
        batches.advance()
        run = batches.refill(0.0)
        assert run is not None
        assert (run.leads, run.rows) == (True, [2]), "nobody has warmed the prefix yet"


def test_all_that_waits_can_be_dropped() -> None:
    with queue_of([("a", 0)] * 9 + [("b", 0)], prefixes=dict.fromkeys(range(3), 1)) as queue:
        batches = Batches(queue, "a", BatchPolicy(size=4))
        run = batches.refill(0.0)
        assert run is not None
        batches.drop()
        assert len(queue) == 1
        batches.warmed(run.group, 0.0)
        assert batches.refill(0.0) is None
        assert repr(batches) == "<Batches a 0 ready, 0 held back>"
        assert ready(Batches(queue, "b", BatchPolicy())) == [9]
