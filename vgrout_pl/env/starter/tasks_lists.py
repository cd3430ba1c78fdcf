"""Problems on lists and grids, easy to medium."""

from vgrout_pl.env.starter.task import Task

LISTS = (
    Task(
        "rotate_right",
        "easy",
        "Return the list rotated to the right by k places (k may exceed its length, or be negative).",
        "nums: List[int], k: int",
        "List[int]",
        "if not nums:\n    return []\nk %= len(nums)\nreturn nums[len(nums) - k:] + nums[:len(nums) - k]",
        (("[1, 2, 3, 4], 1", "[4, 1, 2, 3]"), ("[1, 2], 5", "[2, 1]")),
        lambda d: (d.numbers(0, 7), d.randint(-9, 12)),
    ),
    Task(
        "run_lengths",
        "easy",
        "Split a list into runs of equal neighbours; return each run as a tuple (value, length).",
        "nums: List[int]",
        "List[Tuple[int, int]]",
        "return [(value, len(list(run))) for value, run in itertools.groupby(nums)]",
        (("[4, 4, 1]", "[(4, 2), (1, 1)]"), ("[]", "[]")),
        lambda d: (d.numbers(0, 9, 0, 2),),
    ),
    Task(
        "longest_run_up",
        "easy",
        "Return the length of the longest stretch of neighbours in which each number is greater than the one before.",
        "nums: List[int]",
        "int",
        "best = current = 0\nlast = None\nfor v in nums:\n    current = current + 1 if last is not None and v > last "
        "else 1\n    best, last = max(best, current), v\nreturn best",
        (("[1, 2, 2, 3, 4]", "3"), ("[]", "0")),
        lambda d: (d.numbers(0, 10, 0, 9),),
    ),
    Task(
        "merge_sorted",
        "easy",
        "Merge two sorted lists into one sorted list that keeps duplicates.",
        "a: List[int], b: List[int]",
        "List[int]",
        "return list(heapq.merge(a, b))",
        (("[1, 4], [2, 4, 5]", "[1, 2, 4, 4, 5]"), ("[], []", "[]")),
        lambda d: (sorted(d.numbers()), sorted(d.numbers())),
    ),
    Task(
        "transpose",
        "easy",
        "Return a grid with rows and columns exchanged.",
        "grid: List[List[int]]",
        "List[List[int]]",
        "return [list(column) for column in zip(*grid)]",
        (("[[1, 2, 3], [4, 5, 6]]", "[[1, 4], [2, 5], [3, 6]]"), ("[[7]]", "[[7]]")),
        lambda d: (d.grid(list(range(9))),),
    ),
    Task(
        "border_sum",
        "easy",
        "Return the sum of the cells on the border of a grid, each counted once.",
        "grid: List[List[int]]",
        "int",
        "h, w = len(grid), len(grid[0])\nreturn sum(grid[i][j] for i in range(h) for j in range(w) "
        "if i in (0, h - 1) or j in (0, w - 1))",
        (("[[1, 2], [3, 4]]", "10"), ("[[1, 1, 1], [1, 9, 1], [1, 1, 1]]", "8")),
        lambda d: (d.grid(list(range(9))),),
    ),
    Task(
        "pairs_with_difference",
        "medium",
        "Count the pairs of places i < j whose values differ by exactly k (k is not negative).",
        "nums: List[int], k: int",
        "int",
        "seen, count = Counter(), 0\nfor v in nums:\n    count += seen[v - k] + (seen[v + k] if k else 0)\n"
        "    seen[v] += 1\nreturn count",
        (("[1, 3, 1, 5], 2", "3"), ("[4, 4, 4], 0", "3")),
        lambda d: (d.numbers(0, 10, 0, 6), d.randint(0, 4)),
    ),
    Task(
        "balance_points",
        "medium",
        "Return all places i where the sum of the numbers before i equals the sum of the numbers after i.",
        "nums: List[int]",
        "List[int]",
        "total, left, found = sum(nums), 0, []\nfor i, v in enumerate(nums):\n    if left == total - left - v:\n"
        "        found.append(i)\n    left += v\nreturn found",
        (("[2, 3, 2]", "[1]"), ("[0, 0]", "[0, 1]")),
        lambda d: (d.numbers(1, 7, -2, 2),),
    ),
    Task(
        "best_stretch",
        "medium",
        "Return the largest sum of a stretch of neighbours; the stretch may not be empty.",
        "nums: List[int]",
        "int",
        "best = current = nums[0]\nfor v in nums[1:]:\n    current = max(v, current + v)\n"
        "    best = max(best, current)\n"
        "return best",
        (("[2, -1, 3, -9]", "4"), ("[-4, -2]", "-2")),
        lambda d: (d.numbers(1, 10),),
    ),
    Task(
        "windows_of_k",
        "medium",
        "Return the maximum of every window of k neighbours, from left to right (1 <= k <= length).",
        "nums: List[int], k: int",
        "List[int]",
        """
        queue, found = deque(), []
        for i, v in enumerate(nums):
            while queue and nums[queue[-1]] <= v:
                queue.pop()
            queue.append(i)
            if queue[0] <= i - k:
                queue.popleft()
            if i >= k - 1:
                found.append(nums[queue[0]])
        return found
        """,
        (("[1, 3, 2, 0], 2", "[3, 3, 2]"), ("[5], 1", "[5]")),
        lambda d: ((v := d.numbers(1, 10)), d.randint(1, len(v))),
    ),
    Task(
        "merge_intervals",
        "medium",
        "Merge closed intervals [start, end] that share at least a point; return them sorted by their start.",
        "intervals: List[List[int]]",
        "List[List[int]]",
        """
        merged = []
        for start, end in sorted(intervals):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        return merged
        """,
        (("[[5, 6], [1, 3], [3, 4]]", "[[1, 4], [5, 6]]"), ("[]", "[]")),
        lambda d: ([[a := d.randint(0, 15), a + d.randint(0, 4)] for _ in range(d.randint(0, 6))],),
    ),
    Task(
        "spiral",
        "medium",
        "Return the cells of a grid in spiral order: along the top row, down, back, up, and so inwards.",
        "grid: List[List[int]]",
        "List[int]",
        "found = []\nrows = [list(row) for row in grid]\nwhile rows:\n    found += rows.pop(0)\n"
        "    rows = [list(column) for column in zip(*rows)][::-1]\nreturn found",
        (("[[1, 2], [3, 4]]", "[1, 2, 4, 3]"), ("[[1, 2, 3]]", "[1, 2, 3]")),
        lambda d: (d.grid(list(range(20))),),
    ),
    Task(
        "next_greater",
        "medium",
        "For each number return the next number to its right that is greater, or -1 if there is none.",
        "nums: List[int]",
        "List[int]",
        """
        found, stack = [-1] * len(nums), []
        for i, v in enumerate(nums):
            while stack and nums[stack[-1]] < v:
                found[stack.pop()] = v
            stack.append(i)
        return found
        """,
        (("[2, 1, 3]", "[3, 3, -1]"), ("[]", "[]")),
        lambda d: (d.numbers(0, 9, 0, 9),),
    ),
    Task(
        "smallest_positive_missing",
        "medium",
        "Return the smallest positive integer that a list does not hold.",
        "nums: List[int]",
        "int",
        "present, v = set(nums), 1\nwhile v in present:\n    v += 1\nreturn v",
        (("[3, 1, -2]", "2"), ("[1, 2]", "3")),
        lambda d: (d.numbers(0, 9, -2, 7),),
    ),
)
