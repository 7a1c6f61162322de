"""`orjson.loads` of every line of a file: what reading it costs at least.

Started by the bench as `python -m batcher.bench.loads FILE`; the CPU seconds go to stdout as JSON.
"""

import sys
import time

import orjson


def main(file: str) -> None:
    """Read a file and tell what that took."""
    began_s = time.process_time()
    with open(file, "rb") as source:
        for line in source:
            orjson.loads(line)
    sys.stdout.buffer.write(orjson.dumps({"cpu_s": time.process_time() - began_s}))


if __name__ == "__main__":
    main(*sys.argv[1:])
