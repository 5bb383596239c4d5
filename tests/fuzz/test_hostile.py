"""Files made to exhaust memory or time, to run something or to leave their folder."""

import codecs
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from itertools import pairwise

import pytest

from nasc_evo.data import cifar100
from nasc_evo.files import check_uncompressed
from nasc_evo.search.folder import JOURNAL
from tests.fuzz.guard import refused
from tests.fuzz.readers import READERS
from tests.fuzz.test_readers import write

GIGABYTE = 2**30


def npy(shape: str, content: bytes = b"", kind: str = "|u1") -> bytes:
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def zipped(member: bytes | None = None, method: int = zipfile.ZIP_DEFLATED, n: int = 1) -> bytes:
    """Return an archive of `n` members; the first array holds zeros without end if None."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        with archive.open("x_train.npy", "w", force_zip64=True) as first:
            if member is None:
                first.write(npy("(2, 32, 32, 3)"))
                for _ in range(300):
                    first.write(bytes(2**20))
            else:
                first.write(member)
        for index in range(1, n):
            archive.writestr(f"{index}.npy", b"")
    return file.getvalue()


def archive(*members: tuple[str, int, bytes | None, str]) -> bytes:
    """Return a tar.gz of members of (name, claimed size, type, target of a link)."""
    file = io.BytesIO()
    for name, size, kind, target in members:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname = size, kind or tarfile.REGTYPE, target
        file.write(info.tobuf(tarfile.GNU_FORMAT))
    file.write(bytes(1024))
    return gzip.compress(file.getvalue(), 1)


def shared(depth: int = 60) -> list:
    """Return a small list that prints, and converts to an array, as 2**60 items."""
    tree: list = [1.0]
    for _ in range(depth):
        tree = [tree, tree]
    return tree


class Encoded:
    """Pickles as a text encoded by something that prints without end."""

    def __reduce__(self):
        return codecs.encode, ("a", shared())


def without_end() -> bytes:
    reader = READERS["nats_bench"]
    (content,) = reader.make().values()
    tree = reader.document.load(content)
    tree["200"]["all_results"]["cifar10", 777]["params"] = shared()
    return reader.document.dump(tree)


def figures_without_end() -> bytes:
    reader = READERS["hw_nas_bench"]
    (content,) = reader.make().values()
    tree = reader.document.load(content)
    tree["nasbench201"]["cifar10"]["edgegpu_latency"] = shared()
    return reader.document.dump(tree)


def with_tensor(shape: list[int], offsets: list[int]) -> bytes:
    header = json.dumps({"x": {"dtype": "F16", "shape": shape, "data_offsets": offsets}}).encode()
    return len(header).to_bytes(8, "little") + header


def with_lines(*lines: str) -> bytes:
    return "".join(f"# {line}\n" for line in lines).encode()


TRAIN = "cifar-100-binary/train.bin"
TRAIN_SIZE = 2 * cifar100.RECORD_BYTES
KEY = b"Nu."
HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "array of a terabyte": ("image_arrays", lambda: zipped(npy("(1099511627776,)")), "more than"),
    "array of overflowing size": (
        "image_arrays",
        lambda: zipped(npy(f"({2**62}, 8)")),
        "more than",
    ),
    "array of negative size": ("image_arrays", lambda: zipped(npy("(-1,)")), "are not read"),
    "texts of a terabyte": (
        "image_arrays",
        lambda: zipped(npy("(1,)", kind="<U274877906944")),
        "damaged",
    ),
    "array longer than it says": ("image_arrays", zipped, "length of an array"),
    "array of objects": (
        "image_arrays",
        lambda: zipped(npy("(1,)", pickle.dumps([1]), "|O")),
        "are not read",
    ),
    "array compressed by lzma": (
        "image_arrays",
        lambda: zipped(npy("(1,)", b"1"), zipfile.ZIP_LZMA),
        "method",
    ),
    "too many arrays": ("image_arrays", lambda: zipped(b"", n=5000), "more than 1000 arrays"),
    "gzip bomb": ("idx_file", lambda: gzip.compress(bytes(GIGABYTE // 8), 1), "holds more than"),
    "gzip bomb of an archive": (
        "cifar_archive",
        lambda: gzip.compress(bytes(GIGABYTE // 4), 1),
        "holds more than",
    ),
    "archive whose file is a symlink": (
        "cifar_archive",
        lambda: archive((TRAIN, 0, tarfile.SYMTYPE, "/etc/passwd")),
        "is no file of 2 images",
    ),
    "archive whose file is a hard link": (
        "cifar_archive",
        lambda: archive((TRAIN, TRAIN_SIZE, tarfile.LNKTYPE, "../../x")),
        "is no file of 2 images",
    ),
    "archive that leaves its folder": (
        "cifar_archive",
        lambda: archive(("../../cifar-100-binary/train.bin", 0, None, "")),
        "damaged",
    ),
    "archive of a terabyte": (
        "cifar_archive",
        lambda: archive((TRAIN, 2**40, None, "")),
        "damaged",
    ),
    "archive with a header of a gigabyte": (
        "cifar_archive",
        lambda: archive(("x", GIGABYTE, tarfile.XHDTYPE, "")),
        "damaged",
    ),
    "archive of countless files": (
        "cifar_archive",
        lambda: archive(*[(f"{i}", 0, None, "") for i in range(20000)]),
        "damaged",
    ),
    "header of terabytes": (
        "weights",
        lambda: (2**63).to_bytes(8, "little") + b"{}",
        "a header of 9223372036854775808 bytes",
    ),
    "tensor of terabytes": (
        "weights",
        lambda: with_tensor([2**20, 2**20], [0, 2**41]),
        "damaged",
    ),
    "tensor of overflowing size": ("weights", lambda: with_tensor([2**62, 0], [0, 0]), "not hold"),
    "memo of 64 GB": ("hw_nas_bench", lambda: b"\x80\x02Nr\xff\xff\xff\xff.", "no mapping"),
    "bytes of terabytes": (
        "hw_nas_bench",
        lambda: b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b".",
        "damaged",
    ),
    "byte array of terabytes": (
        "hw_nas_bench",
        lambda: b"\x80\x05\x96" + (2**45).to_bytes(8, "little") + b".",
        "damaged",
    ),
    "endless small lists": ("hw_nas_bench", lambda: b"\x80\x02" + b"]" * 10**7, "operations"),
    "key nested deeply": (
        "hw_nas_bench",
        lambda: b"\x80\x02})" + b"\x85" * 10**6 + KEY,
        "simple value",
    ),
    "key that takes for ever to hash": (
        "hw_nas_bench",
        lambda: b"\x80\x02})" + b"2\x86" * 60 + KEY,
        "simple value",
    ),
    "set of keys that take for ever": (
        "hw_nas_bench",
        lambda: b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90.",
        "simple value",
    ),
    "calls that copy a text again and again": (
        "hw_nas_bench",
        lambda: (
            b"\x80\x02c_codecs\nencode\nq\x01X"
            + (10**6).to_bytes(4, "little")
            + b"a" * 10**6
            + b"q\x02]("
            + b"h\x01h\x02\x85R" * 10**4
            + b"e."
        ),
        "more than it holds",
    ),
    "number that prints without end": ("nats_bench", without_end, "got a list"),
    "figures without end": ("hw_nas_bench", figures_without_end, "something in it is no number"),
    "encoding that prints without end": (
        "hw_nas_bench",
        lambda: pickle.dumps(Encoded(), 2),
        "bytes written as a list",
    ),
    "change of the reader itself": (
        "hw_nas_bench",
        lambda: b"\x80\x02c_codecs\nencode\nN}U\x0c__defaults__U\x03zip\x85s\x86b.",
        "a state of something that has none",
    ),
    "header of aliases": (
        "cost_table",
        lambda: with_lines(
            "format: nasc_evo cost table 1",
            "a: &a [x, x, x, x, x, x, x, x, x]",
            *[f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}]" for a, b in pairwise("abcdefghijkl")],
            "name: *l",
            "space: *l",
            "geometry: 32",
        ),
        "aliases are not read",
    ),
    "header without end": (
        "cost_table",
        lambda: with_lines("format: nasc_evo cost table 1", *["- 1:1:1"] * 10**5),
        "more than 65536 characters",
    ),
    "header that makes an object": (
        "cost_table",
        lambda: with_lines("format: !!python/object/apply:os.system [touch was_run]"),
        "no YAML mapping",
    ),
    "document nested deeply": ("run_manifest", lambda: b"[" * 10**6, "nested too deeply"),
    "document nested less deeply": (
        "run_manifest",
        lambda: b'{"identity":' * 300 + b"1" + b"}" * 300,
        "nested too deeply",
    ),
    "document of 32 MB": ("weight_manifest", lambda: b" " * 2**25, "holds more than"),
    "journal with a line without end": ("journal", lambda: b"[" * 2**25, "too long"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(name, tmp_path, monkeypatch):
    reader_name, make, says = HOSTILE[name]
    reader, content = READERS[reader_name], make()
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    files = reader.make()
    file = (reader.corrupted or tuple(files))[0]
    write(files | {file: content}, inside)
    assert says in refused(lambda: reader.read(inside), name)
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]
    assert not (inside / "was_run").exists()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("reader_name", READERS)
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_file_is_refused(reader_name, kind, tmp_path):
    """A pipe that nobody writes to never ends, nor does a device of zeros."""
    reader = READERS[reader_name]
    files = reader.make()
    write(files, tmp_path)
    path = tmp_path / (reader.corrupted or tuple(files))[0]
    path.unlink()
    make = {"device": lambda: path.symlink_to("/dev/zero"), "pipe": lambda: os.mkfifo(path)}
    make.get(kind, path.mkdir)()
    message = refused(lambda: reader.read(tmp_path), kind)
    left_aside = {"official_totals"} | ({"collected"} if kind == "folder" else set())
    assert message or reader_name in left_aside


def test_a_checkpoint_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(zipped(method=zipfile.ZIP_STORED, member=b"weights"))
    check_uncompressed(path)
    path.write_bytes(zipped())
    with pytest.raises(ValueError, match="claims to hold"):
        check_uncompressed(path)


def test_a_checkpoint_with_a_long_name_is_refused(tmp_path):
    """torch would look through the name for hours."""
    (content,) = READERS["checkpoint"].make().values()
    (layer,) = READERS["checkpoint"].layers
    named = layer.unpack(content).replace(b"_rebuild_tensor_v2", b"_" * 300_000)
    (tmp_path / "checkpoint.pt").write_bytes(layer.pack(named))
    message = refused(lambda: READERS["checkpoint"].read(tmp_path), "a long name")
    assert "it uses a name of 300013 characters" in message


def test_a_journal_cut_at_any_byte_of_its_last_two_lines_keeps_all_whole_ones(tmp_path):
    reader = READERS["journal"]
    write(reader.make(), tmp_path)
    path, content = tmp_path / JOURNAL, reader.make()[JOURNAL]
    lines = content.splitlines(keepends=True)
    scores = reader.read(tmp_path)
    assert len(scores) == len(lines)
    for size in range(len(b"".join(lines[:-2])), len(content) + 1):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        assert list(reader.read(tmp_path).items()) == list(scores.items())[:whole]
        assert path.read_bytes() == b"".join(lines[:whole])  # so that the next line is whole


def test_any_damaged_byte_of_a_middle_line_is_named_or_changes_that_line_only(tmp_path):
    reader = READERS["journal"]
    lines = reader.make()[JOURNAL].splitlines(keepends=True)
    write(reader.make(), tmp_path)
    scores = list(reader.read(tmp_path).items())
    for place in range(len(lines[2]) - 1):
        damaged = lines[2][:place] + b"\x00" + lines[2][place + 1 :]
        (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:2], damaged, *lines[3:]]))
        message = refused(lambda: reader.read(tmp_path), f"byte {place}")
        assert "Line 3 of the journal" in message
        assert "delete that line" in message
    (tmp_path / JOURNAL).write_bytes(b"".join([*lines[:2], *lines[3:]]))
    assert list(reader.read(tmp_path).items()) == [*scores[:2], *scores[3:]]
