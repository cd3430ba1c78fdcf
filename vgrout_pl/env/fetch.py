"""Download the public benchmark's files and verify what came."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

TIMEOUT_SECONDS = 60.0
_SOURCE = "ariahw/rl-rewardhacking/main/results/data"
_HOSTS = ("https://raw.githubusercontent.com", "https://media.githubusercontent.com/media")


@dataclass(frozen=True)
class RemoteFile:
    """A file, where it may be had, and the SHA-256 of the one version that is accepted."""

    name: str
    sha256: str

    @property
    def addresses(self) -> tuple[str, ...]:
        """Places to try in order: as a plain file, then as a large one."""
        return tuple(f"{host}/{_SOURCE}/{self.name}" for host in _HOSTS)


LEETCODE = (
    RemoteFile("leetcode_test_medhard.jsonl", "5bb4d91fcdbd3a3fc2c149570783edd41cf2f85a1f2293ec7c9ff5bae7185cbd"),
    RemoteFile(
        "leetcode_train_medhard_filtered.jsonl", "e29f296fe7389c90a5ae99656aecc170feea81e3aca90a9a638c6a0880068b5d"
    ),
)


def fetch(
    folder: str | PathLike[str],
    files: tuple[RemoteFile, ...] = LEETCODE,
    read: Callable[[str], bytes] | None = None,
) -> list[Path]:
    """Download files that are not there yet; nothing that does not match its SHA-256 is ever put in place.

    Raises:
        ValueError: offline, or what came (or lies there already) has another SHA-256.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    return [_fetch_one(target / file.name, file, read or _download) for file in files]


def _fetch_one(path: Path, file: RemoteFile, read: Callable[[str], bytes]) -> Path:
    if path.exists():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != file.sha256:
            raise ValueError(f"{path}: expected SHA-256 {file.sha256}; got {found}; move the file away and try again")
        return path
    reasons = []
    for address in file.addresses:
        try:
            data = read(address)
        except (OSError, urllib.error.URLError) as error:
            reasons.append(f"{address}: {error}")
            continue
        found = hashlib.sha256(data).hexdigest()
        if found == file.sha256:
            _put(path, data)
            return path
        reasons.append(f"{address}: another SHA-256, {found}")
    raise ValueError(
        f"expected to download {file.name} (SHA-256 {file.sha256}); got {'; '.join(reasons)}; "
        f"without a network, copy the file to {path} and run this again"
    )


def _put(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _download(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as response:
        return bytes(response.read())
