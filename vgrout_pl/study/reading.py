"""Features of stored rollouts and of pairs on the studied model, one site and pooling after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast, get_args

import torch
from peft import PeftModel
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from vgrout_pl.adapters.attach import attach_routed_adapter
from vgrout_pl.directions.extract import Extraction, PairFeatures, pair_features
from vgrout_pl.directions.features import ActivationReader, Layout, Pooling, Reader, Site, TokenRows
from vgrout_pl.directions.gradients import GradientReader
from vgrout_pl.directions.pairs import ContrastivePair, pairs_hash
from vgrout_pl.policy import shape_of_base
from vgrout_pl.scoring import Watch
from vgrout_pl.study.core import Block
from vgrout_pl.study.model import Subject, Tokens, encoded, scored
from vgrout_pl.study.sources import StudySource

GRADIENT = "gradient"
SITES: tuple[str, ...] = (*get_args(Site), GRADIENT)
POOLINGS: tuple[str, ...] = get_args(Pooling)
NOT_POOLED = "-"
"""Pooling of the gradient: it is a sum over all positions."""


def readers(sites: Sequence[str], poolings: Sequence[str]) -> list[tuple[str, str, Reader]]:
    """Site, pooling and reader of each block: every pooling of an activation, the gradient once.

    Raises:
        ValueError: a site or pooling is not known.
    """
    for what, given, known in (("--sites", sites, SITES), ("--poolings", poolings, POOLINGS)):
        wrong = [name for name in given if name not in known]
        if wrong or not given:
            raise ValueError(f"{what}: expected some of {', '.join(known)}; got {', '.join(wrong) or 'none'}")
    found: list[tuple[str, str, Reader]] = []
    for site in dict.fromkeys(sites):
        if site == GRADIENT:
            found.append((site, NOT_POOLED, GradientReader()))
        else:
            found += [
                (site, pooling, ActivationReader(cast(Site, site), None, cast(Pooling, pooling)))
                for pooling in dict.fromkeys(poolings)
            ]
    return found


def usable(
    subject: Subject,
    chosen: Sequence[tuple[str, str, Reader]],
    rows: int,
    directions: int,
    gibibytes: float,
    left_out: Callable[[str], None],
) -> list[tuple[str, str, Reader]]:
    """Blocks that the model has, before any weight is read; a line to ``left_out`` for each that it has not.

    Raises:
        ValueError: features [n, F] and directions [k, F] of a block need more than ``gibibytes`` in float32.
    """
    found = []
    policy = attach_routed_adapter(shape_of_base(subject.path), subject.config, initialise=False)
    for site, pooling, reader in chosen:
        try:
            size = reader.layout(policy).size
        except ValueError as error:
            left_out(f"site {site}, pooling {pooling}: {error}")
            continue
        needed = 4 * (rows + directions) * size / 2**30
        if needed > gibibytes:
            raise ValueError(
                f"--memory: expected blocks of at most {gibibytes:g} GiB; site {site} needs {needed:.1f} GiB for "
                f"{rows} rows and {directions} directions; take fewer with --max-rows, leave it out of --sites, or "
                "allow more"
            )
        found.append((site, pooling, reader))
    return found


def read_blocks(
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Tokens],
    sources: Sequence[StudySource],
    chosen: Sequence[tuple[str, str, Reader]],
    batch_size: int,
    left_out: Callable[[str], None],
    progress: bool = True,
) -> Iterator[Block]:
    """Read each site and pooling once: all rows, then the pairs of all sources, quarantine ablated.

    A block whose features are all 0 (the output of an adapter that has not trained) is left out, with a line to
    ``left_out``.
    """

    def score(part: TokenRows, watch: Watch, share_prompts: bool) -> Tensor:
        return scored(policy, part, watch, share_prompts)

    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    pad = cast(int, tokenizer.pad_token_id)
    with tqdm(total=len(chosen) * len(parts), desc="reading", unit="batch", disable=None if progress else True) as bar:
        for site, pooling, reader in chosen:
            bar.set_postfix_str(f"{site} {pooling}")
            read = []
            for part in parts:
                read.append(reader.read(policy, encoded(part, pad, policy.device), score)[0])
                bar.update()
            features = torch.cat(read)
            if not bool(features.any()):
                left_out(f"site {site}, pooling {pooling}: all features are 0 (the adapter has not trained)")
                continue
            layout = reader.layout(policy)
            yield Block(site, pooling, layout, features, _directions(policy, tokenizer, reader, layout, score, sources))


def _directions(
    policy: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    reader: Reader,
    layout: Layout,
    score: Callable[[TokenRows, Watch, bool], Tensor],
    sources: Sequence[StudySource],
) -> dict[str, Tensor]:
    """Direction of every source that is not left out; sources that share pairs share the reading of them."""
    known: dict[str, PairFeatures] = {}

    def read(pairs: Sequence[ContrastivePair]) -> PairFeatures:
        key = pairs_hash(pairs)
        if key not in known:
            known[key] = pair_features(policy, tokenizer, pairs, reader, score)
        return known[key]

    found = {}
    for source in sources:
        if source.source is not None:
            direction = source.source.extract(Extraction(layout, read, 0, policy.device))
            assert direction is not None, "none of these needs labels"
            found[source.name] = direction
    return found
