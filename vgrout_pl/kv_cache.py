"""Key/value caches in transformers' own interface: prompts that several rows share, and decoding in place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

ATTENTION = {"full_attention", "sliding_attention"}


def can_share_prompts(config: PreTrainedConfig) -> bool:
    """Whether all that a model carries from one token to the next are keys and values of attention."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ()
    return set(kinds) <= ATTENTION and not getattr(text, "num_kv_shared_layers", 0)


def sees_all(config: PreTrainedConfig, tokens: int) -> bool:
    """Whether in every layer a token attends to all of so many; False where the layers' kinds are not known."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    if not set(kinds or ()) <= ATTENTION:
        return False
    slides = kinds is None or "sliding_attention" in kinds  # where no kinds are given it may be every layer
    return window is None or not slides or window >= tokens


class _Layer(CacheLayerMixin):
    """A layer whose keys and values [rows, heads, tokens, head_dim] all stay in view: masks do the sliding."""

    is_sliding = False

    def __init__(self, keys: Tensor | None = None, values: Tensor | None = None) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = keys is not None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to prepare."""

    def get_seq_length(self) -> int:
        """Tokens held."""
        return 0 if self.keys is None else self.keys.shape[2]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that a query of this length meets, and the position of the first."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """No bound."""
        return -1


class RecordingLayer(_Layer):
    """Keeps what the first forward pass gives it; a pass that is re-run (activation checkpointing) changes nothing."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Keep keys and values and return them."""
        if self.keys is None:
            self.keys, self.values, self.is_initialized = key_states, value_states, True
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """The tokens of the pass itself."""
        return query_length, 0


class PrefixedLayer(_Layer):
    """A prompt in front of whatever comes: holds the prompt, keeps nothing of what it is given."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the prompt's keys and values followed by these."""
        assert self.keys is not None and self.values is not None
        return torch.cat([self.keys, key_states], 2), torch.cat([self.values, value_states], 2)


class DecodingLayer(_Layer):
    """Room for a known number of tokens, written in place."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, room: int) -> None:
        super().__init__(self._with_room(keys, rows, room), self._with_room(values, rows, room))
        self.length = keys.shape[2]

    @staticmethod
    def _with_room(prompt: Tensor, rows: Tensor, room: int) -> Tensor:
        whole = prompt.new_empty(len(rows), prompt.shape[1], prompt.shape[2] + room, prompt.shape[3])
        whole[:, :, : prompt.shape[2]] = prompt[rows]
        return whole

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values and return all so far."""
        assert self.keys is not None and self.values is not None
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Tokens written."""
        return self.length

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (int [n])."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[rows], self.values[rows]


class FixedLayer(DecodingLayer):
    """The same with all keys and values in view at once, and the place to write given by a tensor (int [1])."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, room: int, place: Tensor) -> None:
        super().__init__(keys, values, rows, room)
        assert self.keys is not None and self.values is not None
        self.place = place
        for states in (self.keys, self.values):
            states[:, :, self.length :] = 0  # what a mask hides must still be a number

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values of one token and return all that there will ever be."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.place, key_states)
        self.values.index_copy_(2, self.place, value_states)
        return self.keys, self.values


class PromptCache(Cache):
    """Keys and values of prompts, [U, heads, S, head_dim] a layer, from one forward pass."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=RecordingLayer)

    def before(self, rows: Tensor) -> Cache:
        """The prompts ``rows`` (int [n], repeats welcome) in front of n continuations; gradients flow back."""
        return Cache(layers=[PrefixedLayer(keys[rows], values[rows]) for keys, values in self.recorded()])

    def decoding(self, rows: Tensor, room: int, fixed: bool = False) -> DecodingCache:
        """The prompts ``rows`` (int [n]) with room for ``room`` more tokens each; ``fixed``: in size and place."""
        layers = list(self.recorded())
        if not fixed:
            return DecodingCache([DecodingLayer(keys, values, rows, room) for keys, values in layers])
        place = torch.full((1,), layers[0][0].shape[2], device=layers[0][0].device)
        return DecodingCache([FixedLayer(keys, values, rows, room, place) for keys, values in layers], place)

    def own(self, rows: int, room: int) -> DecodingCache:
        """Room for ``room`` tokens of each of ``rows`` rows, without the prompts, in float32."""
        nothing = [tuple(states[:1, :, :0].float() for states in layer) for layer in self.recorded()]
        first = torch.zeros(rows, dtype=torch.long)
        return DecodingCache([DecodingLayer(keys, values, first, room) for keys, values in nothing])

    def recorded(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Keys and values of each layer."""
        for layer in self.layers:
            assert isinstance(layer, RecordingLayer) and layer.keys is not None and layer.values is not None
            yield layer.keys, layer.values


class DecodingCache(Cache):
    """What a batch of growing completions has behind it; ``place`` is where its layers write, if they are told."""

    def __init__(self, layers: list[DecodingLayer] | list[FixedLayer], place: Tensor | None = None) -> None:
        super().__init__(layers=list(layers))
        self._decoding, self.place = layers, place

    def move_on(self) -> None:
        """Write one token further from now on."""
        assert self.place is not None
        self.place += 1
        for layer in self._decoding:
            layer.length += 1

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but ``rows`` (int [n])."""
        for layer in self._decoding:
            layer.keep(rows)
