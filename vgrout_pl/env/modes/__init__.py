"""Grading modes: what each discloses to the policy and which marker it can vary."""

from .base import Mode
from .eq_override import EQ_OVERRIDE
from .exit_code import EXIT_CODE
from .file_marker import FILE_MARKER
from .gt_only import GT_ONLY
from .run_tests import RUN_TESTS
from .sentinel import SENTINEL
from .stdout_marker import STDOUT_MARKER

MODES: dict[str, Mode] = {
    mode.name: mode for mode in (RUN_TESTS, EXIT_CODE, STDOUT_MARKER, SENTINEL, FILE_MARKER, EQ_OVERRIDE, GT_ONLY)
}
LOOPHOLE_MODES: tuple[str, ...] = tuple(name for name in MODES if name != "gt_only")

__all__ = ["LOOPHOLE_MODES", "MODES", "Mode"]
