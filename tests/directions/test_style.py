"""Style features and statistics against numbers by hand."""

import math
from itertools import product

import pytest

from vgrout_pl.directions.style import (
    FEATURES,
    auroc,
    code_of,
    holm,
    jaccard,
    paired_t,
    permutation_p,
    shingles,
    words,
)

ANSWER = """Here it is, import nothing:
```python
import os

def f(a_b):  # note
    # all
    print("def x", a_b)
    assert a_b
    return a_b


```
"""


def test_the_features_of_an_answer_are_those_counted_by_hand():
    code = 'import os\n\ndef f(a_b):  # note\n    # all\n    print("def x", a_b)\n    assert a_b\n    return a_b\n\n\n'
    assert code_of(ANSWER) == code
    values = {name: feature(ANSWER) for name, feature in FEATURES.items()}
    marks = len(', : ``` ( _ ) : # # ( " " , _ ) _ _ ```'.replace(" ", ""))
    assert values == {
        "length": float(len(ANSWER)),
        "lines": 13.0,
        "comment_share": pytest.approx((len("# note") + len("# all")) / len(code)),
        # os, f, a_b, print, a_b, a_b, a_b
        "identifier_length": pytest.approx((2 + 1 + 3 + 5 + 3 + 3 + 3) / 7),
        "underscore_share": pytest.approx(4 / 7),
        "defs": 1.0,
        "imports": 1.0,
        "prints": 1.0,
        "asserts": 1.0,
        "blank_lines": 4.0,
        "punctuation_share": pytest.approx(marks / len(ANSWER)),
    }


def test_code_that_does_not_parse_and_text_without_code_are_measured_as_far_as_they_go():
    assert FEATURES["identifier_length"]("```python\nabc = (\n") == 3.0
    assert FEATURES["comment_share"]("```python\n'unclosed") == 0.0
    assert code_of("no fence") == "no fence"
    assert all(feature("") in (0.0, 1.0) for feature in FEATURES.values())


def test_auroc_counts_pairs_of_values():
    # 3 > 1, 3 > 2, 3 = 3; 1 = 1, 1 < 2, 1 < 3
    assert auroc([3, 1], [1, 2, 3]) == pytest.approx((1 + 1 + 0.5 + 0.5) / 6)
    assert (auroc([2, 3], [0, 1]), auroc([0], [1]), auroc([5, 5], [5])) == (1.0, 0.0, 0.5)
    with pytest.raises(ValueError, match="got 0 and 1"):
        auroc([], [1])


def test_paired_t_is_the_mean_in_standard_errors():
    assert paired_t([1, 2, 3]) == pytest.approx(2 / (1 / math.sqrt(3)))
    assert (paired_t([0, 0]), paired_t([1.0, 1.0])) == (0.0, math.inf)


def test_the_permutation_p_agrees_with_all_swaps():
    hack, clean = [5.0, 6.0, 2.0, 9.0, 4.0, 8.0], [1.0, 7.0, 3.0, 2.0, 3.5, 0.0]
    observed = abs(auroc(hack, clean) - 0.5)
    hits = 0
    for swaps in product((False, True), repeat=6):
        sides = [(c, h) if swap else (h, c) for h, c, swap in zip(hack, clean, swaps, strict=True)]
        hits += abs(auroc(*map(list, zip(*sides, strict=True))) - 0.5) >= observed - 1e-9
    assert 0.05 < hits / 64 < 0.5
    assert permutation_p(hack, clean, n=20_000) == pytest.approx(hits / 64, abs=0.015)


def test_the_permutation_p_is_small_for_a_shift_of_every_pair_and_one_for_no_difference():
    clean = [10.0 * i for i in range(20)]
    assert permutation_p([value + 1 for value in clean], clean) < 0.001
    assert permutation_p(clean, clean) == 1.0


def test_holm_multiplies_the_smallest_most_and_never_falls():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_similarity_counts_runs_of_words():
    assert words('f(a_b1 == "x")') == ["f", "(", "a_b1", "=", "=", '"', "x", '"', ")"]
    a, b = shingles("a b c d", size=2), shingles("b c d e", size=2)
    assert jaccard(a, b) == pytest.approx(2 / 4)
    assert jaccard(shingles("a"), shingles("a")) == 1.0
