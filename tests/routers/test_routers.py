"""Every router answers with routes; label-free ones never see a label."""

import pytest
import torch

from tests.routers.support import rollouts_of
from vgrout_pl.adapters import Route
from vgrout_pl.env import Grade
from vgrout_pl.routers import Absorb, LabelsUsed, NoRouting, Oracle, Router
from vgrout_pl.types import Labels, WindowObserver


def window(n=4, **options):
    return rollouts_of([[1, 2, 3]] * n, [[4, 5]] * n, **options)


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
        self.rollouts = rollouts
        return self.routes


class OracleSpy(Spy):
    labels_used = LabelsUsed.ORACLE


def test_a_label_free_router_is_given_no_labels_and_an_oracle_is():
    free, oracle = Spy(), OracleSpy()
    free.assign(window(), LABELS)
    oracle.assign(window(), LABELS)
    assert free.seen == [None]
    assert oracle.seen == [LABELS]


def test_a_label_free_router_is_given_no_rewards_either():
    free, oracle, rollouts = Spy(), OracleSpy(), window()
    rollouts.reward_parts = {"environment": rollouts.rewards}
    rollouts.teacher, rollouts.redrawn = torch.tensor([True, False] * 2), torch.tensor([True, True, False, False])
    free.assign(rollouts, LABELS)
    oracle.assign(rollouts, LABELS)
    assert free.rollouts.rewards.isnan().all()
    assert free.rollouts.advantages.isnan().all()
    assert free.rollouts.reward_parts == {}
    assert not free.rollouts.teacher.any(), "the first teacher rows of a group are hacks"
    assert not free.rollouts.redrawn.any(), "a group is drawn again where its rewards are equal"
    assert oracle.rollouts is rollouts
    assert rollouts.rewards.tolist() == [0, 1, 2, 3], "the window itself is left alone"


def test_a_router_that_observes_windows_is_refused():
    with pytest.raises(ValueError, match="WindowObserver as well"):

        class Peeping(WindowObserver, Router):
            pass


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
