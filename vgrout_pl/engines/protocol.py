"""What is sent to an OpenAI-compatible server for some completions, and what its answers mean."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from vgrout_pl.engines.base import EngineError
from vgrout_pl.generation import Completions
from vgrout_pl.sampling import Sampling


class Row(NamedTuple):
    """One completion as a server gave it.

    Attributes:
        tokens: up to and with the one that ended it.
        logprobs: of the tokens, at temperature 1, before filters (nats).
        stopped: whether it ended by itself.
    """

    tokens: list[int]
    logprobs: list[float]
    stopped: bool


def together(rows: Sequence[int], prompt_of: Sequence[int], sampling: Sampling) -> list[list[int]]:
    """Rows that one request asks for: those of a prompt; each alone where sampling is greedy, which allows no n."""
    groups: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        groups[row if sampling.temperature == 0 else prompt_of[row]].append(row)
    return list(groups.values())


def settings(sampling: Sampling, stops: Sequence[int]) -> dict[str, Any]:
    """What every request says; nothing is left to the server's defaults, which may be a model's own preferences."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": sampling.min_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": list(sampling.stop_strings),
        "stop_token_ids": list(stops),
        "logprobs": 0,  # those of the sampled tokens alone
        "return_token_ids": True,
    }


def read(
    answer: Any, body: Mapping[str, Any], sampling: Sampling, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]
) -> list[Row]:
    """Read an answer to one request.

    Raises:
        EngineError: it is not what was asked for.
    """
    try:
        served, choices = answer["model"], sorted(answer["choices"], key=lambda choice: choice["index"])
        given = [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]
        whole = all(tokens and len(tokens) == len(logprobs) for tokens, logprobs in given)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise EngineError(
            "engine: expected completions with token_ids and the log-probability of each; the server gave none; use "
            "vLLM 0.10.2 or later, or another server that knows return_token_ids"
        )
    if served != body["model"] or len(given) != body["n"]:
        raise EngineError(
            f"engine: expected {body['n']} completions of {body['model']}; got {len(given)} of {served}; the server "
            "does not sample from the adapter it was asked for"
        )
    read_rows = []
    for (tokens, logprobs), choice in zip(given, choices, strict=True):
        end = _end(tokens, sampling, tokenizer, stops)
        if end is None and len(tokens) != sampling.max_new_tokens:
            raise EngineError(
                "engine: expected completions that end with a stop token, at a stop string or after "
                f"{sampling.max_new_tokens} tokens; got one of {len(tokens)} tokens with finish_reason "
                f"{choice.get('finish_reason')}; the server must return the stop token too and know no others than "
                "those of model.path"
            )
        kept = len(tokens) if end is None else end
        read_rows.append(Row(tokens[:kept], logprobs[:kept], end is not None))
    return read_rows


def _end(tokens: list[int], sampling: Sampling, tokenizer: PreTrainedTokenizerBase, stops: Sequence[int]) -> int | None:
    """How many tokens there are up to and with the first that ends the completion; None: none does."""
    ends = [place + 1 for place, token in enumerate(tokens) if token in stops and place >= sampling.min_new_tokens][:1]
    if sampling.stop_strings:

        def holds(length: int) -> bool:
            text = tokenizer.decode(tokens[:length])
            return any(stop in text for stop in sampling.stop_strings)

        if holds(len(tokens)):
            ends.append(1 + bisect_left(range(1, len(tokens) + 1), True, key=holds))
    return min(ends, default=None)


def completions(rows: Sequence[Row], pad: int, device: torch.device) -> Completions:
    """Rows as tensors, padded on the right."""
    longest = max(len(row.tokens) for row in rows)
    ids = torch.full((len(rows), longest), pad)
    logprobs = torch.zeros(len(rows), longest)
    for place, row in enumerate(rows):
        ids[place, : len(row.tokens)] = torch.tensor(row.tokens)
        logprobs[place, : len(row.tokens)] = torch.tensor(row.logprobs)
    mask = torch.arange(longest) < torch.tensor([len(row.tokens) for row in rows]).unsqueeze(-1)
    stopped = torch.tensor([row.stopped for row in rows])
    return Completions(ids.to(device), mask.to(device), stopped.to(device), logprobs.to(device))
