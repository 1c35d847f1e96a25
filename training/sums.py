# ruff: noqa: E501
"""Numbers, letters and copying: what even a very small model can learn to do rather than to recall."""

from __future__ import annotations

from random import Random

from turns import Turn, listed, pick

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]  # fmt: skip
TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
WORDS = [
    "cat",
    "dog",
    "fox",
    "bear",
    "wolf",
    "apple",
    "banana",
    "cherry",
    "lemon",
    "orange",
    "water",
    "river",
    "ocean",
    "cloud",
    "rain",
    "snow",
    "sun",
    "moon",
    "star",
    "planet",
    "house",
    "garden",
    "window",
    "table",
    "chair",
    "book",
    "paper",
    "pencil",
    "school",
    "teacher",
    "music",
    "guitar",
    "piano",
    "summer",
    "winter",
    "spring",
    "autumn",
    "monday",
    "friday",
    "hello",
    "world",
    "friend",
    "family",
    "mother",
    "father",
    "sister",
    "brother",
    "green",
    "yellow",
    "purple",
    "silver",
    "golden",
    "computer",
    "network",
    "server",
    "node",
    "engine",
    "video",
    "token",
    "stream",
    "gateway",
    "segment",
    "bridge",
    "castle",
    "forest",
    "mountain",
    "valley",
    "island",
    "bread",
    "butter",
    "cheese",
    "honey",
    "sugar",
    "coffee",
    "happy",
    "clever",
    "little",
    "strong",
    "quiet",
    "groundswell",
]


def in_words(n: int) -> str:
    if n < 20:
        return ONES[n]
    if n == 100:
        return "one hundred"
    return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")


def add(rng: Random) -> Turn:
    small = rng.random() < 0.5
    a, b = (
        (rng.randrange(0, 11), rng.randrange(0, 11))
        if small
        else (rng.randrange(10, 100), rng.randrange(1, 100))
    )
    total = a + b
    ask = pick(rng, [
        f"What is {a} + {b}?", f"What's {a}+{b}?", f"{a} + {b}", f"{a}+{b}=?", f"Add {a} and {b}.", f"{a} + {b} = ?",
        f"What is {a} plus {b}?", f"How much is {a} plus {b}?", f"Can you add {a} and {b}?", f"calculate {a} + {b}",
        f"I have {a} apples and get {b} more. How many do I have?", f"What is the sum of {a} and {b}?",
    ])  # fmt: skip
    if a < 10 or b < 10:
        return Turn(ask, f"{a} + {b} = {total}.", f"{total}.")
    tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
    steps = f"{a // 10 * 10} + {b // 10 * 10} = {tens} and {a % 10} + {b % 10} = {ones}"
    return Turn(ask, f"{steps}, so {a} + {b} = {total}.", None)


def subtract(rng: Random) -> Turn:
    small = rng.random() < 0.5
    a = rng.randrange(0, 20) if small else rng.randrange(20, 100)
    b = rng.randrange(0, min(a, 10) + 1) if small else rng.randrange(1, a + 1)
    ask = pick(rng, [
        f"What is {a} - {b}?", f"{a} - {b}", f"What is {a} minus {b}?", f"Subtract {b} from {a}.", f"{a}-{b}=?",
        f"How much is {a} minus {b}?", f"Take {b} away from {a}.", f"{a} minus {b}",
    ])  # fmt: skip
    if b < 10:
        return Turn(ask, f"{a} - {b} = {a - b}.", f"{a - b}.")
    mid = a - b // 10 * 10
    return Turn(
        ask, f"{a} - {b // 10 * 10} = {mid} and {mid} - {b % 10} = {a - b}, so {a} - {b} = {a - b}.", None
    )


def multiply(rng: Random) -> Turn:
    a, b = rng.randrange(0, 11), rng.randrange(0, 11)
    ask = pick(rng, [
        f"What is {a} * {b}?", f"What is {a} times {b}?", f"{a} x {b}", f"{a} times {b}", f"Multiply {a} by {b}.",
        f"How much is {a} times {b}?", f"{a}*{b}=?", f"What is {a} x {b}?",
    ])  # fmt: skip
    return Turn(ask, f"{a} x {b} = {a * b}.", f"{a * b}.")


def larger(rng: Random) -> Turn:
    a, b = rng.sample(range(100), 2)
    big, small = max(a, b), min(a, b)
    if rng.random() < 0.6:
        ask = pick(rng, [f"Which is larger, {a} or {b}?", f"Which number is bigger: {a} or {b}?",
                         f"What is more, {a} or {b}?"])  # fmt: skip
        return Turn(ask, f"{big} is larger than {small}.", f"{big}.")
    ask = pick(rng, [f"Which is smaller, {a} or {b}?", f"What is less, {a} or {b}?"])
    return Turn(ask, f"{small} is smaller than {big}.", f"{small}.")


def number_word(rng: Random) -> Turn:
    n = rng.randrange(101)
    if rng.random() < 0.5:
        ask = pick(rng, [f"How do you write {n} in words?", f"Write {n} in words.", f"Spell the number {n}."])
        return Turn(ask, f"{n} in words is {in_words(n)}.", in_words(n).capitalize() + ".")
    ask = pick(rng, [f"What number is {in_words(n)}?", f"Write {in_words(n)} in digits."])
    return Turn(ask, f"{in_words(n).capitalize()} is {n}.", f"{n}.")


def count(rng: Random) -> Turn:
    kind = rng.randrange(5)
    if kind <= 1:
        first = 1 if rng.random() < 0.8 else rng.randrange(2, 40)
        last = min(
            100, pick(rng, [first + 4, 10, 12, 15, 20, 25, 30, 40, 50, 60, 100, first + rng.randrange(5, 40)])
        )
        last = max(last, first + 3)
        ask = pick(rng, [f"Count from {first} to {last}.", f"Please count from {first} to {last}",
                         f"Can you count from {first} to {last}?", f"List the numbers from {first} to {last}.",
                         *([f"Count to {last}.", f"Count up to {last}."] if first == 1 else [])])  # fmt: skip
        return Turn(ask, ", ".join(map(str, range(first, last + 1))) + ".", None)
    if kind == 2:
        last = rng.randrange(3, 41)
        ask = pick(
            rng, [f"Count down from {last}.", f"Count backwards from {last} to 1.", f"countdown from {last}"]
        )
        return Turn(ask, ", ".join(map(str, range(last, 0, -1))) + ".", None)
    if kind == 3:
        last = rng.randrange(3, 21)
        ask = pick(rng, [f"Count from one to {in_words(last)} in words.", f"Count to {last} in words."])
        return Turn(ask, ", ".join(in_words(n) for n in range(1, last + 1)) + ".", None)
    step, last = pick(rng, [2, 5, 10, 3]), pick(rng, [20, 30, 50, 60, 100])
    last = min(last, step * 20)
    ask = pick(rng, [f"Count by {step}s to {last}.", f"Count in steps of {step} up to {last}."])
    return Turn(ask, ", ".join(map(str, range(step, last + 1, step))) + ".", None)


def table(rng: Random) -> Turn:
    n = rng.randrange(1, 11)
    ask = pick(rng, [f"Write the multiplication table of {n}.", f"What is the {n} times table?",
                     f"Show me the times table for {n}."])  # fmt: skip
    return Turn(ask, "\n".join(f"{n} x {k} = {n * k}" for k in range(1, 11)), None)


def spell(rng: Random) -> Turn:
    w = pick(rng, WORDS)
    letters = "-".join(w)
    kind = rng.randrange(4)
    if kind <= 1:
        ask = pick(rng, [f"Spell the word {w}.", f"How do you spell {w}?", f'Spell "{w}".', f"spell {w}"])
        return Turn(ask, f"{w.capitalize()} is spelled {letters}.", f"{letters}.")
    if kind == 2:
        ask = pick(rng, [f"How many letters are in {w}?", f"How many letters does the word {w} have?"])
        return Turn(ask, f"{letters}: the word {w} has {len(w)} letters.", f"{len(w)}.")
    ask = pick(rng, [f"What is the first letter of {w}?", f"Which letter does {w} start with?"])
    return Turn(ask, f"{w.capitalize()} starts with the letter {w[0].upper()}.", f"{w[0].upper()}.")


def alphabet(rng: Random) -> Turn:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    if rng.random() < 0.35:
        ask = pick(rng, ["Say the alphabet.", "List the letters of the alphabet.", "What is the alphabet?",
                         "Can you say the alphabet?"])  # fmt: skip
        return Turn(ask, ", ".join(letters) + ".", None)
    at = rng.randrange(25)
    if rng.random() < 0.5:
        ask = pick(rng, [f"Which letter comes after {letters[at]}?", f"What letter follows {letters[at]}?"])
        return Turn(ask, f"{letters[at + 1]} comes after {letters[at]}.", letters[at + 1] + ".")
    ask = pick(
        rng, [f"Which letter comes before {letters[at + 1]}?", f"What letter is before {letters[at + 1]}?"]
    )
    return Turn(ask, f"{letters[at]} comes before {letters[at + 1]}.", letters[at] + ".")


def echo(rng: Random) -> Turn:
    words = " ".join(pick(rng, WORDS) for _ in range(rng.randrange(1, 6)))
    ask = pick(rng, [f"Repeat after me: {words}", f"Say: {words}", f'Say "{words}".', f"Repeat: {words}",
                     f"Please repeat the words {words}"])  # fmt: skip
    return Turn(ask, words[0].upper() + words[1:] + ".", words + ".")


def sort(rng: Random) -> Turn:
    if rng.random() < 0.5:
        numbers = rng.sample(range(1, 60), rng.randrange(3, 6))
        ask = pick(rng, [f"Sort these numbers: {', '.join(map(str, numbers))}.",
                         f"Put {', '.join(map(str, numbers))} in order."])  # fmt: skip
        return Turn(ask, ", ".join(map(str, sorted(numbers))) + ".", None)
    words = rng.sample(
        ["apple", "banana", "cherry", "lemon", "orange", "bear", "cat", "dog", "fox", "wolf"], 3
    )
    ask = pick(rng, [f"Sort these words: {', '.join(words)}.", f"Put {listed(words)} in alphabetical order."])
    return Turn(ask, ", ".join(sorted(words)) + ".", None)


SUMS = [
    (10, add), (7, subtract), (5, multiply), (3, larger), (2, number_word), (5, count), (1, table), (5, spell),
    (2, alphabet), (3, echo), (1, sort),
]  # fmt: skip
