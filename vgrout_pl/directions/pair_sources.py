"""Directions from contrastive pairs: authored, written by the policy itself, and the placebo of flipped signs."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vgrout_pl.adapters import ablated
from vgrout_pl.directions.direction_source import DirectionSource
from vgrout_pl.directions.evidence import LabelsUsed
from vgrout_pl.directions.extract import Extraction, mean_direction
from vgrout_pl.directions.generate import Sample, generate_pairs
from vgrout_pl.directions.pairs import ContrastivePair, pairs_hash
from vgrout_pl.directions.sources import ORGANISM, load_pairs, write_pairs
from vgrout_pl.env.modes import LOOPHOLE_MODES
from vgrout_pl.env.problem import Message
from vgrout_pl.sampling import SamplingRequest
from vgrout_pl.seeding import derived_seed

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

PAIRS_FILE = "self_generated_pairs.md"
PAIRS_CACHE = "self_generated_pairs"


class PairSource(DirectionSource):
    """v_m = unit(mean over pairs of (h_hack - h_clean)), h the features of a completion.

    The texts are in the checkpoint: refreshes and a resumed run read the same ones on the model of their time.
    """

    pairs: Sequence[ContrastivePair] = ()

    @abstractmethod
    def prepare(self, module: GRPOModule) -> None:
        """Fill :attr:`pairs`."""

    def differences(self, extraction: Extraction) -> Tensor:
        """Hack side minus clean side of every pair on the present model, [P, F]."""
        return extraction.read(self.pairs).differences

    def extract(self, extraction: Extraction) -> Tensor:
        """Read all pairs and take the mean."""
        return mean_direction(self.differences(extraction), extraction.layout)

    def provenance(self) -> dict[str, object]:
        """Number and content hash of the pairs; None where they have not been made."""
        known = pairs_hash(self.pairs) if self.pairs else None
        return {**super().provenance(), "pairs": len(self.pairs), "pairs_hash": known}

    def state_dict(self) -> dict[str, Any]:
        """The texts."""
        return {"pairs": _as_plain(self.pairs)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the texts back, where the checkpoint has them; say so where other ones had been loaded."""
        if "pairs" not in state:
            return
        before, self.pairs = self.pairs, [ContrastivePair(**record) for record in state["pairs"]]
        if before and pairs_hash(before) != pairs_hash(self.pairs):
            rank_zero_warn(
                f"pairs: expected those that the run began with (hash {pairs_hash(self.pairs)}); the source now has "
                f"others (hash {pairs_hash(before)}); the run goes on with its own, as its checkpoint holds them"
            )


class AuthoredPairs(PairSource):
    """Pairs written by hand; see :func:`~vgrout_pl.directions.load_pairs` for what can be chosen.

    Args:
        source: a Markdown file, a packaged set, or ``organism[:MODE,...]``; None: for the organism its own pairs in the
            trained modes, else the packaged set ``authored`` in the trained modes.
        sections: sections to take.
        tags: take pairs with one of these tags.
        prefix: take pairs whose name begins so.
        n: how many; None: all (organism: 32).
    """

    name = "authored"
    labels_used = LabelsUsed.AUTHORED_PAIRS

    def __init__(
        self,
        source: str | None = None,
        sections: list[str] | None = None,
        tags: list[str] | None = None,
        prefix: str | None = None,
        n: int | None = None,
    ):
        self.source, self.sections, self.tags, self.prefix, self.n = source, sections, tags, prefix, n
        if source is not None and source.partition(":")[0] != ORGANISM:
            self.pairs = load_pairs(source, sections, tags, prefix, n)

    def check(self, module: GRPOModule) -> None:
        """Load the pairs, which needs no model."""
        self.prepare(module)

    def prepare(self, module: GRPOModule) -> None:
        """Load the pairs, once."""
        if self.pairs:
            return
        source, tags, modes = self.source, self.tags, trained_modes(module)
        if source is None and module.path == ORGANISM:
            source = f"{ORGANISM}:{','.join(modes)}"
        elif source is None:
            source, tags = "authored", tags or modes
        self.pairs = load_pairs(source, self.sections, tags, self.prefix, self.n)


class SelfGeneratedPairs(PairSource):
    """Pairs that the policy writes itself, once, before the first extraction, with the quarantine ablated.

    Training problems are drawn by hash, the trained modes in turn. The texts go to ``<run>/self_generated_pairs.md``
    and into the checkpoint; until then ``<run>/self_generated_pairs`` holds the batches sampled so far, which a start
    after a crash takes over.

    Args:
        n: problems to write a pair for.
        require_lever: keep a pair only if the loophole shows in its hack side's text alone.
        batch_size: prompts sampled together.
    """

    name = "self_generated"
    labels_used = LabelsUsed.SELF_GENERATED_PAIRS

    def __init__(self, n: int = 32, require_lever: bool = False, batch_size: int = 16):
        for what, value in (("n", n), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"SelfGeneratedPairs.{what}: expected at least 1; got {value}")
        self.n, self.require_lever, self.batch_size = n, require_lever, batch_size

    def prepare(self, module: GRPOModule) -> None:
        """Sample both sides of every pair, unless a checkpoint brought them."""
        if self.pairs:
            return
        from vgrout_pl.preflight import data_of

        data, modes = data_of(module.trainer), trained_modes(module)
        train = sorted(data.splits["train"], key=lambda problem: derived_seed("self-generated", data.seed, problem.id))
        shown = [problem.with_mode(modes[i % len(modes)]) for i, problem in enumerate(train[: self.n])]
        run_dir = Path(module.trainer.default_root_dir)
        pairs = generate_pairs(
            sampler_of(module),
            shown,
            fingerprint=f"{module.path}, step {module.trainer.global_step}, {module.sampling}",
            seed=data.seed,
            batch_size=self.batch_size,
            require_lever=self.require_lever,
            cache_dir=run_dir / PAIRS_CACHE if module.trainer.world_size == 1 else None,
            progress=module.trainer.is_global_zero,
        )
        self.load_state_dict(module.trainer.strategy.broadcast({"pairs": _as_plain(pairs)}))
        if module.trainer.is_global_zero:
            write_pairs(self.pairs, run_dir / PAIRS_FILE, "Self-generated pairs")
            shutil.rmtree(run_dir / PAIRS_CACHE, ignore_errors=True)


class SignFlipped(DirectionSource):
    """Placebo: another source's pairs with hack and clean exchanged in half of them, drawn at random.

    The same pairs are exchanged at every refresh, and read anew on the model of that time: whatever a refresh gives the
    real direction, this one gets too.

    Args:
        source: of the pairs.
        seed: which half.
    """

    name = "sign_flipped"

    def __init__(self, source: DirectionSource, seed: int = 0):
        if not isinstance(source, PairSource):
            raise ValueError(f"SignFlipped.source: expected a source of pairs; got {type(source).__name__}")
        self.source, self.seed = source, seed
        self.labels_used = source.labels_used

    def check(self, module: GRPOModule) -> None:
        """Check the source of the pairs, and their number where they are there already."""
        self.source.check(module)
        if self.source.pairs:
            self.signs(len(self.source.pairs))

    def prepare(self, module: GRPOModule) -> None:
        """Prepare the pairs."""
        self.source.prepare(module)

    def extract(self, extraction: Extraction) -> Tensor:
        """v_m = unit(mean over pairs of s_p (h_hack - h_clean)), s_p = 1 for one half and -1 for the other."""
        differences = self.source.differences(extraction)
        return mean_direction(
            differences * self.signs(len(differences)).to(differences).unsqueeze(1), extraction.layout
        )

    def signs(self, pairs: int) -> Tensor:
        """1 or -1 for each pair, their sum 0 (1 where the number is odd): float [pairs].

        Raises:
            ValueError: there is one pair only.
        """
        if pairs < 2:
            raise ValueError(f"SignFlipped: expected at least 2 pairs, half of which are exchanged; got {pairs}")
        generator = torch.Generator().manual_seed(derived_seed("sign-flipped", self.seed, pairs))
        signs = torch.ones(pairs)
        signs[torch.randperm(pairs, generator=generator)[: pairs // 2]] = -1
        return signs

    def provenance(self) -> dict[str, object]:
        """The source's record, and the seed."""
        return {**self.source.provenance(), "source": f"{self.name} {self.source.name}", "seed": self.seed}

    def state_dict(self) -> dict[str, Any]:
        """The source's state."""
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Bring the source's state back."""
        self.source.load_state_dict(state)


def trained_modes(module: GRPOModule) -> list[str]:
    """Modes of the run that have a loophole; ``run_tests`` where there are none."""
    from vgrout_pl.preflight import data_of

    return [mode for mode in data_of(module.trainer).modes if mode in LOOPHOLE_MODES] or ["run_tests"]


def _as_plain(pairs: Sequence[ContrastivePair]) -> list[dict[str, Any]]:
    return [
        {
            "name": pair.name,
            "messages": [dict(message) for message in pair.messages],
            "hack": pair.hack,
            "clean": pair.clean,
            "tags": list(pair.tags),
        }
        for pair in pairs
    ]


def sampler_of(module: GRPOModule) -> Sample:
    """Draws completions of chat prompts from the policy with its quarantine ablated, by the module's sampling."""
    from vgrout_pl.generation import generate
    from vgrout_pl.rollout import decode

    tokenizer = module.tokenizer

    def sample(prompts: list[list[Message]], seed: int) -> list[str]:
        texts = [
            str(
                tokenizer.apply_chat_template(
                    [dict(message) for message in prompt],
                    tokenize=False,
                    add_generation_prompt=True,
                    enable_thinking=False,
                )
            )
            for prompt in prompts
        ]
        encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
        ids, mask = encoded["input_ids"].to(module.device), encoded["attention_mask"].bool().to(module.device)
        with ablated(module.policy):
            request = SamplingRequest(ids, mask, torch.arange(len(ids)), module.sampling, (seed,))
            drawn = generate(module.policy, tokenizer, request)
        return decode(tokenizer, drawn.ids, drawn.mask)

    return sample
