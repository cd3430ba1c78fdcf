"""Who decides the route of each rollout."""

from vgrout_pl.routers.absorb import Absorb
from vgrout_pl.routers.base import LabelsUsed, Router
from vgrout_pl.routers.no_routing import NoRouting
from vgrout_pl.routers.oracle import Oracle

__all__ = ["Absorb", "LabelsUsed", "NoRouting", "Oracle", "Router"]
