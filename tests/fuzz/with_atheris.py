"""Fuzzes one target, guided by coverage: `python tests/fuzz/with_atheris.py TARGET [libFuzzer options]`.

TARGET is job_lines, job_file, result_file or foreign_file; `-max_total_time=600` ends it after ten minutes.
Needs `pip install atheris`, which is no dependency of the project.
"""

import importlib
import sys
from pathlib import Path


def main() -> str | None:
    """Run libFuzzer, which ends the process itself; return what was wrong with the call."""
    try:
        atheris = importlib.import_module("atheris")
    except ImportError:
        sys.stderr.write("skipped: atheris is not installed (pip install atheris)\n")
        return None
    sys.path.insert(0, str(Path(__file__).parent))
    with atheris.instrument_imports(include=["batcher"]):
        targets = {target.__name__: target for target in importlib.import_module("targets").TARGETS}
    if len(sys.argv) < 2 or sys.argv[1] not in targets:
        return f"{__doc__}\nexpected one of {', '.join(targets)}"
    target = targets[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
    return None


if __name__ == "__main__":
    sys.exit(main())
