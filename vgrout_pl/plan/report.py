"""A plan as text and as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vgrout_pl.plan.estimate import CONTEXT_BYTES, SLACK, Window
from vgrout_pl.plan.machines import Machine
from vgrout_pl.plan.trace import Cost
from vgrout_pl.plan.workload import Workload


@dataclass(frozen=True)
class Plan:
    """Everything that is known about a configuration before it runs.

    Attributes:
        path: of the model.
        router: its name.
        init: of the adapter.
        work: one window on one device.
        window: what it costs.
        evaluations: ``validate`` (once) and ``test`` -> cost of sampling on one device.
        machine: the device.
        devices: how many.
        prompt_source: where the prompts' length is known from.
        steps: optimizer steps of the run, 0 where they are not set.
    """

    path: str
    router: str
    init: str
    work: Workload
    window: Window
    evaluations: dict[str, Cost]
    machine: Machine
    devices: int
    prompt_source: str
    steps: int

    def floors(self) -> dict[str, float]:
        """Seconds of each phase of a window that nothing can beat."""
        return {name: self.machine.floor(cost) for name, cost in self.window.phases.items()}

    def estimates(self) -> dict[str, float]:
        """Seconds of each phase of a window at the assumed shares."""
        return {name: self.machine.estimate(cost) for name, cost in self.window.phases.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers: bytes, FLOPs and seconds of one device."""
        memory = self.window.memory
        phases = {
            name: {
                "flops": cost.flops,
                "product_bytes": cost.product_bytes,
                "bytes": cost.bytes,
                "calls": cost.calls,
                "floor_s": self.machine.floor(cost),
                "estimate_s": self.machine.estimate(cost),
            }
            for name, cost in self.window.phases.items()
        }
        return {
            "model": self.path,
            "router": self.router,
            "init": self.init,
            "machine": self.machine.name,
            "devices": self.devices,
            "parameters": asdict(self.window.parameters),
            "memory": {**asdict(memory), "peak": memory.peak},
            "tokens": self.window.tokens,
            "phases": phases,
            "updates": self.work.updates,
            "step_floor_s": sum(self.floors().values()) / self.work.updates,
            "step_estimate_s": sum(self.estimates().values()) / self.work.updates,
            "evaluation_s": {name: self.machine.estimate(cost) for name, cost in self.evaluations.items()},
        }


def as_text(plan: Plan) -> str:
    """The tables that the command prints."""
    return "\n".join([*_heading(plan), "", *_memory(plan), "", *_phases(plan), "", *_notes(plan)])


def _heading(plan: Plan) -> list[str]:
    work, parameters, tokens = plan.work, plan.window.parameters, plan.window.tokens
    return [
        f"model       {plan.path}: {parameters.base / 1e6:,.1f} M parameters; adapter of {parameters.modules} modules: "
        f"{parameters.trained / 1e6:,.1f} M trained, {parameters.frozen / 1e6:,.1f} M frozen",
        f"window      router {plan.router}, init {plan.init}: {work.prompts} prompts x {work.group} completions of "
        f"{work.prompt_tokens} + {work.completion_tokens} tokens"
        + (f" on each of {plan.devices} devices" if plan.devices > 1 else "")
        + f", {work.micro_batches} micro-batches, {work.updates} update{'s' if work.updates > 1 else ''}",
        f"prompts     {plan.prompt_source}",
        "tokens      " + ", ".join(f"{name} {int(count):,}" for name, count in tokens.items() if count),
    ]


def _memory(plan: Plan) -> list[str]:
    memory, machine = plan.window.memory, plan.machine
    used = "recomputed" if memory.checkpointing else "kept"
    rows = [
        ("weights", memory.weights, ""),
        ("adapter", memory.adapter, "trained tensors, gradients, AdamW's moments, frozen inits"),
        ("gate's buffer", memory.buffer, ""),
        ("sampling", memory.generate, f"of it keys and values {memory.cache / 1e9:.2f}"),
        ("scoring", memory.score, f"the largest pass without gradient; a chunk of logits {memory.logits / 1e9:.2f}"),
        ("gate", memory.route, "its largest pass"),
        ("training, activations kept", memory.train, "the largest micro-batch"),
        ("training, recomputed", memory.train_checkpointed, "gradient_checkpointing"),
        ("context", CONTEXT_BYTES, f"assumed; and {SLACK:.0%} more for what moves"),
    ]
    lines = [f"{'memory of a device':28}{'GB':>9}"]
    lines += [f"{name:28}{size / 1e9:9.2f}  {note}".rstrip() for name, size, note in rows if size]
    room = "" if machine.memory is None else f" of {machine.memory / 1e9:.0f} on {machine.name}"
    warning = " - DOES NOT FIT" if machine.memory is not None and memory.peak > machine.memory else ""
    return [*lines, f"{'peak, activations ' + used:28}{memory.peak / 1e9:9.2f} {room}{warning}".rstrip()]


def _phases(plan: Plan) -> list[str]:
    lines = [f"{'phase of a window':20}{'TFLOP':>10}{'GB moved':>10}{'operators':>11}{'floor s':>9}{'estimate s':>12}"]
    floors, estimates = plan.floors(), plan.estimates()
    for name, cost in plan.window.phases.items():
        if cost.operations:
            lines.append(
                f"{name:20}{cost.flops / 1e12:10.3f}{cost.bytes / 1e9:10.1f}{cost.calls:11,.0f}{floors[name]:9.2f}"
                f"{estimates[name]:12.2f}"
            )
    whole, updates = sum(plan.window.phases.values(), Cost()), plan.work.updates
    lines.append(
        f"{'one optimizer step':20}{whole.flops / 1e12 / updates:10.3f}{whole.bytes / 1e9 / updates:10.1f}"
        f"{whole.calls / updates:11,.0f}{sum(floors.values()) / updates:9.2f}{sum(estimates.values()) / updates:12.2f}"
    )
    return lines


def _notes(plan: Plan) -> list[str]:
    machine, step = plan.machine, sum(plan.estimates().values()) / plan.work.updates
    validation, final = (machine.estimate(plan.evaluations[stage]) for stage in ("validate", "test"))
    return [
        f"run         {plan.steps} steps {plan.steps * step / 3600:.2f} h; a validation {validation / 60:.1f} min, the "
        f"final evaluation {final / 60:.1f} min of sampling, on {plan.devices} x {machine.name}",
        "floor       FLOPs of the products at the peak, or their bytes at full bandwidth, whichever takes longer",
        f"estimate    {machine.assumptions()}",
        "not counted grading, logging, synchronisation between devices, reading weights; completions are taken to be "
        "full, groups to have reward differences",
    ]
