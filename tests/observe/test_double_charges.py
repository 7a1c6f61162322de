"""A call that may have been charged for nothing counts once it has been made again."""

import pytest

from batcher.events import AttemptFinished, JobFinished
from batcher.observe.double_charges import NAMED_MAX, PaidTwice
from batcher.observe.stats import Stats
from batcher.observe.summary import JobCounts, RunFacts, one_line, summary
from batcher.types import Failure, Job, Outcome, Result

LOST, UNSENT, REFUSED, ANSWERED = (0, True), (0, False), (503, True), (200, True)


def attempt(job_id: str, call: int, end: tuple[int, bool]) -> AttemptFinished:
    status, sent = end
    return AttemptFinished(
        job_id=job_id,
        call=call,
        route="m",
        outcome=Outcome.SUCCESS if end is ANSWERED else Outcome.FAILED,
        code="",
        message="",
        status=status,
        latency_s=0.0,
        sent=sent,
        usage=None,
    )


def finished(job_id: str) -> JobFinished:
    job = Job(
        id=job_id,
        endpoint="/v1/chat/completions",
        model="m",
        body=b"{}",
        request_sha256="ab" * 32,
        where="jobs.jsonl:1",
    )
    return JobFinished(
        result=Result(
            job=job,
            answer=Failure(code="c", message="m"),
            model="m",
            provider="p",
            attempts=1,
            latency_s=0.0,
            queued_s=0.0,
            finished_at="",
        )
    )


STORIES = {
    "answered": ([ANSWERED], 0, 1),
    "lost for good": ([LOST], 0, 1),
    "lost, then answered": ([LOST, ANSWERED], 1, 2),
    "lost twice, then answered": ([LOST, LOST, ANSWERED], 2, 3),
    "lost, then refused": ([LOST, REFUSED, ANSWERED], 1, 2),
    "lost, held up, then answered": ([LOST, UNSENT, UNSENT, ANSWERED], 1, 2),
    "refused, then answered": ([REFUSED, ANSWERED], 0, 1),
    "held up, then answered": ([UNSENT, ANSWERED], 0, 1),
    "lost, then held up for good": ([LOST, UNSENT], 0, 1),
}


@pytest.mark.parametrize(("ends", "count", "count_if_lost_before"), STORIES.values(), ids=STORIES.keys())
def test_calls_that_may_be_paid_twice_are_counted_once_each(
    ends: list[tuple[int, bool]], count: int, count_if_lost_before: int
) -> None:
    twice = PaidTwice()
    twice.earlier = {"before"}
    for call, end in enumerate(ends, 1):
        twice.called(attempt("new", call, end))
    assert (twice.count, twice.ids) == (count, ["new"] * bool(count))
    for call, end in enumerate(ends, 1):
        twice.called(attempt("before", call, end))
    assert twice.count - count == count_if_lost_before


def test_only_some_are_named_and_jobs_that_ended_are_forgotten() -> None:
    twice = PaidTwice()
    for number in range(3 * NAMED_MAX):
        twice.called(attempt(str(number), 1, LOST))
        twice.called(attempt(str(number), 2, ANSWERED))
    assert twice.count == 3 * NAMED_MAX
    assert twice.ids == [str(number) for number in range(NAMED_MAX)]
    twice.called(attempt("a", 1, LOST))
    twice.finished("a")
    twice.called(attempt("a", 2, ANSWERED))
    assert twice.count == 3 * NAMED_MAX


def test_the_summary_counts_and_names_them() -> None:
    stats = Stats()
    for event in (attempt("a", 1, LOST), attempt("a", 2, ANSWERED), finished("a")):
        stats(event)
    counts = JobCounts(queued=1, done_before=0, failed_before=0, bad_lines=0, duplicates=0)
    facts = RunFacts(
        run_id="r",
        provider="p",
        inputs=[],
        output="x.jsonl",
        started_at="",
        finished_at="",
        index_s=0.0,
        run_s=1.0,
        exit_code=0,
        stopped_because="",
        resume_at=None,
    )
    content = summary(stats, counts, facts)
    assert content["calls"]["possibly_paid_twice"] == 1
    assert content["calls"]["possibly_paid_twice_ids"] == ["a"]
    assert "1 possibly paid twice" in one_line(content)
    assert "twice" not in one_line(summary(Stats(), counts, facts))
