"""Bare loops over aiohttp and pyreqwest: read a line, post it, read the answer, write a line; nothing else.

They keep no limits, no retries, no journal and no queue: they say what machine and HTTP client allow.
Started by the bench as `python -m batcher.bench.yardsticks NAME JOBS OUT URL CONCURRENCY LOOP`; what they
measured themselves goes to stdout as JSON.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import orjson

from batcher.bench.figures import percentiles

HEADERS = {"content-type": "application/json"}

Post = Callable[[bytes], Awaitable[bytes]]
"""Sends a body and returns that of the answer."""


@asynccontextmanager
async def aiohttp_client(url: str, concurrency: int) -> AsyncIterator[Post]:
    """Give out the post of one aiohttp session."""
    import aiohttp  # noqa: PLC0415 - only its own process loads it

    connector = aiohttp.TCPConnector(limit=concurrency)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def post(body: bytes) -> bytes:
            async with session.post(url, data=body, headers=HEADERS) as response:
                return await response.read()

        yield post


@asynccontextmanager
async def pyreqwest_client(url: str, concurrency: int) -> AsyncIterator[Post]:
    """Give out the post of one pyreqwest client."""
    from pyreqwest.client import ClientBuilder  # noqa: PLC0415

    async with ClientBuilder().no_proxy().max_connections(concurrency).build() as client:

        async def post(body: bytes) -> bytes:
            response = await client.post(url).headers(HEADERS).body_bytes(body).build().send()
            return (await response.bytes()).to_bytes()

        yield post


CLIENTS = {"aiohttp": aiohttp_client, "pyreqwest": pyreqwest_client}


async def run_loop(
    lines: Iterable[bytes], write: Callable[[bytes], object], post: Post, concurrency: int
) -> list[float]:
    """Bring every line to an answer, `concurrency` at a time, and return the seconds that each took."""
    latencies = []

    async def work() -> None:
        for line in lines:
            job = orjson.loads(line)
            began = perf_counter()
            reply = orjson.loads(await post(orjson.dumps(job["body"])))
            latencies.append(perf_counter() - began)
            answer = {
                "custom_id": job["custom_id"],
                "error": None,
                "answer": reply["choices"][0]["message"]["content"],
            }
            write(orjson.dumps(answer, option=orjson.OPT_APPEND_NEWLINE))

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return latencies


async def _story(name: str, jobs: str, out: str, url: str, concurrency: int) -> dict[str, Any]:
    with open(jobs, "rb") as source, open(out, "wb") as sink:  # noqa: ASYNC230 - as a bare loop does it
        async with CLIENTS[name](url, concurrency) as post:
            # One iterator for all workers: whoever is free takes the next line.
            latencies = await run_loop(iter(source), sink.write, post, concurrency)
    return {"latency_s": percentiles(latencies)}


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "asyncio":
        return asyncio.new_event_loop
    import uvloop  # noqa: PLC0415 - not made for every platform

    return uvloop.new_event_loop


def main(arguments: Sequence[str]) -> None:
    """Run one loop and tell what it measured."""
    name, jobs, out, url, concurrency, loop = arguments
    with asyncio.Runner(loop_factory=_loop_factory(loop)) as runner:
        told = runner.run(_story(name, jobs, out, url, int(concurrency)))
    sys.stdout.buffer.write(orjson.dumps(told))
    sys.stdout.flush()
    os._exit(0)  # as the runner does: pyreqwest's thread may still hand things to the interpreter


if __name__ == "__main__":
    main(sys.argv[1:])
