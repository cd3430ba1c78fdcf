"""A planted direction is found and followed; a random one is not; the buffer and the bands do what they say."""

import io
import math

import pytest
import torch

from tests.routers.support import module_of, organism_policy, rollouts_of
from vgrout_pl.adapters import Route, routed_layers
from vgrout_pl.directions.direction_source import HaarRandom, OracleFit, haar_direction
from vgrout_pl.directions.features import Layout
from vgrout_pl.directions.pair_sources import PairSource, SignFlipped
from vgrout_pl.directions.pairs import ContrastivePair
from vgrout_pl.directions.scores import row_scores, unit_modules
from vgrout_pl.env import Grade
from vgrout_pl.functional.statistics import mean_sd
from vgrout_pl.policy import base_of
from vgrout_pl.routers import ActivationGate, Bands
from vgrout_pl.routers.bands import Thresholds
from vgrout_pl.routers.buffer import FeatureBuffer
from vgrout_pl.routers.diagnostics import auroc, f_half, routing_statistics
from vgrout_pl.types import Labels

ONE_LINEAR = r".*layers\.0\.self_attn\.q_proj"
LENGTH, HACK_TOKENS, HACK_SHARE = 24, 10, 0.1


class Given(PairSource):
    """Pairs as they are given."""

    name = "given"

    def __init__(self, pairs):
        self.pairs = pairs

    def prepare(self, module):
        pass


@pytest.fixture(scope="module")
def planted():
    """The organism with an adapter on the first layer's queries, in which one token is what a hack is."""
    policy, tokenizer = organism_policy(ONE_LINEAR)
    words = [w for w in (" a", " b", " c", " i", " x", " n", " y", " z", " t", " s") if one_token(tokenizer, w)]
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]
    return policy, tokenizer, words, ids


def one_token(tokenizer, word):
    return len(tokenizer(word * 3, add_special_tokens=False)["input_ids"]) == 3


def pairs_of(words, n=48, seed=0):
    """The first word takes the place of others on the hack side, at the same positions."""
    rng = torch.Generator().manual_seed(seed)
    pairs = []
    for i in range(n):
        clean = [words[1 + int(k)] for k in torch.randint(len(words) - 1, (LENGTH,), generator=rng)]
        hack = list(clean)
        for place in torch.randperm(LENGTH, generator=rng)[:HACK_TOKENS].tolist():
            hack[place] = words[0]
        if hack != clean:
            pairs.append(ContrastivePair(f"p{i}", ({"role": "user", "content": "x"},), "".join(hack), "".join(clean)))
    return pairs


def planted_window(ids, n=200, seed=1, step=0):
    """Rows of which a tenth hold the hack's token, and their labels."""
    rng = torch.Generator().manual_seed(seed)
    completions, hacked = [], []
    for i in range(n):
        row = [ids[1 + int(k)] for k in torch.randint(len(ids) - 1, (LENGTH,), generator=rng)]
        hacked.append(i % round(1 / HACK_SHARE) == 3)
        if hacked[-1]:
            for place in torch.randperm(LENGTH, generator=rng)[:HACK_TOKENS].tolist():
                row[place] = ids[0]
        completions.append(row)
    rollouts = rollouts_of([[5, 6, 7]] * n, completions, group_size=4, step=step)
    return rollouts, torch.tensor(hacked)


def truth(policy, ids):
    """A_D (x_hack - mean of the others), x the first layer's normalised embeddings, by hand."""
    base = base_of(policy)
    embedded = base.get_input_embeddings().weight[ids].detach().double()
    layer = base.get_decoder().layers[0]
    norm = layer.input_layernorm
    x = embedded / (embedded.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt() * norm.weight.double()
    a = next(routed_layers(policy))[1].block("deployed")[0].detach().double()
    return a @ (x[0] - x[1:].mean(0))


def routed_by(gate, module, rollouts, varied=None):
    varied = torch.ones(len(rollouts), dtype=torch.bool) if varied is None else varied
    with torch.no_grad():
        gate.read(module, rollouts, varied)
    return gate.assign(rollouts, Labels.from_grades([Grade()] * len(rollouts)))


def test_the_planted_direction_is_recovered_and_routes_the_planted_class_and_haar_does_not(planted):
    policy, tokenizer, words, ids = planted
    assert len(words) >= 6
    module = module_of(policy, tokenizer)
    rollouts, hacked = planted_window(ids)
    gate = ActivationGate(Given(pairs_of(words)), bands=Bands(tail=HACK_SHARE))
    routes = routed_by(gate, module, rollouts)
    assert float(torch.cosine_similarity(gate.direction.double(), truth(policy, ids), dim=0)) > 0.99
    assert f_half(routes == Route.ROUTE, hacked) > 0.95
    assert not bool(((routes == Route.KEEP) & hacked).any())
    assert auroc(gate.scores, hacked) > 0.99
    placebos = []
    for index in range(12):
        haar = ActivationGate(HaarRandom(index), bands=Bands(tail=HACK_SHARE))
        placebos.append(f_half(routed_by(haar, module, rollouts) == Route.ROUTE, hacked))
    assert mean_sd(placebos)[0] < 0.5
    assert max(placebos) < 0.95


def test_tokens_are_routed_by_their_own_activation(planted):
    policy, tokenizer, words, ids = planted
    rollouts, _ = planted_window(ids, n=400)
    rollouts.completion_ids[:, -3:], rollouts.completion_mask[::2, -3:] = 0, False
    share = float((rollouts.completion_ids == ids[0])[rollouts.completion_mask].float().mean())
    # a word's activation is the same wherever it stands: twice the share puts the threshold on the next word's score
    gate = ActivationGate(Given(pairs_of(words)), bands=Bands(tail=2 * share), per_token=True)
    routes = routed_by(gate, module_of(policy, tokenizer, micro_batches=3), rollouts)
    assert routes.shape == rollouts.completion_ids.shape
    assert set(routes[~rollouts.completion_mask].tolist()) == {Route.ABSORB}
    hacks = (rollouts.completion_ids == ids[0])[rollouts.completion_mask]
    assert f_half((routes == Route.ROUTE)[rollouts.completion_mask], hacks) > 0.95
    rollouts.routes = routes
    routed_share = rollouts.route_share(Route.ROUTE)
    assert float(routed_share[4]) == pytest.approx(float((routes[4] == Route.ROUTE).sum()) / 21)
    rows = ActivationGate(Given(pairs_of(words)))
    routed_by(rows, module_of(policy, tokenizer), rollouts)
    torch.testing.assert_close(gate.scores, rows.scores, atol=1e-5, rtol=1e-4)


def test_a_token_that_made_a_threshold_ties_with_it(planted):
    policy, tokenizer, words, ids = planted
    rollouts, _ = planted_window(ids, n=12)
    gate = ActivationGate(Given(pairs_of(words)), bands=Bands(tail=0.5), per_token=True)
    routes = routed_by(gate, module_of(policy, tokenizer), rollouts)
    own = gate._tokens[torch.arange(12), gate._drawn]
    made = own == gate.thresholds.low
    assert bool(made.any())
    assert set(routes[torch.arange(12), gate._drawn][made].tolist()) == {Route.ABSORB}


def test_tokens_are_rounded_as_the_buffer_they_are_compared_with(planted):
    policy, tokenizer, words, ids = planted
    rollouts, _ = planted_window(ids, n=40)
    rollouts.completion_ids[:] = rollouts.completion_ids[0]
    bands = Bands(tail=0.5, storage="bfloat16")
    gate = ActivationGate(Given(pairs_of(words)), bands=bands, per_token=True)
    routes = routed_by(gate, module_of(policy, tokenizer), rollouts)
    near = (gate._tokens - gate.thresholds.low).abs() <= 1e-5 * abs(gate.thresholds.low)
    near[torch.arange(40), gate._drawn] = False
    assert int(near.sum()) >= 20, "others hold the token that made the threshold"
    assert float((routes[near] == Route.ABSORB).float().mean()) > 0.9


def test_features_that_are_0_throughout_make_no_direction_and_do_not_enter(planted):
    policy, tokenizer, words, ids = planted
    rollouts, _ = planted_window(ids, n=40)
    gate = ActivationGate(Given(pairs_of(words)), site="output", refresh_every=0)
    module = module_of(policy, tokenizer)
    assert bool((routed_by(gate, module, rollouts) == Route.ABSORB).all())
    assert gate.direction is None
    assert len(gate.buffer) == 0
    deployed = next(routed_layers(policy))[1].block("deployed")[1]
    before = deployed.detach().clone()
    try:
        with torch.no_grad():
            deployed.add_(torch.randn(deployed.shape, generator=torch.Generator().manual_seed(0)))
        routes = routed_by(gate, module, rollouts)
    finally:
        with torch.no_grad():
            deployed.copy_(before)
    assert float(gate.direction.norm()) == pytest.approx(1)
    assert len(gate.buffer) == 40
    assert set(routes.tolist()) == {Route.KEEP, Route.ABSORB, Route.ROUTE}


def test_a_token_whose_score_is_not_finite_is_an_error_though_another_was_drawn(planted):
    policy, tokenizer, words, ids = planted
    rollouts, _ = planted_window(ids, n=12)
    gate = ActivationGate(Given(pairs_of(words, n=4)), per_token=True)
    with torch.no_grad():
        gate.read(module_of(policy, tokenizer), rollouts, torch.ones(12, dtype=torch.bool))
    gate._tokens[5, (gate._drawn[5] + 1) % LENGTH] = torch.nan
    with pytest.raises(ValueError, match="expected finite numbers; got nan in 1 of"):
        gate.assign(rollouts, Labels.from_grades([Grade()] * 12))


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": "max"},
        {"aggregation": "vote"},
        {"bands": Bands(route_cap=0.5)},
        {"bands": Bands(follow_evidence=True)},
    ],
    ids=str,
)
def test_tokens_refuse_what_is_of_whole_rollouts(settings):
    with pytest.raises(ValueError, match=r"router.per_token: expected pooling mean"):
        ActivationGate(per_token=True, **settings)


def test_half_of_the_pairs_exchanged_give_another_direction_which_is_read_anew(planted):
    policy, tokenizer, words, _ = planted
    module, rollouts = module_of(policy, tokenizer), planted_window(planted[3], n=8)[0]
    real = ActivationGate(Given(pairs_of(words)))
    flipped = ActivationGate(SignFlipped(Given(pairs_of(words)), seed=3), refresh_every=1)
    routed_by(real, module, rollouts)
    routed_by(flipped, module, rollouts)
    assert abs(float(torch.dot(real.direction, flipped.direction))) < 0.8
    before, weight = flipped.direction, next(routed_layers(policy))[1].block("deployed")[0]
    moved = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    with torch.no_grad():
        weight += moved
    try:
        routed_by(flipped, module, rollouts)
    finally:
        with torch.no_grad():
            weight -= moved
    assert abs(1 - float(torch.dot(before, flipped.direction))) > 1e-3, "the direction was not read anew"
    assert flipped.cosine == pytest.approx(float(torch.dot(before, flipped.direction)), abs=1e-6)


def test_exchanged_signs_cancel_and_are_the_same_at_every_refresh():
    flipped = SignFlipped(Given([]), seed=1)
    assert flipped.signs(10).sum() == 0
    assert flipped.signs(7).sum() == 1
    assert torch.equal(flipped.signs(10), flipped.signs(10))
    assert not torch.equal(flipped.signs(10), SignFlipped(Given([]), seed=2).signs(10))
    with pytest.raises(ValueError, match="at least 2 pairs"):
        flipped.signs(1)
    with pytest.raises(ValueError, match="expected a source of pairs; got HaarRandom"):
        SignFlipped(HaarRandom())


def test_haar_directions_are_uniform_on_each_modules_sphere_and_the_same_everywhere():
    layout = Layout(("a", "b"), (3, 500))
    one = haar_direction(layout, 0, 0)
    assert torch.equal(one, haar_direction(layout, 0, 0))
    assert torch.equal(one[:3], haar_direction(Layout(("a",), (3,)), 0, 0))
    for part in one.split([3, 500]):
        assert float(part.norm()) == pytest.approx(1)
    many = torch.stack([haar_direction(layout, 0, index) for index in range(400)])
    assert float(many.mean(0)[:3].abs().max()) < 0.15
    assert float((many[:, :3] ** 2).mean(0).sub(1 / 3).abs().max()) < 0.06


def test_a_direction_is_extracted_at_its_cadence(planted):
    policy, tokenizer, words, ids = planted
    gate = ActivationGate(Given(pairs_of(words, n=4)), refresh_every=3)
    ages, cosines = [], []
    for step in range(7):
        routed_by(gate, module_of(policy, tokenizer), planted_window(ids, n=8, seed=step, step=step)[0])
        ages.append(gate.measurements()["route/direction_age"])
        cosines.append(gate.measurements()["route/direction_cosine"])
    assert ages == [0, 1, 2, 0, 1, 2, 0]
    assert [not math.isnan(cosine) for cosine in cosines] == [False, False, False, True, False, False, True]
    assert gate.extractions == 3


def test_the_oracle_fit_waits_for_rows_of_both_kinds_and_finds_the_planted_direction(planted):
    policy, tokenizer, _, ids = planted
    gate = ActivationGate(OracleFit(least=8), refresh_every=1)
    module = module_of(policy, tokenizer)
    directions = []
    for step in range(3):
        rollouts, hacked = planted_window(ids, seed=step, step=step)
        with torch.no_grad():
            gate.read(module, rollouts, torch.ones(len(rollouts), dtype=torch.bool))
        routes = gate.assign(rollouts, Labels.from_grades([Grade(hacked=bool(h), channel=bool(h)) for h in hacked]))
        directions.append(gate.direction)
    assert directions[0] is None
    assert float(torch.cosine_similarity(directions[2].double(), truth(policy, ids), dim=0)) > 0.9
    assert f_half(routes == Route.ROUTE, hacked) > 0.9


def test_constant_groups_do_not_enter_the_buffer_but_get_routes(planted):
    policy, tokenizer, words, ids = planted
    rollouts, _ = planted_window(ids, n=40)
    varied = torch.arange(40) < 24
    gate = ActivationGate(Given(pairs_of(words, n=4)))
    routes = routed_by(gate, module_of(policy, tokenizer), rollouts, varied)
    assert len(gate.buffer) == 24
    assert len(routes) == 40
    kept = gate.scores[:24].sort().values
    assert gate.thresholds.low == kept[2], "the third of 24: the first with a share of at least 0.1"
    assert gate.thresholds.high == kept[21]


def test_no_row_is_cut_before_the_warm_up_is_over_or_while_nothing_has_entered(planted):
    policy, tokenizer, words, ids = planted
    gate = ActivationGate(Given(pairs_of(words, n=4)), bands=Bands(warmup=30))
    module = module_of(policy, tokenizer)
    shares = [
        float((routed_by(gate, module, planted_window(ids, n=20, seed=s)[0]) == Route.ABSORB).float().mean())
        for s in range(3)
    ]
    assert shares[0] == 1
    assert shares[1] < 1
    empty = ActivationGate(Given(pairs_of(words, n=4)))
    none = torch.zeros(20, dtype=torch.bool)
    assert bool((routed_by(empty, module, planted_window(ids, n=20)[0], none) == Route.ABSORB).all())
    assert math.isnan(empty.thresholds.low)


@pytest.mark.parametrize("storage", ["float32", "bfloat16"])
def test_a_saved_gate_goes_on_with_the_same_routes(planted, storage):
    policy, tokenizer, words, ids = planted
    module = module_of(policy, tokenizer)

    def fresh():
        return ActivationGate(
            Given(pairs_of(words, n=6)), refresh_every=3, bands=Bands(storage=storage, max_rollouts=50)
        )

    whole, broken = fresh(), fresh()
    routes = [routed_by(whole, module, planted_window(ids, n=20, seed=s, step=s)[0]) for s in range(6)]
    for step in range(4):
        routed_by(broken, module, planted_window(ids, n=20, seed=step, step=step)[0])
    file = io.BytesIO()
    torch.save({"gate": broken.state_dict()}, file)
    file.seek(0)
    resumed = fresh()
    resumed.load_state_dict(torch.load(file, weights_only=True)["gate"])
    again = [routed_by(resumed, module, planted_window(ids, n=20, seed=s, step=s)[0]) for s in (4, 5)]
    assert torch.equal(torch.stack(again), torch.stack(routes[4:]))
    assert torch.equal(resumed.buffer.features, whole.buffer.features)
    assert resumed.thresholds == whole.thresholds


# ---------------------------------------------------------------- buffer, bands and scores, without a model


def test_the_buffer_forgets_the_oldest_and_counts_age_in_rollouts():
    buffer = FeatureBuffer(5, torch.float32)
    for start, n in ((0, 2), (2, 2), (4, 3)):
        rows = torch.arange(start, start + n).float().unsqueeze(1)
        buffer.add(rows, torch.zeros(n, 2, dtype=torch.bool))
    assert buffer.features.flatten().tolist() == [2, 3, 4, 5, 6]
    assert buffer.weights(3.0).tolist() == [0.5, 0.5, 1, 1, 1]
    assert buffer.seen == 7
    buffer.add(torch.arange(9).float().unsqueeze(1), torch.zeros(9, 2, dtype=torch.bool))
    assert buffer.features.flatten().tolist() == [4, 5, 6, 7, 8]


@pytest.mark.parametrize(("dtype", "mebibytes"), [(torch.float32, 252), (torch.bfloat16, 126)])
def test_the_buffer_holds_what_it_is_said_to_hold_and_no_more(dtype, mebibytes):
    assert FeatureBuffer(8192, dtype).bytes_when_full(252 * 32) == mebibytes * 2**20
    buffer = FeatureBuffer(16, dtype)
    for n in (40, 5, 16, 3, 90):
        buffer.add(torch.ones(n, 252 * 32), torch.zeros(n, 2, dtype=torch.bool))
        assert len(buffer) == 16
        assert buffer.features.untyped_storage().nbytes() == buffer.bytes_when_full(252 * 32)


def test_features_that_are_not_finite_are_an_error_also_after_storage():
    marks = torch.zeros(2, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="1 rows of 2 with NaN or infinity"):
        FeatureBuffer(4, torch.float32).add(torch.tensor([[1.0], [math.nan]]), marks)
    with pytest.raises(ValueError, match=r"too large for bands.storage torch.float16"):
        FeatureBuffer(4, torch.float16).add(torch.tensor([[1.0], [1e6]]), marks)
    with pytest.raises(ValueError, match="router scores: expected finite"):
        row_scores(torch.tensor([[1.0], [math.nan]]), torch.ones(1), (1,))


def test_bands_by_hand():
    bands = Bands(tail=0.25)
    scores = torch.tensor([4.0, 1.0, 2.0, 3.0])
    cuts = bands.thresholds(scores, torch.ones(4), torch.zeros(4, dtype=torch.bool))
    assert cuts == (1, 3)
    expected = [Route.KEEP, Route.ABSORB, Route.ABSORB, Route.ABSORB, Route.ROUTE]
    assert bands.cut(torch.tensor([0.5, 1.0, 2.0, 3.0, 3.5]), cuts).tolist() == expected


def test_old_scores_count_less():
    scores, weights = torch.tensor([0.0, 0.0, 0.0, 5.0, 6.0]), torch.tensor([0.01, 0.01, 0.01, 1.0, 1.0])
    assert Bands(tail=0.1).thresholds(scores, weights, torch.zeros(5, dtype=torch.bool)) == (5, 6)


def test_a_cap_routes_the_highest_scores_alone():
    bands = Bands(route_cap=0.25)
    routes = bands.cut(torch.tensor([5.0, 9.0, 7.0, 8.0, 0.0, 1.0, 1.0, 1.0]), Thresholds(0.5, 4.0))
    assert routes.tolist() == [2, 3, 2, 3, 1, 2, 2, 2]


def test_tails_that_follow_the_evidence():
    bands = Bands(tail=0.25, follow_evidence=True)
    scores = torch.arange(100.0)
    evidence = torch.arange(100) < 80
    # a base rate of 0.8: tails of 0.1 below and 0.4 above
    assert bands.thresholds(scores, torch.ones(100), evidence) == (9, 59)


def test_scores_by_hand():
    features = torch.tensor([[3.0, 4.0, 2.0], [0.0, 1.0, -2.0], [0.0, 0.0, 0.0]])
    direction = torch.tensor([0.0, 1.0, 1.0])
    assert row_scores(features, direction, (2, 1)).tolist() == [6, -1, 0]
    assert row_scores(features, direction, (2, 1), "cosine").tolist() == [pytest.approx(0.9), 0, 0]
    # medians 1 and 0: the first row is above both
    assert row_scores(features, direction, (2, 1), "vote").tolist() == [1, 0, 0]
    assert unit_modules(torch.tensor([3.0, 4.0, 0.0]), (2, 1)).tolist() == [pytest.approx(0.6), pytest.approx(0.8), 0]
    with pytest.raises(ValueError, match=r"dot \| cosine \| vote"):
        row_scores(features, direction, (2, 1), "sum")


@pytest.mark.parametrize(
    "settings", [{"tail": 0.6}, {"tail": 0}, {"halflife": 0}, {"warmup": 9000}, {"storage": "int8"}, {"route_cap": 0}]
)
def test_bands_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(ValueError, match=rf"router.bands.{next(iter(settings))}: expected"):
        Bands(**settings)


def test_a_teachers_rows_do_not_count_among_a_routers_hits():
    labels = Labels.from_grades(
        [Grade(hacked=True, channel=True), Grade(correct=True), Grade(hacked=True, channel=True), Grade(correct=True)]
    )
    rollouts = rollouts_of([[1]] * 4, [[2]] * 4)
    rollouts.teacher = torch.tensor([True, True, False, False])
    rollouts.routes = torch.tensor([Route.ROUTE, Route.KEEP, Route.KEEP, Route.ROUTE])
    gate = ActivationGate(Given([]))
    gate.scores = torch.tensor([3.0, 0.0, 1.0, 2.0])
    found = routing_statistics(module_of(None), gate, rollouts, labels)
    assert found["route/auroc"] == (0.0, 1.0)
    assert found["route/f05"] == (0.0, 1.0)
    rollouts.teacher = torch.zeros(4, dtype=torch.bool)
    assert routing_statistics(module_of(None), gate, rollouts, labels)["route/auroc"] == (0.75, 1.0)


def test_auroc_and_f_half_by_hand():
    scores, positive = torch.tensor([-40.0, 70.0, 3.0, 3.0]), torch.tensor([False, True, True, False])
    assert auroc(scores, positive) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert math.isnan(auroc(scores, torch.ones(4, dtype=torch.bool)))
    flagged = torch.tensor([False, True, False, False])
    # precision 1, recall 1/2: 1.25 * 0.5 / (0.25 + 0.5)
    assert f_half(flagged, positive) == pytest.approx(0.625 / 0.75)
    assert math.isnan(f_half(flagged, torch.zeros(4, dtype=torch.bool)))
