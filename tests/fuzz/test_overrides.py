"""Random options of the command line end well or as one sentence with exit code 2.

`NASC_EVO_FUZZ=N:N+1 pytest tests/fuzz -k overrides` repeats number N.
"""

import random
import time
from pathlib import Path

import pytest

from nasc_evo.config import group_options
from tests.fuzz.command import command_line
from tests.fuzz.guard import numbers

COMMANDS = 70
SUBPROCESSES = 2
GROUPS = (
    *("algorithm", "backhaul", "chain", "dataset", "device", "edge", "evaluator", "link"),
    *("problem", "server"),
)
OPTIONS = (
    *("objectives", "allow_raw_offload", "min_device_blocks", "mask_groups", "bits", "n_eval"),
    *(
        "seed",
        "rescore",
        "truth",
        "warm_start",
        "limits",
        "limits.error",
        "limits.latency_ms",
        "limits.energy_mj",
    ),
    *("algorithm.pop_size", "algorithm.crossover", "algorithm.crossover_rate", "algorithm.name"),
    *("algorithm.cut_rate", "algorithm.best_cut_rate", "device.path", "device.name", "server.path"),
    *("device.idle_mw", "dataset.name", "dataset.geometry", "chain.nodes", "chain.links"),
    *("dataset.path", "dataset.fit", "dataset.seed", "dataset.test_share"),
    *("chain.roles", "chain.nodes.0", "chain.name", "link.uplink_mbps", "link.downlink_mbps"),
    *("link.rtt_ms", "link.efficiency", "link.overhead_bytes", "link.radio", "link.name"),
    *("link.loss", "link.message_ms", "link.packet_bytes", "link.rate_sigma", "link.trace"),
    *("link.relay", "link.relay.snr_db", "link.relay.shadowing_db", "chain.min_last_blocks"),
    *("chain.result_bytes", "edge.path", "backhaul.uplink_mbps", "limits.latency_p95_ms"),
    *("link.radio.beta_mw", "link.source", "evaluator.images", "evaluator.calibration_images"),
    *("evaluator.dtype", "evaluator.chunk", "evaluator.threads", "evaluator.processor"),
    *("evaluator.weights", "evaluator.name", "problem.bits", "problem._target_", "problem.limits"),
    *("problem._convert_", "problem._partial_", "problem._args_", "problem._recursive_"),
)
NUMBERS = (
    *(
        "0",
        "1",
        "-1",
        "2",
        "8",
        "16",
        "0.5",
        "3.7",
        "1e400",
        "-1e400",
        "nan",
        "inf",
        "-inf",
        "1e-300",
    ),
    *(
        "1e300",
        str(2**31),
        str(2**63),
        "1" * 50,
        "9" * 5000,
        "0x10",
        "1_000",
        "08",
        "1e5",
        "100000000",
    ),
)
TEXTS = (
    *("null", "true", "false", "", "''", '""', "'a b'", "a b", "é", "\U0001f4a5", "\u2028", "a=b"),
    *("???", "${x}", "${seed}", "${n_eval}", "${problem}", "${oc.env:HOME}", "${oc.env:NOTHING}"),
    *(
        "${",
        "${seed",
        "$",
        "\\",
        "'",
        '"',
        "{",
        "[",
        ",",
        ":",
        "@",
        "~",
        "!!python/object:os.system",
    ),
    *(
        "/dev/null",
        "/",
        ".",
        "nowhere.csv",
        "A" * 10000,
        "cpu",
        "cuda:99",
        "cpu:7",
        "channels",
        "all",
    ),
    *("full", "supernet", "tabular", "os.system", "problems.FBNetSplit", "builtins.dict"),
    *("nasc_evo.problem.SplitProblem", "error", "latency_ms", "energy_mj", "macs", "two_point"),
)
TREES = (
    *(
        "[]",
        "{}",
        "[error,latency_ms]",
        "[error,macs,params]",
        "[error,error]",
        "[4,6,8]",
        "[4]",
        "[3]",
    ),
    *(
        "[null]",
        "{a:1}",
        "{a:{b:{c:[1,2,{d:null}]}}}",
        "{_target_:os.system,_args_:[touch was_run]}",
    ),
    *(
        "[[],[]]",
        "[nan]",
        "[1e400]",
        "[8,8]",
        "[32,16]",
        "{name:edgegpu}",
        "{name:wifi,uplink_mbps:3}",
    ),
    *("[raspi4,edgegpu]", "[raspi4,titan_rtx,titan_rtx]", "[wifi,lte]", "[device,server,device]"),
    *("{error:0.5}", "{latency_ms:-1}", "{nothing:1}", "[" + ",".join(["8"] * 3000) + "]"),
    *("[" * 50 + "]" * 50, "[" * 2000 + "]" * 2000, "[" + ",".join(["edgegpu"] * 40) + "]"),
    *("{alpha_up_mw_per_mbps:1,alpha_down_mw_per_mbps:1,beta_mw:a}", "{1:2}", "{true:null}"),
)


def value(rng: random.Random) -> str:
    kind = rng.choice((NUMBERS, NUMBERS, TEXTS, TREES))
    text = rng.choice(kind)
    if rng.random() < 0.05:
        text = f"{text},{rng.choice(NUMBERS)}"
    if rng.random() < 0.05:
        text = "".join(rng.choice("abc019${}[](),.:=+~@'\"\\ \t\n-_/é%") for _ in range(12))
    return text


def override(rng: random.Random) -> str:
    """Return one override, valid or not."""
    group = rng.choice(GROUPS)
    key = rng.choice(OPTIONS)
    forms = (
        lambda: f"{key}={value(rng)}",
        lambda: f"{key}={value(rng)}",
        lambda: f"{key}={value(rng)}",
        lambda: f"{group}={rng.choice(group_options(group))}",
        lambda: f"{group}={rng.choice(group_options(group))}",
        lambda: f"{group}={value(rng)}",
        lambda: f"{rng.choice(('+', '++'))}{key}={value(rng)}",
        lambda: (
            f"{rng.choice(('+', '++'))}{group}.{rng.choice(('foo', 'name', '_target_', '0'))}"
            f"={value(rng)}"
        ),
        lambda: f"+{rng.choice(('foo', 'foo.bar', 'x@y', 'limits.foo'))}={value(rng)}",
        lambda: f"~{rng.choice((group, key, 'foo'))}{rng.choice(('', '=' + value(rng)))}",
        lambda: f"{group}@{rng.choice(GROUPS)}={rng.choice(group_options(group))}",
        lambda: f"{key[:-1]}={value(rng)}",
        lambda: value(rng),
        lambda: f"{group}.{key}={value(rng)}",
    )
    return rng.choice(forms)()


def arguments(number: int) -> list[str]:
    """Return the command line of a number."""
    rng = random.Random(f"command line {number}")
    count = rng.choice((1, 1, 1, 2, 2, 3, 4))
    return [*rng.choice(((), (), (), ("-m",))), *(override(rng) for _ in range(count))]


def check(code: int, errors: str, what: str) -> None:
    """Check that a command ended well or in one sentence for each of its jobs."""
    lines = errors.strip().splitlines()
    assert code in (0, 2), f"{what}: exit code {code}: {errors[-2000:]}"
    assert "Traceback" not in errors, f"{what}: {errors[-3000:]}"
    assert (code == 2) == bool(lines), f"{what}: exit code {code} with {errors[-2000:]!r}"
    if lines and lines[0].startswith("usage: "):  # what looks like a flag is for argparse to say
        assert "nasc_evo.run: error: " in errors, what
        return
    for line in lines:
        assert line.startswith("Error: "), f"{what}: {errors[:2000]}"
        assert len(line) <= 1200, f"{what}: {line[:3000]}"


def test_random_overrides_end_well_or_in_one_sentence(tmp_path, monkeypatch, record):
    monkeypatch.chdir(tmp_path)
    codes, longest, start = {0: 0, 2: 0}, 0.0, time.perf_counter()
    for number in numbers(COMMANDS):
        given = arguments(number)
        what = f"command line {number}: {[text[:300] for text in given]}"
        began = time.perf_counter()
        try:
            code, errors = command_line(given)
        except BaseException as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {str(error)[:500]}") from error
        check(code, errors, what)
        longest = max(longest, time.perf_counter() - began)
        codes[code] += 1
        assert not Path("was_run").exists(), what
    assert min(codes.values()) > 0
    record(
        "command_line",
        inputs=sum(codes.values()),
        refused=codes[2],
        seconds=round(time.perf_counter() - start, 1),
        longest_seconds=round(longest, 3),
    )


@pytest.mark.parametrize(
    "given",
    [
        "problem._target_=os.system",
        "problem._target_=nasc_evo.run.build",
        "+link._target_=os.system",
        "+evaluator._target_=os.system",
        "device={_target_:os.system,_args_:[touch was_run]}",
        "chain.nodes.0={_target_:os.system,_args_:[touch was_run]}",
        "link={_target_:os.system,command:touch was_run}",
    ],
)
def test_a_configuration_names_nothing_to_be_called(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, errors = command_line([given])
    assert code == 2
    check(code, errors, given)
    assert not Path("was_run").exists()


def test_a_chain_has_few_nodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nodes, links = ",".join(["raspi4"] * 12), ",".join(["wifi"] * 11)
    chain = [f"chain.nodes=[{nodes}]", f"chain.links=[{links}]", "chain.roles=null"]
    code, errors = command_line(chain)
    assert code == 2
    assert "needs 2 to 5 nodes" in errors


def test_random_overrides_of_real_processes(cli):
    refusals = (number for number in range(1000) if "-m" not in arguments(number))
    for number in list(refusals)[:SUBPROCESSES]:
        given = [text for text in arguments(number) if "\x00" not in text]
        result = cli(*given, "n_eval=0")
        assert result.returncode == 2
        check(result.returncode, result.stderr, f"command line {number}: {given}")
