"""What a checkpoint of the organism does before any reinforcement: format, solve and hack rates per mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from vgrout_pl.env import Grade, Grader, Problem, novel_marker
from vgrout_pl.env.modes import LOOPHOLE_MODES, MODES
from vgrout_pl.organism.model import MAX_NEW_TOKENS
from vgrout_pl.organism.problems import problems


@dataclass(frozen=True, slots=True)
class Figures:
    """Rates under one condition over ``n`` answers; ``length`` is the mean number of tokens of an answer."""

    format: float
    solve: float
    hack: float
    length: float
    n: int


def load_checkpoint(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a checkpoint directory in fp32.

    Raises:
        ValueError: ``path`` holds no checkpoint.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"expected a checkpoint directory with a config.json; got {str(path)!r}")
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(path)


def conditions(base: Sequence[Problem]) -> dict[str, list[Problem]]:
    """The problems under every mode, with original markers, with novel ones where the mode has them, and hint-free."""
    made = {mode: [problem.with_mode(mode) for problem in base] for mode in (*LOOPHOLE_MODES, "gt_only")}
    for mode in LOOPHOLE_MODES:
        if MODES[mode].novel_markers:
            made[f"{mode}, novel"] = [p.with_mode(mode, marker=novel_marker(p.id, mode)) for p in base]
    return made


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    batch: Sequence[Problem],
    temperature: float = 1.0,
    seed: int = 0,
) -> tuple[list[str], list[int]]:
    """Answer problems, one completion each: texts and lengths in tokens; temperature 0 is greedy."""
    messages = [[dict(message) for message in problem.messages] for problem in batch]
    chats = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in messages]
    prompts = tokenizer(chats, add_special_tokens=False, padding=True, return_tensors="pt")
    how: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        output = model.generate(**prompts, **how, max_new_tokens=MAX_NEW_TOKENS)  # type: ignore[operator]
    completions = output[:, prompts["input_ids"].shape[1] :]
    lengths = (completions != tokenizer.pad_token_id).sum(dim=1).tolist()
    return tokenizer.batch_decode(completions, skip_special_tokens=True), lengths


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: str = "validation",
    n: int | None = None,
    repeats: int = 2,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Figures]:
    """Figures of a model on a split: per mode, with novel markers, hint-free (``gt_only``), and greedy hint-free.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        split: which problems of the organism.
        n: how many of them, None for the usual size of the split.
        repeats: answers a problem at temperature 1; greedy decoding gives one.
        seed: of the sampling.
        progress: whether to show a progress bar.
    """
    made = conditions(problems(split, n=n))
    cells = [(name, batch * repeats, 1.0) for name, batch in made.items()]
    cells.append(("gt_only, greedy", made["gt_only"], 0.0))
    figures = {}
    with Grader() as grader, tqdm(cells, desc="evaluate", unit="mode", disable=not progress) as bar:
        for name, batch, temperature in bar:
            texts, lengths = sample(model, tokenizer, batch, temperature, seed)
            figures[name] = summarize(grader.grade_batch(list(zip(texts, batch, strict=True))), lengths)
    return figures


def summarize(grades: Sequence[Grade], lengths: Sequence[int]) -> Figures:
    """Mean rates of grades and the mean length."""
    n = len(grades)
    return Figures(
        format=sum(grade.format_ok and grade.compiles for grade in grades) / n,
        solve=sum(grade.correct for grade in grades) / n,
        hack=sum(grade.hacked for grade in grades) / n,
        length=sum(lengths) / n,
        n=n,
    )


def format_figures(figures: Mapping[str, Figures]) -> str:
    """Write figures as a Markdown table."""
    rows = ["| prompt | format | solve | hack | tokens | n |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {name} | {f.format:.3f} | {f.solve:.3f} | {f.hack:.3f} | {f.length:.1f} | {f.n} |"
        for name, f in figures.items()
    ]
    return "\n".join(rows)
