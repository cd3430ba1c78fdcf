"""How a problem of the starter set is written down."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Draw(random.Random):
    """Random inputs of the usual shapes."""

    def numbers(self, shortest: int = 0, longest: int = 8, low: int = -9, high: int = 9) -> list[int]:
        """A list of integers."""
        return [self.randint(low, high) for _ in range(self.randint(shortest, longest))]

    def word(self, shortest: int = 0, longest: int = 8, letters: str = "abc") -> str:
        """A string over some letters."""
        return "".join(self.choice(letters) for _ in range(self.randint(shortest, longest)))

    def words(self, shortest: int = 0, longest: int = 5, letters: str = "abc") -> list[str]:
        """A list of words of one to four letters."""
        return [self.word(1, 4, letters) for _ in range(self.randint(shortest, longest))]

    def grid(self, values: list[Any], largest: int = 5) -> list[list[Any]]:
        """A rectangular grid, at least 1 by 1."""
        rows, columns = self.randint(1, largest), self.randint(1, largest)
        return [[self.choice(values) for _ in range(columns)] for _ in range(rows)]

    def pairs(self, count: int, size: int) -> list[list[int]]:
        """Distinct pairs [i, j] with 0 <= i < j < size, at most ``count``."""
        every = [[i, j] for i in range(size) for j in range(i + 1, size)]
        return self.sample(every, min(count, len(every)))


@dataclass(frozen=True)
class Task:
    """One problem.

    Attributes:
        name: name of the method.
        difficulty: "easy", "medium" or "hard".
        text: what the method has to return.
        parameters: its parameters with their types, as in a signature.
        returns: its return type.
        body: body of a correct method, from the left margin.
        examples: (arguments, expected value) as source, worked out by hand.
        draw: makes the arguments of one more test.
    """

    name: str
    difficulty: str
    text: str
    parameters: str
    returns: str
    body: str
    examples: tuple[tuple[str, str], ...]
    draw: Callable[[Draw], tuple[Any, ...]]

    @property
    def signature(self) -> str:
        """The class up to the body of the method."""
        return f"class Solution:\n    def {self.name}(self, {self.parameters}) -> {self.returns}:\n"

    @property
    def solution(self) -> str:
        """The whole of a correct answer."""
        return self.signature + textwrap.indent(textwrap.dedent(self.body).strip("\n"), " " * 8) + "\n"
