"""What holds for every window and every option: one plain formula, one mask, any split, any order, any padding."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from objective_support import window

from vgrout_pl.adapters import Route
from vgrout_pl.objective import Objective, grpo_loss, loss_mask, trained_rows, window_normalizer

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")
EXAMPLES = settings(deadline=None, max_examples=60)


@st.composite
def objectives(draw):
    return Objective(
        loss_type=draw(st.sampled_from(LOSS_TYPES)),
        clip_low=draw(st.sampled_from([0.0, 0.2])),
        clip_high=draw(st.sampled_from([0.1, 0.3])),
        delta=draw(st.sampled_from([None, 1.5])),
        importance=draw(st.sampled_from(["none", "truncate", "mask"])),
        importance_level=draw(st.sampled_from(["token", "sequence"])),
        importance_cap=draw(st.sampled_from([0.9, 1.5])),
        beta=draw(st.sampled_from([0.0, 0.3])),
        unbiased_kl=draw(st.booleans()),
        entropy_bonus=draw(st.sampled_from([0.0, 0.1])),
        mask_truncated=draw(st.booleans()),
    )


@st.composite
def windows(draw, first_update=None):
    """Rows of random lengths, routes, states and log-probabilities, in double precision; and their entropies."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, width = draw(st.sampled_from([2, 4, 6])), draw(st.integers(1, 5))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def coin():
        return torch.rand(n, generator=generator) < 0.5

    mask = torch.arange(width) < torch.randint(0, width + 1, (n, 1), generator=generator)
    mask[0, 0] = True
    rows, _ = window(
        torch.ones(n, width).tolist(), advantages=[0.0] * n, mask=mask.tolist(), ablated=coin(), truncated=coin()
    )
    logprobs = -1 + 0.3 * normal(n, width)
    rows.advantages = normal(n)
    rows.routes = torch.where(coin(), int(Route.KEEP), int(Route.ROUTE))
    rows.old_logprobs = logprobs + 0.4 * normal(n, width)
    first_update = draw(st.booleans()) if first_update is None else first_update
    rows.start_logprobs = None if first_update else logprobs + 0.3 * normal(n, width)
    rows.reference_logprobs = logprobs + 0.4 * normal(n, width)
    return rows, logprobs.requires_grad_(), normal(n, width).abs().requires_grad_()


def normalizer_of(objective, rows, longest=7):
    return window_normalizer(objective, loss_mask(objective, rows), longest)


def loss_and_gradients(objective, rows, logprobs, entropy, normalizer, parts=None):
    """Sum over the parts of a window (lists of row indices; None: all rows at once), with the gradients of that sum."""
    total = torch.zeros((), dtype=torch.float64)
    for part in [list(range(len(rows)))] if parts is None else parts:
        index = torch.tensor(part, dtype=torch.long)
        total = total + grpo_loss(objective, rows.rows(index), logprobs[index], normalizer, entropy[index]).loss
    gradients = torch.autograd.grad(total, (logprobs, entropy), allow_unused=True, materialize_grads=True)
    return float(total.detach()), *gradients


def plain_loss(o, rows, logprobs, entropy, longest=7):
    """The objective in plain Python, one token after the other (weights of tokens are float32: 1e-6)."""
    n = len(rows)
    alive = [
        [bool(m) and not (o.mask_truncated and rows.truncated[i]) for m in rows.completion_mask[i]] for i in range(n)
    ]
    tokens = max(1, sum(map(sum, alive)))
    total = 0.0
    for i in range(n):
        active = [t for t, m in enumerate(alive[i]) if m]
        if not active:
            continue
        a, now = float(rows.advantages[i]), [float(x) for x in logprobs.detach()[i]]
        start = now if rows.start_logprobs is None else [float(x) for x in rows.start_logprobs[i]]
        away = (int(rows.routes[i]) == Route.KEEP) != bool(rows.ablated[i])
        sampled = [float(x) for x in rows.old_logprobs[i]] if away else start
        weight = {t: math.exp(start[t] - sampled[t]) for t in active}
        if o.importance_level == "sequence":
            weight = dict.fromkeys(active, math.prod(weight.values()))
        cut = {"none": lambda w: 1.0, "truncate": lambda w: min(w, o.importance_cap)}
        cut["mask"] = lambda w: w if w <= o.importance_cap else 0.0
        anchor = sampled if o.importance == "none" else start
        ratio = {t: math.exp(now[t] - anchor[t]) for t in active}
        if o.loss_type == "gspo":
            ratio = dict.fromkeys(active, math.prod(ratio.values()) ** (1 / len(active)))
        share = {
            "dr_grpo": 1 / (n * longest),
            "grpo": 1 / (n * len(active)),
            "gspo": 1 / (n * len(active)),
        }.get(o.loss_type, 1 / tokens)
        for t in active:
            r = ratio[t]
            if o.loss_type == "cispo":
                surrogate = -min(r, 1 + o.clip_high) * a * now[t]
            else:
                inside = min(max(r, 1 - o.clip_low), 1 + o.clip_high)
                surrogate = -min((r if o.delta is None else min(r, o.delta)) * a, inside * a)
            gap = float(rows.reference_logprobs[i, t]) - now[t]
            k3 = (math.exp(gap) - gap - 1) * (r if o.unbiased_kl else 1)
            total += share * (cut[o.importance](weight[t]) * surrogate + o.beta * k3)
            total -= o.entropy_bonus * float(entropy.detach()[i, t]) / tokens
    return total


@EXAMPLES
@given(objectives(), windows())
def test_the_loss_is_the_plain_formula(objective, drawn):
    rows, logprobs, entropy = drawn
    loss, *_ = loss_and_gradients(objective, rows, logprobs, entropy, normalizer_of(objective, rows))
    assert math.isclose(loss, plain_loss(objective, rows, logprobs, entropy), rel_tol=1e-6, abs_tol=1e-7)


@EXAMPLES
@given(objectives(), windows(first_update=False), st.data())
def test_the_gradient_is_the_slope_of_the_plain_formula(objective, drawn, data):
    rows, logprobs, entropy = drawn
    if objective.loss_type == "cispo":  # its weight is a constant by definition: freeze it, then the rest is linear
        rows.advantages.zero_()
    _, gradient, _ = loss_and_gradients(objective, rows, logprobs, entropy, normalizer_of(objective, rows))
    i, t = (data.draw(st.integers(0, size - 1)) for size in logprobs.shape)
    step, values = 1e-6, []
    for sign in (1, -1):
        moved = logprobs.detach().clone()
        moved[i, t] += sign * step
        values.append(plain_loss(objective, rows, moved, entropy))
    slope = (values[0] - values[1]) / (2 * step)
    assert math.isclose(float(gradient[i, t]), slope, rel_tol=1e-4, abs_tol=1e-6)


@EXAMPLES
@given(objectives(), windows(), st.data())
def test_any_split_into_micro_batches_in_any_order_gives_the_same_sum(objective, drawn, data):
    rows, logprobs, entropy = drawn
    normalizer = normalizer_of(objective, rows)
    order = data.draw(st.permutations(range(len(rows))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows) - 1))))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    whole = loss_and_gradients(objective, rows, logprobs, entropy, normalizer)
    split = loss_and_gradients(objective, rows, logprobs, entropy, normalizer, parts)
    torch.testing.assert_close(torch.tensor(split[0]), torch.tensor(whole[0]))
    for one, other in zip(split[1:], whole[1:], strict=True):
        torch.testing.assert_close(one, other)


@EXAMPLES
@given(objectives(), windows(), st.sampled_from([math.nan, math.inf, 1e30]))
def test_what_stands_outside_the_mask_never_matters(objective, drawn, poison):
    rows, logprobs, entropy = drawn
    normalizer = normalizer_of(objective, rows)
    clean = loss_and_gradients(objective, rows, logprobs, entropy, normalizer)
    outside = ~loss_mask(objective, rows)
    for name in ("old_logprobs", "start_logprobs", "reference_logprobs"):
        if getattr(rows, name) is not None:
            setattr(rows, name, getattr(rows, name).masked_fill(outside, poison))
    poisoned = [x.detach().masked_fill(outside, poison).requires_grad_() for x in (logprobs, entropy)]
    dirty = loss_and_gradients(objective, rows, *poisoned, normalizer)
    assert dirty[0] == clean[0]
    for one, other in zip(dirty[1:], clean[1:], strict=True):
        assert torch.equal(one, other)
        assert (one[outside] == 0).all()


@EXAMPLES
@given(st.sampled_from(LOSS_TYPES[:5]), st.booleans(), windows(first_update=True))
def test_numerator_and_denominator_use_the_same_mask(loss_type, mask_truncated, drawn):
    """Where every token's surrogate is -1, a mean over the tokens that carry loss is -1, whatever the mask."""
    rows, logprobs, entropy = drawn
    objective = Objective(loss_type=loss_type, beta=0, mask_truncated=mask_truncated)
    rows.advantages = torch.ones(len(rows), dtype=torch.float64)
    rows.routes = torch.where(rows.ablated, int(Route.KEEP), int(Route.ABSORB))
    mask = loss_mask(objective, rows)
    loss, *_ = loss_and_gradients(objective, rows, logprobs, entropy, normalizer_of(objective, rows))
    expected = {
        "dr_grpo": mask.sum() / (len(rows) * 7),
        "dapo": mask.any(),
        "bnpo": mask.any(),
    }.get(loss_type, mask.any(1).double().mean())
    assert math.isclose(loss, -float(expected), abs_tol=1e-6)


@EXAMPLES
@given(objectives(), windows(first_update=True))
def test_the_mean_over_processes_is_the_loss_of_one_process(objective, drawn):
    rows, logprobs, entropy = drawn
    whole = loss_and_gradients(objective, rows, logprobs, entropy, normalizer_of(objective, rows))
    half, mean, gradient = len(rows) // 2, 0.0, 0.0
    tokens = loss_mask(objective, rows).sum()
    for index in (torch.arange(half), torch.arange(half, len(rows))):
        own = rows.rows(index)
        normalizer = window_normalizer(objective, loss_mask(objective, own), 7, tokens, 2)
        if objective.loss_type == "bnpo":  # a mean over each process' own tokens, by definition
            assert normalizer.denominator == max(1, int(loss_mask(objective, own).sum()))
            return
        result = grpo_loss(objective, own, logprobs[index], normalizer, entropy[index])
        mean += float(result.loss.detach()) / 2
        gradient = (
            gradient + torch.autograd.grad(result.loss, logprobs, allow_unused=True, materialize_grads=True)[0] / 2
        )
    assert math.isclose(mean, whole[0], rel_tol=1e-6, abs_tol=1e-7)
    torch.testing.assert_close(gradient, whole[1])


@EXAMPLES
@given(objectives(), windows(), st.data())
def test_rows_that_are_not_trained_have_no_gradient_to_lose(objective, drawn, data):
    rows, logprobs, entropy = drawn
    rows.group_size = 2
    rows.rewards = torch.tensor(
        data.draw(st.lists(st.sampled_from([0.0, 3.5]), min_size=len(rows), max_size=len(rows)))
    )
    objective = Objective(loss_type=objective.loss_type, beta=0, mask_truncated=objective.mask_truncated)
    live = trained_rows(objective, rows)
    rows.advantages = torch.where(rows.rewards.view(-1, 2).std(1).repeat_interleave(2) > 0, rows.advantages, 0.0)
    normalizer = normalizer_of(objective, rows)
    _, whole, _ = loss_and_gradients(objective, rows, logprobs, entropy, normalizer)
    assert whole[~live].abs().sum() == 0
    if live.any():
        _, part, _ = loss_and_gradients(
            objective, rows, logprobs, entropy, normalizer, [live.nonzero().flatten().tolist()]
        )
        torch.testing.assert_close(part, whole)
