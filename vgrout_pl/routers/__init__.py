"""Who decides the route of each rollout."""

from vgrout_pl.routers.absorb import Absorb
from vgrout_pl.routers.activation_gate import ActivationGate
from vgrout_pl.routers.bands import Bands
from vgrout_pl.routers.base import LabelsUsed, Router
from vgrout_pl.routers.flagging import FlaggingRouter
from vgrout_pl.routers.gate import Gate
from vgrout_pl.routers.gradient_gate import GradientGate
from vgrout_pl.routers.no_routing import NoRouting
from vgrout_pl.routers.none_matched import NoneMatched
from vgrout_pl.routers.oracle import Oracle
from vgrout_pl.routers.random_share import RandomShare
from vgrout_pl.routers.regex import Regex
from vgrout_pl.routers.shrinkage import Shrinkage

__all__ = [
    "Absorb",
    "ActivationGate",
    "Bands",
    "FlaggingRouter",
    "Gate",
    "GradientGate",
    "LabelsUsed",
    "NoRouting",
    "NoneMatched",
    "Oracle",
    "RandomShare",
    "Regex",
    "Router",
    "Shrinkage",
]
