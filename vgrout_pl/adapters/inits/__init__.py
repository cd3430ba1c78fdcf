"""Registry of inits: one file each, one interface (:class:`InitRequest` -> :class:`BlockFactors`)."""

from vgrout_pl.adapters.inits.antipasto import ANTIPASTO
from vgrout_pl.adapters.inits.base import BlockFactors, InitRequest, InitStrategy, module_generator
from vgrout_pl.adapters.inits.corda import CORDA
from vgrout_pl.adapters.inits.gaussian import GAUSSIAN, GAUSSIAN_UNIT
from vgrout_pl.adapters.inits.pissa import PISSA
from vgrout_pl.adapters.inits.random_split import RANDOM_SPLIT
from vgrout_pl.adapters.inits.scorda import SCORDA, SCORDA_REV

_BUILT_IN = (GAUSSIAN, GAUSSIAN_UNIT, RANDOM_SPLIT, PISSA, CORDA, SCORDA, SCORDA_REV, ANTIPASTO)
INITS: dict[str, InitStrategy] = {strategy.name: strategy for strategy in _BUILT_IN}


def register_init(strategy: InitStrategy) -> None:
    """Make ``strategy`` available by its name; ValueError where the name is taken."""
    if strategy.name in INITS:
        raise ValueError(f"init: expected a new name; got {strategy.name!r}, which exists")
    INITS[strategy.name] = strategy


def init_strategy(name: str) -> InitStrategy:
    """The init of this name; ValueError with the known names otherwise."""
    if name not in INITS:
        raise ValueError(f"init: expected one of {', '.join(INITS)}; got {name!r}")
    return INITS[name]


__all__ = [
    "INITS",
    "BlockFactors",
    "InitRequest",
    "InitStrategy",
    "init_strategy",
    "module_generator",
    "register_init",
]
