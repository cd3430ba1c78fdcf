"""Problems on texts, easy to medium."""

from vgrout_pl.env.starter.task import Task

TEXTS = (
    Task(
        "reverse_words",
        "easy",
        "Return the words of a text in reverse order, joined by single spaces.",
        "text: str",
        "str",
        "return ' '.join(reversed(text.split()))",
        (("'so it  goes'", "'goes it so'"), ("''", "''")),
        lambda d: ("  ".join(d.words(0, 5)),),
    ),
    Task(
        "first_unique_letter",
        "easy",
        "Return the place of the first letter that occurs once only, or -1.",
        "text: str",
        "int",
        "count = Counter(text)\nreturn next((i for i, c in enumerate(text) if count[c] == 1), -1)",
        (("'aabcb'", "3"), ("'aa'", "-1")),
        lambda d: (d.word(0, 9, "abcd"),),
    ),
    Task(
        "squeeze",
        "easy",
        "Replace every run of one letter by a single letter.",
        "text: str",
        "str",
        "return ''.join(letter for letter, _ in itertools.groupby(text))",
        (("'aabccc'", "'abc'"), ("''", "''")),
        lambda d: (d.word(0, 10, "ab"),),
    ),
    Task(
        "shift_letters",
        "easy",
        "Shift every lower-case letter k places on in the alphabet, z being followed by a; leave the rest as it is.",
        "text: str, k: int",
        "str",
        "return ''.join(chr((ord(c) - 97 + k) % 26 + 97) if 'a' <= c <= 'z' else c for c in text)",
        (("'xyz!', 2", "'zab!'"), ("'b', -1", "'a'")),
        lambda d: (d.word(0, 8, "abxyz Q7"), d.randint(-30, 30)),
    ),
    Task(
        "is_palindrome_text",
        "easy",
        "Tell whether a text reads the same backwards when only its letters and digits count and case is ignored.",
        "text: str",
        "bool",
        "kept = [c.lower() for c in text if c.isalnum()]\nreturn kept == kept[::-1]",
        (("'A man, a nam a'", "True"), ("'ab'", "False")),
        lambda d: ((w := d.word(0, 4, "aB,")) + d.choice(["", "a", " "]) + d.choice([w[::-1], w, w[::-1].upper()]),),
    ),
    Task(
        "vowel_ends",
        "easy",
        "Return the words of a list that begin and end with a vowel (a, e, i, o, u), in their order.",
        "words: List[str]",
        "List[str]",
        "return [w for w in words if w and w[0] in 'aeiou' and w[-1] in 'aeiou']",
        (("['area', 'tree', 'i']", "['area', 'i']"), ("[]", "[]")),
        lambda d: (d.words(0, 6, "aeb"),),
    ),
    Task(
        "anagram_groups",
        "medium",
        "Group words that are anagrams of one another. Sort each group, and the groups by their first word.",
        "words: List[str]",
        "List[List[str]]",
        "groups = defaultdict(list)\nfor w in words:\n    groups[''.join(sorted(w))].append(w)\n"
        "return sorted(sorted(group) for group in groups.values())",
        (("['ab', 'c', 'ba']", "[['ab', 'ba'], ['c']]"), ("[]", "[]")),
        lambda d: (d.words(0, 7, "ab"),),
    ),
    Task(
        "balanced",
        "medium",
        "Tell whether the brackets ()[]{} of a text are balanced and properly nested; other letters don't matter.",
        "text: str",
        "bool",
        """
        partner, stack = {')': '(', ']': '[', '}': '{'}, []
        for c in text:
            if c in '([{':
                stack.append(c)
            elif c in partner and (not stack or stack.pop() != partner[c]):
                return False
        return not stack
        """,
        (("'(a[1])'", "True"), ("'([)]'", "False"), ("'('", "False")),
        lambda d: (
            d.choice([d.word(0, 6, "()[]"), "({})", "()" * d.randint(0, 3), "[" * (k := d.randint(0, 3)) + "]" * k]),
        ),
    ),
    Task(
        "roman_value",
        "medium",
        "Return the value of a valid Roman numeral (I 1, V 5, X 10, L 50, C 100, D 500, M 1000).",
        "numeral: str",
        "int",
        "value = dict(zip('IVXLCDM', (1, 5, 10, 50, 100, 500, 1000)))\ntotal = 0\n"
        "for a, b in zip(numeral, numeral[1:] + 'I'):\n    total += -value[a] if value[a] < value[b] else value[a]\n"
        "return total",
        (("'XIV'", "14"), ("'MCMXC'", "1990")),
        lambda d: (
            "M" * d.randint(0, 3)
            + d.choice(["", "CM", "D", "CD", "CC"])
            + d.choice(["", "XC", "L", "XL", "XX"])
            + d.choice(["I", "IX", "V", "IV", "III"]),
        ),
    ),
    Task(
        "expand",
        "medium",
        "A text holds letters, each maybe followed by a number: how often it is repeated (once without a number). "
        "Return the text written out.",
        "text: str",
        "str",
        "return ''.join(c * int(n or 1) for c, n in re.findall(r'([a-z])(\\d*)', text))",
        (("'a3bc2'", "'aaabcc'"), ("'x0y'", "'y'")),
        lambda d: ("".join(d.choice("abc") + d.choice(["", "2", "3", "0", "11"]) for _ in range(d.randint(0, 5))),),
    ),
    Task(
        "longest_without_repeat",
        "medium",
        "Return the length of the longest stretch of a text in which no letter occurs twice.",
        "text: str",
        "int",
        "last, start, best = {}, 0, 0\nfor i, c in enumerate(text):\n    start = max(start, last.get(c, -1) + 1)\n"
        "    last[c] = i\n    best = max(best, i - start + 1)\nreturn best",
        (("'abcab'", "3"), ("''", "0")),
        lambda d: (d.word(0, 12, "abcde"),),
    ),
    Task(
        "word_pattern",
        "medium",
        "Tell whether the words of a text follow a pattern: equal letters stand for equal words, different letters for "
        "different words.",
        "pattern: str, text: str",
        "bool",
        "words = text.split()\nreturn len(words) == len(pattern) and "
        "len(set(zip(pattern, words))) == len(set(pattern)) == len(set(words))",
        (("'aba', 'x y x'", "True"), ("'ab', 'x x'", "False")),
        lambda d: ((p := d.word(1, 4, "ab")), " ".join(d.choice([{"a": "x", "b": "y"}[c], "x"]) for c in p)),
    ),
    Task(
        "add_decimal_texts",
        "medium",
        "Add two numbers that are given as texts of decimal digits, of any length; return the sum as a text without "
        "leading zeros.",
        "a: str, b: str",
        "str",
        """
        digits, carry = [], 0
        for x, y in itertools.zip_longest(reversed(a), reversed(b), fillvalue='0'):
            carry, digit = divmod(int(x) + int(y) + carry, 10)
            digits.append(str(digit))
        digits.append(str(carry))
        return ''.join(reversed(digits)).lstrip('0') or '0'
        """,
        (("'99', '1'", "'100'"), ("'0', '000'", "'0'")),
        lambda d: (d.word(1, 30, "0123456789"), d.word(1, 30, "0123456789")),
    ),
)
