"""Sources of pairs: files, packaged sets, the organism; selection, and the hash of what was selected."""

import re

import pytest

from vgrout_pl import organism
from vgrout_pl.directions import ContrastivePair, load_pairs, packaged_sets, pairs_hash, write_pairs
from vgrout_pl.directions.markdown import PairEntry
from vgrout_pl.directions.sources import load_entries

MESSAGES = ({"role": "user", "content": "2 + 2?"},)


def pair(name: str, *tags: str) -> ContrastivePair:
    return ContrastivePair(name, MESSAGES, f"hack {name}", f"clean {name}", tags)


A1, A2, B1 = pair("a-1", "exit_code", "early"), pair("a-2", "sentinel"), pair("b-1", "sentinel", "early")


@pytest.fixture
def path(tmp_path):
    entries = [PairEntry(A1, "one"), PairEntry(A2, "one"), PairEntry(B1, "two")]
    write_pairs(entries, tmp_path / "new" / "set.md")
    return tmp_path / "new" / "set.md"


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, [A1, A2, B1]),
        ({"sections": ["two"]}, [B1]),
        ({"tags": ["early"]}, [A1, B1]),
        ({"tags": ["early", "sentinel"]}, [A1, A2, B1]),
        ({"prefix": "a-"}, [A1, A2]),
        ({"prefix": "a-", "tags": ["sentinel"]}, [A2]),
        ({"n": 2}, [A1, A2]),
        ({"tags": ["early"], "n": 1}, [A1]),
    ],
)
def test_pairs_are_selected_by_section_tag_and_prefix(path, selection, expected):
    assert load_pairs(path, **selection) == expected
    assert load_pairs(str(path), **selection) == expected
    assert pairs_hash(load_pairs(path, **selection)) == pairs_hash(expected)


def test_the_hash_is_of_the_selection_and_of_every_character(path):
    hashes = {pairs_hash(load_pairs(path, **s)) for s in ({}, {"n": 2}, {"prefix": "b"}, {"sections": ["one"]})}
    assert len(hashes) == 3
    before = pairs_hash(load_pairs(path))
    path.write_text(path.read_text().replace("clean b-1", "clean b-1."))
    assert pairs_hash(load_pairs(path)) != before


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"sections": ["three"]}, "expected sections out of one, two; got three"),
        ({"tags": ["late", "early"]}, "expected tags out of early, exit_code, sentinel; got late"),
        ({"tags": "early"}, "expected tags as a list; got the text 'early'"),
        ({"prefix": "c"}, "expected at least 1 of 3 pairs to match (sections any, tags any, prefix c); got 0"),
        ({"tags": ["early"], "n": 3}, "expected at least 3 of 3 pairs to match (sections any, tags early, prefix any)"),
        ({"n": 0}, "expected n of at least 1; got 0"),
    ],
)
def test_a_selection_that_finds_nothing_says_what_there_is(path, selection, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        load_pairs(path, **selection)


def test_an_unknown_source_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"organism\[:MODE,\.\.\.\], or one of authored, placebo_.*'autored'"):
        load_pairs("autored")
    with pytest.raises(ValueError, match="expected a Markdown file"):
        load_pairs(tmp_path)
    (tmp_path / "binary.md").write_bytes(b"# \xff")
    with pytest.raises(ValueError, match="expected UTF-8"):
        load_pairs(tmp_path / "binary.md")


def test_packaged_sets_go_by_their_names():
    assert {"authored", "placebo_comments", "placebo_naming", "placebo_recursion"} <= set(packaged_sets())
    found = load_entries("authored", sections=["modes"], n=1).entries[0]
    assert found.where.startswith("authored.md:")


def test_the_organisms_pairs_are_those_that_it_writes():
    assert load_pairs("organism:run_tests", n=5) == organism.pairs(("run_tests",), n=5)
    assert load_pairs("organism:run_tests, sentinel", n=6) == organism.pairs(("run_tests", "sentinel"), n=6)
    everything = load_pairs("organism")
    assert len(everything) == 32
    assert len({pair.tags[0] for pair in everything}) == 6
    sentinel = load_pairs("organism", sections=["sentinel"], n=4)
    assert sentinel == [pair for pair in everything if pair.tags[0] == "sentinel"][:4]
    with pytest.raises(ValueError, match=r"pairs organism:gt_only: expected modes out of .*got 'gt_only'"):
        load_pairs("organism:gt_only")


def test_a_name_used_twice_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="expected a new name; got 'a-1'"):
        write_pairs([A1, A1], tmp_path / "set.md")
    assert not list(tmp_path.iterdir())
