"""Hard problems: the obvious way is wrong or too slow."""

from vgrout_pl.env.starter.task import Task

HARD = (
    Task(
        "edit_distance",
        "hard",
        "Return the least number of letters to insert, delete or replace that turns one text into another.",
        "a: str, b: str",
        "int",
        """
        row = list(range(len(b) + 1))
        for i, x in enumerate(a, 1):
            corner, row[0] = row[0], i
            for j, y in enumerate(b, 1):
                corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (x != y))
        return row[-1]
        """,
        (("'kitten', 'sitting'", "3"), ("'', 'ab'", "2")),
        lambda d: (d.word(0, 12), d.word(0, 12)),
    ),
    Task(
        "water_trapped",
        "hard",
        "Walls of given heights stand side by side. Return how many units of rain stay between them.",
        "heights: List[int]",
        "int",
        """
        left, right, low, total = 0, len(heights) - 1, 0, 0
        while left < right:
            side = heights[left] if heights[left] < heights[right] else heights[right]
            low = max(low, side)
            total += low - side
            if heights[left] < heights[right]:
                left += 1
            else:
                right -= 1
        return total
        """,
        (("[3, 0, 2]", "2"), ("[1, 2, 3]", "0")),
        lambda d: (d.numbers(0, 12, 0, 6),),
    ),
    Task(
        "largest_rectangle",
        "hard",
        "Bars of width 1 and given heights stand side by side. Return the area of the largest rectangle within them.",
        "heights: List[int]",
        "int",
        """
        stack, best = [], 0
        for i, h in enumerate([*heights, 0]):
            start = i
            while stack and stack[-1][1] >= h:
                start, height = stack.pop()
                best = max(best, height * (i - start))
            stack.append((start, h))
        return best
        """,
        (("[2, 3, 1]", "4"), ("[]", "0")),
        lambda d: (d.numbers(0, 12, 0, 7),),
    ),
    Task(
        "queens_beside_holes",
        "hard",
        "Count the ways to put n queens on an n by n board so that none attacks another and none stands on a hole. "
        "Holes are cells [row, column]; queens attack across them.",
        "n: int, holes: List[List[int]]",
        "int",
        """
        closed = {(i, j) for i, j in holes}
        def place(row, columns, up, down):
            if row == n:
                return 1
            return sum(
                place(row + 1, columns | {c}, up | {row + c}, down | {row - c})
                for c in range(n)
                if c not in columns and row + c not in up and row - c not in down and (row, c) not in closed
            )
        return place(0, frozenset(), frozenset(), frozenset())
        """,
        (("4, []", "2"), ("6, []", "4"), ("1, [[0, 0]]", "0"), ("4, [[0, 1]]", "1")),
        lambda d: ((n := d.randint(1, 6)), [[d.randrange(n), d.randrange(n)] for _ in range(d.randint(0, 3))]),
    ),
    Task(
        "wildcard_match",
        "hard",
        "Tell whether a pattern matches the whole of a text: ? stands for one letter, * for any number of letters.",
        "text: str, pattern: str",
        "bool",
        """
        reach = {0}
        for p in pattern:
            if p == '*':
                reach = set(range(min(reach), len(text) + 1)) if reach else set()
            else:
                reach = {i + 1 for i in reach if i < len(text) and p in ('?', text[i])}
        return len(text) in reach
        """,
        (("'abc', 'a*c'", "True"), ("'abc', 'a?'", "False"), ("'', '*'", "True")),
        lambda d: (d.word(0, 8, "ab"), d.word(0, 6, "ab?**")),
    ),
    Task(
        "increasing_subsequence",
        "hard",
        "Return the length of the longest strictly increasing subsequence; lists of 10000 numbers must be fast.",
        "nums: List[int]",
        "int",
        "tails = []\nfor v in nums:\n    i = bisect_left(tails, v)\n    tails[i:i + 1] = [v]\nreturn len(tails)",
        (("[3, 1, 2, 5, 4]", "3"), ("list(range(10000, 0, -1))", "1"), ("list(range(10000))", "10000")),
        lambda d: (d.numbers(0, 14, 0, 20),),
    ),
    Task(
        "median_of_window",
        "hard",
        "Return the median of every window of k neighbours as a float (for even k the mean of the middle two).",
        "nums: List[int], k: int",
        "List[float]",
        """
        window, found = sorted(nums[:k]), []
        for i in range(k, len(nums) + 1):
            found.append((window[k // 2] + window[(k - 1) // 2]) / 2)
            if i < len(nums):
                window.pop(bisect_left(window, nums[i - k]))
                window.insert(bisect_left(window, nums[i]), nums[i])
        return found
        """,
        (("[1, 3, 2, 8], 3", "[2.0, 3.0]"), ("[1, 2], 2", "[1.5]")),
        lambda d: ((v := d.numbers(1, 10)), d.randint(1, len(v))),
    ),
    Task(
        "cheapest_with_stops",
        "hard",
        "Flights [from, to, price] join cities. Return the least price from a to b over at most k flights, or -1.",
        "flights: List[List[int]], a: int, b: int, k: int",
        "int",
        """
        cost = {a: 0}
        for _ in range(k):
            after = dict(cost)
            for i, j, price in flights:
                if i in cost and cost[i] + price < after.get(j, math.inf):
                    after[j] = cost[i] + price
            cost = after
        return cost.get(b, -1)
        """,
        (("[[0, 1, 5], [1, 2, 5], [0, 2, 20]], 0, 2, 1", "20"), ("[[0, 1, 5], [1, 2, 5], [0, 2, 20]], 0, 2, 2", "10")),
        lambda d: (
            [[d.randint(0, 4), d.randint(0, 4), d.randint(1, 20)] for _ in range(d.randint(0, 9))],
            d.randint(0, 4),
            d.randint(0, 4),
            d.randint(0, 4),
        ),
    ),
    Task(
        "digit_free_count",
        "hard",
        "Count the integers from 0 to n whose decimal digits don't hold a given digit; n may have hundreds of digits.",
        "n: int, digit: int",
        "int",
        """
        text, count = str(n), 0
        allowed = [v for v in range(10) if v != digit]
        for i, c in enumerate(text):
            rest = len(text) - i - 1
            for v in allowed:
                if v < int(c) and not (i == 0 and v == 0):
                    count += len(allowed) ** rest
            if int(c) == digit:
                break
        else:
            count += 1
        nonzero = len([v for v in allowed if v])
        shorter = sum(nonzero * len(allowed) ** (length - 1) for length in range(1, len(text)))
        zero = int(digit != 0 and len(text) > 1) or int(digit != 0 and n > 0)
        return count + shorter + zero
        """,
        (("20, 1", "10"), ("9, 0", "9"), ("0, 5", "1")),
        lambda d: (d.choice([d.randint(0, 300), d.randint(0, 10 ** d.randint(3, 60))]), d.randint(0, 9)),
    ),
    Task(
        "skyline",
        "hard",
        "Buildings [left, right, height] overlap. Return the corners [x, height] at which the "
        "outline changes, from left "
        "to right, the last one down to 0.",
        "buildings: List[List[int]]",
        "List[List[int]]",
        """
        corners = []
        for x in sorted({x for left, right, _ in buildings for x in (left, right)}):
            height = max((h for left, right, h in buildings if left <= x < right), default=0)
            if not corners or corners[-1][1] != height:
                corners.append([x, height])
        return corners
        """,
        (("[[1, 4, 2], [3, 6, 5]]", "[[1, 2], [3, 5], [6, 0]]"), ("[]", "[]")),
        lambda d: ([[x := d.randint(0, 12), x + d.randint(1, 6), d.randint(1, 6)] for _ in range(d.randint(0, 5))],),
    ),
    Task(
        "evaluate",
        "hard",
        "Return the value of an expression of integers, + - * and brackets, with the usual "
        "precedence; it is valid and may "
        "hold spaces.",
        "expression: str",
        "int",
        """
        tokens = deque(re.findall(r'\\d+|[-+*()]', expression))
        def atom():
            token = tokens.popleft()
            if token == '-':
                return -atom()
            if token == '(':
                value = sums()
                tokens.popleft()
                return value
            return int(token)
        def products():
            value = atom()
            while tokens and tokens[0] == '*':
                tokens.popleft()
                value *= atom()
            return value
        def sums():
            value = products()
            while tokens and tokens[0] in '+-':
                value += products() if tokens.popleft() == '+' else -products()
            return value
        return sums()
        """,
        (("'2 + 3 * (4 - 1)'", "11"), ("'-(5 - 7)'", "2")),
        lambda d: (
            " ".join(
                [f"({d.randint(0, 9)} - {d.randint(0, 20)})"]
                + [f"{d.choice('+-*')} {d.randint(0, 99)}" for _ in range(d.randint(0, 4))]
            ),
        ),
    ),
    Task(
        "paint_fence",
        "hard",
        "A fence of n posts is painted in k colours so that no three neighbours share one. Count the ways, modulo "
        "1000000007; n may be as large as 10**18.",
        "n: int, k: int",
        "int",
        """
        modulus = 10**9 + 7
        def times(a, b):
            return [[sum(x * y for x, y in zip(row, column)) % modulus for column in zip(*b)] for row in a]
        result, step = [[1, 0], [0, 1]], [[k - 1, k - 1], [1, 0]]
        power = n - 1
        while power:
            if power & 1:
                result = times(result, step)
            step = times(step, step)
            power >>= 1
        return k * (result[0][0] + result[1][0]) % modulus
        """,
        (("3, 2", "6"), ("1, 5", "5"), ("2, 1", "1"), ("3, 1", "0")),
        lambda d: (d.choice([d.randint(1, 9), d.randint(1, 10**18)]), d.randint(1, 9)),
    ),
)
