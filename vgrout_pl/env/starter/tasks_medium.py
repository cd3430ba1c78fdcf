"""Medium problems: search, counting, dynamic programming, graphs."""

from vgrout_pl.env.starter.task import Task

MEDIUM = (
    Task(
        "fewest_coins",
        "medium",
        "Return the least number of coins that sum to an amount, any number of each coin being "
        "there; -1 if impossible.",
        "coins: List[int], amount: int",
        "int",
        """
        best = [0] + [math.inf] * amount
        for value in range(1, amount + 1):
            best[value] = min((best[value - c] + 1 for c in coins if c <= value), default=math.inf)
        return best[amount] if best[amount] < math.inf else -1
        """,
        (("[1, 5, 6], 10", "2"), ("[4], 6", "-1")),
        lambda d: (sorted({d.randint(1, 12) for _ in range(d.randint(1, 3))}), d.randint(0, 60)),
    ),
    Task(
        "grid_paths",
        "medium",
        "Count the ways from the top left to the bottom right cell of a grid, moving right or down "
        "over cells that are 0.",
        "grid: List[List[int]]",
        "int",
        """
        ways = [0] * len(grid[0])
        ways[0] = 1
        for row in grid:
            for j, blocked in enumerate(row):
                ways[j] = 0 if blocked else ways[j] + (ways[j - 1] if j else 0)
        return ways[-1]
        """,
        (("[[0, 0], [0, 0]]", "2"), ("[[0, 1], [1, 0]]", "0")),
        lambda d: (d.grid([0, 0, 0, 0, 1], 6),),
    ),
    Task(
        "count_islands",
        "medium",
        "Count the groups of cells 1 that hang together over common edges.",
        "grid: List[List[int]]",
        "int",
        """
        land = {(i, j) for i, row in enumerate(grid) for j, cell in enumerate(row) if cell}
        islands = 0
        while land:
            islands += 1
            stack = [land.pop()]
            while stack:
                i, j = stack.pop()
                for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                    if cell in land:
                        land.remove(cell)
                        stack.append(cell)
        return islands
        """,
        (("[[1, 0], [0, 1]]", "2"), ("[[1, 1], [0, 1]]", "1")),
        lambda d: (d.grid([0, 1], 6),),
    ),
    Task(
        "shortest_hops",
        "medium",
        "Nodes 0 to n - 1 are joined by undirected edges. Return the least number of edges from a to b, or -1.",
        "n: int, edges: List[List[int]], a: int, b: int",
        "int",
        """
        near = defaultdict(list)
        for i, j in edges:
            near[i].append(j)
            near[j].append(i)
        distance, queue = {a: 0}, deque([a])
        while queue:
            i = queue.popleft()
            for j in near[i]:
                if j not in distance:
                    distance[j] = distance[i] + 1
                    queue.append(j)
        return distance.get(b, -1)
        """,
        (("4, [[0, 1], [1, 2]], 0, 2", "2"), ("3, [[0, 1]], 0, 2", "-1")),
        lambda d: ((n := d.randint(2, 8)), d.pairs(d.randint(0, 9), n), d.randrange(n), d.randrange(n)),
    ),
    Task(
        "task_order",
        "medium",
        "Tasks 0 to n - 1; an edge [i, j] says that i comes before j, always with i < j. Return "
        "the order that takes at "
        "each step the largest task that is free.",
        "n: int, edges: List[List[int]]",
        "List[int]",
        """
        after, waiting = defaultdict(list), [0] * n
        for i, j in edges:
            after[i].append(j)
            waiting[j] += 1
        free = [-i for i in range(n) if not waiting[i]]
        heapify(free)
        order = []
        while free:
            i = -heappop(free)
            order.append(i)
            for j in after[i]:
                waiting[j] -= 1
                if not waiting[j]:
                    heappush(free, -j)
        return order
        """,
        (("3, [[0, 2]]", "[1, 0, 2]"), ("2, []", "[1, 0]")),
        lambda d: ((n := d.randint(1, 8)), d.pairs(d.randint(0, 8), n)),
    ),
    Task(
        "subset_sums",
        "medium",
        "Return the set of all sums of subsets of a list (the empty one too).",
        "nums: List[int]",
        "Set[int]",
        "sums = {0}\nfor v in nums:\n    sums |= {s + v for s in sums}\nreturn sums",
        (("[1, 2]", "{0, 1, 2, 3}"), ("[]", "{0}")),
        lambda d: (d.numbers(0, 5, -4, 6),),
    ),
    Task(
        "longest_common_subsequence",
        "medium",
        "Return the length of the longest text that can be made from either of two texts by deleting letters.",
        "a: str, b: str",
        "int",
        """
        row = [0] * (len(b) + 1)
        for x in a:
            above = 0
            for j, y in enumerate(b, 1):
                above, row[j] = row[j], above + 1 if x == y else max(row[j], row[j - 1])
        return row[-1]
        """,
        (("'abcde', 'ace'", "3"), ("'a', 'b'", "0")),
        lambda d: (d.word(0, 10), d.word(0, 10)),
    ),
    Task(
        "stock_with_fee",
        "medium",
        "Each day you may buy one share, sell the one that you hold (paying a fee), or wait. "
        "Return the largest profit.",
        "prices: List[int], fee: int",
        "int",
        "cash, share = 0, -math.inf\nfor p in prices:\n"
        "    cash, share = max(cash, share + p - fee), max(share, cash - p)\n"
        "return cash",
        (("[1, 5, 2, 8], 1", "8"), ("[5, 4], 0", "0")),
        lambda d: (d.numbers(0, 10, 1, 20), d.randint(0, 4)),
    ),
    Task(
        "jump_reach",
        "medium",
        "At place i you may jump up to nums[i] places forward. Return the least number of jumps "
        "from the first place to "
        "the last, or -1.",
        "nums: List[int]",
        "int",
        """
        jumps = reach = edge = 0
        for i in range(len(nums) - 1):
            if i > reach:
                return -1
            reach = max(reach, i + nums[i])
            if i == edge:
                if reach == i:
                    return -1
                jumps, edge = jumps + 1, reach
        return jumps
        """,
        (("[2, 1, 1, 0]", "2"), ("[0, 1]", "-1"), ("[0]", "0")),
        lambda d: (d.numbers(1, 9, 0, 3),),
    ),
    Task(
        "kth_smallest_product",
        "medium",
        "Return the k-th smallest of the products a[i] * b[j], equal ones counted as often as they occur (k from 1).",
        "a: List[int], b: List[int], k: int",
        "int",
        "return sorted(x * y for x in a for y in b)[k - 1]",
        (("[1, 2], [3, 5], 3", "6"), ("[-1], [4], 1", "-4")),
        lambda d: ((a := d.numbers(1, 5)), (b := d.numbers(1, 5)), d.randint(1, len(a) * len(b))),
    ),
    Task(
        "rational_sum",
        "medium",
        "Add fractions [numerator, denominator] (denominators positive); return the sum in lowest "
        "terms, with a positive "
        "denominator.",
        "fractions: List[List[int]]",
        "List[int]",
        "p, q = 0, 1\nfor a, b in fractions:\n    p, q = p * b + a * q, q * b\ng = math.gcd(p, q)\n"
        "return [p // g, q // g]",
        (("[[1, 2], [1, 3]]", "[5, 6]"), ("[]", "[0, 1]")),
        lambda d: ([[d.randint(-9, 9), d.randint(1, 12)] for _ in range(d.randint(0, 5))],),
    ),
    Task(
        "trailing_zeros",
        "medium",
        "Return the number of zeros at the end of n! written in base 10.",
        "n: int",
        "int",
        "count = 0\nwhile n:\n    n //= 5\n    count += n\nreturn count",
        (("10", "2"), ("4", "0")),
        lambda d: (d.choice([d.randint(0, 200), d.randint(0, 10**9)]),),
    ),
    Task(
        "decode_ways",
        "medium",
        "A message of letters was written as digits, A as 1 up to Z as 26, without gaps. Count the "
        "messages that a text of "
        "digits may stand for.",
        "digits: str",
        "int",
        """
        before, ways = 0, 1
        for i, c in enumerate(digits):
            now = ways if c != '0' else 0
            if i and '10' <= digits[i - 1:i + 1] <= '26':
                now += before
            before, ways = ways, now
        return ways
        """,
        (("'12'", "2"), ("'30'", "0")),
        lambda d: (d.word(1, 12, "12320"),),
    ),
)
