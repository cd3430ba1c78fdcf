"""What a rollout engine does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from vgrout_pl.adapters import RoutedLoraConfig
from vgrout_pl.generation import Completions, OnFinished
from vgrout_pl.sampling import SamplingRequest


class EngineError(ValueError):
    """An engine cannot go on: one line with what was expected, what came and what to do."""


class RolloutEngine(ABC):
    """Draws completions; its one duty is :meth:`generate`, the other methods do nothing by default.

    Attributes:
        metrics: names of what :meth:`statistics` gives.
    """

    metrics: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def generate(
        self,
        policy: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        request: SamplingRequest,
        on_finished: OnFinished | None = None,
    ) -> Completions:
        """Sample N completions of the policy in the state it is in, each row with or without the quarantine.

        The same arguments give the same completions; torch's global generators are left as they were.

        Args:
            policy: causal LM with a routed adapter.
            tokenizer: its tokenizer.
            request: which completions; an engine whose arithmetic is not the trainer's gives no log-probabilities.
            on_finished: called in the caller's thread with the indices [n], ids [n, t] and mask [n, t] of rows as they
                finish, each row once.
        """

    def check(self, path: str, adapter: RoutedLoraConfig, tokens: int) -> None:
        """Check what can be checked before a model is loaded; called by all processes.

        Args:
            path: of the base model, as ``model.path`` names it.
            adapter: the adapter that a run will train.
            tokens: longest prompt and completion together.

        Raises:
            EngineError: the engine will not work.
        """
        return

    def publish(self, policy: PeftModel, *, also_ablated: bool = False) -> None:
        """Take over the policy's present weights in its present state; called by all processes before they sample.

        Args:
            policy: causal LM with a routed adapter.
            also_ablated: rows without the quarantine will be sampled too.
        """
        return

    def statistics(self) -> Mapping[str, tuple[float, float]]:
        """What was seen since the last :meth:`publish`: name -> (value, weight)."""
        return {}

    def close(self) -> None:
        """Give back what the engine holds; it may be used again."""
        return
