"""The policy: which model, how it is loaded, and what its parts are."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from vgrout_pl.adapters.attach import route_state
from vgrout_pl.adapters.packed_linear import PackedLinear
from vgrout_pl.adapters.state import RouteState

ORGANISM = "organism"
Dtype = Literal["float32", "bfloat16"]


def resolve_path(path: str) -> str:
    """Directory or hub id of a model: the embedded one's for ``organism``, the base's for an exported adapter."""
    if is_adapter_directory(path):
        return _base_of_adapter(path)
    if path != ORGANISM:
        return path
    from vgrout_pl.organism import CHECKPOINT

    return str(CHECKPOINT)


def is_adapter_directory(path: str) -> bool:
    """Whether ``path`` is a PEFT adapter, as :func:`vgrout_pl.adapters.export_deployed` writes it."""
    return (Path(path) / "adapter_config.json").is_file()


def _base_of_adapter(path: str) -> str:
    """The base that an adapter names; the organism is found wherever the package is installed."""
    try:
        base = json.loads((Path(path) / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError) as error:
        raise _unavailable(path, "adapter_config.json", error) from error
    if not base:
        raise ValueError(f"model.path: expected an adapter that names its base; {path!r} names none")
    embedded = resolve_path(ORGANISM)
    return embedded if Path(base).parts[-3:] == Path(embedded).parts[-3:] else str(base)


def _unavailable(path: str, what: str, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(
        f"model.path: expected a directory written by save_pretrained, an exported adapter or a reachable hub id; got "
        f"{path!r} and could not read its {what} ({reason}); download the model first and give its directory"
    )


class _QuietHub:
    """Silence the hub client's retry messages while it finds out that it is offline."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("huggingface_hub")
        self._level = self._logger.level
        self._logger.setLevel(logging.CRITICAL)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._level)


@lru_cache(maxsize=4)
def load_config(path: str):
    """Read a model's configuration only (no weights).

    Raises:
        ValueError: there is no such model within reach.
    """
    resolved = resolve_path(path)
    if not Path(resolved).exists() and os.sep in resolved and resolved.startswith((".", os.sep, "~")):
        raise ValueError(
            f"model.path: expected an existing directory; got {path!r}, which does not exist; check the path"
        )
    try:
        with _QuietHub():
            return AutoConfig.from_pretrained(resolved)
    except (OSError, ValueError) as error:
        raise _unavailable(path, "config.json", error) from error


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Read a model's tokenizer, padded on the left for generation; the padding token defaults to end-of-text.

    Raises:
        ValueError: it cannot be read or has no chat template.
    """
    try:
        with _QuietHub():
            tokenizer = AutoTokenizer.from_pretrained(resolve_path(path), padding_side="left")
    except (OSError, ValueError) as error:
        raise _unavailable(path, "tokenizer", error) from error
    if tokenizer.chat_template is None:
        raise ValueError(
            f"model.path: expected a tokenizer with a chat template; {path!r} has none; use an instruct model"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(path: str, dtype: Dtype, attn_implementation: str | None) -> PreTrainedModel:
    """Load a causal LM's weights, frozen and in evaluation mode, without sampling preferences of its own.

    Of the model's generation config only the stop tokens are kept: what is sampled from is what ``Sampling`` says.

    Raises:
        ValueError: the weights cannot be read.
    """
    try:
        with _QuietHub():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                resolve_path(path), dtype=getattr(torch, dtype), attn_implementation=attn_implementation
            )
    except OSError as error:
        raise _unavailable(path, "weights", error) from error
    except (ValueError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"model: expected settings that transformers can load {path!r} with; got: {reason}") from error
    if is_adapter_directory(path):
        model = _with_adapter(model, path)
    own = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=None if own is None else own.eos_token_id)
    return model.requires_grad_(False).eval()


def _with_adapter(model: PreTrainedModel, path: str) -> PreTrainedModel:
    """The model with an exported adapter merged into its weights, which must be float32 to hold it."""
    if model.dtype != torch.float32:
        raise ValueError(
            f"model.dtype: expected float32 to merge the adapter {path!r}, which bfloat16 would round away; got "
            f"{str(model.dtype).removeprefix('torch.')}"
        )
    return cast(PreTrainedModel, PeftModel.from_pretrained(model, path).merge_and_unload())


def checkpoint_activations(policy: PeftModel) -> None:
    """Recompute each layer's activations in the backward pass, in the adapter's state of the forward pass.

    transformers checkpoints a layer only while its own ``training`` flag is set, so that flag alone is set, not those
    of the modules inside: dropout stays off.
    """
    state = route_state(policy)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _as_of(state, state.snapshot())

    base = base_of(policy)
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": contexts})
    for module in base.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            module._can_checkpoint_with_cache = True  # ours give a re-run the same keys and values


@contextmanager
def _as_of(state: RouteState, snapshot: Any) -> Iterator[None]:
    now = state.snapshot()
    state.restore(snapshot)
    try:
        yield
    finally:
        state.restore(now)


def keeps_caches(base: PreTrainedModel) -> bool:
    """Whether a training pass sees the cache it is given: transformers may drop it where it checkpoints layers."""
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    return not checkpointing or hasattr(GradientCheckpointingLayer, "_can_checkpoint_with_cache")


def shape_of_base(path: str) -> PreTrainedModel:
    """Build the model on the meta device: every shape, no weights."""
    config = load_config(path)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def context_length(path: str) -> int | None:
    """Longest sequence (tokens) the model was made for, None where its configuration does not say."""
    config = load_config(path)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that end a completion: the generation config's and the tokenizer's."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})


def positions(attention_mask: Tensor) -> Tensor:
    """Position of each token counted from the first that is not padding: [N, S] -> int [N, S]."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def base_of(policy: PeftModel) -> PreTrainedModel:
    """The causal LM inside a policy, its Linears wrapped."""
    return cast(PreTrainedModel, policy.get_base_model())


def head_of(base: PreTrainedModel, packed: bool = False) -> Callable[[Tensor], Tensor]:
    """What turns final hidden states [.., d] into logits [.., V]; ``packed``: by a copy laid out for few rows."""
    output: Any = base.get_output_embeddings()
    if packed and PackedLinear.can_hold(output.weight):
        output = PackedLinear(output.weight, output.bias)
    cap = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    if cap is None:
        return output
    return lambda hidden: torch.tanh(output(hidden) / cap) * cap


@torch.no_grad()
def check_head(base: PreTrainedModel) -> None:
    """Compare decoder + head with the model's own logits on three tokens.

    Raises:
        ValueError: the architecture does something to its logits that ``head_of`` does not know.
    """
    device = base.device
    ids = torch.arange(3, device=device).unsqueeze(0)
    expected = base(input_ids=ids, use_cache=False).logits.float()
    got = head_of(base)(base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state).float()
    if not torch.allclose(expected, got, atol=1e-3 * float(expected.abs().max()) + 1e-6):
        raise ValueError(
            f"model.path: {type(base).__name__} transforms its logits in a way that is not supported "
            f"(largest difference {float((expected - got).abs().max()):.3g}); use another architecture"
        )
