"""Every check that can be made before a model is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn

from vgrout_pl.engines import InProcessEngine
from vgrout_pl.policy import context_length, load_config, shape_of_base
from vgrout_pl.routers import Router
from vgrout_pl.sharding import ShardedStrategy, layers_to_shard

if TYPE_CHECKING:
    from vgrout_pl.callbacks.adapter import RoutedAdapter
    from vgrout_pl.datamodule import ProblemDataModule
    from vgrout_pl.module import GRPOModule

T = TypeVar("T", bound=Callback)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All callbacks of a trainer."""
    return getattr(trainer, "callbacks")  # noqa: B009 - Lightning sets it without declaring it


def data_of(trainer: Trainer) -> ProblemDataModule:
    """The trainer's data module.

    Raises:
        ValueError: there is none.
    """
    data = getattr(trainer, "datamodule", None)
    if data is None:
        raise ValueError("trainer: expected a ProblemDataModule as datamodule; got none; pass datamodule=...")
    return data


def only(trainer: Trainer, kind: type[T]) -> T:
    """Return the trainer's one callback of a kind.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [callback for callback in callbacks_of(trainer) if isinstance(callback, kind)]
    if len(found) != 1:
        names = ", ".join(type(callback).__name__ for callback in found) or "none"
        raise ValueError(f"trainer.callbacks: expected exactly one {kind.__name__}; got {names}; add or remove one")
    return found[0]


def roles(trainer: Trainer) -> tuple[RoutedAdapter, Router]:
    """Return the callbacks that every run has: the adapter and the router."""
    from vgrout_pl.callbacks.adapter import RoutedAdapter

    return only(trainer, RoutedAdapter), only(trainer, Router)


def preflight(trainer: Trainer, module: GRPOModule) -> None:
    """Check that trainer, module, data and roles fit together.

    Raises:
        ValueError: one clear line: what was expected, what came, what to do.
    """
    _check_trainer(trainer)
    adapter, router = roles(trainer)
    data_of(trainer)
    if module.group_size < 2:
        raise ValueError(
            f"model.group_size: expected at least 2 completions a prompt (an advantage compares a group); got "
            f"{module.group_size}"
        )
    _check_window(trainer, module)
    _check_sampling_share(module, router)
    _check_teacher(module, router)
    if trainer.state.fn == TrainerFn.FITTING and module.sampling.temperature == 0:
        raise ValueError(
            "model.sampling.temperature: expected a number above 0 (completions of a group must differ); got 0; greedy "
            "sampling is for validate and test"
        )
    load_config(module.path)
    tokens = _check_context(module)
    shapes = shape_of_base(module.path)
    if isinstance(trainer.strategy, ShardedStrategy):
        layers_to_shard(shapes)
    adapter.check(shapes, trainer.ckpt_path)
    _check_graphs(trainer, module)
    module.engine.check(module.path, adapter.config, tokens)


def _check_graphs(trainer: Trainer, module: GRPOModule) -> None:
    if not (isinstance(module.engine, InProcessEngine) and module.engine.cuda_graphs):
        return
    sharded, device = isinstance(trainer.strategy, ShardedStrategy), trainer.strategy.root_device
    if sharded or device.type != "cuda":
        raise ValueError(
            "model.engine.init_args.cuda_graphs: expected a GPU that holds the whole model; got "
            f"{'a sharded one' if sharded else f'a model on the {device.type}'}; leave it false there"
        )


def _check_trainer(trainer: Trainer) -> None:
    precision = str(trainer.precision)
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(
            f"trainer.precision: expected 32-true or bf16-mixed, which keep the adapter in float32; got {precision}; "
            "set model.dtype: bfloat16 for a bfloat16 base"
        )
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | ShardedStrategy):
        raise ValueError(
            f"trainer.strategy: expected a single device, ddp, or {ShardedStrategy.__name__} for a sharded model; got "
            f"{type(trainer.strategy).__name__}; use one of configs/strategy/"
        )
    fitting = trainer.state.fn == TrainerFn.FITTING
    if fitting and (trainer.max_steps is None or trainer.max_steps < 1):
        raise ValueError(
            f"trainer.max_steps: expected the number of optimizer steps of the run; got {trainer.max_steps}; set it"
        )


def _check_window(trainer: Trainer, module: GRPOModule) -> None:
    prompts, world = data_of(trainer).prompts_per_step, trainer.world_size
    if prompts < 1 or prompts % world:
        raise ValueError(
            f"data.prompts_per_step: expected a multiple of the {world} processes; got {prompts}; change one of them"
        )
    rows, micro = prompts // world * module.group_size, trainer.accumulate_grad_batches
    if rows % micro:
        raise ValueError(
            f"trainer.accumulate_grad_batches: expected a divisor of the window's {rows} rows a process "
            f"({prompts // world} prompts x {module.group_size} completions); got {micro}"
        )
    steps, updates = trainer.max_steps, module.updates_per_window
    if trainer.state.fn == TrainerFn.FITTING and steps % updates:
        raise ValueError(
            f"trainer.max_steps: expected a multiple of model.updates_per_window = {updates}, since checkpoints are "
            f"saved between windows; got {steps}; use {steps + updates - steps % updates}"
        )


def _check_sampling_share(module: GRPOModule, router: Router) -> None:
    share = module.deploy_sample_fraction
    rows = module.group_size * share
    if not 0 <= share <= 1:
        raise ValueError(f"model.deploy_sample_fraction: expected a share in [0, 1]; got {share}")
    if not router.ships_quarantine and abs(rows - round(rows)) > 1e-6:
        raise ValueError(
            f"model.deploy_sample_fraction: expected a whole number of rows of each group of {module.group_size}; "
            f"got {share} ({rows:g} rows); use a multiple of 1/{module.group_size}"
        )


def _check_teacher(module: GRPOModule, router: Router) -> None:
    taught = module.teacher.rows_a_group
    ablated = 0 if router.ships_quarantine else round(module.group_size * module.deploy_sample_fraction)
    if taught and taught + max(ablated, 1) > module.group_size:
        raise ValueError(
            f"model.teacher: expected at most {module.group_size - max(ablated, 1)} rows of each group of "
            f"{module.group_size}, of which {ablated} are sampled ablated and one at least is the policy's own; got "
            f"{taught}"
        )
    if taught and module.trainer.state.fn == TrainerFn.FITTING:
        module.teacher.check(data_of(module.trainer).showings())


def _check_context(module: GRPOModule) -> int:
    """Return the length (tokens) of the longest row that a run can have."""
    limit = context_length(module.path)
    longest = data_of(module.trainer).longest_prompt(module.path)
    wanted = longest + module.sampling.max_new_tokens
    if limit is not None and wanted > limit:
        raise ValueError(
            f"model.sampling.max_new_tokens: expected prompt + new tokens within the model's context of {limit}; got "
            f"{longest} + {module.sampling.max_new_tokens} = {wanted}; shorten one of them"
        )
    return wanted
