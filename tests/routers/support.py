"""Rollouts made of given tokens, and a policy with what a gate needs of its module."""

from types import SimpleNamespace

import torch

from vgrout_pl.adapters import RoutedLoraConfig, attach_routed_adapter
from vgrout_pl.objective import Objective
from vgrout_pl.policy import load_base, load_tokenizer
from vgrout_pl.sampling import Sampling
from vgrout_pl.types import Rollouts


def rollouts_of(prompts, completions, ablated=None, group_size=2, step=0, texts=None, modes=None):
    """Rows of token lists."""
    n, ablated = len(completions), [False] * len(completions) if ablated is None else ablated
    longest, widest = max(map(len, completions)), max(map(len, prompts))
    ids = torch.zeros(n, longest, dtype=torch.long)
    mask = torch.zeros(n, longest, dtype=torch.bool)
    prompt_ids = torch.zeros(n, widest, dtype=torch.long)
    prompt_mask = torch.zeros(n, widest, dtype=torch.bool)
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[i, : len(completion)], mask[i, : len(completion)] = torch.tensor(completion), True
        prompt_ids[i, widest - len(prompt) :], prompt_mask[i, widest - len(prompt) :] = torch.tensor(prompt), True
    return Rollouts(
        step=step,
        group_size=group_size,
        problem_ids=[str(i) for i in range(n)],
        modes=modes or ["run_tests"] * n,
        markers=["run_tests" if mode == "run_tests" else None for mode in modes or ["run_tests"] * n],
        prompts=[""] * n,
        completions=texts or [""] * n,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_of=torch.arange(n) // group_size,
        completion_ids=ids,
        completion_mask=mask,
        ablated=torch.tensor(ablated),
        rewards=torch.arange(n).float(),
        advantages=torch.ones(n),
    )


def module_of(policy, tokenizer=None, micro_batches=1):
    """What a gate asks of the module, without a trainer."""
    return SimpleNamespace(
        policy=policy,
        tokenizer=tokenizer,
        device=torch.device("cpu"),
        global_rank=0,
        trainer=SimpleNamespace(accumulate_grad_batches=micro_batches, world_size=1),
        score_chunk_tokens=64,
        share_prompts=True,
        logprob_temperature=1.0,
        sampling=Sampling(),
        objective=Objective(),
    )


def organism_policy(target_modules=None, rank=8):
    """The organism with a fresh gaussian adapter, and its tokenizer."""
    base = load_base("organism", "float32", None)
    config = RoutedLoraConfig(r=rank, init="gaussian", target_modules=target_modules)
    return attach_routed_adapter(base, config).eval(), load_tokenizer("organism")
