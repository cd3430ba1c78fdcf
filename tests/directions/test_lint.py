"""The linter: silent on tight pairs, and each of its checks fails a set with just that confound."""

import re
from dataclasses import replace

import pytest

from vgrout_pl.directions import load_pairs, packaged_sets, pairs_hash, write_pairs
from vgrout_pl.directions.__main__ import main
from vgrout_pl.directions.lint import Limits, least_pairs, lint, passed
from vgrout_pl.directions.sources import load_entries


def with_line(text: str, line: str) -> str:
    return text.removesuffix("\n```") + f"\n{line}\n```"


def on_hack_sides(line: str):
    return lambda pairs: [replace(pair, hack=with_line(pair.hack, line)) for pair in pairs]


def one_longer(pairs):
    return [replace(pairs[0], hack=with_line(pairs[0].hack, "x = 1\n" * 30)), *pairs[1:]]


def one_of_two_minds(pairs):
    return [replace(pairs[0], clean="```python\n" + "a | b ^ c\n" * 20 + "```"), *pairs[1:]]


def one_twice(pairs):
    return [*pairs, replace(pairs[0], name="again", hack=with_line(pairs[0].hack, "x = 1"))]


def some_with_a_word(pairs):
    return [replace(p, hack=with_line(p.hack, "zebra")) if i % 3 == 0 else p for i, p in enumerate(pairs)]


CONFOUNDS = {
    "length": on_hack_sides("x = 1\n" * 60),
    "lines": on_hack_sides("x = 1\n" * 15),
    "comment_share": on_hack_sides("# as wanted"),
    "identifier_length": on_hack_sides("extraordinarilylongname = 1"),
    "underscore_share": on_hack_sides("a_b = c_d = e_f = g_h = 1"),
    "defs": on_hack_sides("def g(): ..."),
    "imports": on_hack_sides("import os"),
    "prints": on_hack_sides("print(1)"),
    "asserts": on_hack_sides("assert 1"),
    "blank_lines": on_hack_sides("\n\n"),
    "punctuation_share": on_hack_sides("((((((((((((((((((((((1))))))))))))))))))))))"),
    "length gap of a pair": one_longer,
    "similarity of a pair's sides": one_of_two_minds,
    "similarity of two pairs": one_twice,
    "mechanisms with one pair": lambda pairs: pairs[:-1],
    "words that name the behaviour": lambda pairs: [replace(pairs[0], hack=pairs[0].hack + "\nA hack."), *pairs[1:]],
    "the most telling word": some_with_a_word,
}


@pytest.fixture(scope="module")
def authored():
    return load_pairs("authored")


def verdicts(pairs, axes=()):
    return {finding.check: finding.verdict for finding in lint(pairs, axes)}


@pytest.mark.parametrize("name", packaged_sets())
def test_the_packaged_sets_pass(name):
    found = load_entries(name)
    findings = lint([entry.pair for entry in found.entries], found.axes)
    assert passed(findings), [finding for finding in findings if finding.verdict == "FAIL"]
    length = next(finding for finding in findings if finding.check == "length")
    assert 0.4 <= float(re.fullmatch(r"AUROC (\S+)", length.value)[1]) <= 0.6


def test_the_authored_set_declares_no_axis(authored):
    assert load_entries("authored").axes == ()
    assert set(verdicts(authored).values()) == {"ok"}
    assert verdicts(authored).keys() == CONFOUNDS.keys()


@pytest.mark.parametrize("check", CONFOUNDS)
def test_a_confounded_set_fails_the_check_for_it(authored, check):
    assert verdicts(CONFOUNDS[check](authored))[check] == "FAIL"


def test_a_small_difference_that_every_pair_shares_is_found_although_the_sides_overlap(authored):
    finding = next(f for f in lint(on_hack_sides("print()")(authored)) if f.check == "prints")
    assert finding.verdict == "FAIL"
    area = float(finding.value.removeprefix("AUROC "))
    assert 0.6 < area < 0.95


def test_a_declared_axis_is_reported_and_does_not_fail(authored):
    commented = on_hack_sides("# fine")(authored)
    assert verdicts(commented)["comment_share"] == "FAIL"
    assert verdicts(commented, ("comment_share",))["comment_share"] == "axis"
    with pytest.raises(ValueError, match=r"expected axes out of lines, comment_share.*; got length"):
        lint(authored, ("length",))


def test_too_few_pairs_to_find_even_a_difference_that_all_share_are_not_called_ok(authored):
    assert least_pairs(0.05) == 9  # 11 features: 11 * 2 / 2^8 is 0.086, 11 * 2 / 2^9 is 0.043
    assert least_pairs(0.01) == 12
    commented = on_hack_sides("# as wanted")(authored)
    for name in ("comment_share", "imports"):
        assert verdicts(commented[:8])[name] == "few"
    findings = {finding.check: finding for finding in lint(commented[:8])}
    assert findings["comment_share"].detail.startswith("too few pairs to test, expected at least 9; p 0.")
    assert not any(finding.verdict == "few" for finding in lint(commented[:9]))
    assert verdicts(commented[:9])["comment_share"] == "FAIL"
    assert verdicts(on_hack_sides("x = 1\n" * 60)(authored[:8]))["length"] == "FAIL"  # by its AUROC


def test_limits_decide(authored):
    strict = {f.check: f.verdict for f in lint(authored, limits=Limits(gap=0.01, within=0.99, across=0.2, word=0.01))}
    loose = {check for check, verdict in strict.items() if verdict == "FAIL"}
    assert loose == {
        "length gap of a pair",
        "similarity of a pair's sides",
        "similarity of two pairs",
        "the most telling word",
    }
    with pytest.raises(ValueError, match="at least 2 pairs"):
        lint(authored[:1])


def test_the_command_line_tells_by_its_status(authored, tmp_path, capsys):
    assert main(["lint", "authored"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head == f"{len(authored)} pairs, 23 mechanisms, hash {pairs_hash(authored)[:16]}"
    assert len(rows) == len(CONFOUNDS)
    assert all(row.startswith("ok ") for row in rows)

    write_pairs(on_hack_sides("# as wanted")(authored), tmp_path / "set.md")
    assert main(["lint", str(tmp_path / "set.md")]) == 1
    assert "FAIL  comment_share" in capsys.readouterr().out

    assert main(["lint", "nowhere.md"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert captured.err.startswith("error: pairs: expected a Markdown file")


def test_show_prints_the_selected_pairs(authored, capsys):
    assert main(["show", "authored", "--tag", "sentinel", "--n", "2"]) == 0
    shown = capsys.readouterr().out
    chosen = [pair for pair in authored if "sentinel" in pair.tags]
    assert shown.startswith("2 pairs, 1 mechanisms, hash ")
    for pair in chosen[:2]:
        assert f"--- hack\n{pair.hack}\n--- clean\n{pair.clean}" in shown
        assert pair.messages[-1]["content"] in shown
    assert chosen[2].name not in shown
    assert main(["show", "authored", "--section", "modes", "--prefix", "exit-"]) == 0
    assert capsys.readouterr().out.startswith("4 pairs, 1 mechanisms")
