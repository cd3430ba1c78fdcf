"""The LightningModule: the policy with its routed adapter, and GRPO as its training step."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgrout_pl.adapters import (
    block_delta_norms,
    block_gradient_norms,
    check_adapter_state,
    is_adapter_key,
    quarantine_share,
)
from vgrout_pl.engines import InProcessEngine, RolloutEngine
from vgrout_pl.env import Grade, Grader
from vgrout_pl.evaluation import STATES, chosen_states, evaluate
from vgrout_pl.logger import RunCSVLogger
from vgrout_pl.metrics import WindowMetrics, window_statistics
from vgrout_pl.objective import Objective, grpo_loss, loss_statistics
from vgrout_pl.optim import Optimization, build_optimizer
from vgrout_pl.policy import Dtype, check_head, checkpoint_activations, load_base, load_tokenizer
from vgrout_pl.preflight import callbacks_of, preflight, roles
from vgrout_pl.processes import agree
from vgrout_pl.rewards import RewardSum
from vgrout_pl.sampling import Sampling
from vgrout_pl.sharding import ShardedStrategy, is_sharded, shard, unsharded
from vgrout_pl.teachers import Teacher
from vgrout_pl.timing import PhaseTimer
from vgrout_pl.types import EvalBatch, Labels, Rollouts, Window, WindowObserver
from vgrout_pl.window import TrainingWindow, collect, score_rows, training_states, trimmed

TIMED = ("generate", "grade", "route", "score", "forward", "backward")
"""Phases of a step whose wall seconds are logged."""


class GRPOModule(L.LightningModule):
    """GRPO on a causal LM with a routed adapter; one optimizer step is one window of P prompts x G completions.

    The first micro-batch of a window samples, grades and routes the whole window
    (:meth:`on_after_batch_transfer`); :meth:`training_step` then works through its rows in
    ``trainer.accumulate_grad_batches`` micro-batches, ``updates_per_window`` times. Who decides the routes (a
    ``Router``) and how the adapter is made (a ``RoutedAdapter``) are callbacks.

    Args:
        path: ``organism``, a directory written by ``save_pretrained``, a hub id, or an exported adapter, which is
            merged into its base.
        dtype: of the frozen base; the adapter is float32 always.
        attn_implementation: attention kernel, by transformers' names (None: its default).
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        group_size: completions a prompt (G).
        deploy_sample_fraction: share of each group that is sampled with the quarantine ablated.
        updates_per_window: optimizer steps on one window (mu); from the second on, ratios are to the log-probabilities
            at the window's start.
        redraws: how often groups without reward differences give way to groups of other problems (dynamic sampling).
        sampling: how completions are drawn.
        engine: where they are drawn; None: in this process, from the weights that are trained.
        rewards: reward functions beside the environment's, and weights.
        teacher: cached completions that take rows of each group in the first steps.
        objective: the GRPO objective.
        optimization: optimiser and schedule.
        grader_workers: processes that grade answers.
        logprobs_at_temperature: take log-probabilities at the sampling temperature rather than at 1.
        share_prompts: run training passes over a prompt once for all rows that share it and their state.
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
        updates_per_window: int = 1,
        redraws: int = 0,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        engine: RolloutEngine | None = None,
        rewards: RewardSum = RewardSum(),  # noqa: B008 - frozen
        teacher: Teacher = Teacher(),  # noqa: B008 - frozen
        objective: Objective = Objective(),  # noqa: B008 - frozen
        optimization: Optimization = Optimization(),  # noqa: B008 - frozen
        grader_workers: int = 2,
        logprobs_at_temperature: bool = False,
        share_prompts: bool = True,
        score_chunk_tokens: int = 512,
    ):
        super().__init__()
        counts = {
            "grader_workers": grader_workers,
            "score_chunk_tokens": score_chunk_tokens,
            "updates_per_window": updates_per_window,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"model.{name}: expected at least 1; got {value}")
        self.path, self.dtype_name, self.attn_implementation = path, dtype, attn_implementation
        self.gradient_checkpointing = gradient_checkpointing
        self.group_size, self.deploy_sample_fraction = group_size, deploy_sample_fraction
        if redraws < 0:
            raise ValueError(f"model.redraws: expected a number of rounds, or 0; got {redraws}")
        self.redraws, self.rewards, self.teacher = redraws, rewards, teacher
        self.sampling, self.objective, self.optimization = sampling, objective, optimization
        self.grader_workers, self.score_chunk_tokens = grader_workers, score_chunk_tokens
        self.updates_per_window, self.share_prompts = updates_per_window, share_prompts
        self.logprobs_at_temperature = logprobs_at_temperature
        self.timer = PhaseTimer()
        self.engine: RolloutEngine = InProcessEngine() if engine is None else engine
        self.metrics = WindowMetrics(rewards.names, self.engine.metrics)
        self.states = dict(STATES)
        self.strict_loading = False
        self._grader: Grader | None = None
        self._window: TrainingWindow
        self._step_started = 0.0
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
        self.policy.eval()
        if self.gradient_checkpointing:
            checkpoint_activations(self.policy)
        if self.trainer.world_size > 1:
            agree(self.policy, self.trainer.strategy.root_device)
        if isinstance(self.trainer.strategy, ShardedStrategy):
            shard(self.policy, self.trainer.strategy.device_mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW toward init, warm-up and cosine over the whole run."""
        total = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = build_optimizer(self.policy, self.optimization, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def logprob_temperature(self) -> float:
        """What logits are divided by before log-probabilities are taken."""
        return self.sampling.temperature if self.logprobs_at_temperature else 1.0

    @property
    def grader(self) -> Grader:
        """The grader's worker processes, started at first use."""
        if self._grader is None:
            self._grader = Grader(workers=self.grader_workers)
        return self._grader

    def teardown(self, stage: str) -> None:
        """Stop the grader's processes and the engine's work."""
        self.engine.close()
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
        if isinstance(batch, Window):
            if batch.micro == 0:
                self.timer.clear()
                self._step_started = time.perf_counter()
            if batch.micro == 0 and batch.update == 0:
                with self.trainer.precision_plugin.forward_context(), unsharded(self.policy):
                    self._window = collect(self, batch)
                rollouts, labels = self._window.rollouts, self._window.labels
                self.metrics.update_all(window_statistics(rollouts, labels))
                self.metrics.update_all(self.engine.statistics())
                self._announce(rollouts, labels)
            self._window.begin_update(batch.update)
            self.timer.enter("forward")
        return batch

    def _announce(self, rollouts: Rollouts, labels: Labels) -> None:
        for callback in callbacks_of(self.trainer):
            if isinstance(callback, WindowObserver):
                callback.on_rollouts(self.trainer, self, rollouts, labels)

    # ---------------------------------------------------------------- the step

    def training_step(self, batch: Window, batch_idx: int) -> Tensor:
        """Loss of one micro-batch, its tokens weighted by the window's normaliser.

        Lightning divides by ``accumulate_grad_batches`` and averages over processes; the first is undone here, the
        second is wanted, since the normaliser counts this process' rows.
        """
        window, index = self._window, self._window.micro_batches[batch.micro]
        if not len(index):
            self._record_loss(0.0, 0.0)
            return self._no_gradient()
        rows = trimmed(window.rollouts.rows(index))
        rows.step = batch.step + batch.update
        logprobs, entropy = score_rows(self, rows, training_states(self, rows))
        result = grpo_loss(self.objective, rows, logprobs, window.normalizer, entropy)
        if batch.update == 0 and batch.updates > 1:
            window.keep_start(index, result.start_logprobs)
        self.metrics.update_all(loss_statistics(self.objective, rows, logprobs.detach(), entropy.detach(), result))
        self._record_loss(result.loss.detach() * batch.micro_batches, result.policy * batch.micro_batches)
        self.timer.enter("backward")
        return result.loss * batch.micro_batches

    def _record_loss(self, loss: Tensor | float, policy_loss: Tensor | float) -> None:
        """Add one micro-batch, scaled by their number: the mean over micro-batches and processes is the step's loss."""
        self.metrics.update("loss", loss)
        self.metrics.update("policy_loss", policy_loss)

    def _no_gradient(self) -> Tensor:
        """A loss of 0 whose gradient is 0 for every parameter, so that all processes take the same path."""
        if is_sharded(self.policy):
            row = trimmed(self._window.rollouts.rows(torch.zeros(1, dtype=torch.long, device=self.device)))
            return score_rows(self, row, training_states(self, row))[0].sum() * 0.0
        return torch.stack([p.sum() for p in self.policy.parameters() if p.requires_grad]).sum() * 0.0

    def on_after_backward(self) -> None:
        """Close the phase that the end of the training step began."""
        self.timer.enter("optimizer")

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
        logged["quarantine/delta_share"] = quarantine_share(block_delta_norms(self.policy))
        logged["lr"] = optimizer.param_groups[0]["lr"]
        logged["step_time"] = time.perf_counter() - self._step_started
        logged |= {f"time/{phase}": self.timer.wall.get(phase, 0.0) for phase in TIMED}
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
