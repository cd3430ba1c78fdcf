"""Rows of a window with planted log-probabilities."""

import torch

from vgrout_pl.adapters import Route
from vgrout_pl.types import Rollouts


def window(ratios, *, advantages, mask=None, sampled=None, start=None, reference=None, logprob=-1.0, **streams):
    """Rows whose log-probability is ``logprob`` everywhere and whose ratio to the start of the window is ``ratios``.

    ``sampled``: log-probabilities in the sampling state, which makes every row one that was sampled elsewhere.

    Returns:
        the rows and their log-probabilities, a leaf that takes gradients.
    """
    ratios = torch.tensor(ratios)
    n, width = ratios.shape
    mask = torch.ones(n, width, dtype=torch.bool) if mask is None else torch.tensor(mask).bool()
    logprobs = torch.full((n, width), logprob)
    rows = Rollouts(
        step=streams.pop("step", 0),
        group_size=streams.pop("group_size", n),
        problem_ids=[str(i) for i in range(n)],
        modes=["run_tests"] * n,
        markers=[None] * n,
        prompts=[""] * n,
        completions=[""] * n,
        prompt_ids=torch.zeros(n, 1, dtype=torch.long),
        prompt_mask=torch.ones(n, 1, dtype=torch.bool),
        prompt_of=torch.zeros(n, dtype=torch.long),
        completion_ids=torch.zeros(n, width, dtype=torch.long),
        completion_mask=mask,
        ablated=streams.pop("ablated", torch.full((n,), sampled is not None)),
        advantages=torch.tensor(advantages),
        routes=streams.pop("routes", torch.full((n,), int(Route.ABSORB))),
        old_logprobs=None if sampled is None else torch.as_tensor(sampled),
        start_logprobs=logprobs - ratios.log() if start is None else start,
        reference_logprobs=None if reference is None else torch.as_tensor(reference),
        **streams,
    )
    return rows, logprobs.requires_grad_()
