"""The training step against a slow, obvious, row-by-row computation, and its invariances."""

import lightning as L
import pytest
import torch

from vgrout_pl.adapters import Route, ablated, blocks, reference_policy, routed
from vgrout_pl.callbacks import RoutedAdapter
from vgrout_pl.datamodule import ProblemDataModule
from vgrout_pl.env import Grade, Grader
from vgrout_pl.module import GRPOModule
from vgrout_pl.objective import Objective
from vgrout_pl.optim import Optimization, warmup_cosine
from vgrout_pl.routers import Router
from vgrout_pl.sampling import Sampling

CLIP, BETA = 0.2, 0.05


class Mixed(Router):
    """Every route in every group, and each of them on rows sampled ablated too (two groups of 8)."""

    name = "mixed"

    def route(self, rollouts, labels):
        row = torch.arange(len(rollouts))
        return (row + 2 * (row // rollouts.group_size)) % 4


def planted_grades(grader, pairs):
    """Rewards that differ within each group, so that every row has an advantage."""
    return [Grade(reward=sum(text.encode()) % 64 / 16) for text, _ in pairs]


class Stop(L.Callback):
    """Keep the gradients of the first optimizer step, and the window they came from."""

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients = {n: p.grad.clone() for n, p in module.policy.named_parameters() if p.requires_grad}
        self.rollouts = module._window.rollouts


class Perturb(L.Callback):
    """Move the adapter away from its init first, so that states differ."""

    def on_train_start(self, trainer, module):
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in module.policy.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5


def one_step(monkeypatch, tmp_path, micro_batches=1, checkpointing=False, chunk=2048):
    monkeypatch.setattr(Grader, "grade_batch", planted_grades)
    module = GRPOModule(
        group_size=8,
        sampling=Sampling(max_new_tokens=12, temperature=1.0, top_p=1.0, top_k=0),
        objective=Objective(beta=BETA, clip_low=CLIP, clip_high=CLIP),
        gradient_checkpointing=checkpointing,
        score_chunk_tokens=chunk,
    )
    data = ProblemDataModule(prompts_per_step=2, max_prompt_tokens=128)
    stop = Stop()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=1,
        accumulate_grad_batches=micro_batches,
        limit_val_batches=0,
        callbacks=[RoutedAdapter(r=4, init="gaussian"), Mixed(), Perturb(), stop],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, data)
    return module, stop


def undo_the_step(module):
    """Put the weights of before the optimizer step back: the init, perturbed as it was."""
    for block in blocks(module.policy):
        block.A.data.copy_(block.A0)
        block.B.data.copy_(block.B0)
    Perturb().on_train_start(None, module)


def row_logprobs(policy, prompt, completion):
    ids = torch.cat([prompt, completion]).unsqueeze(0)
    logits = policy(input_ids=ids).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(-1, completion.unsqueeze(-1)).squeeze(-1)


def reference_gradients(module, rollouts):
    """Every row alone, without padding, batching or sharing of passes."""
    policy = module.policy
    policy.zero_grad()
    groups = rollouts.rewards.view(-1, rollouts.group_size)
    advantages = (groups - groups.mean(1, keepdim=True)).flatten()
    for i in range(len(rollouts)):
        prompt = rollouts.prompt_ids[i][rollouts.prompt_mask[i]]
        completion = rollouts.completion_ids[i][rollouts.completion_mask[i]]
        with torch.no_grad():
            if rollouts.ablated[i]:
                with ablated(policy):
                    old = row_logprobs(policy, prompt, completion)
            else:
                old = row_logprobs(policy, prompt, completion)
            with reference_policy(policy):
                reference = row_logprobs(policy, prompt, completion)
        with routed(policy, rollouts.routes[i : i + 1]):
            logprobs = row_logprobs(policy, prompt, completion)
            ratio = torch.exp(logprobs - old)
            a = advantages[i]
            surrogate = -torch.minimum(ratio * a, ratio.clamp(1 - CLIP, 1 + CLIP) * a)
            gap = reference - logprobs
            loss = (surrogate + BETA * (torch.exp(gap) - gap - 1)).sum()
            (loss / (len(rollouts) * 12)).backward()
    return {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("micro_batches", "checkpointing", "chunk"), [(1, False, 2048), (4, False, 7), (2, True, 2048)]
)
def test_the_gradient_of_a_step_equals_the_row_by_row_one(monkeypatch, tmp_path, micro_batches, checkpointing, chunk):
    module, stop = one_step(monkeypatch, tmp_path, micro_batches, checkpointing, chunk)
    undo_the_step(module)
    module.policy.eval()
    if checkpointing:
        module.policy.get_base_model().gradient_checkpointing_disable()
    rollouts = stop.rollouts
    for ablated_sampling in (True, False):
        assert set(rollouts.routes[rollouts.ablated == ablated_sampling].tolist()) == {int(route) for route in Route}
    assert rollouts.ablated.any() and not rollouts.ablated.all()
    expected = reference_gradients(module, rollouts)
    for name, gradient in stop.gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_warm_up_then_cosine_by_hand():
    factors = [warmup_cosine(step, 2, 6) for step in range(7)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447, 0.0], abs=1e-6)


def test_options_that_cannot_be_meant_are_refused():
    for options in ({"lr": 0}, {"warmup_steps": -1}, {"init_decay": -1}):
        with pytest.raises(ValueError, match=r"model\.optimization"):
            Optimization(**options)
    for options in ({"beta": -1}, {"clip_low": 2}, {"delta": 1.1}):
        with pytest.raises(ValueError, match=r"model\.objective"):
            Objective(**options)
