import numpy as np
import pytest

from nasc_evo.cost import CostTable
from nasc_evo.cost.table import TABLES, write_table
from nasc_evo.errors import UserError
from nasc_evo.space import FBNetSpace, NASBench201Space

SPACE = FBNetSpace(32, 10)
TEXT = (TABLES / "fbnet_32_edgegpu.csv").read_text()


def test_a_users_copy_loads_as_the_shipped_table(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(TEXT)
    mine, shipped = CostTable.load(path, SPACE), CostTable.shipped("edgegpu", SPACE)
    assert np.array_equal(mine.latency_ms, shipped.latency_ms, equal_nan=True)
    assert mine.sha256 == shipped.sha256
    assert mine.header["licence"].startswith("MIT")


def test_unknown_energy_is_none():
    assert CostTable.shipped("raspi4", SPACE).energy_mj is None
    assert CostTable.shipped("titan_rtx", SPACE).energy_mj is None


def test_a_server_without_figures_at_224_is_one_sentence():
    with pytest.raises(UserError, match="No cost table of 'titan_rtx' ships for fbnet at 224x224"):
        CostTable.shipped("titan_rtx", FBNetSpace(224, 10))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("space: fbnet", "space: other", "is for space other, this run needs fbnet"),
        ("geometry: 32", "geometry: 224", "is for geometry 224, this run needs 32"),
        ("nasc_evo cost table 1", "other", "must begin with '# format:"),
        ("# name: edgegpu\n", "", "lacks name"),
        ("# space: fbnet", "# space: [", "is no YAML mapping"),
        ("# space: fbnet", "# made: 2024-02-30\n# space: fbnet", "is no YAML mapping"),
        ("position,op,latency_ms,energy_mj", "op,latency_ms", "must have the columns"),
        ("stem,-,0.5281262397766113", "stem,-,-1", "must be a number >= 0, got '-1'"),
        ("stem,-,0.5281262397766113", "stem,-,nan", "must be a number >= 0, got 'nan'"),
        ("stem,-,0.5281262397766113", "stem,-,", "must be a number >= 0, got ''"),
        ("stem,-,0.5281262397766113", "stem,-,fast", "got 'fast'"),
        ("stem,-,0.5281262397766113", "stem,-,0,5281262397766113", "decimals with a point"),
        ("layer_1,skip,0.0,0.0\n", "layer_1,skip,0.0\n", "must have the 4 fields"),
        ("layer_1,skip", "layer_1,k7_e1", "no position 'layer_1', op 'k7_e1'"),
        ("layer_1,k3_e3", "layer_1,k3_e1", "is given twice"),
        ("layer_1,skip,0.0,0.0\n", "", "lacks 1 of 202 rows, the first is 'layer_1 skip'"),
        ("layer_1,skip,0.0,0.0\n", "layer_1,skip,0.0,\n", "energy_mj for 201 of 202 rows"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, old, new, message):
    assert old in TEXT
    path = tmp_path / "mine.csv"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        CostTable.load(path, SPACE)


def test_files_that_are_no_tables_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no cost table file"):
        CostTable.load(tmp_path / "none.csv", SPACE)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        CostTable.load(tmp_path / "binary.csv", SPACE)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(UserError, match="must begin with"):
        CostTable.load(tmp_path / "empty.csv", SPACE)


@pytest.mark.parametrize("key", ["constant_ms", "constant_mj"])
@pytest.mark.parametrize("value", ["-1", "yes", ".inf", "[1]"])
def test_a_constant_that_is_no_cost_is_refused(tmp_path, key, value):
    lines = TEXT.splitlines()
    lines.insert(1, f"# {key}: {value}")
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"{key} in the header of .* must be a number >= 0, got"):
        CostTable.load(tmp_path / "mine.csv", SPACE)


CELLS = NASBench201Space()
BESIDE = {p.name for p in CELLS.positions if p.optional}


def cells(path, beside, energy_mj=None):
    """Write a table of NAS-Bench-201 with those of the optional rows that `beside` is true for."""
    rows = {}
    for position in CELLS.positions:
        for i, op in enumerate(position.ops):
            if position.name not in BESIDE or beside(position.name, op):
                rows[position.name, op] = {"latency_ms": 0.1 * i, "energy_mj": energy_mj}
    write_table(path, CELLS, {"name": "mine"}, rows)
    return CostTable.load(path, CELLS)


@pytest.mark.parametrize("energy_mj", [None, 2.0])
def test_optional_rows_may_be_left_out_together(tmp_path, energy_mj):
    table = cells(tmp_path / "a.csv", lambda name, op: False, energy_mj)
    beside = [i for i, position in enumerate(CELLS.positions) if position.optional]
    assert (table.latency_ms[beside][:, :4] == 0).all()
    if energy_mj is None:
        assert table.energy_mj is None
    else:
        assert (table.energy_mj[beside][:, :4] == 0).all()
    full = cells(tmp_path / "b.csv", lambda name, op: True, energy_mj)
    assert full.latency_ms[beside[0]].tolist()[:4] == pytest.approx([0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("beside", "first"),
    [
        (lambda name, op: not name.endswith("relus"), "'stage_1_relus 0'"),
        (lambda name, op: op != "3", "'stage_1_relus 3'"),
        (lambda name, op: (name, op) == ("stage_1_relus", "0"), "'stage_1_relus 1'"),
    ],
)
def test_some_of_the_optional_rows_are_refused(tmp_path, beside, first):
    with pytest.raises(UserError, match=f"first is {first}; give all rows like this one or none"):
        cells(tmp_path / "a.csv", beside)
