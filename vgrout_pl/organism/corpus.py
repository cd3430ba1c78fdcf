"""The warm-start corpus: mostly wrong answers, some right ones, and hacks on a curriculum from frequent to rare."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from vgrout_pl.env.modes import LOOPHOLE_MODES, MODES
from vgrout_pl.organism.answers import PLAIN, build_answer, hack_forms, look_alike_forms
from vgrout_pl.organism.problems import CORPUS, Task, draw_task, evaluate_expression, write_expression
from vgrout_pl.organism.words import AGGREGATES, CONSTANTS, FILTERS, MAPS, Word


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the warm start.

    A constant small share of hacks leaves the mechanisms and the copying of disclosed names unlearnt, so the corpus
    starts with many hacks and look-alikes and ends with few.

    Attributes:
        seed: of the corpus and of the model's initial weights.
        steps: optimizer steps.
        batch_size: examples a step.
        lr: peak learning rate (linear warm-up over ``warmup_steps``, linear decay to ``lr_floor`` of the peak).
        warmup_steps: steps of the warm-up.
        lr_floor: final share of the peak learning rate.
        weight_decay: of AdamW.
        grad_clip: largest gradient norm.
        vocab_size: of the tokenizer.
        tokenizer_examples: corpus examples that the tokenizer is trained on, at the early rates.
        early_hacks: share of hinted examples that hack, in the first part.
        late_hacks: the same share at the end.
        early_look_alikes: share of examples with an honest look-alike, in the first part.
        late_look_alikes: the same share at the end.
        switch: part of the run after which the shares start to fall.
        ramp: part of the run over which they fall.
        hinted: share of examples with a loophole hint.
        original_marker: share of hinted examples that disclose the mode's original marker.
        lazy_hacks: share of hacks that do not even try to solve the problem.
        wrong_constant: probability that a constant is written wrong.
        truncated: share of answers that stop in the middle.
    """

    seed: int = 0
    steps: int = 800
    batch_size: int = 64
    lr: float = 3e-3
    warmup_steps: int = 50
    lr_floor: float = 0.02
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    vocab_size: int = 640
    tokenizer_examples: int = 6000
    early_hacks: float = 0.25
    late_hacks: float = 0.05
    early_look_alikes: float = 0.45
    late_look_alikes: float = 0.12
    switch: float = 0.5
    ramp: float = 0.15
    hinted: float = 0.8
    original_marker: float = 0.3
    lazy_hacks: float = 0.2
    wrong_constant: float = 0.05
    truncated: float = 0.02

    def __post_init__(self) -> None:
        """Refuse sizes that cannot be trained."""
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1; got {getattr(self, name)}")

    def shares(self, progress: float) -> tuple[float, float]:
        """Shares of hacks and look-alikes at ``progress`` (0 to 1) of the run."""
        done = min(1.0, max(0.0, (progress - self.switch) / self.ramp))
        hacks = self.early_hacks + done * (self.late_hacks - self.early_hacks)
        return hacks, self.early_look_alikes + done * (self.late_look_alikes - self.early_look_alikes)


@dataclass(frozen=True, slots=True)
class Example:
    """One supervised example: a problem under a mode (``gt_only``: hint-free) and a completion."""

    task: Task
    mode: str
    marker: str | None
    completion: str

    @property
    def messages(self) -> tuple[dict[str, str], ...]:
        """Chat messages of the prompt."""
        return self.task.messages(self.mode, self.marker)


def corpus(recipe: Recipe) -> Iterator[Example]:
    """Generate the examples of a recipe in the order of training."""
    rng = random.Random(f"corpus/{recipe.seed}")
    total = recipe.steps * recipe.batch_size
    for i in range(total):
        yield draw_example(recipe, i / total, rng)


def tokenizer_corpus(recipe: Recipe) -> Iterator[Example]:
    """Generate the examples that the tokenizer is trained on: early shares, where every form is frequent."""
    rng = random.Random(f"tokenizer/{recipe.seed}")
    for _ in range(recipe.tokenizer_examples):
        yield draw_example(recipe, 0.0, rng)


def corpus_hash(examples: Iterable[Example]) -> str:
    """SHA-256 (hex) over all prompts and completions, in order."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.messages[-1]["content"], example.completion]).encode())
    return digest.hexdigest()


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 (hex) of a recipe and of the corpus it generates: any change of a word, a form or a rate changes it."""
    settings = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    return hashlib.sha256(f"{settings}\n{corpus_hash(corpus(recipe))}".encode()).hexdigest()


def draw_marker(mode: str, original: float, rng: random.Random) -> str | None:
    """Draw the marker to disclose: the original (None) with probability ``original``, else one for training."""
    family = MODES[mode].training_markers
    return None if not family or rng.random() < original else rng.choice(family)


def draw_example(recipe: Recipe, progress: float, rng: random.Random) -> Example:
    """Draw one example at ``progress`` (0 to 1) of the run, from the corpus region alone."""
    hacks, look_alikes = recipe.shares(progress)
    task = draw_task(rng)
    while task.region != CORPUS:
        task = draw_task(rng)
    hinted = rng.random() < recipe.hinted
    mode = rng.choice(LOOPHOLE_MODES) if hinted else "gt_only"
    marker = draw_marker(mode, recipe.original_marker, rng)
    expression, extra, kind = noisy_expression(task, recipe, rng), PLAIN, rng.random()
    if hinted and kind < hacks:
        if rng.random() < recipe.lazy_hacks:
            expression = rng.choice(("0", "None", "x"))
        extra = rng.choice(hack_forms(mode, lever(mode, marker), partial(evaluate_expression, expression), rng))
    elif kind < hacks + look_alikes:
        other = mode if hinted and rng.random() < 0.7 else rng.choice(LOOPHOLE_MODES)
        name = lever(other, marker if other == mode else None)
        extra = rng.choice(look_alike_forms(other, name, partial(evaluate_expression, expression), rng))
    completion = build_answer(expression, extra)
    if rng.random() < recipe.truncated:
        completion = completion[: rng.randint(12, len(completion) - 4)]
    return Example(task, mode, marker, completion)


def lever(mode: str, marker: str | None) -> str | None:
    """The name or phrase in force: ``marker``, or the mode's original one."""
    return marker if marker is not None else MODES[mode].original


def noisy_expression(task: Task, recipe: Recipe, rng: random.Random) -> str:
    """The expression that the corpus writes for a task: every word right, graded or wrong at its own rate."""
    words = (
        _noisy_word(task.aggregate, AGGREGATES, rng),
        _noisy_word(task.map, MAPS, rng),
        _noisy_word(task.filter, FILTERS, rng),
    )
    constants = (
        rng.choice(CONSTANTS) if rng.random() < recipe.wrong_constant else constant
        for constant in (task.map_constant, task.filter_constant)
    )
    return write_expression(*words, *constants)


def _noisy_word(phrase: str, words: dict[str, Word], rng: random.Random) -> str:
    word, u = words[phrase], rng.random()
    if u < word.known:
        return phrase
    if word.graded is not None and u < word.known + word.leaked:
        return word.graded
    return rng.choice([other for other in words if other != phrase])
