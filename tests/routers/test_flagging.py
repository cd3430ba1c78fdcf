"""Routers that flag rows: the share and the rows are those that were asked for, the same at every replay."""

import math
from types import SimpleNamespace

import pytest
import torch

from tests.loop.policy_support import tiny_policy
from tests.routers.support import rollouts_of
from vgrout_pl.adapters import Route, block_delta_norms
from vgrout_pl.env import Grade
from vgrout_pl.routers import LabelsUsed, NoneMatched, Oracle, RandomShare, Regex, Shrinkage
from vgrout_pl.types import Labels


def window(n=400, step=0, **options):
    return rollouts_of([[1, 2]] * n, [[3]] * n, step=step, **options)


HACKED = torch.arange(400) < 100
LABELS = Labels.from_grades([Grade(hacked=bool(hacked), channel=bool(hacked)) for hacked in HACKED])


def routed(router, step=0, labels=LABELS, **options):
    return router.assign(window(step=step, **options), labels) == Route.ROUTE


def within(count, n, share):
    """Within four standard deviations of a binomial count."""
    return abs(count - n * share) <= 4 * math.sqrt(n * share * (1 - share))


def test_an_oracle_misses_and_mistakes_the_shares_that_were_asked_for():
    router = Oracle(recall=0.5, false_route_rate=0.1)
    assert router.labels_used is LabelsUsed.NOISY
    assert Oracle().labels_used is LabelsUsed.ORACLE
    hits = [routed(router, step) for step in range(4)]
    assert within(sum(int((hit & HACKED).sum()) for hit in hits), 400, 0.5)
    assert within(sum(int((hit & ~HACKED).sum()) for hit in hits), 1200, 0.1)
    assert torch.equal(routed(Oracle(recall=0.5, false_route_rate=0.1), 2), hits[2])
    assert not torch.equal(hits[0], hits[1])
    assert torch.equal(routed(Oracle()), HACKED)


def test_an_oracle_on_the_channel_routes_right_answers_that_use_the_loophole_as_well():
    both = Grade(correct=True, channel=True)
    labels = Labels.from_grades([both, Grade(hacked=True, channel=True), Grade(correct=True), Grade()])
    assert routed(Oracle(label="channel"), labels=labels, n=4).tolist() == [True, True, False, False]
    assert routed(Oracle(), labels=labels, n=4).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match=r"router.label: expected hacked \| channel; got 'solve'"):
        Oracle(label="solve")


def test_the_noise_depends_on_the_seed():
    first, other = Oracle(recall=0.5), Oracle(recall=0.5)
    other.seed = 1
    assert not torch.equal(routed(first), routed(other))


@pytest.mark.parametrize("kind", [lambda: RandomShare(share=0.3), lambda: Oracle(recall=0.5, false_route_rate=0.5)])
def test_two_processes_flag_what_one_would(kind):
    routers = [kind() for _ in range(2)]
    for rank, router in enumerate(routers):
        router.rank, router.world_size = rank, 2
    halves = [Labels.from_grades(LABELS.grades[rank * 200 :][:200]) for rank in range(2)]
    parts = [routed(router, 3, labels, n=200) for router, labels in zip(routers, halves, strict=True)]
    assert not torch.equal(*parts)
    assert torch.equal(torch.cat(parts), routed(kind(), 3))


def test_a_random_share_is_met_exactly_on_average_and_knows_nothing():
    exact = [int(routed(RandomShare(share=0.25), step).sum()) for step in range(3)]
    assert exact == [100, 100, 100]
    rounded = [
        int((RandomShare(share=0.03).assign(window(10, step), None) == Route.ROUTE).sum()) for step in range(400)
    ]
    assert set(rounded) == {0, 1}
    assert within(sum(rounded), 400, 0.3)
    assert within(int((routed(RandomShare(share=0.25)) & HACKED).sum()), 100, 0.25)
    assert int(routed(RandomShare(share=0.0)).sum()) == 0
    assert int(routed(RandomShare(share=1.0)).sum()) == 400


def test_a_random_share_follows_another_run_step_by_step(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,route/route_fraction\n0,0.5\n1,0.1\n2,nan\n")
    router = RandomShare(matched=str(tmp_path))
    assert [int(routed(router, step).sum()) for step in (0, 1, 7)] == [200, 40, 120]
    with pytest.raises(ValueError, match="could not read"):
        RandomShare(matched=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="either share or matched"):
        RandomShare()


def test_the_regex_reads_the_text_and_the_lever_of_each_rows_own_prompt():
    texts = ["def run_tests(): pass", "def check(): pass", "def run_tests(): pass", "run_tests()"]
    rollouts = window(4, texts=texts, modes=["run_tests", "run_tests", "gt_only", "run_tests"])
    routes = Regex(rest="absorb").assign(rollouts, LABELS)
    assert routes.tolist() == [Route.ROUTE, Route.ABSORB, Route.ABSORB, Route.ABSORB]
    rollouts.markers = ["other", "check", None, None]
    assert Regex().assign(rollouts, LABELS).tolist() == [Route.KEEP, Route.ROUTE, Route.KEEP, Route.KEEP]
    rollouts = window(4, texts=["def run_tests(): pass"] * 4, modes=["run_tests"] * 4)
    assert Regex(modes=["sentinel", "run_tests"]).assign(rollouts, LABELS).tolist() == [Route.ROUTE] * 4
    assert Regex(modes=["sentinel"]).assign(rollouts, LABELS).tolist() == [Route.KEEP] * 4
    with pytest.raises(ValueError, match=r"router.modes: expected some of .*; got \['gt_only'\]"):
        Regex(modes=["gt_only"])


@pytest.mark.parametrize("make", [Oracle, Regex, lambda rest: RandomShare(share=0.5, rest=rest)])
def test_the_rest_is_kept_or_absorbed(make):
    for rest, route in (("keep", Route.KEEP), ("absorb", Route.ABSORB)):
        router = make(rest=rest)
        assert set(router.assign(window(), LABELS).tolist()) <= {int(route), int(Route.ROUTE)}
        assert router.gives == (route, Route.ROUTE)
    with pytest.raises(ValueError, match=r"keep \| absorb"):
        make(rest="none")


def test_none_matched_keeps_every_row():
    assert set(NoneMatched().assign(window(), LABELS).tolist()) == {int(Route.KEEP)}
    assert not NoneMatched.ships_quarantine


def test_shrinkage_ships_a_smaller_update_and_leaves_the_one_as_trained():
    policy = tiny_policy()
    before = block_delta_norms(policy)
    ids = torch.tensor([[1, 2, 3, 4]])
    whole = policy(input_ids=ids).logits
    module = SimpleNamespace(states={})
    router = Shrinkage(share=0.25)
    router.setup(None, module, "fit")
    with module.states["deployed"](policy):
        after = block_delta_norms(policy)
        assert not torch.allclose(policy(input_ids=ids).logits, whole)
    assert after == {block: pytest.approx(0.75 * norm) for block, norm in before.items()}
    assert torch.equal(policy(input_ids=ids).logits, whole)
    with Shrinkage(share=1.0).shipped(policy), torch.no_grad():
        gone = policy(input_ids=ids).logits
    with torch.no_grad(), policy.disable_adapter():
        torch.testing.assert_close(gone, policy(input_ids=ids).logits)
    assert (router.ships_quarantine, router.ships_as_trained) == (True, False)


def test_shrinkage_takes_the_mean_quarantine_share_of_another_run(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,quarantine/grad_share\n0,0.2\n1,0.4\n")
    assert Shrinkage(matched=str(tmp_path)).share == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"share in \[0, 1\]"):
        Shrinkage(share=1.5)
