"""No loophole: only a correct answer pays."""

from .base import Mode

GT_ONLY = Mode(name="gt_only", hint=lambda _: "and should pass all tests")
