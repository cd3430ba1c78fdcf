"""What a routing decision rests on."""

from __future__ import annotations

from enum import StrEnum


class LabelsUsed(StrEnum):
    """What a router, or the direction that it follows, knows beyond the rollouts themselves."""

    NONE = "none"
    AUTHORED_PAIRS = "authored pairs"
    SELF_GENERATED_PAIRS = "self-generated pairs"
    NOISY = "noisy labels"
    ORACLE = "oracle labels"
