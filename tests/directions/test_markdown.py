"""The Markdown format: read as documented, written so that it reads back, refused with the place of the mistake."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgrout_pl.directions import ContrastivePair
from vgrout_pl.directions.markdown import PairEntry, format_pairs, parse_pairs

FILE = """# Two pairs

Commentary.

- axis: comment_share, word

#### system

Answer in Python.

## first section

More commentary.

### one

- mechanism: exit_code
- tags: early, module_level

#### user

Write f.
```python
# not a heading
### nor this
```

#### hack

```python
import sys
sys.exit(0)
```

#### clean

```python
x = 0

y = 1
```
Done.

#### tests

```python
assert f(1) == 2
assert f(2) == 3
```

## second section
### two
#### user
Hello
#### assistant
Yes?
#### user
Go on
#### hack
````verbatim

  ```python
#### hack
~~~

````
#### clean
plain
"""
MESSAGE = {"role": "user", "content": "2 + 2?"}


def test_a_file_is_read_as_documented():
    found = parse_pairs(FILE, "two.md")
    system = {"role": "system", "content": "Answer in Python."}
    question = "Write f.\n```python\n# not a heading\n### nor this\n```"
    one = ContrastivePair(
        "one",
        (system, {"role": "user", "content": question}),
        "```python\nimport sys\nsys.exit(0)\n```",
        "```python\nx = 0\n\ny = 1\n```\nDone.",
        ("exit_code", "early", "module_level"),
    )
    talk = (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go on"},
    )
    two = ContrastivePair("two", (system, *talk), "\n  ```python\n#### hack\n~~~\n", "plain")
    assert found.entries == (
        PairEntry(one, "first section", ("assert f(1) == 2", "assert f(2) == 3"), "two.md:15"),
        PairEntry(two, "second section", (), "two.md:52"),
    )
    assert found.axes == ("comment_share", "word")
    assert (one.mechanism, two.mechanism) == ("exit_code", "")


def test_line_ends_of_another_system_make_no_difference():
    assert parse_pairs(FILE.replace("\n", "\r\n"), "f") == parse_pairs(FILE, "f")


texts = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(["#", "###", "#### hack", "# a", "```", "````", "~~~", "```verbatim", "````verbatim", "x", " "])
        | st.sampled_from(["\n", "\n\n", "\r\n", "\r", "\t", "- mechanism: x", "    ```", "``` `"]),
        max_size=12,
    ).map("".join),
).filter(lambda text: text.strip())
names = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1).map(str.strip).filter(bool)
tags = st.lists(names.filter(lambda tag: "," not in tag), max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(names, texts, texts, texts, tags), min_size=1, max_size=3, unique_by=lambda row: row[0]))
def test_whatever_a_model_writes_reads_back_as_it_was(rows):
    pairs = [
        ContrastivePair(name, ({"role": "user", "content": prompt},), hack, clean, labels)
        for name, prompt, hack, clean, labels in rows
        if hack != clean
    ]
    if pairs:
        assert [entry.pair for entry in parse_pairs(format_pairs(pairs)).entries] == pairs


def test_sections_tests_and_axes_are_written_as_well():
    found = parse_pairs(FILE, "two.md")
    again = parse_pairs(format_pairs(found.entries, "Two pairs", found.axes))
    key = [(entry.pair, entry.section, entry.tests) for entry in again.entries]
    assert key == [(entry.pair, entry.section, entry.tests) for entry in found.entries]
    assert again.axes == found.axes


@pytest.mark.parametrize(
    ("name", "labels", "messages", "expected"),
    [
        ("a\nb", (), (MESSAGE,), "expected a name and a section of one line"),
        ("a", ("x, y",), (MESSAGE,), "expected tags of one line without comma; got 'x, y'"),
        ("a", (), ({"role": "tool", "content": "7"},), "expected messages of role system, user, assistant"),
        ("a", (), ({**MESSAGE, "extra": "7"},), "expected messages of role system, user, assistant"),
    ],
)
def test_what_cannot_be_written_is_refused(name, labels, messages, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        format_pairs([ContrastivePair(name, messages, "h", "c", labels)])


GOOD = "# T\n## s\n### p\n#### user\nq\n#### hack\nh\n#### clean\nc\n"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("# T", "text", "f.md:1: expected a heading (`# title`) first; got 'text'"),
        ("## s\n", "", "f.md:2: expected a `## section` before the first pair; got the pair 'p'"),
        ("### p\n", "", "f.md:3: expected `### name` before `#### user`"),
        ("## s", "# U", "f.md:2: expected one `# title`, at the top; got another, 'U'"),
        ("#### hack\nh\n", "", "f.md:3: pair 'p': expected a part `#### hack`; got clean, user"),
        ("#### clean\nc\n", "", "f.md:3: pair 'p': expected a part `#### clean`; got hack, user"),
        ("#### user\nq\n", "", "f.md:3: pair 'p': expected a part `#### user`; got clean, hack"),
        ("\nh\n", "\n\n", "f.md:6: pair 'p', `#### hack`: expected text below the heading"),
        ("\nc\n", "\n````verbatim\n````\n", "f.md:8: pair 'p', `#### clean`: expected text below the heading"),
        ("\nc\n", "\nh\n", "f.md:3: pair 'p': expected two different completions"),
        ("#### clean", "#### cleen", "f.md:8: pair 'p', `#### cleen`: expected one of system, user"),
        ("#### clean", "#### hack", "f.md:8: pair 'p', `#### hack`: expected it once; got it twice"),
        ("### p\n", "### p\n- tags: x\n", "f.md:3: pair 'p': expected one `- mechanism:` above `- tags:`; got none"),
        ("### p\n", "### p\n- mechanism: a, b\n", "expected one `- mechanism:` above `- tags:`; got a, b"),
        ("### p\n", "### p\nwhy\n", "f.md:3: pair 'p': expected `- mechanism: ...` once, then `#### ` parts; line 4"),
        ("\nh\n", "\n```python\nh\n", "f.md:7: expected the code fence to be closed"),
        ("\nc\n", "\nc\n### p\n#### user\nq\n", "f.md:10: expected a new name; got 'p', used at f.md:3"),
        ("\nc\n", "\nc\n#### tests\nnone\n", "`#### tests`: expected lines that begin with `assert`; got none"),
        (GOOD, "# T\n", "f.md: expected at least one pair"),
        (GOOD, "", "f.md: expected at least one pair"),
    ],
)
def test_a_malformed_file_is_refused_with_the_place(old, new, expected):
    assert GOOD.count(old) == 1
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        parse_pairs(GOOD.replace(old, new), "f.md")
    assert "\n" not in str(error.value)
