"""Where completions are drawn: in the training process, or by a server beside it."""

from vgrout_pl.engines.base import EngineError, RolloutEngine
from vgrout_pl.engines.in_process import InProcessEngine
from vgrout_pl.engines.server import ServerEngine

__all__ = ["EngineError", "InProcessEngine", "RolloutEngine", "ServerEngine"]
