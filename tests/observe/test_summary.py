"""The summary says the same in a file and in a sentence."""

from collections import Counter
from datetime import UTC, datetime

import orjson
import pytest

from batcher.observe.notices import Notices
from batcher.observe.stats import ModelStats, Stats
from batcher.observe.summary import JobCounts, RunFacts, one_line, summary

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOTHING_BEFORE = JobCounts(queued=10, done_before=0, failed_before=0, bad_lines=0, duplicates=0)
FACTS = RunFacts(
    run_id="r",
    provider="p",
    inputs=["jobs.jsonl"],
    output="out.jsonl",
    started_at="2026-01-01T00:00:00+00:00",
    finished_at="2026-01-01T00:00:05+00:00",
    index_s=0.5,
    run_s=4.0,
    exit_code=0,
    stopped_because="",
    resume_at=None,
)


def stats_of(
    *, succeeded: int = 8, failed: int = 1, cost_usd: float = 0.12345678, cost_unknown: int = 0
) -> Stats:
    notices = Notices()
    notices.add("the provider answers again", NOON)
    return Stats(
        succeeded=succeeded,
        failed=failed,
        calls=20,
        calls_in_vain=12,
        retries=11,
        refused_429=3,
        maybe_charged=2,
        input_tokens=100,
        output_tokens=50,
        cached_tokens=10,
        cost_usd=cost_usd,
        cost_unknown=cost_unknown,
        models={"m": ModelStats(succeeded=succeeded, failed=failed)},
        fallbacks=Counter({("m", "n"): 2, ("m", "o"): 3}),
        notices=notices,
    )


def test_the_summary_holds_all_counts() -> None:
    content = summary(stats_of(), NOTHING_BEFORE, FACTS)
    assert content["jobs"] == {
        "queued": 10,
        "done_before": 0,
        "failed_before": 0,
        "bad_lines": 0,
        "duplicates": 0,
        "succeeded": 8,
        "failed": 1,
        "pending": 1,
    }
    assert (content["calls"]["total"], content["calls"]["maybe_charged_without_answer"]) == (20, 2)
    assert content["tokens"] == {"input": 100, "output": 50, "cached_input": 10}
    assert (content["cost_usd"], content["jobs_per_s"]) == (0.123457, 2.25)
    assert content["models"]["m"]["succeeded"] == 8
    local = NOON.astimezone().isoformat(sep=" ")
    assert content["notices"] == [f"the provider answers again ({local})"]
    assert content["fallbacks"] == [
        {"wanted": "m", "taken": "o", "jobs": 3},
        {"wanted": "m", "taken": "n", "jobs": 2},
    ]
    assert orjson.loads(orjson.dumps(content)) == content


@pytest.mark.parametrize(
    ("succeeded", "cost_unknown", "cost_usd"),
    [
        pytest.param(8, 0, 0.123457, id="all known"),
        pytest.param(8, 3, 0.123457, id="some known: a lower bound, and how many are missing"),
        pytest.param(8, 8, None, id="none known"),
        pytest.param(0, 0, 0.123457, id="no answer yet"),
    ],
)
def test_a_cost_is_given_as_far_as_it_is_known(
    succeeded: int, cost_unknown: int, cost_usd: float | None
) -> None:
    content = summary(stats_of(succeeded=succeeded, cost_unknown=cost_unknown), NOTHING_BEFORE, FACTS)
    assert content["cost_usd"] == cost_usd
    assert content["answers_of_unknown_cost"] == cost_unknown


@pytest.mark.parametrize(
    ("stats", "counts", "said", "unsaid"),
    [
        pytest.param(
            stats_of(),
            NOTHING_BEFORE,
            [
                "8 answered",
                "1 failed",
                "1 pending",
                "4.0 s (2.2/s)",
                "20 calls",
                "11 retries",
                "3 refused (429)",
            ],
            ["before", "bad line"],
            id="some failed, some pending",
        ),
        pytest.param(
            stats_of(),
            NOTHING_BEFORE,
            ["cost $0.1235"],
            ["unknown"],
            id="what it cost, to a hundredth of a cent",
        ),
        pytest.param(
            stats_of(succeeded=10, failed=0, cost_unknown=10),
            JobCounts(queued=10, done_before=4, failed_before=1, bad_lines=2, duplicates=3),
            ["10 answered", "before", "2 bad lines", "cost unknown"],
            ["pending", "$"],
            id="done before, bad lines, no price",
        ),
        pytest.param(
            Stats(),
            JobCounts(queued=0, done_before=4, failed_before=1, bad_lines=0, duplicates=0),
            ["nothing to run", "4 answered", "1 failed before"],
            ["calls", "cost"],
            id="nothing to run",
        ),
    ],
)
def test_one_line_says_it_to_people(
    stats: Stats, counts: JobCounts, said: list[str], unsaid: list[str]
) -> None:
    line = one_line(summary(stats, counts, FACTS))
    assert [part for part in said if part not in line] == []
    assert [part for part in unsaid if part in line] == []
    assert "\n" not in line
