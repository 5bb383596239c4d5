import json

import pytest

from nasc_evo.errors import UserError
from nasc_evo.search.folder import RunFolder

IDENTITY = {"seed": 1, "problem": {"links": [{"uplink_mbps": 18.88}], "limits": {}}}


def opened(path, *, resume=False, identity=IDENTITY):
    return RunFolder(path, resume=resume, identity=identity, config={"seed": 1}, overrides=["a=1"])


def test_a_folder_in_use_is_refused(tmp_path):
    first = opened(tmp_path)
    with pytest.raises(UserError, match="is in use by another running search"):
        opened(tmp_path, resume=True)
    first.close()
    opened(tmp_path, resume=True).close()


def test_the_first_manifest_and_configuration_are_kept_on_resume(tmp_path):
    first = opened(tmp_path)
    first.finish({"stop_reason": "tested"})
    created = first.manifest["created"]
    first.close()
    (tmp_path / ".hydra" / "overrides.yaml").write_text("- kept\n")
    second = opened(tmp_path, resume=True)
    assert second.manifest["created"] == created
    second.close()
    assert (tmp_path / ".hydra" / "overrides.yaml").read_text() == "- kept\n"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "another seed: it had 1, this command has 2"),
        (
            {"problem": {"links": [{"uplink_mbps": 3.0}], "limits": {}}},
            "another problem.links.0.uplink_mbps: it had 18.88, this command has 3.0",
        ),
        (
            {"problem": {"links": [{"uplink_mbps": 18.88}], "limits": {"latency_ms": 9.0}}},
            "another problem.limits.latency_ms: it had 'absent', this command has 9.0",
        ),
    ],
)
def test_a_different_run_is_refused_by_what_differs(tmp_path, change, message):
    opened(tmp_path).close()
    with pytest.raises(UserError, match=message):
        opened(tmp_path, resume=True, identity=IDENTITY | change)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", json.dumps({"format": "other"}), json.dumps({"format": "nasc_evo run 1"})],
)
def test_a_damaged_manifest_is_refused(tmp_path, content):
    opened(tmp_path).close()
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="manifest"):
        opened(tmp_path, resume=True)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        opened(tmp_path / "file" / "out")
