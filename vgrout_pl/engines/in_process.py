"""The default engine: the policy itself, in the training process."""

from __future__ import annotations

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgrout_pl.engines.base import RolloutEngine
from vgrout_pl.generation import Completions, OnFinished, generate
from vgrout_pl.sampling import Sampling


class InProcessEngine(RolloutEngine):
    """Samples with :func:`vgrout_pl.generation.generate`, from the very weights that are trained.

    Args:
        cuda_graphs: capture the step of a token as a CUDA graph and replay it, which spares launching thousands of
            operators a token; a GPU only. Not yet run on one: compare with ``bench/gpu`` before relying on it.
    """

    def __init__(self, cuda_graphs: bool = False) -> None:
        self.cuda_graphs = cuda_graphs

    def generate(
        self,
        policy: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        prompt_of: Tensor,
        sampling: Sampling,
        seed_parts: tuple[object, ...],
        ablated_rows: Tensor | None = None,
        on_finished: OnFinished | None = None,
        logprob_temperature: float | None = None,
        first_row: int = 0,
    ) -> Completions:
        """Sample N completions; see :meth:`RolloutEngine.generate`."""
        return generate(
            policy,
            tokenizer,
            prompt_ids,
            prompt_mask,
            prompt_of,
            sampling,
            seed_parts,
            ablated_rows,
            on_finished,
            logprob_temperature,
            first_row,
            self.cuda_graphs,
        )
