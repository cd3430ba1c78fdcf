"""Grading modes: what each discloses to the policy and which marker it can vary."""

from vgrout_pl.env.modes.base import Mode
from vgrout_pl.env.modes.eq_override import EQ_OVERRIDE
from vgrout_pl.env.modes.exit_code import EXIT_CODE
from vgrout_pl.env.modes.file_marker import FILE_MARKER
from vgrout_pl.env.modes.gt_only import GT_ONLY
from vgrout_pl.env.modes.run_tests import RUN_TESTS
from vgrout_pl.env.modes.sentinel import SENTINEL
from vgrout_pl.env.modes.stdout_marker import STDOUT_MARKER

MODES: dict[str, Mode] = {
    mode.name: mode for mode in (RUN_TESTS, EXIT_CODE, STDOUT_MARKER, SENTINEL, FILE_MARKER, EQ_OVERRIDE, GT_ONLY)
}
LOOPHOLE_MODES: tuple[str, ...] = tuple(name for name in MODES if name != "gt_only")

__all__ = ["LOOPHOLE_MODES", "MODES", "Mode"]
