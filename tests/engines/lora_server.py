"""A small completions server in a thread: transformers generate, PEFT loads and unloads the adapters.

It speaks as much of vLLM's dialect as an engine needs, and can be told to misbehave.
"""

import copy
import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@functools.cache
def _loaded(path):
    return (
        AutoTokenizer.from_pretrained(path),
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(),
    )


class Refusal(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


class LoraServer:
    """Serves a model at ``url`` until :meth:`close`.

    Attributes:
        asked: bodies of the completions requests so far.
        loaded: name -> path of the adapters that it holds.
        serves_base: samples from the base model, whatever adapter was asked for, and says nothing.
        dies_after: number of completions requests after which it drops everything (None: lives on).
        drops: number of connections to close unanswered.
        changed: called with each answer before it is sent; returns what is sent.
    """

    def __init__(self, path, name, max_lora_rank=64, loads_adapters=True, max_model_len=256):
        self.tokenizer, base = _loaded(path)
        self.base = self.model = copy.deepcopy(base)
        self.name, self.max_lora_rank, self.max_model_len = name, max_lora_rank, max_model_len
        self.loads_adapters = loads_adapters
        self.asked, self.loaded, self.log = [], {}, []
        self.serves_base, self.dies_after, self.drops, self.changed = False, None, 0, lambda answer: answer
        self._one_at_a_time = threading.Lock()
        self._start()

    def _start(self):
        class Handler(_Handler):
            server_of = self

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    # ---------------------------------------------------------------- endpoints

    def models(self):
        names = [self.name, *self.loaded]
        return {"object": "list", "data": [{"id": name, "max_model_len": self.max_model_len} for name in names]}

    def load_lora_adapter(self, body):
        if not self.loads_adapters:
            raise Refusal(404, "Not Found")
        name, path = body["lora_name"], body["lora_path"]
        if name in self.loaded:
            raise Refusal(400, f"The lora adapter '{name}' has already been loaded.")
        rank = LoraConfig.from_pretrained(path).r
        if rank > self.max_lora_rank:
            raise Refusal(500, f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}.")
        with torch.random.fork_rng(devices=[]):  # PEFT draws an init first, and tests run in this very process
            if self.model is self.base:
                self.model = PeftModel.from_pretrained(self.base, path, adapter_name=name).eval()
            else:
                self.model.load_adapter(path, adapter_name=name)
        self.loaded[name] = path
        self.log.append(("load", name))
        return f"Success: LoRA adapter '{name}' added successfully."

    def unload_lora_adapter(self, body):
        name = body["lora_name"]
        if name not in self.loaded:
            raise Refusal(404, f"The lora adapter '{name}' cannot be found.")
        del self.loaded[name]
        self.log.append(("unload", name))
        if self.loaded:
            self.model.set_adapter(next(iter(self.loaded)))
            self.model.delete_adapter(name)
        else:
            self.base = self.model = self.model.unload()
        return f"Success: LoRA adapter '{name}' removed successfully."

    def completions(self, body):
        name = body["model"]
        if name != self.name and name not in self.loaded:
            raise Refusal(404, f"The model `{name}` does not exist.")
        if body["temperature"] == 0 and body["n"] > 1:
            raise Refusal(400, "n must be 1 when using greedy sampling")
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            raise Refusal(400, "the prompt is too long")
        self.asked.append(body)
        if self.dies_after is not None and len(self.asked) > self.dies_after:
            threading.Thread(target=self.close).start()
            raise ConnectionAbortedError
        if name == self.name or self.serves_base:
            if self.model is self.base:
                choices = self._sampled(body)
            else:
                with self.model.disable_adapter():
                    choices = self._sampled(body)
        else:
            self.model.set_adapter(name)
            choices = self._sampled(body)
        return {"object": "text_completion", "model": name, "choices": choices}

    # ---------------------------------------------------------------- sampling

    @torch.no_grad()
    def _sampled(self, body):
        """n rows that grow together; a row that has ended goes on unseen."""
        n, stops = body["n"], body["stop_token_ids"]
        draws = [torch.Generator().manual_seed(body["seed"] + row) for row in range(n)]
        filters = _filters(body)
        rows, logprobs, reasons = [[] for _ in range(n)], [[] for _ in range(n)], [None] * n
        cache, fed = DynamicCache(), torch.tensor([body["prompt"]] * n)
        for step in range(body["max_tokens"]):
            logits = self.model(input_ids=fed, past_key_values=cache, use_cache=True).logits[:, -1].float()
            plain = logits.log_softmax(-1)
            if step < body["min_tokens"]:
                logits[:, stops] = -torch.inf
            if body["temperature"] == 0:
                tokens = logits.argmax(-1)
            else:
                odds = filters(fed, logits).softmax(-1)
                drawn = [torch.multinomial(odds[row], 1, generator=draws[row]) for row in range(n)]
                tokens = torch.cat(drawn)
            for row in range(n):
                if reasons[row] is None:
                    rows[row].append(int(tokens[row]))
                    logprobs[row].append(float(plain[row, tokens[row]]))
                    reasons[row] = self._reason(rows[row], body)
            if all(reasons):
                break
            fed = tokens.unsqueeze(-1)
        return [
            {
                "index": row,
                "text": self.tokenizer.decode(rows[row], skip_special_tokens=True),
                "token_ids": rows[row],
                "logprobs": {"token_logprobs": logprobs[row]},
                "finish_reason": reasons[row],
            }
            for row in range(n)
        ]

    def _reason(self, row, body):
        if row[-1] in body["stop_token_ids"]:
            return "stop"
        if len(row) > body["min_tokens"] and any(text in self.tokenizer.decode(row) for text in body["stop"]):
            return "stop"
        return "length" if len(row) == body["max_tokens"] else None


def _filters(body):
    filters = LogitsProcessorList()
    if body["temperature"] not in (0, 1):
        filters.append(TemperatureLogitsWarper(float(body["temperature"])))
    if body["top_k"] > 0:
        filters.append(TopKLogitsWarper(body["top_k"]))
    if body["top_p"] < 1:
        filters.append(TopPLogitsWarper(body["top_p"]))
    if body["min_p"] > 0:
        filters.append(MinPLogitsWarper(body["min_p"]))
    return filters


class _Handler(BaseHTTPRequestHandler):
    server_of: LoraServer

    def do_GET(self):
        self._answer(lambda: self.server_of.models() if self.path == "/v1/models" else _missing())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = self.path.removeprefix("/v1/")
        known = name in ("completions", "load_lora_adapter", "unload_lora_adapter")
        self._answer(lambda: getattr(self.server_of, name)(body) if known else _missing())

    def _answer(self, endpoint):
        server = self.server_of
        if server.drops > 0:
            server.drops -= 1
            self.close_connection = True
            return
        try:
            with server._one_at_a_time:
                status, answer = 200, server.changed(endpoint())
        except Refusal as refusal:
            status, answer = refusal.status, {"error": {"message": str(refusal), "code": refusal.status}}
        except ConnectionAbortedError:
            self.close_connection = True
            return
        content = json.dumps(answer).encode() if isinstance(answer, dict) else answer.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def _missing():
    raise Refusal(404, "Not Found")
