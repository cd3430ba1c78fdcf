"""JSON over HTTP to a server that speaks the OpenAI-compatible API, with retries."""

from __future__ import annotations

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from vgrout_pl.engines.base import EngineError

FIRST_WAIT_S = 0.5
"""Seconds before the first retry; each further wait is twice as long."""
TRY_AGAIN = (429, 502, 503, 504)
"""HTTP statuses of a server that may answer in a moment."""


class UnreachableError(EngineError):
    """The server could not be talked to, in several attempts.

    Attributes:
        reason: what the last attempt met.
    """

    def __init__(self, url: str, attempts: int, reason: str):
        super().__init__(
            f"engine: expected a server at {url}; got no connection in {attempts} attempts ({reason}); start it again, "
            "then resume with --ckpt_path last"
        )
        self.reason = reason


class RefusedError(EngineError):
    """The server answered with an error.

    Attributes:
        status: HTTP status.
        reason: what the server said.
    """

    def __init__(self, url: str, status: int, reason: str):
        super().__init__(f"engine: {url} answered {status}: {reason}")
        self.status, self.reason = status, reason


class Client:
    """Asks one server, directly (no proxy); several threads may use it.

    A key in the environment variable ``VLLM_API_KEY``, where vLLM reads its own from, is sent along.

    Args:
        base_url: ``http://host:port``, with or without ``/v1``.
        timeout_s: longest wait for one answer (seconds).
        retries: attempts after the first where the connection fails or the server is busy.
    """

    def __init__(self, base_url: str, timeout_s: float, retries: int):
        self.url = base_url.rstrip("/").removesuffix("/v1")
        self.timeout_s, self.retries = timeout_s, retries
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str) -> Any:
        """What the server answers to GET ``/v1/<path>``; see :meth:`post`."""
        return self._ask(path, None, threading.Event())

    def post(self, path: str, body: Mapping[str, Any], given_up: threading.Event | None = None) -> Any:
        """What the server answers to ``body`` at ``/v1/<path>``: JSON, or text where it is none.

        Args:
            path: below ``/v1/``.
            body: sent as JSON.
            given_up: once set, nothing is tried again.

        Raises:
            UnreachableError: no connection in all attempts.
            RefusedError: the server answered with an error.
            EngineError: no answer in time.
        """
        return self._ask(path, json.dumps(body).encode(), given_up or threading.Event())

    def _ask(self, path: str, data: bytes | None, given_up: threading.Event) -> Any:
        url = f"{self.url}/v1/{path}"
        headers = {"Content-Type": "application/json"}
        if os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['VLLM_API_KEY']}"
        request = urllib.request.Request(url, data, headers)
        wait = FIRST_WAIT_S
        for attempt in range(self.retries + 1):
            try:
                with self._opener.open(request, timeout=self.timeout_s) as answer:
                    return _decoded(answer.read())
            except urllib.error.HTTPError as error:
                refused = RefusedError(url, error.code, _reason(error))
                if error.code not in TRY_AGAIN or attempt == self.retries or given_up.is_set():
                    raise refused from None
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, TimeoutError):
                    raise EngineError(
                        f"engine: expected an answer of {url} within {self.timeout_s:g} s; got none; raise "
                        "model.engine.init_args.timeout_s, or send less at once with concurrency"
                    ) from None
                if attempt == self.retries or given_up.is_set():
                    raise UnreachableError(self.url, attempt + 1, _told(reason)) from None
            given_up.wait(wait)
            wait *= 2
        raise AssertionError("the last attempt returns or raises")


def _told(reason: object) -> str:
    text = getattr(reason, "strerror", None) or str(reason)
    return " ".join(str(text).split()) or type(reason).__name__


def _decoded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")


def _reason(error: urllib.error.HTTPError) -> str:
    """The message of an error answer, in one line."""
    try:
        answer = _decoded(error.read())
    except (OSError, http.client.HTTPException):
        return str(error.reason)
    if isinstance(answer, Mapping):
        inner = answer.get("error", answer)
        answer = (inner.get("message") or inner.get("detail") or inner) if isinstance(inner, Mapping) else inner
    return " ".join(str(answer).split())[:300] or str(error.reason)
