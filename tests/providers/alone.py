"""Calls from a network of this process's own, in which addresses, ports and names behave as told.

Run as `unshare --user --map-root-user --net --mount python alone.py`; it prints what became of each call.
"""

import asyncio
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from batcher.errors import CallError
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings

CONNECT_S = 0.5


def run(command: str) -> None:
    subprocess.run(command.split(), check=True)


async def tell(name: str, pool: Pool, place: str) -> None:
    for scheme in ("http", "https"):
        began = time.perf_counter()
        try:
            await pool.post(f"{scheme}://{place}", [], b"{}", timeout_s=10)
        except CallError as error:
            took_s = time.perf_counter() - began
            told = (name, scheme, type(error).__name__, error.code, error.sent, took_s < CONNECT_S + 0.5)
            sys.stdout.write(" ".join(map(str, told)) + "\n")


async def main() -> None:
    pool = Pool(PoolSettings(connect_timeout_s=CONNECT_S))
    await tell("no-route", pool, "192.0.2.9")
    run("ip link set lo up")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:  # takes questions, gives no answers
        resolver.bind(("127.0.0.1", 53))
        with tempfile.NamedTemporaryFile("w") as settings:
            settings.write("nameserver 127.0.0.1\noptions timeout:2 attempts:1\n")
            settings.flush()
            run(f"mount --bind {settings.name} /etc/resolv.conf")
            await tell("slow-dns", pool, "api.example.com")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 40_000))
        server.listen(16)
        Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("50000 50001")  # noqa: ASYNC240 - no disk
        taken = [socket.create_connection(("127.0.0.1", 40_000)) for _ in range(2)]
        await tell("no-ports", pool, "127.0.0.1:40000")
        for connection in taken:
            connection.close()
    await pool.aclose()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
