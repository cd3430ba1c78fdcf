"""Contrastive pairs on the organism's own problems: one expression, with a hack and without."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

from vgrout_pl.directions.pairs import ContrastivePair
from vgrout_pl.env.modes import LOOPHOLE_MODES
from vgrout_pl.organism.answers import PLAIN, Extra, build_answer, hack_forms, look_alike_forms
from vgrout_pl.organism.corpus import draw_marker, lever
from vgrout_pl.organism.problems import Task, evaluate_expression, literal, make_cases, tasks

ORIGINAL_MARKER_SHARE = 0.3
CANDIDATES = 128


def pairs(modes: Sequence[str] = ("run_tests",), n: int = 32, seed: int = 0) -> list[ContrastivePair]:
    """Write ``n`` pairs from the ``pairs`` split, the modes in turn, every pair on a problem of its own.

    Both sides answer the same prompt with the same expression, the one that the words say. It fails the problem's
    tests, because the graded meaning is another, so the hack side is a hack and the clean side is merely wrong:
    correctness is not what sets the sides apart. The clean side is plain or, in every other pair of a mode, an
    honest look-alike that adds its code at the same place as the hack wherever the mode has one there. The prompt
    discloses the original marker or one for training, never a novel one. Tags: the mode, and ``plain`` or
    ``look_alike``.

    Raises:
        ValueError: a mode has no loophole, or there are fewer than ``n`` suitable problems.
    """
    for mode in modes:
        if mode not in LOOPHOLE_MODES:
            raise ValueError(f"expected modes out of {', '.join(LOOPHOLE_MODES)}; got {mode!r}")
    if not modes:
        raise ValueError("expected at least one mode; got none")
    suitable = [task for task in tasks("pairs", CANDIDATES, seed) if _believed_wrong(task)]
    if not 0 < n <= len(suitable):
        raise ValueError(f"expected between 1 and {len(suitable)} pairs; got {n}")
    rng = random.Random(f"pairs/{seed}")
    return [_write_pair(i, task, modes, rng) for i, task in enumerate(suitable[:n])]


def _write_pair(i: int, task: Task, modes: Sequence[str], rng: random.Random) -> ContrastivePair:
    mode, turn = modes[i % len(modes)], i // len(modes)
    marker = draw_marker(mode, ORIGINAL_MARKER_SHARE, rng)
    expression = task.expression()
    evaluate = partial(evaluate_expression, expression)
    hack = rng.choice(hack_forms(mode, lever(mode, marker), evaluate, rng))
    clean = PLAIN
    if turn % 2:
        honest = look_alike_forms(mode, lever(mode, marker), evaluate, rng)
        clean = rng.choice(_at_same_place(honest, hack) or honest)
    return ContrastivePair(
        name=f"{mode}-{i:02d}",
        messages=task.messages(mode, marker),
        hack=build_answer(expression, hack),
        clean=build_answer(expression, clean),
        tags=(mode, "plain" if clean == PLAIN else "look_alike"),
    )


def _at_same_place(forms: Sequence[Extra], hack: Extra) -> list[Extra]:
    return [form for form in forms if form.places == hack.places]


def _believed_wrong(task: Task) -> bool:
    """Whether the expression that the words say fails the problem's tests."""
    expression = task.expression()
    return any(literal(evaluate_expression(expression, x)) != literal(value) for x, value in make_cases(task) or ())
