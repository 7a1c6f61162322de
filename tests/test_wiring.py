"""The parts of a run that do not depend on its jobs: the loop, the descriptors."""

import subprocess
import sys

import pytest

from batcher.wiring import fastest_loop, fitting_concurrency


def test_the_fastest_loop_there_is() -> None:
    loop = fastest_loop()()
    assert type(loop).__module__.startswith("uvloop")
    loop.close()


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "carried", "soft_afterwards"),
    [
        (256, 4096, 64, 64, 256),
        (128, 4096, 64, 64, 202),
        (128, 150, 64, 43, 150),
        (70, 70, 64, 3, 70),
        (60, 60, 64, 1, 60),
        (256, 4096, 5000, 2016, 4096),
    ],
    ids=["enough", "raised", "raised as far as allowed", "few", "hardly any", "more than allowed"],
)
def test_the_concurrency_fits_the_descriptors(
    soft: int, hard: int, wanted: int, carried: int, soft_afterwards: int
) -> None:
    script = (
        "import resource, sys\n"
        "from batcher.wiring import fitting_concurrency\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        f"print(fitting_concurrency({wanted}), resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(carried), str(soft_afterwards)]
    assert fitting_concurrency(1) == 1
