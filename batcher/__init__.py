"""Runs a file of LLM requests and brings home exactly one result line for each."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batcher.api import JobRun, arun_jobs, run_jobs
    from batcher.errors import BatcherError
    from batcher.types import Failure, Job, Reply, Result, Usage

_HOMES = {
    "BatcherError": "batcher.errors",
    "Failure": "batcher.types",
    "Job": "batcher.types",
    "JobRun": "batcher.api",
    "Reply": "batcher.types",
    "Result": "batcher.types",
    "Usage": "batcher.types",
    "arun_jobs": "batcher.api",
    "run_jobs": "batcher.api",
}

__all__ = [
    "BatcherError",
    "Failure",
    "Job",
    "JobRun",
    "Reply",
    "Result",
    "Usage",
    "arun_jobs",
    "run_jobs",
]


def __getattr__(name: str) -> object:
    """Load a public name when it is first asked for, so that `batcher --help` stays quick."""
    from importlib import import_module  # noqa: PLC0415 - see above

    if name not in _HOMES:
        raise AttributeError(f"module 'batcher' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
