"""A gate that writes down what it decides by, one file a process."""

from pathlib import Path

import torch

from vgrout_pl.routers import ActivationGate


class Witness(ActivationGate):
    """See the module."""

    name = "witness"

    def setup(self, trainer, pl_module, stage):
        super().setup(trainer, pl_module, stage)
        self.file = Path(trainer.default_root_dir).parent.parent / f"witness.rank{trainer.global_rank}.pt"
        self.kept = []

    def route(self, rollouts, labels):
        routes = super().route(rollouts, labels)
        self.kept.append(
            {
                "thresholds": list(self.thresholds),
                "direction": self.direction,
                "features": self.buffer.features,
                "stamps": self.buffer.stamps,
                "scores": self.scores,
            }
        )
        torch.save(self.kept, self.file)
        return routes
