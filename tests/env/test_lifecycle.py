from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from env_answers import CORRECT, SETUP, TESTS, WRONG, fenced, problem

from vgrout_pl.env import Grader, GraderError, Limits, Problem
from vgrout_pl.env.sandbox.cleanup import descendants


def tree(grader: Grader) -> set[int]:
    """Ids of a grader's fork-servers and of everything below them."""
    roots = {worker.process_id for worker in grader.workers}
    return roots.union(*(descendants(root) for root in roots))


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_the_order_of_a_batch_is_kept(grader):
    texts = [fenced(CORRECT), fenced(WRONG), "no code at all", fenced("syntax error here")] * 8
    grades = grader.grade_batch([(text, problem()) for text in texts])
    assert [grade.reward for grade in grades] == [3.5, 0.5, 0.0, 0.0] * 8
    assert [grade.format_ok for grade in grades] == [True, True, False, True] * 8


def test_closing_leaves_no_process_and_no_folder():
    with Grader(workers=2) as grader:
        grader.grade_batch([(fenced(CORRECT), problem())] * 4)
        pids, bases = tree(grader), [Path(worker.base) for worker in grader.workers]
        assert len(pids) == 4  # outer and inner process of each
        assert all(base.is_dir() for base in bases)
    assert wait_until(lambda: not alive(pids))
    assert not any(base.exists() for base in bases)


def test_a_grader_that_is_dropped_closes_itself():
    grader = Grader(workers=1)
    assert grader.grade(fenced(CORRECT), problem()).correct
    pids = tree(grader)
    assert alive(pids) == pids
    del grader
    gc.collect()
    assert wait_until(lambda: not alive(pids))


def test_a_closed_grader_starts_again_on_demand():
    grader = Grader(workers=1)
    assert grader.grade(fenced(CORRECT), problem()).correct
    grader.close()
    grader.close()
    assert grader.grade(fenced(CORRECT), problem()).correct
    grader.close()


def test_no_process_survives_a_killed_parent():
    code = (
        "import sys, json; sys.path[:0] = [sys.argv[1]]\n"
        "from env_answers import *\nfrom test_lifecycle import tree\nfrom vgrout_pl.env import Grader\n"
        "g = Grader(workers=2); g.grade_batch([(fenced(CORRECT), problem())] * 4)\n"
        "print(json.dumps([sorted(tree(g)), [worker.base for worker in g.workers]]), flush=True)\n"
        "g.grade(fenced('import time; time.sleep(100)'), problem())\n"
    )
    here = str(Path(__file__).parent)
    parent = subprocess.Popen([sys.executable, "-c", code, here], stdout=subprocess.PIPE, text=True)
    pids, bases = json.loads(parent.stdout.readline())
    pids = set(pids)
    time.sleep(0.3)
    pids |= set(descendants(parent.pid))
    assert len(alive(pids)) == 5  # with the sleeping answer
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not alive(pids))
    assert wait_until(lambda: not any(Path(base).exists() for base in bases))


def test_a_forked_copy_of_the_process_leaves_the_servers_alone():
    with Grader(workers=1) as grader:
        grader.grade(fenced(CORRECT), problem())
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if grader.grade(fenced(CORRECT), problem()).correct else 2
                grader.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert grader.grade(fenced(CORRECT), problem()).correct


def test_grading_from_several_threads_gives_each_its_own_grades(grader):
    results = {}

    def work(name, text, wanted):
        results[name] = all(grader.grade(text, problem()).correct is wanted for _ in range(5))

    threads = [
        threading.Thread(target=work, args=(i, fenced(CORRECT if i % 2 else WRONG), bool(i % 2))) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == dict.fromkeys(range(6), True)


def test_a_server_that_dies_is_replaced_and_the_answer_graded():
    with Grader(workers=1) as grader:
        grader.grade(fenced(CORRECT), problem())
        grader.workers[0]._process.kill()
        grades = grader.grade_batch([(fenced(CORRECT), problem()), (fenced(WRONG), problem())])
        assert [grade.correct for grade in grades] == [True, False]
        assert grader.errors == 0


def test_an_exception_amid_a_batch_does_not_shift_the_next_one(monkeypatch):
    with Grader(workers=1) as grader:
        grader.grade(fenced(CORRECT), problem())
        collect = grader._crew._collect

        def interrupted(*args):
            monkeypatch.setattr(grader._crew, "_collect", collect)
            raise KeyboardInterrupt

        monkeypatch.setattr(grader._crew, "_collect", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grader.grade_batch([(fenced(WRONG), problem())] * 3)
        assert grader.grade(fenced(CORRECT), problem()).correct


def test_failing_set_up_code_is_an_error_of_the_grader_and_fatal_above_the_share():
    broken = Problem(id="broken", tests=TESTS, setup_code="import no_such_module_at_all")
    with Grader(workers=1, max_error_share=0.5) as grader:
        grade = grader.grade(fenced(CORRECT), broken)
        assert grade.error is not None and "no_such_module_at_all" in grade.error
        assert (grade.reward, grade.correct, grade.hacked) == (0.0, False, False)
        with pytest.raises(GraderError, match="at most 50%"):
            grader.grade_batch([(fenced(CORRECT), broken)] * 10)
        assert grader.errors == 11


def test_strict_refuses_a_weaker_machine():
    weak = Grader(workers=1, strict="namespaces", avoid=("namespaces", "landlock"))
    with weak, pytest.raises(GraderError, match="expected isolation of tier 'namespaces'"):
        weak.grade(fenced(CORRECT), problem())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers >= 1"),
        ({"strict": "very"}, "strict out of"),
        ({"avoid": ("gravity",)}, "avoid out of"),
        ({"max_error_share": 2.0}, "max_error_share in"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Grader(**arguments)
    with pytest.raises(ValueError, match=r"cpu_seconds >= 0\.1"):
        Limits(cpu_seconds=0)


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ((), "at least one test"),
        (("x = 1",), "one statement"),
        (("assert Solution().total([1]) ==",), "syntax error"),
        (("assert 1 == 2",), "expected a call of the answer"),
        (("assert Solution().total([1]) != 2",), "expected `assert CALL == EXPR`"),
        (("assert abs(Solution().total([1]) - 1.5) < 1e-6",), "expected `assert CALL == EXPR`"),
        (("assert Solution().total([1]) == Solution().total([1])",), "may not depend on the answer"),
        (("assert same(Solution().total([1]), [3])",), "inside the answer's process"),
        (("assert same(Solution().total([1]), [3]) == True",), "inside the answer's process"),
        (("assert Solution().total([1]) == float('nan')",), "could be judged"),
    ],
)
def test_tests_that_cannot_be_judged_are_refused(grader, tests, message):
    bad = Problem(id="bad", tests=tests, setup_code=SETUP)
    if message == "could be judged":
        assert "no plain value" in grader.grade(fenced(CORRECT), bad).error
        return
    with pytest.raises(ValueError, match=f"problem 'bad': .*{message}"):
        grader.grade(fenced(CORRECT), bad)


def test_the_answer_may_be_bytes_and_nothing_else(grader):
    assert grader.grade(fenced(CORRECT).encode(), problem()).correct
    assert not grader.grade(b"```python\n\xff\xfe\n```", problem()).compiles
    with pytest.raises(ValueError, match="completion as text; got NoneType"):
        grader.grade(None, problem())


def test_importing_the_environment_is_light():
    code = (
        "import time; start = time.process_time(); import vgrout_pl.env, sys, json\n"
        "heavy = [m for m in ('torch', 'transformers', 'datasets', 'numpy', 'lightning') if m in sys.modules]\n"
        "print(json.dumps([time.process_time() - start, heavy]))"
    )
    seconds, heavy = json.loads(subprocess.check_output([sys.executable, "-c", code]))
    assert heavy == []
    assert seconds < 0.5


def test_a_process_with_torch_threads_can_start_a_grader():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torch; torch.set_num_threads(2); (torch.ones(300, 300) @ torch.ones(300, 300)).sum()\n"
        "from env_answers import *\nfrom vgrout_pl.env import Grader\n"
        "print(Grader(workers=1).grade(fenced(CORRECT), problem()).reward)\n"
    )
    output = subprocess.check_output([sys.executable, "-c", code, str(Path(__file__).parent)], text=True, timeout=120)
    assert output.strip() == "3.5"


NODES = """
class ListNode:
    def __init__(self, val=0, next=None):
        self.val, self.next = val, next
def list_node(values):
    head = None
    for value in reversed(values):
        head = ListNode(value, head)
    return head
def is_same_list(a, b):
    return a is b or (a is not None and b is not None and a.val == b.val and is_same_list(a.next, b.next))
class TreeNode:
    def __init__(self, val=0, left=None, right=None):
        self.val, self.left, self.right = val, left, right
def is_same_tree(a, b):
    return a is b or (a and b and a.val == b.val and is_same_tree(a.left, b.left) and is_same_tree(a.right, b.right))
"""
LIST_TESTS = [
    "assert is_same_list(Solution().tail(list_node([1, 2, 3])), list_node([2, 3]))",
    "assert is_same_list(Solution().tail(list_node([7])), list_node([]))",
    "assert is_same_list(list_node(list(range(1, 3000))), Solution().tail(list_node(list(range(3000)))))",
]
TREE_TESTS = ["assert is_same_tree(Solution().grow(2), TreeNode(2, TreeNode(1), TreeNode(1, None, TreeNode(0))))"]
TAIL = "class Solution:\n    def tail(self, head):\n        return {}\n"
GROW = "class Solution:\n    def grow(self, n):\n        return TreeNode(2, TreeNode(1), {})\n"
OWN_NODE = (
    "class ListNode:\n    def __init__(self, val=0, next=None):\n        self.val = val\n        self.next = next\n"
)
LIAR = "class ListNode:\n    val = next = None\n    def __eq__(self, other):\n        return True\n"


@pytest.mark.parametrize(
    ("tests", "code", "correct"),
    [
        (LIST_TESTS, TAIL.format("head.next"), True),
        (LIST_TESTS, OWN_NODE + TAIL.format("head.next"), True),
        (LIST_TESTS, TAIL.format("head"), False),
        (LIST_TESTS, TAIL.format("None"), False),
        (LIST_TESTS, TAIL.format("[2, 3]"), False),
        (LIST_TESTS, "is_same_list = lambda *_: True\n" + TAIL.format("head"), False),
        (LIST_TESTS, "list_node = lambda _: None\n" + TAIL.format("None"), False),
        (LIST_TESTS, LIAR + TAIL.format("ListNode()"), False),
        (
            LIST_TESTS,
            "class Solution:\n    def tail(self, head):\n        head.next = head\n        return head\n",
            False,
        ),
        (TREE_TESTS, GROW.format("TreeNode(1, None, TreeNode(0))"), True),
        (TREE_TESTS, GROW.format("TreeNode(1, TreeNode(0), None)"), False),
        (TREE_TESTS, GROW.format("TreeNode(1)"), False),
        (TREE_TESTS, "is_same_tree = lambda *_: True\n" + GROW.format("None"), False),
    ],
)
def test_linked_structures_are_compared_outside_of_the_answer(grader, tests, code, correct):
    grade = grader.grade(fenced(code), Problem(id="nodes", tests=tests, setup_code=NODES, mode="gt_only"))
    assert (grade.correct, grade.error) == (correct, None)


def test_a_comparison_of_nodes_is_refused_where_the_set_up_code_has_none(grader):
    with pytest.raises(ValueError, match="inside the answer's process"):
        grader.grade(fenced(CORRECT), Problem(id="nodes", tests=LIST_TESTS, setup_code=SETUP))
