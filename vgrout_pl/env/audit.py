"""Proof of the walls: attempts to get out, made as an answer would make them, and what came of each."""

from __future__ import annotations

import resource
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vgrout_pl.env.grader import Grader
from vgrout_pl.env.problem import Problem
from vgrout_pl.env.sandbox.cleanup import descendants
from vgrout_pl.env.sandbox.isolation import Limits

LIMITS = Limits(cpu_seconds=1.0, wall_seconds=3.0, memory_mb=1024)
MAX_GROWTH_MB = 100
FRAME = "class Solution:\n    def attempt(self):\n        try:\n"
FRAME_END = "\n        except Exception:\n            return False\n"


@dataclass(frozen=True)
class Finding:
    """One attempt: whether it was held, and whether the reported walls promise that."""

    attempt: str
    held: bool
    promised: bool
    detail: str = ""


# Each body belongs to a function that returns True where the attempt succeeds.
ATTEMPTS = {
    "open a network connection": (
        "network",
        "import socket\nsocket.create_connection(('192.0.2.1', 9), 0.2)\nreturn True",
    ),
    "make an internet socket": (
        "network",
        "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nreturn True",
    ),
    "read a file of this package": ("files", "open({source!r}).read()\nreturn True"),
    "read a file of the grader's user": ("files", "open({secret!r}).read()\nreturn True"),
    "read the grader's memory": ("files", "open('/proc/{parent}/mem', 'rb').read(1)\nreturn True"),
    "see the grader's environment": ("files", "open('/proc/{parent}/environ', 'rb').read(1)\nreturn True"),
    "write outside of its folder": ("files", "open('/tmp/vgrout-escape', 'w').write('x')\nreturn True"),
    "signal the grader": ("pids", "import os\nos.kill({parent}, 0)\nreturn True"),
    "be the superuser": ("user", "import os\nreturn os.getuid() == 0"),
    "become another user": ("user", "import os\nos.setuid(0 if os.getuid() else 12345)\nreturn True"),
    "allocate 64 GB": ("always", "return bool([bytearray(1 << 30) for _ in range(64)])"),
    "write a file of 1 GB": ("always", "open('big', 'wb').write(bytes(1 << 30))\nreturn True"),
    "open 5000 files": ("always", "return bool([open('/dev/null') for _ in range(5000)])"),
}
BOMBS = {
    "fork without end": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    "loop without end": "while True:\n    pass\n",
    "sleep without end": "import time\ntime.sleep(10 ** 6)\n",
    "leave a daemon behind": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(10 ** 6)\n"
        "    os._exit(0)\nos.wait()\n"
    ),
    "flood its output with 200 MB": "import os\nfor _ in range(200):\n    os.write(1, bytes(1 << 20))\n",
}


def audit(grader: Grader, parent: int) -> Iterator[Finding]:
    """Make every attempt in the grader's own sandbox; ``parent`` is the id of the process that grades."""
    walls = grader.isolation
    hidden = bool(walls["private_root"] or walls["landlock"])
    promised = {
        "always": True,
        "network": bool(walls["network_namespace"] or walls["syscall_filter"]),
        "files": hidden,
        "pids": bool(walls["pid_namespace"]),
        "user": walls["uid"] is not None,
    }
    question = Problem(id="audit", tests=["assert Solution().attempt() is False"], mode="gt_only")
    with tempfile.NamedTemporaryFile(prefix="vgrout-secret-") as secret:
        places = {"source": str(Path(__file__).resolve()), "secret": secret.name, "parent": parent}
        for name, (wall, body) in ATTEMPTS.items():
            code = FRAME + textwrap.indent(body.format(**places), " " * 12) + FRAME_END
            grade = grader.grade(f"```python\n{code}\n```", question)
            held = grade.correct and grade.error is None
            yield Finding(name, held, promised[wall], grade.error or grade.stopped or "")
    for name, code in BOMBS.items():
        yield _bomb(grader, name, code, question)


def _bomb(grader: Grader, name: str, code: str, question: Problem) -> Finding:
    """The grader must survive, keep its memory, and leave no process behind."""
    roots = [worker.process_id for worker in grader.workers]
    processes = [len(descendants(root)) for root in roots]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grade = grader.grade(f"```python\n{code}\n```", question)
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) >> 10
    same = [len(descendants(root)) for root in roots] == processes
    held = grade.error is None and same and growth < MAX_GROWTH_MB
    detail = f"{'stopped by ' + grade.stopped if grade.stopped else 'ended'}, memory +{growth} MB"
    return Finding(name, held, True, detail if same else "processes left behind")
