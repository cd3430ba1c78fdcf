"""What only an engine that talks to a server can get wrong."""

import json
import urllib.request
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engines.conftest import CONFIG
from tests.engines.lora_server import LoraServer
from vgrout_pl import organism
from vgrout_pl.adapters import RoutedLoraConfig, ablated, attach_routed_adapter
from vgrout_pl.engines import EngineError, ServerEngine
from vgrout_pl.policy import load_base
from vgrout_pl.sampling import Sampling, SamplingRequest

FREE = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
TWO = torch.tensor([0, 0])
HALF = torch.tensor([False, True])


@pytest.fixture
def sample(served, policy, tokenizer, prompts):
    def run(sampling=None, engine=served, policy=policy, prompt_of=TWO, without=HALF):
        sampling = sampling or Sampling(max_new_tokens=12, **FREE)
        engine.publish(policy, also_ablated=True)
        return engine.generate(policy, tokenizer, SamplingRequest(*prompts, prompt_of, sampling, ("x",), without))

    return run


# ---------------------------------------------------------------- adapters


def test_both_states_are_loaded_and_those_of_before_are_gone(served, server, policy, tmp_path):
    served.publish(policy, also_ablated=True)
    first = dict(server.loaded)
    assert sorted(name.split("-")[2] for name in first) == ["as_trained", "deployed"]
    served.publish(policy, also_ablated=True)
    assert not set(first) & set(server.loaded), "a new version has a new name"
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(server.loaded)
    served.close()
    assert not server.loaded and not list((tmp_path / "adapters").iterdir())


def test_the_adapters_are_rank_4r_as_trained_and_2r_deployed(served, server, policy):
    served.publish(policy, also_ablated=True)
    for name, path in server.loaded.items():
        rank = (4 if "as_trained" in name else 2) * CONFIG.r
        assert json.loads(Path(path, "adapter_config.json").read_text())["r"] == rank
        tensors = load_file(f"{path}/adapter_model.safetensors")
        assert {value.shape[0] for key, value in tensors.items() if "lora_A" in key} == {rank}


def test_nothing_half_written_is_ever_loaded(served, server, policy, monkeypatch, tmp_path):
    from vgrout_pl.engines import served as module

    def fails(model, directory, what):
        directory.mkdir(parents=True)
        (directory / "adapter_config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "export_adapter", fails)
    with pytest.raises(EngineError, match="No space left"):
        served.publish(policy)
    assert not server.loaded and not list((tmp_path / "adapters").iterdir())


def test_an_adapter_whose_loading_was_confirmed_too_late_counts_as_loaded(served, server, policy, monkeypatch):
    server.load_lora_adapter = _answer_is_lost_once(server, server.load_lora_adapter)
    served.publish(policy)
    assert len(server.loaded) == 1


def _answer_is_lost_once(server, endpoint):
    lost = []

    def wrapped(body):
        answer = endpoint(body)
        if not lost:
            lost.append(body)
            raise ConnectionAbortedError
        return answer

    return wrapped


# ---------------------------------------------------------------- requests


def test_a_request_asks_for_the_rows_of_a_prompt_in_one_state(sample, server, prompts):
    without = torch.tensor([False, False, True, False])
    sample(prompt_of=torch.tensor([0, 0, 0, 2]), without=without)
    ids, mask = prompts
    asked = {(body["model"].split("-")[2], tuple(body["prompt"])): body["n"] for body in server.asked}
    first, third = (tuple(ids[row][mask[row]].tolist()) for row in (0, 2))
    assert asked == {("as_trained", first): 2, ("deployed", first): 1, ("as_trained", third): 1}
    assert len({body["seed"] for body in server.asked}) == 3


def test_a_connection_that_breaks_is_tried_again(sample, server):
    expected = sample().ids
    server.drops = 2
    assert torch.equal(sample().ids, expected)
    assert server.drops == 0


def test_a_busy_server_is_asked_again(sample, server):
    from tests.engines.lora_server import Refusal

    endpoint, busy = server.completions, [503, 429]

    def completions(body):
        if busy:
            raise Refusal(busy.pop(), "busy")
        return endpoint(body)

    server.completions = completions
    assert len(sample().ids) == 2 and not busy


def test_a_key_in_the_environment_is_sent(served, server, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "open sesame")
    seen = []
    monkeypatch.setattr(
        served._client._opener, "open", lambda request, timeout: seen.append(request) or urllib.request.urlopen(request)
    )
    served._client.get("models")
    assert seen[0].get_header("Authorization") == "Bearer open sesame"


# ---------------------------------------------------------------- before a model is loaded


def refused(engine, tokens=200, adapter=CONFIG, path="organism"):
    with pytest.raises(EngineError) as refusal:
        engine.check(path, adapter, tokens)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def engine_of(server, tmp_path, **options):
    return ServerEngine(server.url, str(tmp_path / "adapters"), **{"retries": 0, **options})


def test_a_server_that_is_away(server, tmp_path):
    server.close()
    line = refused(engine_of(server, tmp_path, retries=1))
    assert "model.engine.init_args.base_url: expected a server" in line and "Connection refused" in line


def test_an_address_of_something_else(server, tmp_path):
    server.models = lambda: "hello"
    assert "expected a server with /v1/models" in refused(engine_of(server, tmp_path))


def test_a_model_that_is_not_served(server, tmp_path):
    line = refused(engine_of(server, tmp_path, model="Qwen/Qwen3-4B"))
    assert "model.engine.init_args.model: expected a model" in line and "(organism)" in line and "Qwen/Qwen3-4B" in line


def test_too_little_room(server, tmp_path):
    line = refused(engine_of(server, tmp_path), tokens=300)
    assert "300 tokens" in line and "got 256" in line and "--max-model-len 300" in line


def test_a_server_that_loads_no_adapters(server, tmp_path):
    server.loads_adapters = False
    line = refused(engine_of(server, tmp_path))
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in line and "404" in line


def test_a_rank_above_the_servers(server, tmp_path):
    line = refused(engine_of(server, tmp_path), adapter=RoutedLoraConfig(r=20))
    assert "rank 80" in line and "max_lora_rank 64" in line and "--max-lora-rank of at least 80" in line
    assert not server.loaded and not list((tmp_path / "adapters").iterdir())


def test_a_directory_that_cannot_be_written(server, tmp_path):
    (tmp_path / "adapters").write_text("a file")
    assert "adapters" in refused(engine_of(server, tmp_path))


@pytest.mark.parametrize("init", ["gaussian", "antipasto", "scorda"])
def test_adapters_of_every_kind_are_tried_before_the_model_is_loaded(server, tmp_path, init):
    engine_of(server, tmp_path).check("organism", RoutedLoraConfig(r=2, init=init), 200)
    assert [what for what, _ in server.log] == ["load", "load", "unload", "unload"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"max_logprob_gap": 0}, "max_logprob_gap: expected a number above 0; got 0"),
        ({"checked_rows": 0}, "checked_rows: expected at least 1"),
        ({"concurrency": 0}, "concurrency: expected at least 1"),
        ({"timeout_s": 0}, "timeout_s: expected a number above 0"),
        ({"retries": -1}, "retries: expected 0 or more"),
        ({"base_url": "localhost:8000"}, "base_url: expected http://host:port"),
    ],
)
def test_settings_that_make_no_sense(options, line):
    with pytest.raises(EngineError, match=line):
        ServerEngine(**options).check("organism", CONFIG, 200)


# ---------------------------------------------------------------- while it runs


def failing(sample, **options):
    with pytest.raises(EngineError) as failure:
        sample(**options)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_a_server_that_goes_away_says_how_to_go_on(sample, server):
    server.dies_after = 0
    line = failing(sample)
    assert "got no connection in 3 attempts" in line and "--ckpt_path last" in line


def test_a_server_that_was_started_anew_has_no_adapters(served, sample, server, policy, monkeypatch):
    served.publish(policy, also_ablated=True)
    server.loaded.clear()
    monkeypatch.setattr(served, "publish", lambda *_, **__: None)
    assert "does not exist" in failing(sample)


def test_no_answer_in_time(server, policy, tokenizer, prompts, tmp_path):
    engine = engine_of(server, tmp_path)
    engine.check("organism", CONFIG, 200)
    engine.publish(policy)
    engine._client.timeout_s = 0.2
    with server._one_at_a_time, pytest.raises(EngineError, match=r"within 0.2 s; got none; raise .*timeout_s"):
        engine.generate(policy, tokenizer, SamplingRequest(*prompts, TWO, Sampling(max_new_tokens=2, **FREE), ("x",)))


def _each_choice(change):
    def changed(answer):
        for choice in answer["choices"] if isinstance(answer, dict) and "choices" in answer else []:
            change(choice)
        return answer

    return changed


def _without_stop(choice):
    if choice["finish_reason"] == "stop":
        choice["token_ids"].pop()
        choice["logprobs"]["token_logprobs"].pop()


ANSWERS = {
    "no token ids": (_each_choice(lambda choice: choice.pop("token_ids")), "vLLM 0.10.2 or later"),
    "no log-probabilities": (_each_choice(lambda choice: choice.update(logprobs=None)), "the server gave none"),
    "no stop token": (_each_choice(_without_stop), "must return the stop token too"),
    "the base's name": (
        lambda answer: {**answer, "model": "organism"} if "choices" in answer else answer,
        "does not sample from the adapter",
    ),
    "one completion too few": (
        lambda answer: {**answer, "choices": answer["choices"][1:]} if "choices" in answer else answer,
        "expected 1 completions",
    ),
    "log-probabilities that are none": (
        _each_choice(
            lambda choice: choice["logprobs"].update(token_logprobs=[float("nan")] * len(choice["token_ids"]))
        ),
        "within 0.1 nats",
    ),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_not_what_was_asked_for(sample, server, answer):
    server.changed, line = ANSWERS[answer]
    longest = 60 if answer == "no stop token" else 4
    assert line in failing(sample, sampling=Sampling(max_new_tokens=longest, **FREE))


# ---------------------------------------------------------------- is it the policy?


def test_the_gap_to_the_policy_is_rounding_and_to_the_base_is_not(served, sample):
    sample()
    seen = served.statistics()
    assert seen["engine/logprob_gap"][0] < 1e-5
    assert seen["engine/base_gap"][0] > 1e-2
    assert seen["engine/logprob_gap"][1] > 10


def test_a_server_that_samples_from_the_base_is_found_out(sample, server):
    server.serves_base = True
    assert "are those of the base model" in failing(sample)


def test_an_adapter_without_effect_cannot_be_told_from_the_base(sample, server):
    server.serves_base = True
    fresh = attach_routed_adapter(load_base("organism", "float32", None), CONFIG)
    assert len(sample(policy=fresh).ids) == 2


def test_rows_in_the_wrong_state_are_found_out(sample, served, server, policy, tokenizer, prompts):
    """The gap is taken state by state: a few rows of one cannot hide among many of the other."""
    endpoint = server.completions

    def as_trained(body):
        other = next(name for name in server.loaded if "as_trained" in name)
        return {**endpoint({**body, "model": other}), "model": body["model"]}

    server.completions = as_trained
    served.max_logprob_gap = 0.02
    line = failing(sample, prompt_of=torch.arange(4).repeat_interleave(2), without=torch.arange(8) == 7)
    assert "deployed" in line and "within 0.02 nats" in line


def test_a_limit_below_the_gap_stops(sample, served):
    served.max_logprob_gap = 1e-9
    line = failing(sample)
    assert "within 1e-09 nats" in line and "max_logprob_gap" in line


def test_every_state_is_compared_in_evaluation_too(served, server, policy, tokenizer, prompts):
    greedy = Sampling(max_new_tokens=16, temperature=0)
    with ablated(policy):
        served.publish(policy)
        served.generate(policy, tokenizer, SamplingRequest(*prompts, TWO, greedy, ("x",)))
    assert served.statistics()["engine/logprob_gap"][0] < 1e-5
    server.serves_base = True
    with ablated(policy), pytest.raises(EngineError, match="deployed"):
        served.publish(policy)
        served.generate(policy, tokenizer, SamplingRequest(*prompts, TWO, greedy, ("x",)))


def test_few_rows_of_many_are_compared(served, sample):
    served.checked_rows = 1
    sampled = sample(prompt_of=torch.arange(4).repeat(2), without=torch.arange(8) > 3)
    lengths = sampled.mask.sum(1)
    assert served.statistics()["engine/logprob_gap"][1] == int(lengths[0] + lengths[4])


def test_two_servers_of_one_model_do_not_mix_their_adapters(server, tmp_path, policy):
    first, second = (engine_of(server, tmp_path) for _ in range(2))
    for engine in (first, second):
        engine.check("organism", CONFIG, 200)
        engine.publish(policy)
    assert len(server.loaded) == 2
    first.close()
    assert len(server.loaded) == 1


def test_the_test_server_speaks_of_what_it_was_asked(tmp_path):
    server = LoraServer(organism.CHECKPOINT, "base")
    with urllib.request.urlopen(f"{server.url}/v1/models") as answer:
        assert json.load(answer)["data"] == [{"id": "base", "max_model_len": 256}]
    server.close()
