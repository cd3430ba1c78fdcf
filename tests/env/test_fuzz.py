from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from env_answers import CORRECT, WRONG, fenced, problem
from test_adversarial import CASES

from vgrout_pl.env import Grader, Limits, Problem
from vgrout_pl.env.modes import MODES
from vgrout_pl.env.sandbox.cleanup import descendants

LIMITS = Limits(cpu_seconds=0.3, wall_seconds=2.0, memory_mb=512, processes=16, file_mb=4)
PIECES = [
    *(
        "```",
        "```python\n",
        "~~~",
        "\x00",
        "\ud800",
        "\ufeff",
        "\r\n",
        "\\",
        '"""',
        "'",
        "(",
        "}",
        "\t",
        "    ",
        "#",
        ":",
    ),
    *(
        "class Solution:",
        "def total(self, x):",
        "return ",
        "yield ",
        "await ",
        "lambda: ",
        "import os\n",
        "os._exit(0)\n",
    ),
    *(
        "sys.exit(0)",
        "raise ",
        "del ",
        "global x",
        "*x",
        "0" * 400,
        "9" * 5000,
        "[" * 120,
        "é",
        "\U0001d4b3",
        "\u202e",
        "<think>",
    ),
    *(
        "print('all tests passed')",
        "def run_tests(): pass",
        "valid = True",
        "__eq__",
        "__class__",
        "</think>",
        "async ",
    ),
]


def mutated(rng: random.Random, seeds: list[str]) -> str:
    text = rng.choice(seeds)
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        kind, at = rng.randrange(7), rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.choice((1, 3, 10, 60)))
        lines = text.split("\n")
        if kind == 0:
            text = text[:at] + text[to:]
        elif kind == 1:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == 2:
            text = text[:at] + text[at:to] * rng.choice((2, 3, 50)) + text[to:]
        elif kind == 3:
            other = rng.choice(seeds)
            text = text[:at] + other[rng.randrange(len(other) + 1) :]
        elif kind == 4:
            rng.shuffle(lines)
            text = "\n".join(lines)
        elif kind == 5:
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(rng.choice(seeds).split("\n")))
            text = "\n".join(lines)
        elif text:
            spot = rng.randrange(len(text))
            text = text[:spot] + chr(rng.choice((rng.randrange(128), rng.randrange(0x11000)))) + text[spot + 1 :]
    return text[:200_000]


def descriptors(pid: int | str = "self") -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def fuzz(count: int, seed: int) -> None:
    """Grade mutated answers to questions whose expected values nobody can know."""
    rng = random.Random(seed)
    seeds = [case[-1] for case in CASES if case[1] != "stopped"]
    secrets = [rng.getrandbits(80) for _ in range(2)]
    tests = [f"assert Solution().total([1, 2]) == {secrets[0]}", f"assert Solution().total([]) == [{secrets[1]}]"]
    questions = {mode: Problem(id="secret", tests=tests, mode=mode) for mode in MODES}
    with Grader(workers=2, limits=LIMITS, max_error_share=0.0) as grader:
        grader.grade_batch([(fenced(CORRECT), problem())] * 4)
        servers = [worker.process_id for worker in grader.workers]
        before = [len(descendants(pid)) for pid in servers], descriptors()
        done = 0
        while done < count:
            size = min(500, count - done)
            modes = [rng.choice(list(MODES)) for _ in range(size)]
            texts = [mutated(rng, seeds) for _ in range(size)]
            for mode, text, grade in zip(
                modes,
                texts,
                grader.grade_batch((text, questions[mode]) for mode, text in zip(modes, texts, strict=True)),
                strict=True,
            ):
                assert grade.error is None, (grade, text)
                assert not grade.correct, ("forged", text)
                assert grade.reward == 0.5 * grade.compiles + 3.0 * grade.channel
                assert grade.hacked == grade.channel and not (grade.channel and mode == "gt_only")
            done += size
        assert [worker.process_id for worker in grader.workers] == servers
        assert ([len(descendants(pid)) for pid in servers], descriptors()) == before


def test_mutated_answers_neither_break_nor_forge_a_sample():
    fuzz(400, seed=1)


@pytest.mark.full
def test_mutated_answers_neither_break_nor_forge():
    fuzz(20_000, seed=int(os.environ.get("VGROUT_FUZZ_SEED", "2")))


def memory(pid: int | str = "self") -> int:
    """Resident memory, kB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


def soak(count: int) -> None:
    orphan = "import os\nif os.fork() == 0:\n    os.setsid()\n    import time; time.sleep(100)\n"
    litter = "open('a', 'w').write('x')\n"
    codes = (CORRECT, WRONG, litter + CORRECT, "x =", "raise SystemExit", orphan + CORRECT)
    texts = [fenced(code) for code in codes]
    with Grader(workers=2) as grader:

        def state():
            roots = [worker.process_id for worker in grader.workers]
            servers = [pid for root in roots for pid in (root, *descendants(root))]
            files = sum(len(list(Path(worker.base).iterdir())) for worker in grader.workers)
            counts = len(servers), [descriptors(pid) for pid in servers], descriptors(), files
            return *counts, memory(), [memory(pid) for pid in servers]

        def grade(n):
            for start in range(0, n, 240):
                size = min(240, n - start)
                grades = grader.grade_batch([(texts[i % 6], problem()) for i in range(size)])
                assert [g.correct for g in grades] == [i % 6 in (0, 2, 5) for i in range(size)]

        grade(480)
        before = state()
        grade(count)
        after = state()
    assert after[:4] == before[:4]
    assert after[4] - before[4] < 8_000
    assert all(b - a < 4_000 for a, b in zip(before[5], after[5], strict=True))


def test_nothing_grows_over_many_grades_a_sample():
    soak(480)


@pytest.mark.full
def test_nothing_grows_over_ten_thousand_grades():
    soak(10_000)
