"""Damaged and hostile versions of a file's bytes, the same ones for the same number."""

import random
import re
from collections.abc import Callable

WORDS = (
    *("nan", "inf", "-1", "0", "1e999", "-0.0", "9" * 5000, "18446744073709551616", "1" * 40),
    *("null", "true", "[]", "{}", '""', "'", '"', "\\", ",", "\n", "\r", "\u2028", "\x00", "#"),
    *("é", "\U0001f4a5", "\ud800", "&a", "*a", "<<: *a", "!!python/object:os.system", "${x}"),
    *("[" * 20000, "{" * 20000, '{"a":' * 5000, "- " * 3000, "A" * 200000),
)
"""What is put in the place of a number or a word of a text."""
WHOLE = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
WORD = re.compile(rb"[A-Za-z_][\w.~|]*")


def place(rng: random.Random, size: int) -> int:
    """Return an offset: anywhere, or near the beginning or the end, where headers lie."""
    near = min(size, rng.choice((16, 128, 1024)))
    return rng.choice((rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)))


def flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        changed[place(rng, len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncate(content: bytes, rng: random.Random) -> bytes:
    return content[: place(rng, len(content))]


def splice(content: bytes, rng: random.Random) -> bytes:
    """Copy a piece over, or into, another place."""
    start, to = place(rng, len(content)), place(rng, len(content))
    piece = content[start : start + rng.choice((1, 4, 16, 200, len(content)))]
    return content[:to] + piece + content[to + rng.choice((0, len(piece))) :]


def cut_out(content: bytes, rng: random.Random) -> bytes:
    start = place(rng, len(content))
    return content[:start] + content[start + rng.choice((1, 2, 4, 16, 200)) :]


def put_whole(content: bytes, rng: random.Random) -> bytes:
    """Write a notable whole number over some bytes: sizes, counts and offsets are such."""
    size = rng.choice((1, 2, 4, 8))
    value = (rng.choice(WHOLE) % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    start = place(rng, len(content))
    return content[:start] + value + content[start + size :]


def noise(content: bytes, rng: random.Random) -> bytes:
    start = place(rng, len(content))
    length = rng.choice((1, 8, 100))
    return content[:start] + rng.randbytes(length) + content[start + rng.choice((0, length)) :]


def replace(content: bytes, rng: random.Random) -> bytes:
    """Put something else in the place of a number or a word near some offset."""
    start = place(rng, len(content))
    pattern = rng.choice((NUMBER, WORD))
    match = pattern.search(content, start) or pattern.search(content)
    if match is None:
        return noise(content, rng)
    other = rng.choice(WORDS).encode("utf-8", "surrogatepass")
    return content[: match.start()] + other + content[match.end() :]


def shuffle_lines(content: bytes, rng: random.Random) -> bytes:
    """Drop, repeat or move one line."""
    lines = content.splitlines(keepends=True)
    line = lines.pop(rng.randrange(len(lines)))
    at = rng.randrange(len(lines) + 1)
    lines[at:at] = [line] * rng.randrange(3)
    return b"".join(lines)


CORRUPTIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    truncate,
    splice,
    cut_out,
    put_whole,
    noise,
    replace,
    shuffle_lines,
)


def corrupt(content: bytes, rng: random.Random) -> bytes:
    """Return a content with one to three kinds of damage."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if content:
            content = rng.choice(CORRUPTIONS)(content, rng)
    return content
