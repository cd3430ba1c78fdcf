"""Retain-heal: a little supervised learning on clean answers after the quarantine is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftModel
from torch import Tensor

from vgrout_pl.adapters import Route, ablated, export_deployed, routed
from vgrout_pl.directions import ContrastivePair, load_pairs, pair_batches, pairs_hash
from vgrout_pl.evaluation import StateChooser
from vgrout_pl.functional import completion_logprobs
from vgrout_pl.policy import ORGANISM, base_of, head_of, positions
from vgrout_pl.preflight import data_of, roles

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

HEALED = ("as_trained_healed", "deployed_healed")


class RetainHeal(StateChooser, Callback):
    """Before the final evaluation, make a healed copy of the deployed block; evaluate before and after it.

    ``steps`` steps of AdamW on the mean negative log-likelihood of the clean side of contrastive pairs, under route
    keep: the quarantine is absent and only the deployed block learns. What was trained stays as it is: the copy is
    evaluated as the states ``as_trained_healed`` and ``deployed_healed`` (phase "after" in ``eval.json``) and exported
    to ``<run>/<directory>``. It depends on the checkpoint and these arguments alone.

    Args:
        steps: optimizer steps; 0: no heal.
        lr: learning rate.
        pairs: where the pairs come from, as for ``adapter.pairs``.
        n_pairs: how many; null: 16 of the organism's, all of a file.
        batch_size: pairs a step, taken in order, over and over.
        directory: name of the export inside the run directory.
    """

    stage = "test"

    def __init__(
        self,
        steps: int = 0,
        lr: float = 1e-4,
        pairs: str = ORGANISM,
        n_pairs: int | None = None,
        batch_size: int = 16,
        directory: str = "deployed_healed",
    ):
        if steps < 0 or not lr > 0 or batch_size < 1:
            raise ValueError(
                f"heal: expected steps of 0 or more, a positive lr and batch_size; got {steps}, {lr} and {batch_size}"
            )
        self.states = HEALED if steps else ()
        self.steps, self.lr, self.batch_size, self.directory = steps, lr, batch_size, directory
        self._source, self._n = pairs, n_pairs
        self._pairs: list[ContrastivePair] = []
        self._healed: list[tuple[torch.nn.Parameter, Tensor]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Read the pairs, and offer the healed states to the evaluation."""
        if not self.steps:
            return
        _, router = roles(trainer)
        if router.ships_quarantine:
            raise ValueError("heal.steps: expected 0 where both blocks ship (router none), nothing is left to heal")
        source, n = self._source, self._n
        if source == ORGANISM:
            modes = [mode for mode in data_of(trainer).modes if mode != "gt_only"] or ["run_tests"]
            source, n = f"{ORGANISM}:{','.join(modes)}", n or 16
        try:
            self._pairs = load_pairs(source, n=n)
        except ValueError as error:
            raise ValueError(f"heal.pairs: {error}") from error
        states = cast("GRPOModule", pl_module).states
        states["as_trained_healed"] = lambda policy: self._in_place()
        states["deployed_healed"] = self._ablated

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the healed copy of what is evaluated, and export it."""
        if not self.steps:
            return
        module = cast("GRPOModule", pl_module)
        self._heal(module)
        facts = {"retain_heal_steps": self.steps, "lr": self.lr, "pairs_hash": pairs_hash(self._pairs)}
        with self._in_place():
            export_deployed(module.policy, Path(trainer.default_root_dir) / self.directory, provenance=facts)

    @torch.inference_mode(False)
    def _heal(self, module: GRPOModule) -> None:
        policy = module.policy
        parameters = [p for name, p in policy.named_parameters() if p.requires_grad and ".deployed" in name]
        before = [p.detach().clone() for p in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=0.0)
        batches = list(pair_batches(module.tokenizer, self._pairs, "clean", self.batch_size))
        try:
            with torch.enable_grad():
                for step in range(self.steps):
                    optimizer.zero_grad()
                    self._loss(module, batches[step % len(batches)]).backward()
                    optimizer.step()
            self._healed = [(p, p.detach().clone()) for p in parameters]
        finally:
            policy.zero_grad(set_to_none=True)
            with torch.no_grad():
                for parameter, value in zip(parameters, before, strict=True):
                    parameter.copy_(value)

    @staticmethod
    def _loss(module: GRPOModule, batch: dict[str, Tensor]) -> Tensor:
        """Mean negative log-likelihood of the completion tokens of one batch, under route keep."""
        ids, attention, kept = (batch[k].to(module.device) for k in ("input_ids", "attention_mask", "completion_mask"))
        base = base_of(module.policy)
        with routed(module.policy, torch.full((len(ids),), int(Route.KEEP))):
            hidden = base.get_decoder()(
                input_ids=ids, attention_mask=attention, position_ids=positions(attention), use_cache=False
            ).last_hidden_state
        logprobs, _ = completion_logprobs(
            hidden[:, :-1], ids[:, 1:], head_of(base), chunk_tokens=module.score_chunk_tokens
        )
        mask = kept[:, 1:].bool()
        return -torch.where(mask, logprobs, 0.0).sum() / mask.sum()

    @contextmanager
    def _in_place(self) -> Iterator[None]:
        """The healed copy in place of what was trained."""
        trained = [(parameter, parameter.detach().clone()) for parameter, _ in self._healed]
        try:
            with torch.no_grad():
                for parameter, value in self._healed:
                    parameter.copy_(value)
            yield
        finally:
            with torch.no_grad():
                for parameter, value in trained:
                    parameter.copy_(value)

    @contextmanager
    def _ablated(self, policy: PeftModel) -> Iterator[None]:
        with self._in_place(), ablated(policy):
            yield
