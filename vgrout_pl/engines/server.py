"""Completions from a server beside the trainer: OpenAI's completions API and vLLM's loading of LoRA at run time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vgrout_pl.adapters import RoutedLoraConfig, ablated, adapter_state, attach_routed_adapter
from vgrout_pl.engines import protocol
from vgrout_pl.engines.base import EngineError, RolloutEngine
from vgrout_pl.engines.client import Client, UnreachableError
from vgrout_pl.engines.comparison import Gaps, evenly, gaps, refuse_other_policy
from vgrout_pl.engines.served import ServedAdapters, blocks_in_force
from vgrout_pl.generation import Completions, OnFinished
from vgrout_pl.policy import base_of, shape_of_base, stop_token_ids
from vgrout_pl.processes import gathered
from vgrout_pl.sampling import SamplingRequest
from vgrout_pl.seeding import derived_seed


class ServerEngine(RolloutEngine):
    """Samples from a server that holds the same base model, e.g. vLLM, on other GPUs or another machine.

    Before each window the as-trained and the deployed adapter are exported as PEFT LoRA directories and loaded into
    the server under new names. Prompts and completions travel as token ids. The server's log-probabilities are never
    trained on: of a few rows of each state the trainer takes its own, and a server that is too far from them, or
    nearer to the bare base model, stops the run.

    Args:
        base_url: of the server, ``http://host:port``.
        lora_dir: directory for the adapters, which the server reads under the same path.
        model: name under which the server lists the base model; None: ``model.path``.
        max_logprob_gap: largest mean absolute difference between the server's and the trainer's log-probabilities of
            the sampled tokens (nats a token).
        checked_rows: rows of each state whose log-probabilities are compared, in every window and evaluation batch.
        concurrency: requests at a time; one request has all rows of a prompt in one state.
        timeout_s: longest wait for one answer (seconds).
        retries: further attempts where the connection fails, after 0.5, 1, 2, ... seconds.
    """

    metrics: ClassVar[tuple[str, ...]] = ("engine/logprob_gap", "engine/base_gap")

    def __init__(
        self,
        base_url: str = "http://localhost:8000",
        lora_dir: str = "runs/served",
        model: str | None = None,
        max_logprob_gap: float = 0.1,
        checked_rows: int = 16,
        concurrency: int = 64,
        timeout_s: float = 600.0,
        retries: int = 4,
    ):
        self.lora_dir, self.model, self.max_logprob_gap = lora_dir, model, max_logprob_gap
        self.checked_rows, self.concurrency = checked_rows, concurrency
        self._client = Client(base_url, timeout_s, retries)
        self._served: ServedAdapters | None = None
        self._seen: list[Gaps] = []

    # ---------------------------------------------------------------- before a model is loaded

    def check(self, path: str, adapter: RoutedLoraConfig, tokens: int) -> None:
        """Check that the server is there, has the base and room for the longest row, and loads adapters of this rank.

        Adapters of zeros, shaped like those of the run, are loaded and unloaded.

        Raises:
            EngineError: on every process.
        """
        if self._served is not None:
            return
        self._check_settings()
        base = path if self.model is None else self.model
        problems = [problem for problem in gathered(self._problem(base, tokens)) if problem is not None]
        if problems:
            raise EngineError(problems[0])
        served = ServedAdapters(self._client, base, self.lora_dir)
        served.replace(_zeros(path, adapter), also_ablated=True)
        served.drop()
        self._served = served

    def _check_settings(self) -> None:
        """Not when they are set: the command line would tell of a mistake in many words."""
        client = self._client
        checks = {
            "base_url": (client.url.startswith(("http://", "https://")), "http://host:port", client.url),
            "max_logprob_gap": (self.max_logprob_gap > 0, "a number above 0", self.max_logprob_gap),
            "checked_rows": (self.checked_rows >= 1, "at least 1", self.checked_rows),
            "concurrency": (self.concurrency >= 1, "at least 1", self.concurrency),
            "timeout_s": (client.timeout_s > 0, "a number above 0", client.timeout_s),
            "retries": (client.retries >= 0, "0 or more", client.retries),
        }
        for name, (holds, expected, got) in checks.items():
            if not holds:
                raise EngineError(f"model.engine.init_args.{name}: expected {expected}; got {got}")

    def _problem(self, base: str, tokens: int) -> str | None:
        """What is wrong with the server as seen from this process, if anything."""
        url = self._client.url
        try:
            listed = {entry["id"]: entry for entry in self._client.get("models")["data"]}
        except UnreachableError as error:
            return (
                f"model.engine.init_args.base_url: expected a server at {url}; got no connection "
                f"({error.reason}); start it first, or give its address"
            )
        except (EngineError, KeyError, TypeError) as error:
            return (
                f"model.engine.init_args.base_url: expected a server with /v1/models at {url}; got {error}; "
                "give the address of an OpenAI-compatible server"
            )
        if base not in listed:
            return (
                f"model.engine.init_args.model: expected a model that {url} lists ({', '.join(sorted(listed))}); "
                f"got {base!r}; serve that model, or give the name it is served under"
            )
        room = listed[base].get("max_model_len")
        if room is not None and tokens > room:
            return (
                f"model.engine: expected a server with room for the longest prompt and completion, {tokens} tokens; "
                f"got {room}; start it with --max-model-len {tokens} or more"
            )
        return None

    # ---------------------------------------------------------------- sampling

    def publish(self, policy: PeftModel, *, also_ablated: bool = False) -> None:
        """Have the server take over the policy's present weights; see :meth:`RolloutEngine.publish`."""
        self._seen.clear()
        self._adapters.replace(policy, also_ablated=also_ablated)

    @property
    def _adapters(self) -> ServedAdapters:
        assert self._served is not None, "an engine is checked before it is used"
        return self._served

    @torch.no_grad()
    def generate(
        self,
        policy: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        request: SamplingRequest,
        on_finished: OnFinished | None = None,
    ) -> Completions:
        """Sample N completions; see :meth:`RolloutEngine.generate`. Log-probabilities are left to the trainer.

        Raises:
            EngineError: the server is gone, refuses, answers with something else, or samples from another policy.
        """
        prompt_ids, prompt_mask, sampling = request.prompt_ids, request.prompt_mask, request.sampling
        device, prompt_of, without = prompt_ids.device, request.prompt_of.to(prompt_ids.device), request.without
        states = [(~without, nullcontext), (without, lambda: ablated(policy))]
        parts = [_Part(policy, chosen.nonzero().flatten(), state, self._adapters) for chosen, state in states]
        stops = stop_token_ids(base_of(policy), tokenizer)
        settings = protocol.settings(sampling, stops)
        prompts = [ids[keep].tolist() for ids, keep in zip(prompt_ids, prompt_mask.bool(), strict=True)]
        together, bodies = [], []
        for part in parts:
            for group in protocol.together(part.rows.tolist(), prompt_of.tolist(), sampling):
                asked = {"model": part.name, "prompt": prompts[int(prompt_of[group[0]])], "n": len(group)}
                seed = (
                    derived_seed(*request.seed_parts, request.first_row + group[0]) % 2**31
                )  # servers add each row's place to it
                together.append(group)
                bodies.append(settings | asked | {"seed": seed})

        answers: dict[int, protocol.Row] = {}

        def finished(number: int, answer: Any) -> None:
            got = protocol.read(answer, bodies[number], sampling, tokenizer, stops)
            answers.update(zip(together[number], got, strict=True))
            if on_finished is not None:
                ids, mask, *_ = protocol.completions(got, tokenizer.pad_token_id, device)
                on_finished(torch.tensor(together[number], device=device), ids, mask)

        self._send(bodies, finished)
        sampled = protocol.completions([answers[row] for row in range(len(prompt_of))], tokenizer.pad_token_id, device)
        for part in parts:
            if len(part.rows):
                rows = evenly(part.rows, self.checked_rows).to(device)
                assert sampled.logprobs is not None, "a server's answers have them"
                some = Completions(sampled.ids[rows], sampled.mask[rows], sampled.stopped[rows], sampled.logprobs[rows])
                seen = gaps(policy, prompt_ids, prompt_mask, prompt_of[rows], some, part.state)
                self._seen.append(seen)
                refuse_other_policy(seen, self.max_logprob_gap, part.name, part.adapted)
        return sampled._replace(logprobs=None)

    def _send(self, bodies: Sequence[Mapping[str, Any]], finished: Callable[[int, Any], None]) -> None:
        """Send all requests, and hand over each answer as it comes, in this thread; the first failure ends the rest."""
        given_up = threading.Event()
        with ThreadPoolExecutor(min(self.concurrency, len(bodies)), thread_name_prefix="engine") as threads:
            futures = {
                threads.submit(self._client.post, "completions", body, given_up): number
                for number, body in enumerate(bodies)
            }
            try:
                for future in as_completed(futures):
                    finished(futures[future], future.result())
            except BaseException:
                given_up.set()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def statistics(self) -> Mapping[str, tuple[float, float]]:
        """Mean gaps of the tokens compared since the last :meth:`publish`: name -> (nats a token, tokens)."""
        tokens = sum(seen.tokens for seen in self._seen)
        if not tokens:
            return {}
        policy, base = (
            sum(getattr(seen, kind) * seen.tokens for seen in self._seen) / tokens for kind in ("policy", "base")
        )
        return {"engine/logprob_gap": (policy, tokens), "engine/base_gap": (base, tokens)}

    def close(self) -> None:
        """Unload this run's adapters, where the server still is there."""
        if self._served is not None:
            self._served.drop()


def _zeros(path: str, adapter: RoutedLoraConfig) -> PeftModel:
    """The routed model of a run on the meta device, its blocks all zeros: fit for exports alone."""
    policy = attach_routed_adapter(shape_of_base(path), adapter, initialise=False)
    zeros = {name: torch.zeros(value.shape) for name, value in adapter_state(policy).items()}
    policy.load_state_dict(zeros, strict=False, assign=True)
    return policy


class _Part:
    """The rows (int [n]) that are sampled in one state, and what the server serves that state as."""

    def __init__(
        self, policy: PeftModel, rows: Tensor, state: Callable[[], AbstractContextManager], served: ServedAdapters
    ) -> None:
        self.rows, self.state = rows, state
        with state():
            blocks = blocks_in_force(policy)
        self.adapted = bool(blocks)
        self.name = served.name_of(blocks) if len(rows) else ""
