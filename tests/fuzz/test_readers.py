"""Every reader of files either reads a damaged file or refuses it in one sentence.

A failure names reader and number; `NASC_EVO_FUZZ=N:N+1 pytest tests/fuzz -k READER` repeats it.
`NASC_EVO_FUZZ=10000 pytest tests/fuzz` tries as many inputs a reader.
"""

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.corruption import corrupt
from tests.fuzz.guard import numbers, refused
from tests.fuzz.readers import READERS, Files, Reader

FUZZ_INPUTS = 40
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**400, -(2**70), 2**63, "\ud800", "a" * 5000]),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
    max_leaves=10,
)


def write(files: Files, folder: Path) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def corrupted(reader: Reader, rng: random.Random) -> Files:
    """Return the valid files with damage in one of them, perhaps inside of a container."""
    files = reader.make()
    name = rng.choice(reader.corrupted or tuple(files))
    layer = rng.choice((None, *reader.layers))
    if layer is None:
        return files | {name: corrupt(files[name], rng)}
    return files | {name: layer.pack(corrupt(layer.unpack(files[name]), rng))}


def replaced(draw: st.DrawFn, tree: Any) -> Any:
    """Return a tree with an arbitrary value or tree in the place of some part of it."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(list(tree)))
        return tree | {key: replaced(draw, tree[key])}
    if isinstance(tree, list) and tree and draw(st.integers(0, 5)):
        index = draw(st.integers(0, len(tree) - 1))
        return [*tree[:index], replaced(draw, tree[index]), *tree[index + 1 :]]
    return draw(VALUES)


@pytest.mark.parametrize("name", [name for name in READERS if READERS[name].document])
def test_any_value_in_any_field_is_read_or_refused(name, tmp_path, record):
    reader = READERS[name]
    files = reader.make()
    write(files, tmp_path)
    file = (reader.corrupted or tuple(files))[0]
    tree = reader.document.load(files[file])
    counts = Counter()

    @settings(
        max_examples=len(numbers(FUZZ_INPUTS)),
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        content = reader.document.dump(replaced(data.draw, tree))
        (tmp_path / file).write_bytes(content)
        message = refused(lambda: reader.read(tmp_path), f"{name} with {content[:500]!r}")
        counts[bool(message)] += 1

    check()
    assert counts[True] > 0
    record(f"{name} (fields)", inputs=counts.total(), refused=counts[True])


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(name, tmp_path):
    write(READERS[name].make(), tmp_path)
    assert not refused(lambda: READERS[name].read(tmp_path), name)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name, tmp_path, record):
    reader = READERS[name]
    write(reader.make(), tmp_path)
    refusals, longest, start = 0, 0.0, time.perf_counter()
    tried = numbers(FUZZ_INPUTS)[:: reader.step]
    for number in tried:
        write(corrupted(reader, random.Random(f"{name} {number}")), tmp_path)
        began = time.perf_counter()
        refusals += bool(refused(lambda: reader.read(tmp_path), f"input {number} of {name}"))
        longest = max(longest, time.perf_counter() - began)
    assert refusals > 0
    record(
        name,
        inputs=len(tried),
        refused=refusals,
        seconds=round(time.perf_counter() - start, 1),
        longest_seconds=round(longest, 3),
    )
