"""Advantages, importance weights, losses and gradients equal those of TRL's trainer on the same tensors.

Needs the optional ``trl`` (1.16). Its ``GRPOTrainer`` is the real one, with planted completions, rewards and
log-probabilities in the places of the model's.
"""

import pytest
import torch
from objective_support import window

from vgrout_pl.adapters import Route
from vgrout_pl.objective import (
    Objective,
    grpo_loss,
    loss_mask,
    loss_statistics,
    trained_rows,
    window_advantages,
    window_normalizer,
)

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'vgrout_pl[peers]'")

GROUP, LONGEST, END = 4, 6, 2
LENGTHS = [6, 6, 3, 1, 2, 6, 4, 5]
ENDED = [True, False, True, True, True, False, True, True]
REWARDS = [3.5, 0.5, 0.0, 0.5, 0.0, 3.5, 3.0, 0.5]
MASK = torch.arange(LONGEST) < torch.tensor(LENGTHS).unsqueeze(1)


class Planted:
    """Log-probabilities of one window in every state (float32 [8, 6], 0 outside the mask), and its entropies."""

    def __init__(self, seed):
        generator = torch.Generator().manual_seed(seed)

        def near(values, spread):
            return torch.where(MASK, values + spread * torch.randn(values.shape, generator=generator), 0.0)

        self.now = near(torch.full(MASK.shape, -1.0), 0.3).requires_grad_()
        self.start = near(self.now.detach(), 0.2)
        self.sampled = near(self.start, 0.4)
        self.reference = near(self.start, 0.3)
        self.entropy = near(torch.full(MASK.shape, 1.0), 0.2).requires_grad_()
        self.rewards = torch.tensor(REWARDS)
        self.completion_ids = [[5] * (n - ended) + [END] * ended for n, ended in zip(LENGTHS, ENDED, strict=True)]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = {"<pad>": 0, "<unk>": 1, "<end>": 2, **{f"w{i}": i for i in range(3, 16)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), pad_token="<pad>", eos_token="<end>"
    )
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 8}
    model = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=16, num_key_value_heads=1, eos_token_id=END, pad_token_id=0, **sizes)
    )
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=len(LENGTHS),
        num_generations=GROUP,
        max_completion_length=LONGEST,
        gradient_accumulation_steps=1,
    )
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, planted, **_: planted,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w3"] * len(LENGTHS), "planted": REWARDS}),
        processing_class=tokenizer,
    )


def theirs(trainer, monkeypatch, planted, o, first_update=False):
    """Loss, gradients, advantages and metrics of TRL under the options that correspond to ``o``."""
    reference = object()

    def logprobs(model, *_, **__):
        if model is reference:
            return planted.reference, None, None
        return (planted.now, planted.entropy, None) if torch.is_grad_enabled() else (planted.start, None, None)

    def generated(prompts):
        sampled = [row[:n].tolist() for row, n in zip(planted.sampled, LENGTHS, strict=True)]
        ids = planted.completion_ids
        return [[3]] * len(ids), ids, None, ["w5"] * len(ids), sampled, {}, None, None

    options = {
        "loss_type": "grpo" if o.loss_type == "gspo" else o.loss_type,
        "importance_sampling_level": "sequence" if o.loss_type == "gspo" else "token",
        "scale_rewards": o.reward_scale,
        "epsilon_low": o.clip_low,
        "epsilon_high": 1 + o.clip_high if o.loss_type == "cispo" else o.clip_high,
        "beta": o.beta,
        "ref_model": reference,
        "entropy_coef": o.entropy_bonus,
        "_entropy_bonus_enabled": o.entropy_bonus > 0,
        "mask_truncated_completions": o.mask_truncated,
        "use_vllm": o.importance != "none",
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": f"{o.importance_level}_{o.importance}",
        "vllm_importance_sampling_clip_min": None,
        "vllm_importance_sampling_clip_max": o.importance_cap,
        "current_gradient_accumulation_steps": 1,
        "_generate": generated,
        "_get_per_token_logps_and_entropies": logprobs,
    }
    for name, value in options.items():
        monkeypatch.setattr(trainer, name, value, raising=False)
    monkeypatch.setattr(trainer.args, "delta", o.delta)
    monkeypatch.setattr(trainer.args, "use_bias_correction_kl", o.unbiased_kl)
    trainer.model.train()
    trainer._metrics["train"].clear()
    rows = [{"prompt": "w3", "planted": reward} for reward in REWARDS]
    inputs = trainer._generate_and_score_completions(rows)
    assert "old_per_token_logps" not in inputs or o.importance != "none"
    if not first_update:
        inputs["old_per_token_logps"] = planted.start
    loss = trainer._compute_loss(trainer.model, inputs)
    gradients = torch.autograd.grad(loss, (planted.now, planted.entropy), allow_unused=True, materialize_grads=True)
    return loss.detach(), *gradients, inputs["advantages"], {k: v[-1] for k, v in trainer._metrics["train"].items()}


def ours(planted, o, first_update=False, parts=3):
    """The same of this package, rows without a gradient left out, in several micro-batches."""
    elsewhere = o.importance != "none"
    rows, _ = window(
        torch.ones(MASK.shape).tolist(),
        advantages=[0.0] * len(LENGTHS),
        mask=MASK.tolist(),
        group_size=GROUP,
        rewards=planted.rewards,
        routes=torch.full((len(LENGTHS),), int(Route.ABSORB)),
        ablated=torch.full((len(LENGTHS),), elsewhere),
        truncated=~torch.tensor(ENDED),
    )
    rows.start_logprobs = None if first_update else planted.start
    rows.old_logprobs = planted.sampled if elsewhere else None
    rows.reference_logprobs = planted.reference if o.beta else None
    rows.advantages = window_advantages(o, rows)
    normalizer = window_normalizer(o, loss_mask(o, rows), LONGEST)
    live = trained_rows(o, rows).nonzero().flatten()
    total, statistics = torch.zeros(()), []
    for index in live.flip(0).tensor_split(parts):
        part = rows.rows(index)
        result = grpo_loss(o, part, planted.now[index], normalizer, planted.entropy[index])
        statistics.append(loss_statistics(o, part, planted.now[index].detach(), planted.entropy[index], result))
        total = total + result.loss
    gradients = torch.autograd.grad(total, (planted.now, planted.entropy), allow_unused=True, materialize_grads=True)
    means = {
        name: sum(float(s[name][0] * s[name][1]) for s in statistics) / sum(float(s[name][1]) for s in statistics)
        for name in statistics[0]
        if sum(float(s[name][1]) for s in statistics)
    }
    return total.detach(), *gradients, rows.advantages, means


def compare(trainer, monkeypatch, seed, objective, first_update=False):
    planted = Planted(seed)
    one = theirs(trainer, monkeypatch, planted, objective, first_update)
    other = ours(planted, objective, first_update)
    assert one[0].abs() > 1e-3
    for name, a, b in zip(("loss", "gradient", "entropy gradient", "advantages"), other[:4], one[:4], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    for name in ("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"):
        per_row = name.startswith("clip") and objective.loss_type == "gspo"  # TRL's gspo counts rows, this one tokens
        if name in one[4] and not per_row:
            assert other[4][name] == pytest.approx(one[4][name], abs=1e-5), name


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"])
def test_loss_types_and_scales_equal_trl(trainer, monkeypatch, loss_type, scale):
    for seed, options in enumerate(
        ({}, {"delta": 1.25}, {"mask_truncated": True}, {"unbiased_kl": True}, {"entropy_bonus": 0.1})
    ):
        objective = Objective(
            loss_type=loss_type, reward_scale=scale, clip_low=0.1, clip_high=0.15, beta=0.3, **options
        )
        compare(trainer, monkeypatch, seed, objective)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_the_first_update_equals_trl_without_old_log_probabilities(trainer, monkeypatch, loss_type):
    compare(trainer, monkeypatch, 7, Objective(loss_type=loss_type, beta=0.3, reward_scale="group"), first_update=True)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("importance", ["truncate", "mask"])
def test_importance_weights_equal_trls_of_another_sampler(trainer, monkeypatch, importance, level):
    for seed, loss_type in enumerate(("grpo", "dr_grpo", "gspo", "cispo")):
        options = {"importance": importance, "importance_level": level, "importance_cap": 1.3}
        compare(trainer, monkeypatch, seed, Objective(loss_type=loss_type, beta=0.2, **options))
