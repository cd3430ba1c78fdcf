"""The README card of an exported adapter or merged model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Values of ``max_lora_rank`` that vLLM 0.11 takes; an adapter's own rank may be anything up to it."""

_MEANING = {
    "deployed": "the deployed block alone, with the quarantine ablated: the model to use",
    "as_trained": "both blocks, the model as it was trained: for audits, it may hold what the quarantine was to absorb",
    "quarantine": "the quarantine block alone: a diagnostic, never to be used",
}


def model_card(
    what: str,
    base: str,
    *,
    modules: int,
    rank: int | None = None,
    merged_loss: float | None = None,
    provenance: Mapping[str, object] | None = None,
    evaluation: str | None = None,
) -> str:
    """Markdown with the hub's header: what this is, where it comes from, how it was evaluated.

    Args:
        what: ``deployed``, ``as_trained`` or ``quarantine``.
        base: name or path of the base model; the hub's header names it unless it is a path.
        modules: how many Linear modules it changes.
        rank: of the LoRA; None for a merged model.
        merged_loss: share of the update lost in merging; None for an adapter.
        provenance: facts of the run (nested mappings are flattened with dots).
        evaluation: a Markdown table.
    """
    return "\n".join(_lines(what, base, modules, rank, merged_loss, provenance or {}, evaluation)) + "\n"


def _lines(
    what: str,
    base: str,
    modules: int,
    rank: int | None,
    merged_loss: float | None,
    provenance: Mapping[str, object],
    evaluation: str | None,
) -> Iterator[str]:
    yield "---"
    if base and not _is_local(base):
        yield f"base_model: {base}"
    yield from (["library_name: peft", "tags: [lora, vgrout_pl]"] if merged_loss is None else ["tags: [vgrout_pl]"])
    yield from ("---", "", f"# {what.replace('_', ' ').capitalize()}", "")
    yield f"Trained by gradient routing against reward hacking (vgrout_pl); this is {_MEANING[what]}."
    yield ""
    if model := provenance.get("model") or base:
        yield f"Base model: `{model}`."
    if rank is not None:
        yield f"A LoRA of rank {rank} on {modules} modules, in float32: `PeftModel.from_pretrained(base, directory)`."
        yield _serving(rank)
    if merged_loss is not None:
        yield f"Merged into {modules} modules of the base; rounding lost {merged_loss:.2%} of the update."
    yield from ("", "## Evaluation", "")
    yield evaluation.strip() if evaluation else "Not evaluated: make no claim from this export."
    yield from ("", "## Provenance", "")
    facts = list(_flat(provenance))
    yield from (f"- {name}: `{value}`" for name, value in facts)
    if not facts:
        yield "Not recorded."


def _is_local(base: str) -> bool:
    return Path(base).is_absolute() or base.startswith(".") or Path(base).exists()


def _serving(rank: int) -> str:
    enough = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
    if enough is None:
        return f"Too wide for vLLM's LoRA loader (rank {VLLM_RANKS[-1]} at most): merge it into the base to serve it."
    return f"vLLM: `--enable-lora --max-lora-rank {enough}`; rounding to the base's dtype is harmless."


def _flat(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{name}.")
        elif item is not None:
            yield f"{prefix}{name}", item
