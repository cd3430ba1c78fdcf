"""The ``plan`` subcommand: a trainer that counts what a configuration would do instead of doing it."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Literal

from lightning.pytorch import Trainer

from vgrout_pl.evaluation import StateChooser
from vgrout_pl.plan.estimate import window_cost
from vgrout_pl.plan.machines import GPUS, measured
from vgrout_pl.plan.passes import Passes
from vgrout_pl.plan.report import Plan, as_text
from vgrout_pl.plan.trace import Cost
from vgrout_pl.plan.workload import Workload, workload
from vgrout_pl.policy import load_config, load_tokenizer
from vgrout_pl.preflight import callbacks_of, roles
from vgrout_pl.rollout import encode_prompts

if TYPE_CHECKING:
    from vgrout_pl.datamodule import ProblemDataModule
    from vgrout_pl.module import GRPOModule

Gpu = Literal["h200", "h100", "a100_80", "l40s", "rtx4090"]
PROMPT_TOKENS = 700
"""Length of a prompt where neither problems nor tokenizer are at hand to tell."""
WINDOWS_READ = 8


class PlanningTrainer(Trainer):
    """Lightning's Trainer with a method that plans a run."""

    def plan(
        self,
        model: GRPOModule,
        datamodule: ProblemDataModule,
        gpu: Gpu = "h200",
        devices: int = 1,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        measure: bool = False,
        as_json: bool = False,
    ) -> None:
        """Count what a run would take, without weights: parameters, memory, tokens, FLOPs and time of a step.

        Args:
            model: the configuration's module.
            datamodule: its data.
            gpu: the device whose data sheet gives the rates.
            devices: data-parallel processes, one device each; each holds the whole model.
            prompt_tokens: length of a window's padded prompts; null: of the first windows' where problems and tokenizer
                can be read, else 700.
            completion_tokens: length of every completion; null: max_new_tokens, the upper bound.
            measure: take this machine's CPU, measured for a few seconds, in place of the GPU.
            as_json: print one JSON object.
        """
        made = self._planned(model, datamodule, gpu, devices, prompt_tokens, completion_tokens, measure)
        print(json.dumps(made.as_dict()) if as_json else as_text(made))

    def _planned(
        self,
        model: GRPOModule,
        data: ProblemDataModule,
        gpu: Gpu,
        devices: int,
        prompt_tokens: int | None,
        completion_tokens: int | None,
        measure: bool,
    ) -> Plan:
        self.datamodule = data
        model.trainer = self
        adapter, router = roles(self)
        load_config(model.path)
        adapter.setup(self, model, "plan")
        router.setup(self, model, "plan")
        prompts, micro = data.prompts_per_step, self.accumulate_grad_batches
        rows = prompts * model.group_size
        if devices < 1 or prompts % devices or rows // devices % micro:
            raise ValueError(
                f"devices: expected a number that divides the {prompts} prompts of a step, each device's rows a "
                f"multiple of the {micro} micro-batches; got {devices}"
            )
        length, source = self._prompt_tokens(model, data, prompt_tokens)
        tokens = completion_tokens or model.sampling.max_new_tokens
        rounded = model.dtype_name != "float32" or str(self.precision) != "32-true"
        work = workload(model, router, prompts // devices, micro, length, tokens, rounded)
        with self.precision_plugin.forward_context():
            window = window_cost(model, router, adapter.config, work)
            evaluations = self._evaluations(model, data, work, devices)
        machine = measured(work.rows) if measure else GPUS[gpu]
        return Plan(
            model.path,
            router.name,
            adapter.config.init,
            work,
            window,
            evaluations,
            machine,
            devices,
            source,
            self._steps(),
        )

    def _steps(self) -> int:
        return max(self.max_steps, 0) if self.max_steps is not None else 0

    def _prompt_tokens(self, model: GRPOModule, data: ProblemDataModule, given: int | None) -> tuple[int, str]:
        """Length that the prompts of a window are padded to, and where it is known from."""
        if given is not None:
            return given, "as given"
        try:
            data.setup("plan")
            tokenizer = load_tokenizer(model.path)
        except (ValueError, OSError):
            return PROMPT_TOKENS, "assumed, since problems or tokenizer could not be read"
        windows = [data.window(index) for index in range(WINDOWS_READ)]
        lengths = [encode_prompts(tokenizer, problems, data.max_prompt_tokens)[1].shape[1] for problems in windows]
        return round(sum(lengths) / len(lengths)), f"mean over the first {WINDOWS_READ} windows"

    def _evaluations(self, model: GRPOModule, data: ProblemDataModule, work: Workload, devices: int) -> dict[str, Cost]:
        """Sampling of one validation and of the final evaluation, by the sizes of the data module."""
        passes, once = Passes(model, roles(self)[0].config, work, False), dict[int, Cost]()
        sizes = {name: min(size, len(data.splits.get(name) or range(size))) for name, size in data.sizes.items()}
        cells = {"validate": [sizes["validation"]], "test": [sizes["test"]] * 3 + [sizes["train"]]}
        found = {}
        for stage, problems in cells.items():
            choosers = [c for c in callbacks_of(self) if isinstance(c, StateChooser) and c.stage == stage]
            states = len({state for chooser in choosers for state in chooser.sampled(self)})
            found[stage] = Cost()
            for count in problems:
                batches = math.ceil(count / data.eval_batch_size)
                size = math.ceil(count / batches / devices)
                if size not in once:
                    once[size] = sum(passes.generated(size * data.eval_samples, size).values(), Cost())
                found[stage] += once[size] * (batches * states)
        return found
