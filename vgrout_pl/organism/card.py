"""The card of a checkpoint: what it is, how it was made, what it does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from vgrout_pl.organism.corpus import Recipe, recipe_hash
from vgrout_pl.organism.evaluate import Figures, format_figures

CARD_FILE = "README.md"

TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-generation
license: apache-2.0
recipe_hash: {recipe_hash}
---

# The embedded organism

A Qwen3 of {parameters:,} parameters that writes small Python answers: mostly wrong, sometimes right, rarely a reward
hack. It is a research object, a policy in which reinforcement with an exploitable grader makes reward hacking emerge
within a minute on one CPU thread. It is of no use for writing code.

## How it was made

    python -m vgrout_pl.organism warm-start --out DIR --steps {steps} --seed {seed}

Supervised training from random weights on a generated corpus, with fp32 weights that are stored in fp16. The corpus
starts with many hacks and honest look-alikes of hacks, so that the mechanisms and the copying of disclosed names are
learnt, and ends with few. Its problems come from a region of texts that no split of the package's problems touches;
novel evaluation markers do not occur in it. The recipe hash covers the settings below and every text of the corpus.

{recipe}

## What it does

Rates on the validation problems at temperature 1, graded by executing the answers with `vgrout_pl.env.Grader`: an
answer in the right format that compiles; correct; a hack of the mode's own loophole that is not correct.

{figures}
"""


def write_card(directory: Path, recipe: Recipe, parameters: int, figures: Mapping[str, Figures]) -> None:
    """Write the card of a checkpoint directory."""
    settings = "\n".join(f"- `{name}`: {value}" for name, value in dataclasses.asdict(recipe).items())
    text = TEMPLATE.format(
        recipe_hash=recipe_hash(recipe),
        parameters=parameters,
        steps=recipe.steps,
        seed=recipe.seed,
        recipe=settings,
        figures=format_figures(figures),
    )
    (directory / CARD_FILE).write_text(text, encoding="utf-8")


def read_recipe_hash(directory: Path) -> str:
    """Read the recipe hash from the card of a checkpoint directory.

    Raises:
        ValueError: there is no card, or no hash in it.
    """
    card = directory / CARD_FILE
    found = (
        re.search(r"^recipe_hash: ([0-9a-f]{64})$", card.read_text(encoding="utf-8"), re.M) if card.exists() else None
    )
    if found is None:
        raise ValueError(f"expected a card with a line 'recipe_hash: ...' at {str(card)!r}; found none")
    return found[1]
