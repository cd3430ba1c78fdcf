"""The default engine: the policy itself, in the training process."""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from vgrout_pl.engines.base import RolloutEngine
from vgrout_pl.generation import Completions, OnFinished, generate
from vgrout_pl.sampling import SamplingRequest


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
        request: SamplingRequest,
        on_finished: OnFinished | None = None,
    ) -> Completions:
        """Sample N completions; see :meth:`RolloutEngine.generate`."""
        return generate(policy, tokenizer, request, on_finished, cuda_graphs=self.cuda_graphs)
