"""What a configuration takes before it runs: parameters, memory, tokens, FLOPs and time of a step.

Nothing is loaded and nothing is guessed from formulas: the package's own passes run on fake tensors, which have shapes
but no numbers, and what they would compute, move and keep is added up.

- ``workload``: what the settings decide (rows, states, micro-batches);
- ``passes``: sampling, scoring and training on fake tensors;
- ``trace``: counts FLOPs, bytes, operators and living memory;
- ``estimate``: a window phase by phase;
- ``machines``: data sheets of GPUs, and a measurement of this machine;
- ``report``, ``trainer``: the command.
"""

from vgrout_pl.plan.estimate import PHASES, Window, window_cost
from vgrout_pl.plan.machines import GPUS, Machine, measured
from vgrout_pl.plan.report import Plan, as_text
from vgrout_pl.plan.trace import Cost, Tally
from vgrout_pl.plan.workload import Workload, workload

__all__ = [
    "GPUS",
    "PHASES",
    "Cost",
    "Machine",
    "Plan",
    "Tally",
    "Window",
    "Workload",
    "as_text",
    "measured",
    "window_cost",
    "workload",
]
