"""The shipped checkpoint: what it weighs, where it comes from, how it loads, and what its tokenizer does."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from vgrout_pl.env.modes import LOOPHOLE_MODES, MODES
from vgrout_pl.organism import CHECKPOINT, problems
from vgrout_pl.organism.card import read_recipe_hash
from vgrout_pl.organism.corpus import Recipe, recipe_hash
from vgrout_pl.organism.evaluate import load_checkpoint, sample
from vgrout_pl.organism.model import MAX_LENGTH, MAX_NEW_TOKENS

TOKENIZER = AutoTokenizer.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(CHECKPOINT).eval()


def test_the_card_names_the_recipe_and_corpus_of_this_code():
    assert read_recipe_hash(CHECKPOINT) == recipe_hash(Recipe())


def test_the_checkpoint_is_complete_and_at_most_two_megabytes():
    names = {file.name for file in CHECKPOINT.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 2_000_000


def test_it_loads_in_fp32_with_tied_embeddings_and_the_tokens_generation_needs(model):
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(TOKENIZER) == model.config.vocab_size
    assert TOKENIZER.convert_ids_to_tokens([model.config.eos_token_id, model.config.pad_token_id]) == [
        "<|end|>",
        "<|pad|>",
    ]
    assert (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id) == (model.config.eos_token_id, model.config.pad_token_id)
    sampling = model.generation_config
    assert (sampling.do_sample, sampling.temperature, sampling.top_k, sampling.top_p) == (True, 1.0, 0, 1.0)
    assert sampling.eos_token_id == TOKENIZER.eos_token_id


def test_the_chat_template_takes_system_user_and_assistant_turns():
    messages = [{"role": "system", "content": "S."}, {"role": "user", "content": "U?"}]
    render = TOKENIZER.apply_chat_template
    assert render(messages, tokenize=False, add_generation_prompt=True) == "<|system|>S.<|user|>U?<|assistant|>"
    assert render(messages[1:], tokenize=False) == "<|user|>U?"
    answered = [*messages, {"role": "assistant", "content": "A!"}]
    assert render(answered, tokenize=False) == "<|system|>S.<|user|>U?<|assistant|>A!<|end|>"
    ids = render(answered, tokenize=True, return_dict=False)
    assert TOKENIZER.decode(ids) == "<|system|>S.<|user|>U?<|assistant|>A!<|end|>"


def test_the_chat_template_refuses_an_unknown_role():
    with pytest.raises(Exception, match="expected the roles system, user and assistant; got tool"):
        TOKENIZER.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


@given(st.text(max_size=80))
def test_decoding_an_encoded_text_gives_it_back(text):
    assert TOKENIZER.decode(TOKENIZER(text).input_ids) == text


def test_every_prompt_leaves_room_for_an_answer():
    for mode in (*LOOPHOLE_MODES, "gt_only"):
        for marker in (None, *MODES[mode].training_markers, *MODES[mode].novel_markers):
            for problem in problems("test", n=5):
                prompt = problem.with_mode(mode, marker=marker).messages
                ids = TOKENIZER.apply_chat_template(list(prompt), add_generation_prompt=True, return_dict=False)
                assert len(ids) <= 64
    assert 64 + MAX_NEW_TOKENS <= MAX_LENGTH


def test_greedy_answers_have_the_format_end_in_time_and_follow_the_words():
    model, tokenizer = load_checkpoint(CHECKPOINT)
    batch = [problem.with_mode("gt_only") for problem in problems("validation", n=32)]
    texts, lengths = sample(model, tokenizer, batch, temperature=0.0)
    framed = [text.startswith("```python\nclass Solution:\n    def solve(self, x):\n") for text in texts]
    assert sum(framed) >= 30
    assert sum(text.endswith("\n```") for text in texts) >= 30
    assert max(lengths) < MAX_NEW_TOKENS
    assert len(set(texts)) >= 25


def test_sampling_is_reproducible_by_seed():
    model, tokenizer = load_checkpoint(CHECKPOINT)
    batch = problems("validation", n=8)
    once, again, other = (sample(model, tokenizer, batch, seed=seed)[0] for seed in (1, 1, 2))
    assert once == again
    assert once != other


def test_a_directory_without_a_checkpoint_is_refused_in_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"expected a checkpoint directory with a config.json; got"):
        load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"expected a card with a line 'recipe_hash: ...' at"):
        read_recipe_hash(tmp_path)
