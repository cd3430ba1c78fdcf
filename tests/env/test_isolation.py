from __future__ import annotations

import resource
import textwrap
import time
from pathlib import Path

import pytest
from env_answers import CORRECT, SETUP, fenced, problem

from vgrout_pl.env import Grader, Limits, Problem
from vgrout_pl.env.sandbox import landlock, seccomp
from vgrout_pl.env.sandbox.cleanup import descendants, empty_folder

QUICK = Limits(cpu_seconds=0.5, wall_seconds=2.0, memory_mb=512, processes=16)
WALLS = {
    "all walls": (),
    "no namespaces": ("namespaces",),
    "limits alone": ("namespaces", "uid", "landlock", "syscall_filter"),
}


@pytest.fixture(scope="module", params=WALLS)
def walled(request):
    with Grader(workers=1, limits=QUICK, avoid=WALLS[request.param]) as grader:
        yield grader


@pytest.fixture(scope="module", params=WALLS)
def patient(request):
    """Little CPU time, so much wall time that a busy machine does not run out of it first."""
    with Grader(workers=1, limits=Limits(cpu_seconds=0.2, wall_seconds=60.0), avoid=WALLS[request.param]) as grader:
        yield grader


@pytest.fixture(scope="module")
def fortress():
    with Grader(workers=1, limits=QUICK) as grader:
        if grader.isolation["tier"] != "namespaces":
            pytest.skip(f"this machine offers tier {grader.isolation['tier']}")
        yield grader


def asked(grader, body, wanted):
    """Run ``body`` as the function that the test calls; its value has to be ``wanted``."""
    code = f"class Solution:\n    def probe(self):\n{textwrap.indent(textwrap.dedent(body), ' ' * 8)}\n"
    question = Problem(id="probe", tests=[f"assert Solution().probe() == {wanted!r}"], setup_code=SETUP)
    grade = grader.grade(fenced(code), question)
    assert grade.error is None
    return grade.correct


REFUSED = "try:\n    {attempt}\nexcept {error}:\n    return 'refused'\nreturn 'allowed'"


@pytest.mark.parametrize(
    ("attempt", "error"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 80), 1)", "PermissionError"),
        ("import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)", "PermissionError"),
        ("import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "PermissionError"),
        ("os.listdir('/proc/self')", "FileNotFoundError"),
        (f"open({__file__!r})", "FileNotFoundError"),
        (f"open({str(Path(__file__).parents[2] / 'vgrout_pl/env/problem.py')!r})", "FileNotFoundError"),
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("open('/somewhere', 'w')", "OSError"),
        ("open('/work/beside', 'w')", "PermissionError"),
        ("open('/lib/python', 'w')", "OSError"),
        ("os.kill(1, 9)", "PermissionError"),
        ("os.setuid(0)", "PermissionError"),
        ("os.chroot('.')", "PermissionError"),
        ("import vgrout_pl", "ModuleNotFoundError"),
        ("import vgrout_sandboxed", "ModuleNotFoundError"),
        ("import torch", "ModuleNotFoundError"),
    ],
)
def test_an_answer_is_refused(fortress, attempt, error):
    assert asked(fortress, REFUSED.format(attempt=attempt, error=error), "refused")


@pytest.mark.parametrize(
    "call",
    [
        "shmget(77, 4096, 0o1666)",
        "msgget(77, 0o1666)",
        "unshare(0x10000000)",
        "ptrace(0, 0, 0, 0)",
        "mount(0, 0, 0, 0, 0)",
    ],
)
def test_system_calls_that_outlive_or_escape_a_process_are_refused(fortress, call):
    body = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nreturn [libc.{call}, ctypes.get_errno()]"
    assert asked(fortress, body, [-1, 1])


def test_the_syscall_filter_is_a_program_of_whole_instructions_that_ends_in_a_verdict():
    for machine in seccomp.MACHINES.values():
        code = seccomp.program(machine)
        assert len(code) % 8 == 0 and code[-8] == 0x06
        assert len({*machine.refused}) == len(machine.refused) == 23


def test_an_answer_may_use_what_honest_programs_need(fortress):
    body = """
        import threading, subprocess, statistics, tempfile
        from concurrent.futures import ThreadPoolExecutor
        with open('note.txt', 'w') as file:
            file.write('hello')
        with ThreadPoolExecutor(4) as pool:
            squares = list(pool.map(lambda v: v * v, range(5)))
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        status = os.waitpid(pid, 0)[1] >> 8
        return [open('note.txt').read(), squares, status, statistics.mean([1, 3]), os.listdir('.')]
    """
    assert asked(fortress, body, ["hello", [0, 1, 4, 9, 16], 7, 2, ["note.txt"]])


def test_numpy_scalars_count_by_their_value_where_numpy_is_there(grader):
    pytest.importorskip("numpy")
    body = "import numpy\nreturn [numpy.int64(3), numpy.float64(2.5), numpy.bool_(True), numpy.float32(0.5)]"
    assert asked(grader, body, [3, 2.5, True, 0.5])


def test_nothing_of_the_environment_reaches_an_answer(monkeypatch):
    monkeypatch.setenv("VGROUT_SECRET", "42")
    with Grader(workers=1) as grader:
        assert asked(grader, "return [os.environ.get('VGROUT_SECRET'), 'VGROUT' in repr(os.environ)]", [None, False])


def test_an_endless_loop_is_stopped_by_its_cpu_time(patient):
    grade = patient.grade(fenced("while True:\n    pass"), problem())
    assert (grade.stopped, grade.reward, grade.error) == ("cpu", 0.5, None)
    assert 0.2 <= grade.cpu_seconds < 1.0


def test_a_sleeper_is_stopped_by_the_wall_clock(walled):
    started = time.monotonic()
    grade = walled.grade(fenced("import time\ntime.sleep(1000)"), problem())
    assert (grade.stopped, grade.reward, grade.error) == ("wall", 0.5, None)
    assert time.monotonic() - started < QUICK.wall_seconds + 5


def test_a_sleeper_is_told_by_its_idleness_long_before_the_wall_limit():
    with Grader(workers=1, limits=Limits(idle_seconds=0.5)) as grader:
        started = time.monotonic()
        grade = grader.grade(fenced("import time\ntime.sleep(1000)"), problem())
    assert (grade.stopped, grade.reward, grade.error) == ("idle", 0.5, None)
    assert time.monotonic() - started < 20


def test_a_hanging_answer_keeps_the_values_that_came_before(patient):
    code = CORRECT + "    def run_tests(self):\n        while True:\n            pass\n"
    grade = patient.grade(fenced(code), problem())
    assert (grade.correct, grade.hacked, grade.stopped) == (True, False, "cpu")


def test_double_forks_and_new_sessions_do_not_survive(walled):
    code = """
        import time
        for _ in range(3):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(1000)
                os._exit(0)
    """
    assert walled.grade(fenced(CORRECT), problem()).correct
    server = walled.workers[0].process_id
    before = descendants(server)
    assert walled.grade(fenced(textwrap.dedent(code) + CORRECT), problem()).correct
    assert descendants(server) == before


def test_a_fork_bomb_is_contained(fortress):
    code = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    server = fortress.workers[0].process_id
    before = descendants(server)
    grade = fortress.grade(fenced(code), problem())
    assert grade.stopped in ("cpu", "wall") and grade.error is None
    assert descendants(server) == before
    assert fortress.grade(fenced(CORRECT), problem()).correct


def test_a_memory_bomb_ends_alone(walled):
    bomb = "blocks = [bytearray(1 << 30) for _ in range(64)]\n"
    grade = walled.grade(fenced(CORRECT + bomb), problem())
    assert (grade.correct, grade.stopped, grade.error) == (True, None, None)  # the allocation fails, the class is there
    grade = walled.grade(
        fenced("class Solution:\n    def total(self, x):\n        return [0] * (1 << 34)\n"), problem()
    )
    assert (grade.correct, grade.stopped, grade.error) == (False, None, None)


@pytest.mark.parametrize(
    "flood",
    [
        "import os\nchunk = b'x' * (1 << 20)\nfor _ in range(200):\n    os.write(1, chunk)\n",
        "import os\nchunk = b'x' * (1 << 20)\nfor fd in range(3, 128):\n    try:\n"
        "        for _ in range(200):\n            os.write(fd, chunk)\n    except OSError:\n        pass\n",
    ],
    ids=["on stdout", "on every descriptor"],
)
def test_a_flood_does_not_fill_the_memory_of_the_grader(walled, flood):
    walled.grade(fenced(CORRECT), problem())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grade = walled.grade(fenced(flood + CORRECT), problem("stdout_marker"))
    assert (grade.error, grade.hacked) == (None, False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert walled.grade(fenced(CORRECT), problem()).correct


LITTER = """
    import os
    deep = os.getcwd()
    for _ in range(400):
        os.mkdir('d' * 60)
        os.chdir('d' * 60)
    os.chdir(deep)
    os.mkfifo('pipe')
    os.symlink('/', 'root')
    os.symlink('loop', 'loop')
    os.mkdir('locked')
    open('locked/file', 'w').write('x')
    os.chmod('locked/file', 0)
    os.chmod('locked', 0)
    os.mkdir('sticky', 0o1000)
    for i in range(300):
        open(f'file{i}', 'w').close()
    open('-rf *', 'w').close()
    os.mkdir(b'\\xff\\xfe')
"""


def test_litter_of_every_kind_is_gone_for_the_next_answer(walled):
    assert walled.grade(fenced(textwrap.dedent(LITTER) + CORRECT), problem()).correct
    assert asked(walled, "return os.listdir('.')", [])


def test_emptying_a_folder_leaves_the_targets_of_links_alone(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "keep").write_text("x")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(tmp_path / "outside")
    (inside / "locked").mkdir()
    (inside / "locked" / "link").symlink_to(tmp_path / "outside" / "keep")
    (inside / "locked").chmod(0)
    assert empty_folder(str(inside))
    assert list(inside.iterdir()) == []
    assert (tmp_path / "outside" / "keep").read_text() == "x"


SABOTAGE = """
    import builtins, sys, math, json, random, os, gc, signal
    builtins.len = lambda _: 0
    builtins.sorted = builtins.isinstance = builtins.type = None
    math.sqrt = lambda _: 3
    json.dumps = lambda _: 'true'
    sys.modules['random'] = None
    sys.setrecursionlimit(60)
    os.write = lambda *_: 0
    open('left behind', 'w').write('answer')
    os.environ['LEFT'] = 'behind'
    os.umask(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    gc.disable()
"""


def test_no_state_reaches_the_next_answer(walled):
    walled.grade(fenced(textwrap.dedent(SABOTAGE) + CORRECT), problem())
    body = """
        import math, random, json, gc, signal
        return [len([1, 2]), sorted([2, 1]), math.sqrt(16), json.dumps(1), random.random() < 1, os.listdir('.'),
                os.environ.get('LEFT'), sys.getrecursionlimit() > 500, gc.isenabled(),
                signal.getsignal(signal.SIGTERM) == signal.SIG_DFL]
    """
    assert asked(walled, body, [2, [1, 2], 4.0, "1", True, [], None, True, True, True])


def test_random_numbers_and_hashes_are_reproducible():
    body = "import random\nreturn [random.random() < {cut}, hash('a') % 1000 < 1000 * {cut}]"
    runs = []
    for _ in range(2):
        with Grader(workers=1) as grader:
            runs.append([asked(grader, body.format(cut=i / 16), [True, True]) for i in range(17)])
    assert runs[0] == runs[1]
    assert runs[0][0] is False and runs[0][16] is True


def test_landlock_is_reported_where_the_kernel_has_it():
    try:
        version = landlock.version()
    except OSError:
        pytest.skip("this kernel has no Landlock")
    assert version >= 1
    with Grader(workers=1, avoid=("namespaces",)) as grader:
        assert grader.isolation["landlock"] is True
        assert grader.isolation["tier"] == "confined"
        assert asked(grader, REFUSED.format(attempt=f"open({__file__!r})", error="PermissionError"), "refused")
        assert asked(grader, REFUSED.format(attempt="os.listdir('/')", error="PermissionError"), "refused")
