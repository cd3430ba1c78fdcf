"""What happens around training, one callback a file, each a named group of the command line."""

from vgrout_pl.callbacks.ablation import DeployAblation
from vgrout_pl.callbacks.adapter import RoutedAdapter
from vgrout_pl.callbacks.diagnostics import BlockDiagnostics
from vgrout_pl.callbacks.export import ExportAdapter
from vgrout_pl.callbacks.guard import DivergenceGuard
from vgrout_pl.callbacks.heal import RetainHeal
from vgrout_pl.callbacks.report import RunReport
from vgrout_pl.callbacks.rollout_log import RolloutLog
from vgrout_pl.callbacks.step_log import StepLog
from vgrout_pl.callbacks.validation import PeriodicValidation

__all__ = [
    "BlockDiagnostics",
    "DeployAblation",
    "DivergenceGuard",
    "ExportAdapter",
    "PeriodicValidation",
    "RetainHeal",
    "RolloutLog",
    "RoutedAdapter",
    "RunReport",
    "StepLog",
]
