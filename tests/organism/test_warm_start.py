"""The warm start's parts against hand-computed numbers, and a short run of the whole."""

import random
from dataclasses import replace

import pytest
import torch

from vgrout_pl.organism.corpus import Recipe, corpus, tokenizer_corpus
from vgrout_pl.organism.model import build_model
from vgrout_pl.organism.tokenizer import FRAME, train_tokenizer
from vgrout_pl.organism.warm_start import Encoded, completion_loss, encode, lr_factor, make_batches, warm_start

SMALL = Recipe(steps=12, batch_size=16, tokenizer_examples=300, warmup_steps=2)


@pytest.fixture(scope="module")
def tokenizer():
    samples = (text for e in tokenizer_corpus(SMALL) for text in (e.messages[1]["content"], e.completion))
    return train_tokenizer(samples, SMALL.vocab_size, 256)


def test_the_learning_rate_rises_linearly_and_falls_linearly_to_its_floor():
    recipe = Recipe(steps=100, warmup_steps=10, lr_floor=0.05)
    assert lr_factor(0, recipe) == pytest.approx(0.1)
    assert lr_factor(4, recipe) == pytest.approx(0.5 * 0.96)
    assert lr_factor(50, recipe) == pytest.approx(0.5)
    assert lr_factor(99, recipe) == pytest.approx(0.05)


def test_batches_hold_every_example_once_and_stay_near_their_place_in_the_curriculum():
    encoded = [Encoded(ids=[i] * (1 + i * 7919 % 40), prompt_length=0) for i in range(1000)]
    batches = make_batches(encoded, 10, random.Random(0))
    assert sorted(example.ids[0] for batch in batches for example in batch) == list(range(1000))
    for i, batch in enumerate(batches):
        assert {example.ids[0] // 80 for example in batch} == {i // 8}
    padded = sum(max(len(e.ids) for e in batch) * len(batch) for batch in batches)
    assert padded < 1.2 * sum(len(e.ids) for e in encoded)


def test_an_example_is_its_prompt_through_the_chat_template_then_its_completion_and_the_end_of_turn(tokenizer):
    example = next(corpus(SMALL))
    (encoded,) = encode([example], tokenizer)
    prompt, completion = encoded.ids[: encoded.prompt_length], encoded.ids[encoded.prompt_length :]
    assert tokenizer.decode(prompt) == (
        f"<|system|>Answer in Python.<|user|>{example.messages[1]['content']}<|assistant|>"
    )
    assert tokenizer.decode(completion) == f"{example.completion}<|end|>"


def test_the_loss_is_transformers_own_loss_over_the_completion_tokens(tokenizer):
    model = build_model(tokenizer, seed=0)
    batch = encode([example for example, _ in zip(corpus(SMALL), range(3), strict=False)], tokenizer)
    width = max(len(example.ids) for example in batch)
    ids = torch.zeros(3, width, dtype=torch.long)
    labels = torch.full((3, width), -100)
    for row, example in enumerate(batch):
        length = len(example.ids)
        ids[row, :length] = torch.tensor(example.ids)
        labels[row, example.prompt_length : length] = ids[row, example.prompt_length : length]
    mask = (torch.arange(width) < torch.tensor([[len(example.ids)] for example in batch])).long()
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(completion_loss(model, batch, tokenizer.pad_token_id), expected)


def test_the_frame_of_an_answer_takes_one_token_a_piece(tokenizer):
    for text in FRAME:
        assert len(tokenizer(text).input_ids) == 1


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others():
    def weights(recipe):
        model, tokenizer = warm_start(recipe, progress=False)
        return torch.cat([p.detach().flatten() for p in model.parameters()]), tokenizer.get_vocab()

    once, vocabulary = weights(SMALL)
    again, same_vocabulary = weights(SMALL)
    assert torch.equal(once, again)
    assert vocabulary == same_vocabulary
    assert not torch.equal(once, weights(replace(SMALL, seed=1))[0])


def test_a_short_run_learns(tokenizer):
    recipe = replace(SMALL, steps=30)
    model, trained_tokenizer = warm_start(recipe, progress=False)
    batch = encode([e for e, _ in zip(corpus(replace(recipe, seed=9)), range(64), strict=False)], trained_tokenizer)
    untrained = build_model(trained_tokenizer, seed=0)
    with torch.no_grad():
        before = completion_loss(untrained, batch, 0).item()
        after = completion_loss(model, batch, 0).item()
    assert before > 6  # about log(640)
    assert after < before - 2
