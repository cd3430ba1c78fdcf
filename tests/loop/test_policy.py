"""The policy samples what the configuration says, and scores without noise."""

import shutil

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tests.loop.policy_support import sampled, scored, state_of_all
from vgrout_pl import organism
from vgrout_pl.adapters import RoutedLoraConfig, attach_routed_adapter
from vgrout_pl.policy import checkpoint_activations, load_base, load_tokenizer
from vgrout_pl.rollout import encode_prompts
from vgrout_pl.sampling import Sampling

PROBLEMS = organism.problems("train", mode="run_tests")[:2]


def drawn_from(path, policy=None):
    tokenizer = load_tokenizer(str(path))
    if policy is None:
        policy = attach_routed_adapter(load_base(str(path), "float32", None), RoutedLoraConfig(r=2))
    _, ids, mask = encode_prompts(tokenizer, PROBLEMS, 128)
    sampling = Sampling(max_new_tokens=16, temperature=1.0, top_p=1.0, top_k=0)
    return sampled(policy, tokenizer, ids, mask, torch.arange(2), sampling, ("test",))[:2]


def test_a_models_own_sampling_preferences_do_not_reach_the_rollouts(tmp_path):
    opinionated = tmp_path / "model"
    shutil.copytree(organism.CHECKPOINT, opinionated)
    config = GenerationConfig.from_pretrained(opinionated)
    config.update(repetition_penalty=1.8, min_p=0.9, top_k=1, do_sample=True)
    config.save_pretrained(opinionated)
    assert load_base(str(opinionated), "float32", None).generation_config.repetition_penalty in (None, 1.0)
    for ours, plain in zip(drawn_from(opinionated), drawn_from(organism.CHECKPOINT), strict=True):
        assert torch.equal(ours, plain)


def noisy_policy(tmp_path):
    config = AutoConfig.from_pretrained(organism.CHECKPOINT)
    config.attention_dropout = 0.5
    AutoModelForCausalLM.from_pretrained(organism.CHECKPOINT, config=config).save_pretrained(tmp_path)
    policy = attach_routed_adapter(load_base(str(tmp_path), "float32", None), RoutedLoraConfig(r=2))
    policy.eval()
    return policy


def scores(policy):
    tokenizer = load_tokenizer("organism")
    _, ids, mask = encode_prompts(tokenizer, PROBLEMS, 128)
    completion = ids[:, :9]
    return scored(policy, ids, mask, torch.arange(2), completion, torch.ones_like(completion).bool(), state_of_all(2))


def test_scoring_stays_free_of_dropout_after_generating_and_while_checkpointing(tmp_path):
    policy = noisy_policy(tmp_path)
    before = scores(policy)
    drawn_from(organism.CHECKPOINT, policy)
    assert torch.equal(scores(policy), before)
    checkpoint_activations(policy)
    drawn_from(organism.CHECKPOINT, policy)
    calls = []
    layer = policy.get_base_model().get_decoder().layers[0]
    layer.self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
    logprobs = scores(policy)
    torch.testing.assert_close(logprobs, before)
    forward = len(calls)
    logprobs.sum().backward()
    assert len(calls) == 2 * forward > 0, "the backward pass is expected to run the checkpointed layer once more"
