"""The model of a study: a run's own adapter at a checkpoint, or a base with a fresh one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgrout_pl.adapters import RoutedLoraConfig, ablated, attach_routed_adapter
from vgrout_pl.adapters.checkpoint import adapter_state
from vgrout_pl.adapters.inits import init_strategy
from vgrout_pl.adapters.run import load_run
from vgrout_pl.directions.extract import EncodedRows, padded
from vgrout_pl.directions.features import TokenRows
from vgrout_pl.policy import Dtype, context_length, load_base, load_tokenizer, shape_of_base
from vgrout_pl.scoring import RowStates, Watch, score_completions
from vgrout_pl.study.rollouts import StoredRollout

if TYPE_CHECKING:
    from vgrout_pl.adapters.run import RunAdapter


@dataclass(frozen=True)
class Subject:
    """A model that can be loaded, checked without its weights.

    Attributes:
        path: of the base model.
        config: of the adapter.
        dtype: of the base.
        described: model, adapter and state, in words.
        run: where the adapter's tensors come from; None: they are fresh.
    """

    path: str
    config: RoutedLoraConfig
    dtype: Dtype
    described: str
    run: RunAdapter | None = None

    @classmethod
    def of_run(cls, path: Path, base: str | None = None) -> Subject:
        """The adapter in a run directory's last checkpoint, or in one of its ``.ckpt`` files."""
        run = load_run(path, base)
        config = cast(RoutedLoraConfig, next(iter(run.model.peft_config.values())))
        trained = f"{config.init} adapter of rank {config.r} as trained for {run.provenance['steps']} steps"
        return cls(run.base, config, cast(Dtype, run.dtype), f"{run.base}, {trained}", run)

    @classmethod
    def fresh(cls, path: str, rank: int, init: str, init_seed: int, dtype: Dtype) -> Subject:
        """A base with an adapter that has not trained.

        Raises:
            ValueError: there is no such model, the adapter does not fit it, or its init needs calibrating.
        """
        config = RoutedLoraConfig(r=rank, init=init, init_seed=init_seed)
        if init_strategy(init).calibrated:
            raise ValueError(f"--init: expected one without calibration; got {init}; study a run that has it instead")
        attach_routed_adapter(shape_of_base(path), config, initialise=False)
        return cls(path, config, dtype, f"{path}, fresh {init} adapter of rank {rank}, seed {init_seed}")

    def load(self, device: torch.device) -> PeftModel:
        """Read the weights and put the adapter on."""
        base = load_base(self.path, self.dtype, None).to(device)  # type: ignore[arg-type]  # transformers types .to so
        policy = attach_routed_adapter(base, self.config, initialise=self.run is None)
        if self.run is not None:
            policy.load_state_dict(adapter_state(self.run.model), strict=False)
        return policy.eval()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's."""
        return load_tokenizer(self.path)

    @property
    def room(self) -> int | None:
        """Longest sequence (tokens) that the model was made for."""
        return context_length(self.path)


def scored(policy: PeftModel, rows: TokenRows, watch: Watch, share_prompts: bool) -> Tensor:
    """Log-probabilities [N, T] of some rows, quarantine ablated: the state in which a gate reads its features."""
    return score_completions(
        policy,
        rows.prompt_ids,
        rows.prompt_mask,
        rows.prompt_of,
        rows.completion_ids,
        rows.completion_mask,
        RowStates.same(len(rows.completion_ids), lambda: ablated(policy)),
        share_prompts=share_prompts,
        watch=watch,
    )[0]


@dataclass(frozen=True)
class Tokens:
    """One rollout as tokens.

    Attributes:
        prompt: ids.
        completion: ids, the end of turn included where the rollout had one.
    """

    prompt: list[int]
    completion: list[int]


def tokenised(tokenizer: PreTrainedTokenizerBase, rows: Sequence[StoredRollout], room: int | None) -> list[Tokens]:
    """Tokens of stored texts; a completion ends its turn unless it has the stored number of tokens without that.

    Raises:
        ValueError: a row is longer than ``room``.
    """
    found = []
    for row in rows:
        prompt = tokenizer(row.prompt, add_special_tokens=False, verbose=False)["input_ids"]
        completion = tokenizer(row.completion, add_special_tokens=False, verbose=False)["input_ids"]
        cut = row.tokens is not None and len(completion) >= row.tokens
        found.append(Tokens(prompt, completion if cut else [*completion, tokenizer.eos_token_id]))
    lengths = [len(row.prompt) + len(row.completion) for row in found]
    if room is not None and max(lengths) > room:
        over = sum(length > room for length in lengths)
        raise ValueError(
            f"--rollouts: expected at most the {room} tokens of the model's context; got {over} rows of {len(rows)} "
            f"with up to {max(lengths)}; study them on the model that wrote them"
        )
    return found


def encoded(rows: Sequence[Tokens], pad: int, device: torch.device) -> EncodedRows:
    """Padded tensors of some rows; equal prompts are one prompt."""
    prompt_ids, prompt_mask = padded([torch.tensor(row.prompt) for row in rows], pad, left=True)
    completion_ids, completion_mask = padded([torch.tensor(row.completion) for row in rows], pad, left=False)
    places: dict[tuple[int, ...], int] = {}
    prompt_of = torch.tensor([places.setdefault(tuple(row.prompt), len(places)) for row in rows])
    return EncodedRows(
        prompt_ids=prompt_ids.to(device),
        prompt_mask=prompt_mask.to(device),
        prompt_of=prompt_of.to(device),
        completion_ids=completion_ids.to(device),
        completion_mask=completion_mask.to(device),
    )
