"""Directions from contrastive pairs: the features of both sides on the present model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgrout_pl.directions.batches import pair_batches
from vgrout_pl.directions.features import Layout, Reader, Score
from vgrout_pl.directions.pairs import ContrastivePair
from vgrout_pl.directions.scores import unit_modules


@dataclass(frozen=True)
class PairFeatures:
    """Features of P pairs.

    Attributes:
        hack: float32 [P, F].
        clean: float32 [P, F].
    """

    hack: Tensor
    clean: Tensor

    @property
    def differences(self) -> Tensor:
        """Hack side minus clean side, [P, F]."""
        return self.hack - self.clean


def mean_direction(differences: Tensor, layout: Layout) -> Tensor:
    """v_m = unit(mean over pairs of the difference), [F]; 0 where the mean is.

    Raises:
        ValueError: a difference [P, F] is not finite.
    """
    if not bool(differences.isfinite().all()):
        raise ValueError("direction: expected finite features of the pairs; got others; the model has diverged")
    return unit_modules(differences.float().mean(0), layout.widths)


@dataclass(frozen=True)
class EncodedRows:
    """Padded prompts and completions; see :class:`~vgrout_pl.directions.features.TokenRows`."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    prompt_of: Tensor
    completion_ids: Tensor
    completion_mask: Tensor


def pair_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[ContrastivePair], device: torch.device | str = "cpu"
) -> EncodedRows:
    """Both sides of P pairs as 2 P rows: the hack and the clean side of each pair in turn, over their shared prompt."""
    sides = [next(pair_batches(tokenizer, pairs, side, len(pairs))) for side in ("hack", "clean")]
    prompts, completions = [], []
    for row in range(len(pairs)):
        for side in sides:
            ids, attention, completion = (
                side[name][row] for name in ("input_ids", "attention_mask", "completion_mask")
            )
            prompts.append(ids[(attention == 1) & (completion == 0)])
            completions.append(ids[completion == 1])
    prompt_ids, prompt_mask = padded(prompts, tokenizer.pad_token_id, left=True)
    completion_ids, completion_mask = padded(completions, tokenizer.pad_token_id, left=False)
    return EncodedRows(
        prompt_ids=prompt_ids.to(device),
        prompt_mask=prompt_mask.to(device),
        prompt_of=torch.arange(len(pairs), device=device).repeat_interleave(2),
        completion_ids=completion_ids.to(device),
        completion_mask=completion_mask.to(device),
    )


def padded(rows: Sequence[Tensor], pad: int, left: bool) -> tuple[Tensor, Tensor]:
    """One int matrix [n, s] of rows of token ids, padded on the left or right, and the bool mask of the tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, True
    return ids, mask


def pair_features(
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[ContrastivePair],
    reader: Reader,
    score: Score,
    batch_size: int = 8,
) -> PairFeatures:
    """Read both sides of the pairs, ``batch_size`` pairs at a time."""
    parts = []
    for start in range(0, len(pairs), batch_size):
        rows = pair_rows(tokenizer, pairs[start : start + batch_size], policy.device)
        parts.append(reader.read(policy, rows, score)[0])
    features = torch.cat(parts)
    return PairFeatures(features[0::2], features[1::2])


@dataclass(frozen=True)
class Labelled:
    """Rollouts of the run so far with their labels, for sources that may use them.

    Attributes:
        features: [n, F].
        hacked: bool [n].
    """

    features: Tensor
    hacked: Tensor


@dataclass(frozen=True)
class Extraction:
    """What a source of directions may use at a refresh.

    Attributes:
        layout: of the features.
        read: features of pairs on the present model, quarantine ablated.
        index: how many extractions there were before.
        device: where the direction is wanted.
        labelled: labelled rollouts, for sources that declare labels; None for all others.
    """

    layout: Layout
    read: Callable[[Sequence[ContrastivePair]], PairFeatures]
    index: int
    device: torch.device
    labelled: Labelled | None = None
