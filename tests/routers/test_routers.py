"""Every router answers with routes; label-free ones never see a label."""

import pytest
import torch

from vgrout_pl.adapters import Route
from vgrout_pl.env import Grade
from vgrout_pl.routers import Absorb, LabelsUsed, NoRouting, Oracle, Router
from vgrout_pl.types import Labels, Rollouts


def window(n=4):
    return Rollouts(
        step=0,
        group_size=2,
        problem_ids=[str(i) for i in range(n)],
        modes=["run_tests"] * n,
        markers=["run_tests"] * n,
        prompts=[""] * n,
        completions=[""] * n,
        prompt_ids=torch.zeros(n, 3, dtype=torch.long),
        prompt_mask=torch.ones(n, 3, dtype=torch.bool),
        completion_ids=torch.zeros(n, 2, dtype=torch.long),
        completion_mask=torch.ones(n, 2, dtype=torch.bool),
        ablated=torch.zeros(n, dtype=torch.bool),
    )


LABELS = Labels.from_grades([Grade(hacked=True, channel=True), Grade(correct=True), Grade(), Grade(hacked=True)])


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        (NoRouting(), [Route.NONE] * 4),
        (Absorb(), [Route.ABSORB] * 4),
        (Oracle(), [Route.ROUTE, Route.KEEP, Route.KEEP, Route.ROUTE]),
        (Oracle(rest="absorb"), [Route.ROUTE, Route.ABSORB, Route.ABSORB, Route.ROUTE]),
    ],
)
def test_routes_by_hand(router, expected):
    assert router.assign(window(), LABELS).tolist() == [int(route) for route in expected]


class Spy(Router):
    def __init__(self, routes=(1, 1, 1, 1)):
        self.routes, self.seen = torch.tensor(routes), []

    def route(self, rollouts, labels):
        self.seen.append(labels)
        return self.routes


class OracleSpy(Spy):
    labels_used = LabelsUsed.ORACLE


def test_a_label_free_router_is_given_no_labels_and_an_oracle_is():
    free, oracle = Spy(), OracleSpy()
    free.assign(window(), LABELS)
    oracle.assign(window(), LABELS)
    assert free.seen == [None]
    assert oracle.seen == [LABELS]


def test_nothing_in_the_rollouts_that_a_router_sees_holds_a_label():
    held = {type(value).__name__ for value in vars(window()).values()}
    assert "Labels" not in held
    assert "Grade" not in held
    assert not {"hacked", "correct", "grades", "labels"} & set(vars(window()))


@pytest.mark.parametrize("routes", [(1, 1), (1, 1, 1, 7)])
def test_wrong_routes_are_refused_in_one_line(routes):
    with pytest.raises(ValueError, match=r"Spy.route: expected 4 routes") as caught:
        Spy(routes).assign(window(), LABELS)
    assert "\n" not in str(caught.value)
