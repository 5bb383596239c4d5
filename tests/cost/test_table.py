import numpy as np
import pytest

from nasc_evo.cost import CostTable
from nasc_evo.cost.table import TABLES
from nasc_evo.errors import UserError
from nasc_evo.space import FBNetSpace

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
