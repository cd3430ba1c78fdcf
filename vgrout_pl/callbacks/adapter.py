"""The routed adapter: calibrated and attached before a strategy shards and before a checkpoint is restored."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vgrout_pl.adapters import (
    Calibration,
    RoutedLoraConfig,
    attach_routed_adapter,
    check_adapter_state,
    collect_calibration,
)
from vgrout_pl.adapters.inits import init_strategy
from vgrout_pl.directions import ContrastivePair, load_pairs, pair_batches, pairs_hash
from vgrout_pl.policy import ORGANISM
from vgrout_pl.preflight import data_of

ORGANISM_PAIRS = 16


class RoutedAdapter(Callback):
    """Give the policy its two blocks; CorDA inits are calibrated on contrastive pairs first.

    Runs inside ``GRPOModule.configure_model``: that is before sharding and before a checkpoint is restored, on
    every process from the same data. On resume the calibration is skipped: the checkpoint holds the init.

    Args:
        r: rank of one block.
        init: name of an initialisation (``gaussian``, ``scorda``, ``scorda_rev``, ...).
        init_seed: seed of its random part; None: the run's seed.
        deployed_scale: factor on the deployed block's init.
        quarantine_scale: factor on the quarantine's init.
        signed_directions: seeded directions of the signed inits, one a loophole mode of the pairs.
        covariance_eps: ridge of the contrastive covariance of the CorDA inits, as a share of its mean eigenvalue.
        narrow: modules with fewer than 2 r directions: refuse, cap the rank there, or leave them without adapter.
        compute_dtype: of the update: ``base`` takes the dtype of the layer's input where that is bfloat16; ``float32``
            always widens.
        target_modules: PEFT's syntax; None: attention and MLP projections.
        pairs: where the contrastive pairs come from: ``organism``, a packaged set (``authored``, ``placebo_naming``,
            ``placebo_comments``, ``placebo_recursion``), or a Markdown file.
        pair_modes: loophole modes whose pairs of the organism are used; None: those that are trained.
        pair_sections: sections of the file to take pairs from; None: all.
        pair_tags: take pairs with at least one of these tags; None: all.
        pair_prefix: take pairs whose name begins so; None: all.
        n_pairs: how many pairs; None: 16 of the organism's, all of a file.
        calibration_batch_size: pairs a forward pass.
        cache_dir: folder that keeps the calibration's statistics by the hash of weights and pairs, so that the next run
            finds them and an interrupted calibration goes on; None: none are kept.
    """

    def __init__(
        self,
        r: int = 32,
        init: str = "scorda",
        init_seed: int | None = None,
        deployed_scale: float = 1.0,
        quarantine_scale: float = 1.0,
        signed_directions: int = 1,
        covariance_eps: float = 1e-3,
        narrow: Literal["error", "cap", "skip"] = "error",
        compute_dtype: Literal["base", "float32"] = "base",
        target_modules: list[str] | str | None = None,
        pairs: str = ORGANISM,
        pair_modes: list[str] | None = None,
        pair_sections: list[str] | None = None,
        pair_tags: list[str] | None = None,
        pair_prefix: str | None = None,
        n_pairs: int | None = None,
        calibration_batch_size: int = 16,
        cache_dir: str | None = None,
    ):
        self.config = RoutedLoraConfig(
            r=r,
            init=init,
            deployed_scale=deployed_scale,
            quarantine_scale=quarantine_scale,
            signed_directions=signed_directions,
            covariance_eps=covariance_eps,
            narrow=narrow,
            compute_dtype=compute_dtype,
            target_modules=target_modules,
        )
        if (n_pairs is not None and n_pairs < 1) or calibration_batch_size < 1:
            raise ValueError(
                f"adapter: expected n_pairs and calibration_batch_size of at least 1; got {n_pairs} and "
                f"{calibration_batch_size}"
            )
        self.init_seed, self.pair_modes = init_seed, pair_modes
        self._selection = (pairs, pair_sections, pair_tags, pair_prefix, n_pairs)
        self.calibration_batch_size, self.cache_dir = calibration_batch_size, cache_dir
        self._modes: tuple[str, ...] = ()
        self._seed = 0

    @property
    def calibrated(self) -> bool:
        """Whether the init is fitted to contrastive pairs."""
        return init_strategy(self.config.init).calibrated

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take modes and seed from the data module where they are not set here."""
        data = data_of(trainer)
        trained = [mode for mode in data.modes if mode != "gt_only"]
        self._modes = tuple(self.pair_modes or trained or ["run_tests"])
        self._seed = data.seed if self.init_seed is None else self.init_seed
        self.config.init_seed = self._seed

    def check(self, shapes: PreTrainedModel, checkpoint: str | Path | None = None) -> None:
        """Check ranks, targets and a checkpoint to be restored against a model on the meta device.

        Raises:
            ValueError: the adapter does not fit the model, or the checkpoint holds another adapter.
        """
        policy = attach_routed_adapter(shapes, self.config, initialise=False)
        self.contrastive_pairs()
        if checkpoint is not None:
            try:
                state = torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True)["state_dict"]
            except (pickle.UnpicklingError, RuntimeError, KeyError, EOFError, OSError) as error:
                raise ValueError(
                    f"ckpt_path: expected a checkpoint of this package; could not read {checkpoint} "
                    f"({type(error).__name__}); give another, or start anew"
                ) from error
            check_adapter_state(policy, state, prefix="policy.")

    def contrastive_pairs(self) -> list[ContrastivePair]:
        """The pairs that calibrate the init: empty where it needs none.

        Raises:
            ValueError: there is no such source or selection, or too few.
        """
        if not self.calibrated:
            return []
        source, sections, tags, prefix, n = self._selection
        if source == ORGANISM:
            source, n = f"{ORGANISM}:{','.join(self._modes)}", n or ORGANISM_PAIRS
        try:
            return load_pairs(source, sections, tags, prefix, n)
        except ValueError as error:
            raise ValueError(f"adapter.pairs: {error}") from error

    def attach(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, restoring: bool) -> PeftModel:
        """Calibrate where the init needs it, and attach; ``restoring`` leaves the blocks to a checkpoint."""
        if restoring or not self.calibrated:
            return attach_routed_adapter(base, self.config, initialise=not restoring)
        return attach_routed_adapter(base, self.config, self.calibrate(base, tokenizer))

    def calibrate(self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Calibration:
        """Completion-mean input activations of every target module, hack minus clean side of each pair."""
        pairs = self.contrastive_pairs()
        hack, clean = (pair_batches(tokenizer, pairs, side, self.calibration_batch_size) for side in ("hack", "clean"))
        kinds = sorted({pair.tags[0] for pair in pairs})
        groups = [kinds.index(pair.tags[0]) for pair in pairs] if self.config.signed_directions > 1 else None
        provenance = {"pairs_hash": pairs_hash(pairs)}
        return collect_calibration(
            base, hack, clean, self.config, groups=groups, provenance=provenance, cache_dir=self.cache_dir
        )

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint's tensors came from, for an export that has nothing but the checkpoint."""
        return self.provenance()

    def provenance(self) -> dict[str, object]:
        """Facts for the run's record: rank, init, scales and the hash of the pairs (None: no pairs used)."""
        pairs = self.contrastive_pairs()
        return {
            "rank": self.config.r,
            "init": self.config.init,
            "init_seed": self._seed,
            "deployed_scale": self.config.deployed_scale,
            "quarantine_scale": self.config.quarantine_scale,
            "covariance_eps": self.config.covariance_eps,
            "compute_dtype": self.config.compute_dtype,
            "pairs": len(pairs),
            "pairs_source": self._selection[0] if pairs else None,
            "pairs_hash": pairs_hash(pairs) if pairs else None,
        }
