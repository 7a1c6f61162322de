"""What is to run, in which order, and what is not: against a model made of dicts."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import BadLine, InputMissing, OutputError
from batcher.jobs.index import JobIndex, OnChanged, index_jobs
from batcher.jobs.lines import LineDefaults, assigned_id, parse_line
from batcher.jobs.opened import OpenedFile
from batcher.jobs.source import Sources, open_sources
from batcher.results.earlier import EarlierResults
from batcher.types import Job

DEFAULTS = LineDefaults(model="small")
Done = list[tuple[str, str, bool]]


class Told:
    """An index, and what was said while it was made."""

    def __init__(self, sources: Sources, done: Iterable[tuple[str, str, bool]] = (), **options: Any) -> None:
        self.bad: list[tuple[str, str]] = []
        self.warnings: list[tuple[str, str]] = []
        earlier = EarlierResults()
        for result in done:
            earlier.add(*result)
        self.index: JobIndex = index_jobs(
            sources,
            DEFAULTS,
            earlier=earlier.hand_over(),
            on_bad=lambda where, reason: self.bad.append((where, reason)),
            on_warning=lambda where, reason: self.warnings.append((where, reason)),
            **options,
        )

    def drain(self) -> list[Job]:
        index = self.index
        jobs = []
        for model in index.models:
            while (row := index.pop(model)) is not None:
                jobs.append(index.read(row))
        index.close()
        return jobs


def in_memory(*contents: bytes) -> Sources:
    files = []
    for number, content in enumerate(contents):
        fd = os.memfd_create("jobs")
        os.write(fd, content)
        files.append(OpenedFile(name=f"f{number}", fd=fd, start=0, size=len(content)))
    return Sources(files)


def job_lines(*jobs: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps({"prompt": "hi", **job}) + b"\n" for job in jobs)


def sha(**job: Any) -> str:
    return parse_line(job_lines(job), "", DEFAULTS).request_sha256


def test_each_lane_draws_by_priority_over_the_whole_file() -> None:
    content = job_lines(
        {"id": "a"},
        {"id": "b", "model": "big", "priority": -1},
        {"id": "c", "priority": 7},
        {"id": "d", "model": "big"},
        {"id": "e"},
    )
    index = Told(in_memory(content)).index
    assert index.models == ("small", "big")
    assert [index.remaining(model) for model in ("small", "big", "none")] == [3, 2, 0]
    assert [index.next_priority(model) for model in ("small", "big", "none")] == [7, 0, None]
    order = [(job.id, job.priority, job.where) for job in Told(in_memory(content)).drain()]
    assert order == [
        ("c", 7, "f0:3"),
        ("a", 0, "f0:1"),
        ("e", 0, "f0:5"),
        ("d", 0, "f0:4"),
        ("b", -1, "f0:2"),
    ]
    assert index.pop("none") is None
    assert repr(index) == "<JobIndex 5 rows, 0 bad, 2 models>"
    index.close()


def test_within_a_priority_the_earliest_deadline_goes_first() -> None:
    content = job_lines(
        {"id": "a"},
        {"id": "b", "deadline_s": 600},
        {"id": "c", "deadline_s": 2.5},
        {"id": "d", "priority": 1},
        {"id": "e", "deadline_s": 600},
        {"id": "f", "deadline_s": 60, "priority": -1},
    )
    assert [job.id for job in Told(in_memory(content)).drain()] == ["d", "c", "b", "e", "a", "f"]


def test_a_models_rows_can_be_dropped_unread() -> None:
    index = Told(in_memory(job_lines({}, {"prompt": "b"}, {"model": "big"}))).index
    assert index.pop("small") == 0
    assert [index.drop(model) for model in ("small", "small", "none")] == [1, 0, 0]
    assert (index.pop("small"), index.remaining("small"), index.remaining("big")) == (None, 0, 1)
    index.close()


@pytest.mark.parametrize(
    ("default", "with_fallback"),
    [((), {"named"}), (("other",), {"named", "silent"})],
    ids=["no default", "a fallback by default"],
)
def test_the_index_knows_which_models_have_a_fallback(
    default: tuple[str, ...], with_fallback: set[str]
) -> None:
    content = job_lines(
        {"model": "silent"},
        {"model": "none", "fallback": []},
        {"model": "named", "fallback": []},
        {"model": "named", "fallback": ["other"], "prompt": "b"},
    )
    index = index_jobs(
        in_memory(content), LineDefaults(fallback=default), on_bad=unexpected, on_warning=unexpected
    )
    assert {model for model in index.models if index.has_fallback(model)} == with_fallback
    index.close()


def unexpected(where: str, reason: str) -> None:
    raise AssertionError(f"{where}: {reason}")


def test_several_files_are_one_list_with_places_of_their_own() -> None:
    told = Told(in_memory(job_lines({"id": "a"}), b"", b"\n" + job_lines({"id": "b"}, {"id": "a"}), b"no\n"))
    assert [(job.id, job.where) for job in told.drain()] == [("a", "f0:1"), ("b", "f2:2")]
    assert told.index.blank == 1
    assert told.warnings == [("f2:3", 'id "a" with the same request stands in an earlier line: runs once')]
    assert told.bad == [("f3:1", "the line does not start with {: expected a JSON object")]
    assert (told.index.duplicates, told.index.bad, told.index.queued) == (1, 1, 2)


def test_an_id_with_another_request_is_a_bad_line_and_the_first_runs() -> None:
    told = Told(
        in_memory(
            job_lines({"id": 1}, {"id": "1", "prompt": "other"}, {"id": 1}, {"id": "1", "prompt": "other"})
        )
    )
    assert [job.where for job in told.drain()] == ["f0:1"]
    assert [where for where, _ in told.bad] == ["f0:2", "f0:4"]
    assert [where for where, _ in told.warnings] == ["f0:3"]


def test_missing_ids_come_from_the_request_and_are_told_apart() -> None:
    other, same = sha(prompt="other"), sha()
    content = job_lines(
        {}, {"prompt": "other"}, {}, {"id": assigned_id(same, 3)}, {}, {"id": assigned_id(same)}, {"id": "x"}
    )
    told = Told(in_memory(content))
    assert [job.id for job in told.drain()] == [
        assigned_id(same),
        assigned_id(other),
        assigned_id(same, 2),
        assigned_id(same, 3),
        assigned_id(same, 4),
        "x",
    ]
    assert [where for where, _ in told.warnings] == ["f0:6"]


def test_an_inserted_line_without_an_id_changes_no_other_id() -> None:
    before = [job.id for job in Told(in_memory(job_lines({}, {"prompt": "b"}, {}))).drain()]
    after = [job.id for job in Told(in_memory(job_lines({"prompt": "new"}, {}, {"prompt": "b"}, {}))).drain()]
    assert after[1:] == before


DONE: Done = [
    ("ok", sha(), True),
    ("failed", sha(), False),
    ("edited", sha(prompt="old"), True),
    ("broken", sha(prompt="old"), False),
]
FILE = job_lines(*({"id": name} for name in ("ok", "failed", "edited", "broken", "new")))
OUTCOMES: dict[str, tuple[bool, OnChanged, list[str], list[str], tuple[int, int, int]]] = {
    "default": (False, "error", ["new"], [], (1, 1, 2)),
    "retry": (True, "error", ["failed", "new"], ["failed"], (1, 0, 2)),
    "rerun": (False, "rerun", ["edited", "broken", "new"], ["edited", "broken"], (1, 1, 0)),
    "keep": (False, "keep", ["new"], [], (2, 2, 0)),
    "retry and keep": (True, "keep", ["failed", "new"], ["failed"], (2, 1, 0)),
    "retry and rerun": (
        True,
        "rerun",
        ["failed", "edited", "broken", "new"],
        ["failed", "edited", "broken"],
        (1, 0, 0),
    ),
}


@pytest.mark.parametrize(
    ("retry", "on_changed", "queued", "replaced", "counts"), OUTCOMES.values(), ids=OUTCOMES.keys()
)
def test_results_of_earlier_runs_decide_what_runs(
    retry: bool, on_changed: OnChanged, queued: list[str], replaced: list[str], counts: tuple[int, int, int]
) -> None:
    told = Told(in_memory(FILE), DONE, retry_failed=retry, on_changed=on_changed)
    index = told.index
    assert [job.id for job in told.drain()] == queued
    assert [name for name, _, _ in DONE if index.is_replaced(name)] == replaced
    assert not index.is_replaced("new")
    assert (index.skipped_done, index.skipped_failed, index.changed_count) == counts
    expected = [("f0:3", "edited"), ("f0:4", "broken")] if on_changed == "error" else []
    assert (index.changed, told.bad) == (expected, [])


def test_only_the_first_changed_ids_are_kept() -> None:
    done = [(str(number), sha(prompt="old"), True) for number in range(9)]
    told = Told(in_memory(job_lines(*({"id": number} for number in range(9)))), done)
    assert told.index.changed == [(f"f0:{number + 1}", str(number)) for number in range(5)]
    assert told.index.changed_count == 9
    told.index.close()


def test_equal_lines_without_ids_meet_their_own_earlier_results() -> None:
    done = [(assigned_id(sha()), sha(), True), (assigned_id(sha(), 2), sha(), True)]
    told = Told(in_memory(job_lines({}, {}, {})), done)
    assert [(job.id, job.where) for job in told.drain()] == [(assigned_id(sha(), 3), "f0:3")]
    assert told.index.skipped_done == 2


def test_a_repeated_line_of_a_done_job_is_still_a_duplicate() -> None:
    told = Told(
        in_memory(job_lines({"id": "a"}, {"id": "a"}, {"id": "a", "prompt": "x"})), [("a", sha(), True)]
    )
    assert told.drain() == []
    assert (told.index.skipped_done, told.index.duplicates, told.index.bad) == (1, 1, 1)
    assert told.index.models == ()


CHANGES = {
    "other request": job_lines({"id": "a", "prompt": "ho"}),
    "other id": job_lines({"id": "b"}),
    "no JSON": b"x" * 26 + b"\n",
    "gone": b"",
}


@pytest.mark.parametrize("content", CHANGES.values(), ids=CHANGES.keys())
def test_a_line_that_changed_since_it_was_indexed_stops_the_run(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.jsonl"
    path.write_bytes(job_lines({"id": "a"}))
    index = Told(open_sources([str(path)], spool_dir=tmp_path)).index
    path.write_bytes(content)
    row = index.pop("small")
    assert row is not None
    with pytest.raises(OutputError, match=r"jobs\.jsonl:1: the line changed during the run"):
        index.read(row)
    index.close()


def test_a_file_whose_disk_fails_is_named(tmp_path: Path) -> None:
    # A directory opens like a file and fails at the first read, as a broken disk does.
    broken = OpenedFile(name="jobs", fd=os.open(tmp_path, os.O_RDONLY), start=0, size=9)
    with Sources([broken]) as sources, pytest.raises(InputMissing, match="jobs: cannot be read"):
        Told(sources)


def test_jobs_that_open_alike_share_a_prefix_group() -> None:
    def asked(system: str, **job: Any) -> dict[str, Any]:
        return {"system": system, **job}

    long, other = "You are a judge. " * 50, "You are a poet. " * 50
    jobs = [
        asked(long),
        asked(long, prompt="x"),
        asked(other),
        asked("short"),
        {"prompt": long},
        asked(long, model="big"),
    ]
    index = Told(in_memory(job_lines(*jobs))).index
    groups = [index.prefix_group(row) for row in range(len(jobs))]
    index.close()
    assert groups[0] == groups[1] == groups[5] > 0
    assert groups[2] not in {0, groups[0]}
    assert groups[3:5] == [0, 0]


ODD_MESSAGES = ["5", "null", '"text"', '["a","b"]', "[1,2]", '{"a":1,"b":2}', '[{"content":1},{}]', "[[],[]]"]


@pytest.mark.parametrize("messages", ODD_MESSAGES)
@pytest.mark.parametrize("url", ["/v1/embeddings", "/v1/responses"])
def test_messages_that_are_no_chats_may_be_anything(url: str, messages: str) -> None:
    body = f'{{"input":"x","messages":{messages},"instructions":{messages}}}'
    told = Told(in_memory(f'{{"method":"POST","url":"{url}","body":{body}}}\n'.encode()))
    assert (told.bad, told.index.prefix_group(0)) == ([], 0)
    assert len(told.drain()) == 1


def test_endpoints_are_listed_once() -> None:
    line = b'{"method":"POST","url":"/v1/%s","body":{"input":"%d"}}\n'
    content = b"".join(
        line % (url, number) for number, url in enumerate([b"embeddings", b"responses", b"embeddings"])
    )
    index = Told(in_memory(content, job_lines({}))).index
    assert list(index.endpoints) == ["/v1/embeddings", "/v1/responses", "/v1/chat/completions"]
    index.close()


def test_progress_ends_at_the_end() -> None:
    content = job_lines(*({"id": number, "prompt": "x" * 1000} for number in range(5000)))
    told: list[tuple[int, int]] = []
    Told(in_memory(content), on_progress=lambda done, total: told.append((done, total))).index.close()
    assert told[-1] == (len(content), len(content))
    assert told == sorted(told)
    assert len(told) < 50


names = st.sampled_from(["a", "b", "1", 1, None])
jobs = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["x", "y"])},
    optional={
        "id": names.filter(lambda name: name is not None),
        "priority": st.integers(-1, 1),
        "model": st.sampled_from(["small", "big"]),
    },
)
rows = st.lists(jobs.map(orjson.dumps) | st.sampled_from([b"", b" ", b"{", b'{"id":"a"}']), max_size=30)
done_rows = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "1", assigned_id(sha(prompt="x"))]),
        st.sampled_from([sha(prompt="x"), sha(prompt="y")]),
        st.booleans(),
    ),
    unique_by=lambda row: row[0],
)


@given(
    rows,
    done_rows,
    st.booleans(),
    st.sampled_from(["error", "rerun", "keep"]),
    st.sampled_from([b"\n", b"\r\n"]),
)
def test_the_index_agrees_with_a_simple_model(
    rows: list[bytes], done: Done, retry_failed: bool, on_changed: OnChanged, end: bytes
) -> None:
    earlier = {name: (request, ok) for name, request, ok in done}
    seen: dict[str, str] = {}
    queued: list[tuple[Job, str]] = []
    counts = dict.fromkeys(("bad", "blank", "duplicates", "done", "failed", "changed"), 0)
    replaced = set()
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            counts["blank"] += 1
            continue
        try:
            job = parse_line(row, f"f0:{number}", DEFAULTS)
        except BadLine:
            counts["bad"] += 1
            continue
        name, ordinal = job.id, 0
        while not name or (not job.id and name in seen):
            ordinal += 1
            name = assigned_id(job.request_sha256, ordinal)
        if name in seen:
            counts["duplicates" if seen[name] == job.request_sha256 else "bad"] += 1
            continue
        seen[name] = job.request_sha256
        if name in earlier:
            request, ok = earlier[name]
            changed = request != job.request_sha256
            if (changed and on_changed == "rerun") or (not changed and not ok and retry_failed):
                replaced.add(name)
            else:
                counts["changed" if changed and on_changed == "error" else "done" if ok else "failed"] += 1
                continue
        queued.append((job, name))

    told = Told(
        in_memory(b"".join(row + end for row in rows)), done, retry_failed=retry_failed, on_changed=on_changed
    )
    index = told.index
    assert {
        "bad": index.bad,
        "blank": index.blank,
        "duplicates": index.duplicates,
        "done": index.skipped_done,
        "failed": index.skipped_failed,
        "changed": index.changed_count,
    } == counts
    assert (len(told.bad), len(told.warnings), index.queued) == (index.bad, index.duplicates, len(queued))
    assert index.models == tuple(dict.fromkeys(job.model for job, _ in queued))
    assert {name for name in (*seen, *earlier) if index.is_replaced(name)} == replaced
    expected = sorted(queued, key=lambda item: (index.models.index(item[0].model), -item[0].priority))
    assert [(job.id, job.body, job.where) for job in told.drain()] == [
        (name, job.body, job.where) for job, name in expected
    ]
