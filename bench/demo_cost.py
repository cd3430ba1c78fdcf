"""CPU seconds, wall seconds and peak memory of the demo on one thread, against what the README promises."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_SECONDS, PEAK_MIB = 180.0, 1536.0


def main() -> int:
    """Run the demo in a scratch directory; exit with 1 where it fails or is over budget."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "cli.py", "fit", "--config", "configs/demo.yaml", *sys.argv[1:]]
        command += ["--trainer.default_root_dir", scratch]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(f"cpu {cpu:.0f} s (budget {CPU_SECONDS:.0f}), wall {wall:.0f} s, largest process {peak:.0f} MiB", end=" ")
    print(f"(budget {PEAK_MIB:.0f})")
    return done.returncode or int(cpu > CPU_SECONDS or peak > PEAK_MIB)


if __name__ == "__main__":
    sys.exit(main())
