"""Prompts as tokens, completions as texts, and their grades and rewards."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgrout_pl.env import Grade, Grader, Problem


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], max_prompt_tokens: int
) -> tuple[list[str], Tensor, Tensor]:
    """Render prompts through the chat template (generation prompt added, thinking off) and tokenise them.

    Returns:
        texts [P]; ids int [P, S] and mask bool [P, S], left-padded.

    Raises:
        ValueError: a prompt has more than ``max_prompt_tokens`` tokens.
    """
    texts = [render_prompt(tokenizer, problem) for problem in problems]
    encoded = tokenizer(texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    mask = encoded["attention_mask"].bool()
    lengths = mask.sum(1)
    if int(lengths.max()) > max_prompt_tokens:
        worst = int(lengths.argmax())
        raise ValueError(
            f"data.max_prompt_tokens: expected prompts of at most {max_prompt_tokens} tokens; problem "
            f"{problems[worst].id!r} has {int(lengths[worst])}; raise the limit or drop the problem"
        )
    return texts, encoded["input_ids"], mask


def render_prompt(tokenizer: PreTrainedTokenizerBase, problem: Problem) -> str:
    """Text of one prompt, the beginning of the assistant's turn included."""
    return str(
        tokenizer.apply_chat_template(
            [dict(m) for m in problem.messages], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    )


def decode(tokenizer: PreTrainedTokenizerBase, completion_ids: Tensor, mask: Tensor) -> list[str]:
    """Texts of the masked tokens, special tokens left out."""
    rows = [ids[keep].tolist() for ids, keep in zip(completion_ids, mask, strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


class Grading:
    """Grades completions beside whatever goes on here; a grade with ``error`` says nothing about its answer.

    Rows are handed over as they finish; leaving the context without an exception has waited for all of them.

    Args:
        grader: where the answers are graded.
        problems: the problem of each row.
    """

    def __init__(self, grader: Grader, problems: Sequence[Problem]):
        self._grader, self._problems = grader, problems
        self._grades: list[Grade | None] = [None] * len(problems)
        self._waiting: list[tuple[int, str]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grading")
        self._runs: list[Future[None]] = []

    def __enter__(self) -> Grading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def add(self, rows: Sequence[int], completions: Sequence[str]) -> None:
        """Hand over the completions of some rows."""
        self._waiting += zip(rows, completions, strict=True)
        self._runs.append(self._thread.submit(self._grade_waiting))

    def _grade_waiting(self) -> None:
        batch, self._waiting = self._waiting, []
        grades = self._grader.grade_batch([(text, self._problems[row]) for row, text in batch])
        for (row, _), grade in zip(batch, grades, strict=True):
            self._grades[row] = grade

    def result(self) -> list[Grade]:
        """Wait for the grades of all rows.

        Raises:
            GraderError: the grader fails on too large a share of the answers.
        """
        for run in self._runs:
            run.result()
        grades = [grade for grade in self._grades if grade is not None]
        assert len(grades) == len(self._grades), "every row was handed over"
        return grades
