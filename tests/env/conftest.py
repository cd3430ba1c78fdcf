from __future__ import annotations

import pytest

from vgrout_pl.env import Grader


@pytest.fixture(scope="session")
def grader():
    with Grader(workers=2) as grader:
        yield grader
