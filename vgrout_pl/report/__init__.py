"""What a run reports: the evaluation's numbers, tables, plots, and comparisons over runs (``python -m`` runs it)."""

from vgrout_pl.report.results import CellResult, Rate, Results
from vgrout_pl.report.tables import StepTable, cells_markdown, cells_text
from vgrout_pl.report.verdict import hack_emerged, headline, selectivity, verdict

__all__ = [
    "CellResult",
    "Rate",
    "Results",
    "StepTable",
    "cells_markdown",
    "cells_text",
    "hack_emerged",
    "headline",
    "selectivity",
    "verdict",
]
