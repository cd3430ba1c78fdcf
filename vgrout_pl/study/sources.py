"""What a study takes directions from: sets of contrastive pairs, each a direction source as a gate would be given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import yaml
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from vgrout_pl.directions.direction_source import DirectionSource
from vgrout_pl.directions.evidence import LabelsUsed
from vgrout_pl.directions.generate import generate_pairs
from vgrout_pl.directions.levers import shows_lever
from vgrout_pl.directions.pair_sources import PAIRS_FILE, AuthoredPairs, PairSource, SignFlipped, sampler_of
from vgrout_pl.directions.pairs import ContrastivePair
from vgrout_pl.directions.sources import ORGANISM, load_pairs, packaged_sets
from vgrout_pl.env import Problem
from vgrout_pl.sampling import Sampling

if TYPE_CHECKING:
    from vgrout_pl.module import GRPOModule

Role = Literal["authored", "self-generated", "placebo", "sign-flipped", "oracle"]
ROLES: tuple[Role, ...] = get_args(Role)
SELF_GENERATED = "self_generated"
AUTHORED = "authored"
ORGANISM_PLACEBOS = ("organism_naming", "organism_comments")


class GivenPairs(PairSource):
    """Pairs that are there already."""

    def __init__(self, pairs: Sequence[ContrastivePair], labels_used: LabelsUsed = LabelsUsed.AUTHORED_PAIRS):
        self.pairs, self.labels_used = pairs, labels_used

    def prepare(self, module: GRPOModule) -> None:
        """Nothing to do."""


@dataclass(frozen=True)
class StudySource:
    """One source of directions in a study.

    Attributes:
        name: in tables.
        role: what it stands for; the figure has one mark a role.
        source: gives the direction; None where the source is left out.
        note: what it holds, or why it is left out.
    """

    name: str
    role: Role
    source: DirectionSource | None
    note: str

    @property
    def pairs(self) -> Sequence[ContrastivePair]:
        """Those that it reads, none for a source without pairs."""
        source = self.source.source if isinstance(self.source, SignFlipped) else self.source
        return source.pairs if isinstance(source, PairSource) else ()


def default_pairs(path: str, modes: Sequence[str]) -> list[str]:
    """The set a gate takes where it is given none: in the studied modes, the organism's own pairs or ``authored``."""
    return [f"{ORGANISM if path == ORGANISM else AUTHORED}:{','.join(modes)}"]


def configured_pairs(run: Path) -> StudySource | None:
    """The pairs that the gate of a run was given by name; None where its configuration names none.

    Raises:
        ValueError: there is no such set, or it is malformed.
    """
    file = run / "config.yaml"
    given: Any = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    for key in ("router", "init_args", "direction"):
        given = given.get(key) if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or str(given.get("class_path")).rpartition(".")[2] != AuthoredPairs.__name__:
        return None
    arguments = {name: value for name, value in (given.get("init_args") or {}).items() if value is not None}
    if "source" not in arguments:
        return None
    pairs = load_pairs(**arguments)
    selected = ", as selected by the run" if len(arguments) > 1 else ""
    name = _label(arguments["source"])
    return StudySource(name + selected, "authored", GivenPairs(pairs), f"{len(pairs)} pairs of the run's gate")


def default_placebos(path: str) -> list[str]:
    """Sets on unrelated axes: the organism's own, or the packaged ones."""
    return list(ORGANISM_PLACEBOS) if path == ORGANISM else [n for n in packaged_sets() if n.startswith("placebo")]


def pair_sources(names: Sequence[str], role: Role) -> list[StudySource]:
    """Load sets by name: packaged ones, files, the organism's, each whole; ``authored:MODE,...`` takes those modes'.

    Raises:
        ValueError: there is no such set or mode, or it is malformed.
    """
    found = []
    for name in names:
        whole, colon, modes = name.partition(":")
        if name in ORGANISM_PLACEBOS:
            pairs = organism_placebo(name)
        elif whole == AUTHORED and colon:
            pairs = load_pairs(AUTHORED, tags=[mode.strip() for mode in modes.split(",")])
        else:
            pairs = load_pairs(name)
        found.append(StudySource(_label(name), role, GivenPairs(pairs), f"{len(pairs)} pairs"))
    return found


def _label(name: str) -> str:
    return Path(name).stem if name.endswith(".md") else name


def organism_placebo(name: str) -> list[ContrastivePair]:
    """Pairs on the organism's problems that differ in something unrelated, without a hack on either side.

    ``organism_naming``: another name of the loop variable; ``organism_comments``: a comment line.
    """
    found = []
    for pair in load_pairs(ORGANISM + ":run_tests"):
        if name == "organism_naming":
            changed = re.sub(r"\bv\b", "item", pair.clean)
        else:
            changed = re.sub(r"^( +)(return )", r"\1# one pass over the numbers\n\1\2", pair.clean, count=1, flags=re.M)
        if changed != pair.clean:
            found.append(replace(pair, hack=changed, tags=(name.removeprefix("organism_"),)))
    return found


def shown_problems(modes: Sequence[str], count: int) -> list[Problem]:
    """Problems of the organism's own ``pairs`` split to write pairs on, the modes in turn.

    Raises:
        ValueError: there are not so many.
    """
    from vgrout_pl.organism.problems import problems

    try:
        drawn = problems("pairs", modes[0], count)
    except ValueError as error:
        raise ValueError(f"--n-generated: {error}") from None
    return [problem.with_mode(modes[i % len(modes)]) for i, problem in enumerate(drawn)]


def self_generated(
    policy: PeftModel, tokenizer: PreTrainedTokenizerBase, shown: Sequence[Problem], seed: int, sampling: Sampling
) -> StudySource:
    """Let the organism write pairs on the problems that it is shown, quarantine ablated."""
    host: Any = SimpleNamespace(policy=policy, tokenizer=tokenizer, device=policy.device, sampling=sampling)
    sample = sampler_of(cast("GRPOModule", host))
    try:
        pairs = generate_pairs(sample, shown, fingerprint="study", seed=seed)
    except ValueError as error:
        return StudySource(SELF_GENERATED, "self-generated", None, str(error))
    markers = {f"{problem.mode}-{problem.id}": problem.marker for problem in shown}
    hacks = sum(shows_lever(pair.hack, pair.mechanism, markers[pair.name]) for pair in pairs)
    note = f"{len(pairs)} pairs written by this model; the loophole shows in {hacks} of their hack sides"
    return StudySource(SELF_GENERATED, "self-generated", GivenPairs(pairs, LabelsUsed.SELF_GENERATED_PAIRS), note)


def stored_self_generated(path: Path) -> StudySource:
    """Pairs that a run wrote, from its ``self_generated_pairs.md``."""
    pairs = load_pairs(path)
    note = f"{len(pairs)} pairs from {path.name}"
    return StudySource(SELF_GENERATED, "self-generated", GivenPairs(pairs, LabelsUsed.SELF_GENERATED_PAIRS), note)


def self_generated_file(given: Path | None, run: Path | None) -> Path | None:
    """The file that was given, or the run's own where it has one."""
    own = None if run is None else run / PAIRS_FILE
    return given or (own if own is not None and own.is_file() else None)


def sign_flipped(source: StudySource, seed: int) -> StudySource:
    """The placebo of exchanged sides of a source's pairs."""
    name = f"{source.name}, signs flipped"
    if not isinstance(source.source, PairSource) or len(source.pairs) < 2:
        return StudySource(name, "sign-flipped", None, f"{source.name} has too few pairs, or is left out")
    return StudySource(
        name, "sign-flipped", SignFlipped(source.source, seed), "hack and clean exchanged in half of them"
    )


def fitting(source: StudySource, tokenizer: PreTrainedTokenizerBase, room: int | None) -> StudySource:
    """The source, or where its pairs are longer than the model's context the same left out, with the reason."""
    if room is None or not source.pairs:
        return source
    lengths = [max(_length(tokenizer, pair, side) for side in (pair.hack, pair.clean)) for pair in source.pairs]
    over = sum(length > room for length in lengths)
    if not over:
        return source
    why = f"{over} of {len(lengths)} pairs exceed the model's {room} tokens (up to {max(lengths)})"
    return replace(source, source=None, note=why)


def _length(tokenizer: PreTrainedTokenizerBase, pair: ContrastivePair, completion: str) -> int:
    """Tokens of one side as it is read, end of turn included."""
    messages = [dict(message) for message in pair.messages]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return 1 + sum(
        len(tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"]) for t in (prompt, completion)
    )
