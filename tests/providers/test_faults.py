"""What the transport's own errors mean; the faults of the wire are in test_network_faults.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pyreqwest.exceptions import BuilderError, ClientClosedError, ConnectError, RequestPanicError

from batcher.errors import CallError, ConnectFailed, ConnectionLost, InvalidRequest, LocalFault
from batcher.providers.pyreqwest_faults import fault_of


@pytest.mark.parametrize(
    ("number", "kind"),
    [(23, LocalFault), (24, LocalFault), (99, LocalFault), (105, LocalFault), (111, ConnectFailed)],
)
def test_a_shortage_of_this_machine_is_no_fault_of_the_provider(number: int, kind: type[CallError]) -> None:
    causes = ["client error (Connect)", "tcp open error", f"No luck (os error {number})"]
    error = fault_of(ConnectError("connection error", {"causes": [{"message": cause} for cause in causes]}))
    assert (type(error), error.sent) == (kind, False)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RequestPanicError("panic", {"causes": None}), ConnectionLost),
        (ClientClosedError("Client was closed", {"causes": None}), ConnectionLost),
        (BuilderError("builder error", {"causes": []}), InvalidRequest),
    ],
)
def test_faults_that_no_server_makes(error: BuilderError | ClientClosedError, kind: type[CallError]) -> None:
    assert type(fault_of(error)) is kind


OUT_OF_DESCRIPTORS = """
import asyncio, os, resource
from batcher.errors import LocalFault
from batcher.providers.transport import Pool
from batcher.providers.wire import PoolSettings

async def main():
    pool = Pool(PoolSettings())
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    faults = []
    for scheme in ("http", "https"):
        for place in ("127.0.0.1:9", "nobody.invalid"):
            try:
                await pool.post(f"{scheme}://{place}", [], b"", timeout_s=5)
            except LocalFault as error:
                faults.append(error)
    for number in held:
        os.close(number)
    await pool.aclose()
    print([(error.code, error.sent) for error in faults])

asyncio.run(main())
"""


def test_n29_without_file_descriptors_the_process_lives_and_blames_this_machine() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() == str(4 * [("local_fault", False)])


def test_n2_n3_n30_a_network_without_routes_names_or_ports() -> None:
    here = Path(__file__).parent
    own_network = ["unshare", "--user", "--map-root-user", "--net", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*own_network, "true"], check=False).returncode:
        pytest.skip("this machine gives nobody a network of their own")
    done = subprocess.run(
        [*own_network, sys.executable, here / "alone.py"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "no-route http ConnectFailed connect_failed False True",
        "no-route https ConnectFailed connect_failed False True",
        "slow-dns http ConnectFailed connect_timeout False True",
        "slow-dns https ConnectFailed connect_timeout False True",
        "no-ports http LocalFault local_fault False True",
        "no-ports https LocalFault local_fault False True",
    ]
