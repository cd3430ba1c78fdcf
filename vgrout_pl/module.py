"""The LightningModule: the policy with its routed adapter, and GRPO as its training step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgrout_pl.adapters import (
    Route,
    ablated,
    block_gradient_norms,
    check_adapter_state,
    clear_routes,
    is_adapter_key,
    quarantine_share,
    reference_policy,
    set_routes,
)
from vgrout_pl.env import Grade, Grader
from vgrout_pl.evaluation import chosen_states, evaluate
from vgrout_pl.functional import (
    clip_fractions,
    clipped_policy_loss,
    constant_groups,
    group_advantages,
    k3_divergence,
    masked_sum,
)
from vgrout_pl.functional.advantages import RewardScale
from vgrout_pl.logger import RunCSVLogger
from vgrout_pl.metrics import WindowMetrics, window_statistics
from vgrout_pl.optim import Optimization, build_optimizer
from vgrout_pl.policy import Dtype, check_head, load_base, load_tokenizer, score_completions
from vgrout_pl.preflight import callbacks_of, data_of, preflight, roles
from vgrout_pl.rollout import Sampling, decode, encode_prompts, generate, grade, rewards_of
from vgrout_pl.types import EvalBatch, Labels, Rollouts, Window, WindowObserver


@dataclass(frozen=True)
class Objective:
    """The GRPO objective.

    Args:
        beta: weight of the k3 divergence to the policy without its adapter; 0: not computed.
        clip_low: lower bound of the ratio is 1 - clip_low.
        clip_high: upper bound of the ratio is 1 + clip_high.
        reward_scale: divide advantages by no standard deviation, the group's or the batch's.
    """

    beta: float = 1e-3
    clip_low: float = 0.2
    clip_high: float = 0.2
    reward_scale: RewardScale = "none"

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.beta < 0 or self.clip_high < 0 or not 0 <= self.clip_low <= 1:
            raise ValueError(
                "model.objective: expected beta >= 0, clip_high >= 0 and clip_low in [0, 1]; got "
                f"{self.beta}, {self.clip_high} and {self.clip_low}"
            )


class GRPOModule(L.LightningModule):
    """GRPO on a causal LM with a routed adapter; one optimizer step is one window of P prompts x G completions.

    The first micro-batch of a window samples, grades and routes the whole window
    (:meth:`on_after_batch_transfer`); :meth:`training_step` then works through its rows in
    ``trainer.accumulate_grad_batches`` micro-batches. Who decides the routes (a ``Router``) and how the adapter is
    made (a ``RoutedAdapter``) are callbacks.

    Args:
        path: ``organism``, a directory written by ``save_pretrained``, or a hub id.
        dtype: of the frozen base; the adapter is float32 always.
        attn_implementation: attention kernel, by transformers' names (None: its default).
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        group_size: completions a prompt (G).
        deploy_sample_fraction: share of each group that is sampled with the quarantine ablated.
        sampling: how completions are drawn.
        objective: the GRPO objective.
        optimization: optimiser and schedule.
        grader_workers: processes that grade answers.
        score_chunk_tokens: positions of one chunk of the language-model head.
    """

    policy: PeftModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        path: str = "organism",
        dtype: Dtype = "float32",
        attn_implementation: str | None = None,
        gradient_checkpointing: bool = False,
        group_size: int = 8,
        deploy_sample_fraction: float = 0.25,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        objective: Objective = Objective(),
        optimization: Optimization = Optimization(),  # noqa: B008 - frozen
        grader_workers: int = 2,
        score_chunk_tokens: int = 2048,
    ):
        super().__init__()
        self.path, self.dtype_name, self.attn_implementation = path, dtype, attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.group_size, self.deploy_sample_fraction = group_size, deploy_sample_fraction
        self.sampling, self.objective, self.optimization = sampling, objective, optimization
        self.grader_workers, self.score_chunk_tokens = grader_workers, score_chunk_tokens
        self.metrics = WindowMetrics()
        self.strict_loading = False
        self._grader: Grader | None = None
        self._window: tuple[Rollouts, Tensor]
        self._window_started = 0.0
        self.step_metrics: dict[str, float] = {}
        self.trained_steps = 0

    # ---------------------------------------------------------------- set-up

    def setup(self, stage: str) -> None:
        """Check the whole configuration before any weight is read, then load the tokenizer."""
        preflight(self.trainer, self)
        if not hasattr(self, "tokenizer"):
            self.tokenizer = load_tokenizer(self.path)

    def configure_model(self) -> None:
        """Load the base and attach the routed adapter, once, before a strategy shards and a checkpoint is restored."""
        if hasattr(self, "policy"):
            return
        base = load_base(self.path, self.dtype_name, self.attn_implementation)
        check_head(base)
        adapter, _ = roles(self.trainer)
        self.policy = adapter.attach(base, self.tokenizer, restoring=self.trainer.ckpt_path is not None)
        if self.gradient_checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW toward init, warm-up and cosine over the whole run."""
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = build_optimizer(self.policy, self.optimization, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def grader(self) -> Grader:
        """The grader's worker processes, started at first use."""
        if self._grader is None:
            self._grader = Grader(workers=self.grader_workers)
        return self._grader

    def teardown(self, stage: str) -> None:
        """Stop the grader's processes."""
        if self._grader is not None:
            self._grader.close()
            self._grader = None

    # ---------------------------------------------------------------- checkpoints: the adapter, never the base

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the adapter alone."""
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if is_adapter_key(k)}

    def on_train_start(self) -> None:
        """Let a resumed run's metrics go on from its checkpoint."""
        for logger in self.loggers:
            if isinstance(logger, RunCSVLogger):
                logger.drop_from_step(self.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that holds another adapter."""
        self.trained_steps = checkpoint["global_step"]
        check_adapter_state(self.policy, checkpoint["state_dict"], prefix="policy.")

    # ---------------------------------------------------------------- a window: sample, grade, route, score

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave batches of problems where they are: their tensors are made on the device."""
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn the first micro-batch of a window into rollouts."""
        if isinstance(batch, Window) and batch.micro == 0:
            self._window_started = time.perf_counter()
            self._window = self.collect(batch)
        return batch

    @torch.no_grad()
    def collect(self, window: Window) -> tuple[Rollouts, Tensor]:
        """Sample, grade and route one window.

        Returns:
            the rollouts (N = P G rows) and the indices [n] of its rows that carry a policy gradient, shortest first.
        """
        rollouts, problems = self.sample(window)
        grades = grade(self.grader, rollouts.completions, problems)
        labels = Labels.from_grades(grades, self.device)
        rollouts.rewards = rewards_of(grades, self.group_size).to(self.device)
        rollouts.advantages = group_advantages(rollouts.rewards, self.group_size, self.objective.reward_scale)
        _, router = roles(self.trainer)
        rollouts.routes = router.assign(rollouts, labels)
        live = (~constant_groups(rollouts.rewards, self.group_size)).nonzero().flatten()
        live = live[rollouts.completion_mask[live].sum(1).argsort(stable=True)]
        self._score_other_states(rollouts, live)
        for name, (value, weight) in window_statistics(rollouts, labels, self.sampling.max_new_tokens).items():
            self.metrics.update(name, value, weight)
        self._announce(rollouts, labels)
        return rollouts, live

    def sample(self, window: Window) -> tuple[Rollouts, list]:
        """Draw G completions for each problem of a window, a share of them with the quarantine ablated."""
        size = self.group_size
        data = data_of(self.trainer)
        texts, ids, mask = encode_prompts(self.tokenizer, window.problems, data.max_prompt_tokens)
        prompt_ids = ids.repeat_interleave(size, 0).to(self.device)
        prompt_mask = mask.repeat_interleave(size, 0).to(self.device)
        ablated_rows = self.ablated_rows(len(window.problems))
        seed = ("rollout", data.seed, window.step, self.global_rank)
        completion_ids, completion_mask = generate(
            self.policy, self.tokenizer, prompt_ids, prompt_mask, self.sampling, seed, ablated_rows
        )
        problems = [problem for problem in window.problems for _ in range(size)]
        rollouts = Rollouts(
            step=window.step,
            group_size=size,
            problem_ids=[str(problem.id) for problem in problems],
            modes=[problem.mode for problem in problems],
            prompts=[text for text in texts for _ in range(size)],
            completions=decode(self.tokenizer, completion_ids, completion_mask),
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            completion_ids=completion_ids,
            completion_mask=completion_mask,
            ablated=ablated_rows,
        )
        return rollouts, problems

    def ablated_rows(self, prompts: int) -> Tensor:
        """Mark the last ``deploy_sample_fraction`` of each group: bool [P G]; none where the quarantine ships."""
        _, router = roles(self.trainer)
        share = 0.0 if router.ships_quarantine else self.deploy_sample_fraction
        first = self.group_size - round(self.group_size * share)
        return (torch.arange(self.group_size) >= first).repeat(prompts).to(self.device)

    def _score_other_states(self, rollouts: Rollouts, live: Tensor) -> None:
        """Fill ``old_logprobs`` where a row's route has another forward than it was sampled in, and the reference."""
        old = torch.full_like(rollouts.completion_ids, float("nan"), dtype=torch.float32)
        differs = live[(rollouts.routes[live] == Route.KEEP) != rollouts.ablated[live]]
        self._score_rows(rollouts, differs, old, lambda rows: ablated(self.policy, rows=rows.ablated))
        rollouts.old_logprobs = old
        if self.objective.beta:
            reference = torch.full_like(old, float("nan"))
            self._score_rows(rollouts, live, reference, lambda _: reference_policy(self.policy))
            rollouts.reference_logprobs = reference

    def _score_rows(self, rollouts: Rollouts, index: Tensor, out: Tensor, state: Any) -> None:
        micro = max(1, -(-len(rollouts) // self.trainer.accumulate_grad_batches))
        for chunk in index.split(micro):
            if len(chunk):
                rows = trimmed(rollouts.rows(chunk))
                with state(rows):
                    logprobs, _ = self._score(rows)
                out[chunk, : logprobs.shape[1]] = logprobs

    def _score(self, rows: Rollouts) -> tuple[Tensor, Tensor]:
        return score_completions(
            self.policy,
            rows.prompt_ids,
            rows.prompt_mask,
            rows.completion_ids,
            rows.completion_mask,
            chunk_tokens=self.score_chunk_tokens,
        )

    def _announce(self, rollouts: Rollouts, labels: Labels) -> None:
        for callback in callbacks_of(self.trainer):
            if isinstance(callback, WindowObserver):
                callback.on_rollouts(self.trainer, self, rollouts, labels)

    # ---------------------------------------------------------------- the step

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        """Loss of one micro-batch: sum over its tokens of L + beta k3, over the constant G max_new_tokens P.

        Lightning divides by ``accumulate_grad_batches`` and averages over processes; the first is undone here, the
        second is wanted, since P counts this process' prompts.
        """
        rollouts, live = self._window
        index = live.tensor_split(batch.micro_batches)[batch.micro]
        if not len(index):
            return self._no_gradient()
        rows = trimmed(rollouts.rows(index))
        set_routes(self.policy, rows.routes)
        logprobs, entropy = self._score(rows)
        mask = rows.completion_mask
        differs = ((rows.routes == Route.KEEP) != rows.ablated).unsqueeze(-1)
        old = torch.where(differs & mask, cast(Tensor, rows.old_logprobs), logprobs.detach())
        options = self.objective
        loss = clipped_policy_loss(logprobs, old, rows.advantages, options.clip_low, options.clip_high)
        policy_sum = masked_sum(loss, mask)
        kl_sum = torch.zeros_like(policy_sum)
        if options.beta:
            reference = torch.where(mask, cast(Tensor, rows.reference_logprobs), 0.0)
            kl_sum = masked_sum(k3_divergence(logprobs, reference), mask)
        denominator = len(rollouts) * self.sampling.max_new_tokens
        total = (policy_sum + options.beta * kl_sum) / denominator
        self._record(rows, logprobs.detach(), old, entropy, policy_sum.detach() / denominator, kl_sum.detach(), total)
        return total * batch.micro_batches

    def _record(
        self, rows: Rollouts, logprobs: Tensor, old: Tensor, entropy: Tensor, policy: Tensor, kl: Tensor, loss: Tensor
    ) -> None:
        mask = rows.completion_mask
        tokens = mask.sum()
        options, update = self.objective, self.metrics.update
        update("loss", loss.detach())
        update("policy_loss", policy)
        if options.beta:
            update("kl", kl / tokens, tokens)
        update("entropy", masked_sum(entropy, mask) / tokens, tokens)
        update("sampling/logprob", masked_sum(logprobs, mask) / tokens, tokens)
        clipped = clip_fractions(logprobs, old, rows.advantages, mask, options.clip_low, options.clip_high)
        for side in ("low", "high"):
            update(f"clip_ratio/{side}_mean", clipped[side] / tokens, tokens)
        update("clip_ratio/region_mean", (clipped["low"] + clipped["high"]) / tokens, tokens)
        for route in (Route.KEEP, Route.ABSORB, Route.ROUTE):
            chosen = mask & (rows.routes == route).unsqueeze(-1)
            count = chosen.sum()
            ratio = masked_sum(torch.exp(logprobs - old), chosen) / count.clamp_min(1)
            update(f"route/ratio_{route.name.lower()}", ratio, count)

    def _no_gradient(self) -> Tensor:
        """A loss of 0 whose gradient is 0 for every parameter, so that all processes take the same path."""
        return torch.stack([p.sum() for p in self.policy.parameters() if p.requires_grad]).sum() * 0.0

    def on_after_backward(self) -> None:
        """Forget the routes once the backward pass, which may re-run the forward, is over."""
        clear_routes(self.policy)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the window, with the gradient norms of both blocks before clipping.

        Every name is logged at every step, NaN where the step has no instance of it: Lightning would repeat the value
        of an earlier step for a name that is left out.
        """
        norms = block_gradient_norms(self.policy)
        whole = sum(norm**2 for norm in norms.values()) ** 0.5
        logged = self.metrics.compute()
        logged["grad_norm"] = float(whole)
        logged["quarantine/grad_share"] = quarantine_share(norms)
        logged["lr"] = optimizer.param_groups[0]["lr"]
        logged["step_time"] = time.perf_counter() - self._window_started
        self.step_metrics = {name: value for name, value in logged.items() if not math.isnan(value)}
        self.log_dict(logged)
        for name, key in (("hack", "hack/rate"), ("solve", "solve/rate")):
            self.log(name, logged[key], prog_bar=True, logger=False)

    # ---------------------------------------------------------------- evaluation

    def validation_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, list[Grade]]:
        """Grade one batch of validation problems in every state that the callbacks ask for."""
        return evaluate(self, batch, chosen_states(self.trainer, "validate"))

    def test_step(self, batch: EvalBatch, batch_idx: int) -> dict[str, list[Grade]]:
        """Grade one batch of a final evaluation cell in every state that the callbacks ask for."""
        return evaluate(self, batch, chosen_states(self.trainer, "test"))


def trimmed(rows: Rollouts) -> Rollouts:
    """Cut the padding that no row needs: prompts on the left, completions on the right."""
    longest = int(rows.completion_mask.sum(1).max())
    first = rows.prompt_mask.shape[1] - int(rows.prompt_mask.sum(1).max())
    for name in ("completion_ids", "completion_mask", "old_logprobs", "reference_logprobs"):
        value = getattr(rows, name)
        if value is not None:
            setattr(rows, name, value[:, :longest])
    rows.prompt_ids, rows.prompt_mask = rows.prompt_ids[:, first:], rows.prompt_mask[:, first:]
    return rows
