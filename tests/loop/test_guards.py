"""The guard: rules on planted series, then each of them provoked in a real run."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.loop.conftest import SMALL
from vgrout_pl.adapters import Route
from vgrout_pl.callbacks import DivergenceGuard
from vgrout_pl.callbacks.guard import nonfinite_losses, nonfinite_rows
from vgrout_pl.callbacks.guard_rules import DeadGroups, GateStarvation, NoEmergence, OverRouting
from vgrout_pl.callbacks.guard_runaway import Runaway, Surge
from vgrout_pl.callbacks.guard_watch import Watch
from vgrout_pl.module import GRPOModule
from vgrout_pl.routers import Absorb, LabelsUsed, Router
from vgrout_pl.types import Rollouts

HEALTHY = {"sampling/logprob": -0.3, "grad_norm": 0.1, "kl": 0.4}
RUNNING = {"sampling/logprob": -0.7, "grad_norm": 0.5, "kl": 0.9}


def findings(rule, series, watch=None):
    watch = watch or Watch(rule)
    found = (watch.observe(step, metrics) for step, metrics in enumerate(series))
    return [finding for finding in found if finding]


# ---------------------------------------------------------------- the runaway rule


def test_a_single_spike_of_everything_heals():
    spike = {"sampling/logprob": -5.0, "grad_norm": 100.0, "kl": 690.0}
    assert findings(Runaway(), [*[HEALTHY] * 10, spike, *[HEALTHY] * 3, spike, HEALTHY, spike, *[HEALTHY] * 10]) == []


def test_two_steps_in_a_row_are_a_runaway_found_once():
    (found,) = findings(Runaway(), [*[HEALTHY] * 10, *[RUNNING] * 8])
    assert (found.rule, found.action, found.since, found.step) == ("runaway", "stop", 10, 11)
    assert found.values == RUNNING
    assert "mean log-probability -0.7 (usually -0.3), KL 0.9 (usually 0.4), gradient norm 0.5" in found.happened


def surging(kl, norm):
    return [{"kl": k, "grad_norm": g} for k, g in zip(kl, norm, strict=True)]


def test_a_divergence_that_multiplies_with_the_gradient_is_found_at_its_third_step():
    calm = surging([0.5] * 20, [0.1] * 20)
    (found,) = findings(Surge(), [*calm, *surging([1.2, 5.5, 60.0], [0.2, 0.42, 0.9])])
    assert (found.rule, found.action, found.step) == ("surge", "warn", 21)
    assert "KL 0.5, 1.2, 5.5 and gradient norm 0.1, 0.2, 0.42" in found.happened


@pytest.mark.parametrize(
    ("kl", "norm"),
    [
        ([0.5, 690.0, 0.6], [0.1, 5.0, 0.1]),  # a spike from one step to the next
        ([1.2, 4.9, 9.0], [0.2, 0.4, 0.9]),  # not ten times the usual where both grow twice
        ([1.2, 5.5, 60.0], [0.2, 0.2, 0.9]),  # the gradient does not go with it
        ([1.2, 2.3, 60.0], [0.2, 0.4, 0.9]),  # not twice in a row
        ([1.2, 37.0, 0.9], [0.16, 0.26, 0.1]),  # a gradient within its usual range, as in a run that went on unharmed
    ],
)
def test_what_is_no_surge(kl, norm):
    assert findings(Surge(), [*surging([0.5] * 20, [0.1] * 20), *surging(kl, norm)]) == []


def test_a_surge_waits_for_healthy_steps_and_passes_over_steps_without_a_divergence():
    rise = surging([1.2, 5.5, 60.0], [0.2, 0.4, 0.9])
    assert findings(Surge(), [*surging([0.5] * 16, [0.1] * 16), *rise]) == []
    unmeasured = {"grad_norm": 0.1}
    assert findings(Surge(), [*surging([0.5] * 20, [0.1] * 20), unmeasured, rise[0], unmeasured, *rise[1:]])


@pytest.mark.parametrize(
    ("changed", "trips"),
    [
        ({"sampling/logprob": -0.59}, False),
        ({"sampling/logprob": -0.61}, True),
        ({"grad_norm": 0.41, "kl": 0.4}, True),
        ({"grad_norm": 0.39, "kl": 0.4}, False),
        ({"grad_norm": 0.1, "kl": 0.81}, True),
        ({"grad_norm": 0.1, "kl": 0.79}, False),
        ({"grad_norm": 0.1, "kl": math.inf}, True),
    ],
)
def test_a_runaway_needs_low_log_probability_and_one_of_the_others(changed, trips):
    assert bool(findings(Runaway(), [*[HEALTHY] * 10, *[RUNNING | changed] * 3])) == trips


def test_a_run_that_is_used_to_low_log_probabilities_is_compared_with_itself():
    hot = HEALTHY | {"sampling/logprob": -1.0}
    assert not findings(Runaway(), [*[hot] * 10, *[RUNNING | {"sampling/logprob": -1.4}] * 5])
    assert findings(Runaway(), [*[hot] * 10, *[RUNNING | {"sampling/logprob": -1.6}] * 5])


def test_a_slow_healthy_drift_is_followed():
    drift = [
        {"sampling/logprob": -0.3 - 0.004 * i, "grad_norm": 0.1 * 1.02**i, "kl": 0.2 * 1.02**i} for i in range(200)
    ]
    assert drift[-1]["sampling/logprob"] < -1
    assert drift[-1]["grad_norm"] > 4 * drift[0]["grad_norm"]
    assert findings(Runaway(), drift) == []


def test_an_exponential_runaway_is_found_at_its_second_low_step():
    growth = [
        {"sampling/logprob": -0.3 * 1.3**i, "grad_norm": 0.1 * 1.6**i, "kl": 0.3 * 2**i} for i in range(10)
    ]  # below -0.6 from its fourth step on
    (found,) = findings(Runaway(), [*[HEALTHY] * 20, *growth])
    assert (found.since, found.step) == (23, 24)


def test_what_a_step_does_not_measure_is_not_asked():
    unmeasured = {name: value for name, value in RUNNING.items() if name != "kl"}
    healthy = {name: value for name, value in HEALTHY.items() if name != "kl"}
    assert findings(Runaway(), [*[healthy] * 10, *[unmeasured] * 3])
    assert not findings(Runaway(), [*[healthy] * 10, *[unmeasured | {"grad_norm": 0.1}] * 9])


def test_a_step_without_trained_rows_neither_breaks_nor_lengthens_a_row():
    dead = {"grad_norm": 0.0}
    (found,) = findings(Runaway(steps=3), [*[HEALTHY] * 5, RUNNING, dead, RUNNING, dead, RUNNING])
    assert (found.since, found.step) == (5, 9)


def test_the_first_steps_of_a_run_have_nothing_to_compare_with():
    assert findings(Runaway(healthy_steps=5, steps=1), [RUNNING] * 5) == []


# ---------------------------------------------------------------- the other rules


def test_dead_groups_are_found_after_n_steps_in_a_row_only():
    dead, alive = {"frac_reward_zero_std": 1.0}, {"frac_reward_zero_std": 0.875}
    assert findings(DeadGroups(steps=3), [dead, dead, alive] * 5) == []
    (found,) = findings(DeadGroups(steps=3), [alive, *[dead] * 5])
    assert (found.since, found.step, found.action) == (1, 3, "warn")


def test_no_emergence_counts_steps_with_hinted_rows():
    low, high, unhinted = {"hack/hinted_rate": 0.09}, {"hack/hinted_rate": 0.1}, {}
    assert findings(NoEmergence(steps=3), [low, low, high, low, low, unhinted]) == []
    (found,) = findings(NoEmergence(steps=3), [low, unhinted, low, unhinted, low])
    assert (found.since, found.step) == (0, 4)


def test_over_routing_needs_few_hacks():
    many, deserved = ({"route/route_fraction": 0.95, "hack/rate": rate} for rate in (0.2, 0.6))
    assert findings(OverRouting(steps=2), [deserved] * 9) == []
    (found,) = findings(OverRouting(steps=2), [many] * 3)
    assert "95% of the rows routed" in found.happened


def test_a_starved_route_is_named():
    def shares(keep, route):
        return {"route/keep_fraction": keep, "route/route_fraction": route}

    rule = GateStarvation(steps=2)
    assert findings(rule, [shares(0.0, 0.5), shares(0.5, 0.0), shares(0.1, 0.1)] * 3)[0].step == 1
    assert findings(rule, [shares(0.0, 0.5)] * 2)[0].happened == "no row on route keep"
    assert findings(rule, [shares(0.5, 0.0)] * 2)[0].happened == "no row on route route"
    assert findings(GateStarvation(steps=2, routes=("route",)), [shares(0.0, 0.5)] * 9) == []


def test_a_watch_goes_on_from_its_saved_state_as_if_nothing_had_happened():
    series = [*[HEALTHY] * 7, RUNNING, HEALTHY, *[RUNNING] * 4]
    for cut in range(len(series)):
        first, second = Watch(Runaway(steps=3)), Watch(Runaway(steps=3))
        found = [first.observe(step, metrics) for step, metrics in enumerate(series[:cut])]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        found += [second.observe(step, metrics) for step, metrics in enumerate(series[cut:], cut)]
        assert [finding.step for finding in found if finding] == [11]


def test_the_usual_value_is_that_of_the_last_fifty_healthy_steps():
    watch = Watch(Runaway())
    findings(watch.rule, [*[HEALTHY | {"kl": 9.0}] * 60, *[HEALTHY] * 50, RUNNING], watch)
    assert watch.state_dict()["healthy"] == [HEALTHY] * 50


# ---------------------------------------------------------------- numbers that are not finite


def rollouts(**streams):
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    empty = torch.zeros(3, 2, dtype=torch.long)
    values = {"rewards": torch.zeros(3), "advantages": torch.zeros(3)} | streams
    return Rollouts(
        0, 3, ["a", "b", "c"], ["gt_only"] * 3, [None] * 3, [""] * 3, [""] * 3,
        empty, mask, torch.zeros(3), empty, mask, torch.zeros(3, dtype=torch.bool), **values,
    )  # fmt: skip


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("streams", "named"),
    [
        ({}, None),
        ({"rewards": torch.tensor([0.0, NAN, INF])}, "rewards of 2 of 3 rows is not finite, first row 1 (problem b)"),
        ({"advantages": torch.tensor([0.0, 0.0, -INF])}, "advantages of 1 of 3 rows is not finite, first row 2"),
        ({"old_logprobs": torch.tensor([[NAN, NAN], [-1.0, NAN], [-1.0, -2.0]])}, None),
        ({"old_logprobs": torch.tensor([[NAN, NAN], [-1.0, NAN], [-1.0, NAN]])}, "first row 2 (problem c)"),
        ({"reference_logprobs": torch.tensor([[-1.0, -INF], [-1.0, 0.0], [-1.0, -1.0]])}, "first row 0 (problem a)"),
    ],
)
def test_a_stream_of_a_window_that_is_not_finite_is_named(streams, named):
    found = nonfinite_rows(rollouts(**streams))
    assert len(found) == (named is not None)
    assert named is None or named in found[0]


def test_a_loss_that_is_not_finite_is_named():
    assert nonfinite_losses([]) == []
    assert nonfinite_losses([torch.tensor(1.0), torch.tensor(0.0)]) == []
    assert nonfinite_losses([torch.tensor(1.0), torch.tensor(NAN)]) == ["the loss is nan"]


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (lambda: Runaway(steps=0), "guard.runaway.steps: expected at least 1; got 0"),
        (lambda: Surge(kl_growth=0.9), "guard.surge.kl_growth: expected a factor of at least 1; got 0.9"),
        (lambda: Runaway(grad_ratio=0.5), "guard.runaway.grad_ratio: expected a multiple"),
        (lambda: DeadGroups(action="explode"), "guard.dead_groups.action: expected stop | warn | off; got 'explode'"),
        (lambda: NoEmergence(rate=2.0), "guard.no_emergence.rate: expected a share"),
    ],
)
def test_rules_refuse_values_that_cannot_be_meant(rule, line):
    with pytest.raises(ValueError, match=line.replace("|", r"\|").replace(".", r"\.")):
        rule()


def test_a_rule_that_is_off_is_not_watched():
    assert "dead_groups" not in DivergenceGuard(dead_groups=DeadGroups(action="off")).rules


# ---------------------------------------------------------------- in a run

ALL = "tests.loop.test_guards."


class RouteAll(Router):
    """A gate gone wrong: everything is above its threshold."""

    name = "route_all"

    def route(self, rollouts, labels):
        return torch.full((len(rollouts),), int(Route.ROUTE))


class InfiniteRewards(Absorb):
    """Puts an infinite reward into the second window."""

    name = "infinite"
    labels_used = LabelsUsed.ORACLE  # the others are shown a copy without rewards

    def route(self, rollouts, labels):
        if rollouts.step == 1:
            rollouts.rewards[3] = math.inf
        return super().route(rollouts, labels)


class OneProcess(Absorb):
    """Puts an infinite reward into the second window of the second process."""

    name = "one_process"
    labels_used = LabelsUsed.ORACLE

    def route(self, rollouts, labels):
        if rollouts.step == 1 and torch.distributed.get_rank() == 1:
            rollouts.rewards[3] = math.inf
        return super().route(rollouts, labels)


@pytest.fixture
def stopped(fit, capsys):
    """Run ``fit`` expecting the guard to stop it; returns the run directory, the one line and guard.json."""

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            fit(*args)
        assert exit_.value.code == 3
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: stopped:")]
        return line, json.loads(Path(line.rpartition("see ")[2]).read_text())

    return run


def trained_steps(run):
    with (run / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["reward"]]


TOO_HIGH = (
    "--model.optimization.lr=0.02",
    "--model.optimization.warmup_steps=1",
    "--trainer.max_steps=16",
    "--trainer.val_check_interval=16",
    "--checkpoint.every_n_train_steps=1",
)


def test_a_learning_rate_that_is_too_high_stops_the_run_and_its_checkpoint_resumes(fit, stopped, tmp_path):
    line, record = stopped(*TOO_HIGH)
    run = tmp_path / "absorb-scorda" / "seed0"
    stop = record["stopped"]
    assert (stop["rule"], stop["step"] - stop["since"]) == ("runaway", 1)
    assert "mean log-probability" in line and "model.optimization.lr" in line
    assert stop["step"] < 15, "the guard must act before the run's end"
    assert trained_steps(run) == list(range(stop["step"] + 1)), "the step that tripped is logged"
    report = (run / "report.md").read_text()
    assert "**Stopped: runaway at steps" in report and "has no result" in report
    assert not (run / "eval.json").exists() and not (run / "deployed").exists()
    good = record["checkpoint"]
    saved = torch.load(good["path"], weights_only=True)
    assert saved["global_step"] == good["step"] == stop["since"], "nothing is saved while the sign stands"
    assert Path(good["path"]) == run / "checkpoints" / "last.ckpt"
    assert str(good["path"]) in line
    assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())

    _, again = stopped(*TOO_HIGH, f"--ckpt_path={good['path']}")
    assert again["stopped"] == stop, "a resumed run repeats its numbers, and the guard what it makes of them"

    fit(
        *TOO_HIGH,
        f"--ckpt_path={good['path']}",
        "--guard.runaway.action=warn",
        f"--trainer.max_steps={stop['step'] + 1}",
    )
    finished = json.loads((run / "guard.json").read_text())
    assert finished["stopped"] is None
    assert [finding["action"] for finding in finished["findings"] if finding["rule"] == "runaway"] == ["warn"]
    assert "Warning: runaway" in (run / "report.md").read_text()
    assert (run / "eval.json").exists()


def test_a_gradient_that_is_no_number_never_reaches_the_weights(stopped, monkeypatch, tmp_path):
    weights = {}

    def poison(self):
        if self.trainer.global_step == 1:
            weights["before"] = [p.detach().clone() for p in self.parameters() if p.requires_grad]
            weights["now"] = [p for p in self.parameters() if p.requires_grad]
            next(p for p in weights["now"] if p.grad is not None).grad.flatten()[0] = math.nan

    monkeypatch.setattr(GRPOModule, "on_after_backward", poison)
    line, record = stopped("--checkpoint.every_n_train_steps=1", "--trainer.accumulate_grad_batches=2")
    assert record["stopped"]["rule"] == "non_finite" and record["stopped"]["step"] == 1
    assert "non finite at step 1: the gradient of" in line and "lora" in line
    assert record["checkpoint"]["step"] == 1
    assert all(torch.equal(before, now) for before, now in zip(weights["before"], weights["now"], strict=True))
    assert trained_steps(tmp_path / "absorb-scorda" / "seed0") == [0]


def test_a_reward_that_is_no_number_is_named(stopped):
    line, record = stopped(f"--router={ALL}InfiniteRewards", "--checkpoint.every_n_train_steps=1")
    assert record["stopped"]["step"] == 1
    assert "rewards of 1 of 16 rows is not finite, first row 3 (problem" in line


def test_a_grader_that_pays_everything_the_same_is_stopped_where_that_is_asked(stopped, monkeypatch):
    monkeypatch.setattr("vgrout_pl.env.grade.COMPILES_REWARD", 0.0)
    monkeypatch.setattr("vgrout_pl.env.grade.PASSED_REWARD", 0.0)
    line, record = stopped("--guard.dead_groups.action=stop", "--guard.dead_groups.steps=2")
    assert record["stopped"]["rule"] == "dead_groups"
    assert "100% of the groups have equal rewards" in line and "there is no good checkpoint" in line


def test_a_router_that_routes_everything_is_warned_of_and_stopped_where_that_is_asked(stopped):
    line, record = stopped(
        f"--router={ALL}RouteAll",
        "--guard.over_routing.action=stop",
        "--guard.over_routing.steps=2",
        "--guard.gate_starvation.steps=1",
    )
    assert "over routing at steps 0 to 1: 100% of the rows routed" in line
    assert [(f["rule"], f["action"], f["step"]) for f in record["findings"]] == [
        ("gate_starvation", "warn", 0),
        ("over_routing", "stop", 1),
    ]
    assert record["findings"][0]["happened"] == "no row on route keep"


def test_warnings_reach_the_report_of_a_run_that_finishes_and_absorb_is_no_gate(fit, tmp_path, capsys):
    fit("--guard.no_emergence.steps=2", "--guard.no_emergence.rate=1", "--guard.gate_starvation.steps=1")
    run = tmp_path / "absorb-scorda" / "seed0"
    record = json.loads((run / "guard.json").read_text())
    assert [(f["rule"], f["action"]) for f in record["findings"]] == [("no_emergence", "warn")]
    assert "warning: no emergence at steps 0 to 1: hacks on" in capsys.readouterr().out
    assert record["stopped"] is None
    assert "- Warning: no emergence at steps 0 to 1" in (run / "report.md").read_text()
    assert (run / "eval.json").exists()


@pytest.mark.full
def test_what_one_process_sees_stops_all_of_them_with_one_line(tmp_path):
    command = [sys.executable, "cli.py", "fit", "--config", "configs/demo.yaml", *SMALL]
    command += ["--trainer.devices=2", "--trainer.strategy=ddp", f"--router={ALL}OneProcess"]
    command += ["--checkpoint.every_n_train_steps=1", f"--trainer.default_root_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 3
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "rewards of 1 of 8 rows is not finite, first row 3" in line
    record = json.loads((tmp_path / "one_process-scorda" / "seed0" / "guard.json").read_text())
    assert record["stopped"]["step"] == record["checkpoint"]["step"] == 1
