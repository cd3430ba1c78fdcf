from __future__ import annotations

import pytest
from env_answers import fenced

from vgrout_pl.env import Grader, Limits, Problem
from vgrout_pl.env.sandbox.server import _begun

IMPORTS = frozenset({"math", "os", "os.path", "collections"})


def problem(setup: str, *tests: str) -> Problem:
    return Problem(id="setup", tests=tests or ("assert f(4) == 2",), setup_code=setup, mode="gt_only")


def test_leading_imports_are_done_ahead_and_the_rest_is_left():
    main, rest = _begun("import math\nfrom collections import *\nfrom os import path as p\nx = 3\nimport os\n", IMPORTS)
    names = main.__dict__
    assert names["math"].sqrt(4) == 2 and names["deque"](maxlen=1).maxlen == 1 and names["p"].sep == "/"
    assert "x" not in names and "os" not in names
    exec(rest, names)
    assert names["x"] == 3 and names["os"].sep == "/"


@pytest.mark.parametrize(
    "first",
    [
        "from __future__ import annotations",
        "import subprocess",
        "import math, subprocess",
        "from . import math",
        "'a docstring'",
        "if True:\n    import math",
    ],
)
def test_nothing_is_done_ahead_but_imports_of_what_the_server_imports(first):
    main, rest = _begun(f"{first}\nimport os\n", IMPORTS)
    assert main.__dict__.keys() <= {"__name__", "__doc__", "__package__", "__loader__", "__spec__", "__builtins__"}
    assert "os" in rest.co_names


def test_an_import_that_fails_is_left_to_the_answers_process(grader):
    main, rest = _begun("import math\nfrom math import nothing_of_that_name\n", IMPORTS)
    assert "math" not in main.__dict__ and "math" in rest.co_names
    grade = grader.grade(fenced("def f(x): return 2"), problem("import math\nfrom math import nothing_of_that_name"))
    assert grade.error is not None and "nothing_of_that_name" in grade.error


def test_the_future_of_set_up_code_is_kept(grader):
    setup = "from __future__ import annotations\nfrom math import *\ndef g(x: Nowhere): return sqrt(x)\n"
    assert grader.grade(fenced("def f(x): return g(x)"), problem(setup)).correct


def test_code_behind_the_imports_runs_in_each_answers_own_process(grader):
    setup = (
        "import os\nimport collections\nHOME = os.getpid()\ncollections.marks = getattr(collections, 'marks', 0) + 1\n"
    )
    answer = fenced("def f(x): return [os.getpid() == HOME, collections.marks]")
    grades = grader.grade_batch([(answer, problem(setup, "assert f(0) == [True, 1]"))] * 6)
    assert all(grade.correct for grade in grades)


def test_what_an_answer_does_to_imported_names_is_gone_with_it():
    setup = "import math\nfrom math import *\nimport builtins\n"
    spoil = "math.sqrt = builtins.sum = lambda *a: 2\nglobals().pop('floor')\ndef f(x): return 2"
    use = "def f(x): return floor(math.sqrt(x)) + sum([]) + builtins.sum([])"
    with Grader(workers=1, limits=Limits(wall_seconds=20)) as grader:
        grades = [grader.grade(fenced(code), problem(setup)) for code in (use, spoil, use, spoil, use)]
    assert [grade.correct for grade in grades] == [True] * 5


def test_the_builtins_that_set_up_code_imports_are_the_answers_own_copy(grader):
    setup = "import builtins\n"
    answer = "import sys\ndef f(x): return 2 if builtins is __builtins__ and builtins is sys.modules['builtins'] else 0"
    assert grader.grade(fenced(answer), problem(setup)).correct
