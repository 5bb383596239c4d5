"""`python -m nasc_evo.repick`: the front of a finished run under another link, server or limit."""

import argparse
import gc
import hashlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nasc_evo.argparse_app import Parser, run_command
from nasc_evo.config import CHAIN_PARTS, check_used
from nasc_evo.errors import UserError, one_line

CHANGEABLE = (*CHAIN_PARTS, "chain", "objectives", "limits")
TARGETS = ("problems.FBNetSplit", "problems.NASBench201Split")
SWEPT = tuple(
    f"{link}.{rate}_mbps" for link in ("link", "backhaul") for rate in ("uplink", "downlink")
)
LOWEST_MBPS, HIGHEST_MBPS, RATES_A_DECADE = 0.1, 1000.0, 10
SHOWN_OFFERS = 5
EPILOG = """examples:
  python -m nasc_evo.repick run=outputs/fbnet-edgegpu/<date_time> link.uplink_mbps=2
  python -m nasc_evo.repick run=<dir> link=lte limits.latency_ms=40 evaluate=10
  python -m nasc_evo.repick run=<dir> sweep=link.uplink_mbps

keys:
  run=DIR         folder of a run of nasc_evo.run
  evaluate=K      evaluate the K most promising designs that the run did not
  sweep=KEY       a rate that goes from 0.1 to 1000 Mbps: {swept}
  out=DIR         where to write; default: a folder below <run>/repick named after the changes
  any of {changeable}, as for nasc_evo.run
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(_parser(), argv)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m nasc_evo.repick",
        description=__doc__,
        epilog=EPILOG.format(swept=", ".join(SWEPT), changeable=", ".join(CHANGEABLE)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", metavar="KEY=VALUE", nargs="+", help="see below")
    parser.set_defaults(run=without_collector)
    return parser


class Request(NamedTuple):
    """What a command line asks for.

    Attributes:
        run: Folder of the run.
        out: Where to write.
        evaluate: How many unevaluated designs to evaluate.
        sweep: The rate to sweep, if any.
        changes: What is different from the run, by key.
    """

    run: Path
    out: Path
    evaluate: int
    sweep: str | None
    changes: dict[str, Any]


def read_request(words: Sequence[str]) -> Request:
    """Return what the words of a command line say, in the grammar of Hydra's overrides.

    Raises:
        UserError: If a word is no `key=value`, or a key is unknown or given twice.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values: dict[str, Any] = {}
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except Exception as error:  # the parser raises many types
            raise UserError(f"'{word}' is no KEY=VALUE ({one_line(error)}).") from error
        key = override.key_or_group
        if override.type is None or override.type.name != "CHANGE" or override.package is not None:
            raise UserError(f"'{word}' is no KEY=VALUE: nothing can be added or removed here.")
        if override.is_sweep_override():
            raise UserError(f"'{word}' has several values; give one, or sweep={key}.")
        if key in values:
            raise UserError(f"{key} is given twice.")
        values[key] = override.value()
    run, out, sweep = (values.pop(key, None) for key in ("run", "out", "sweep"))
    evaluate = values.pop("evaluate", 0)
    if run is None:
        raise UserError("Give the folder of a run: run=outputs/fbnet-edgegpu/<date_time>.")
    if type(evaluate) is not int or evaluate < 0:
        raise UserError(f"evaluate must be a whole number >= 0, got {evaluate!r}.")
    if sweep is not None and sweep not in SWEPT:
        raise UserError(f"sweep must be one of {', '.join(SWEPT)}, got '{sweep}'.")
    if sweep is not None and sweep in values:
        raise UserError(f"{sweep} is swept, so that {sweep}={values[sweep]} has no effect.")
    for key in values:
        if key.split(".")[0] not in CHANGEABLE:
            raise UserError(
                f"repick keeps the designs of the run, '{key}' cannot change; "
                f"{', '.join(CHANGEABLE)} can, or search anew with `python -m nasc_evo.run`."
            )
    run = Path(str(run))
    changed = [word for word in words if word.split("=")[0] in values]
    folder = run / "repick" / _folder_name([*changed, *([f"sweep={sweep}"] if sweep else [])])
    return Request(run, folder if out is None else Path(str(out)), evaluate, sweep, values)


def _folder_name(words: Sequence[str]) -> str:
    """Return a name for a folder that says what is different, such as `link.uplink_mbps=2`."""
    text = ",".join(words) or "unchanged"
    name = re.sub(r"[^\w.,=+-]", "_", text)
    if name == text and len(name) <= 100:
        return name
    return f"{name[:80]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def changed_config(
    config: dict[str, Any], changes: dict[str, Any], extra: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the resolved configuration of a run with other machines, links or limits.

    Args:
        config: Resolved configuration of the run.
        changes: New values by key; the name of an option where the key is a group.
        extra: Further keys that will change.

    Raises:
        UserError: If a key or option does not exist, or has no effect on the chain.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from nasc_evo.config import group_options, load_group_option
    from nasc_evo.hydra_app import check_filled

    values = dict(config)
    for group in CHAIN_PARTS:  # fields that are newer than the run have their defaults
        given = values.get(group)
        if isinstance(given, dict) and given.get("name") in group_options(group):
            values[group] = {**load_group_option(group, given["name"]), **given}
    for field, kind in (("chain", dict), ("limits", dict), ("objectives", list)):
        if not isinstance(values.get(field), kind):
            got = "nothing" if field not in values else repr(values[field])[:200]
            raise UserError(
                f"{field} in the configuration of the run must be a {kind.__name__}, got {got}."
            )
    chain: Any = values["chain"]
    name = chain.get("name")
    if name in group_options("chain"):
        interpolated = load_group_option("chain", name)
        resolved = _resolved({**values, "chain": interpolated})["chain"]
        if all(_stripped(resolved[part]) == _stripped(chain.get(part)) for part in PARTS):
            values["chain"] = {**interpolated, **{k: v for k, v in chain.items() if k not in PARTS}}
    root = OmegaConf.create(values)
    OmegaConf.set_struct(root, True)
    for key, value in changes.items():
        try:
            if key in (*CHAIN_PARTS, "chain") and isinstance(value, str):
                root[key] = load_group_option(key, value)
            else:
                OmegaConf.update(root, key, value, merge=isinstance(value, dict))
        except (OmegaConfBaseException, ValueError) as error:  # ValueError: a name in a list
            text = one_line(error).split(" full_key:")[0]
            raise UserError(f"There is no option {key} ({text}).") from error
    check_used((*changes, *extra), OmegaConf.to_container(root.chain, resolve=False))
    check_filled(root)
    return _resolved(root)


PARTS = ("nodes", "links", "roles")


def _resolved(values: Any) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        result: Any = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(
            f"The chain has a part that the run does not name ({one_line(error)}); give it."
        ) from error
    return result


def _stripped(part: Any) -> Any:
    """Return nodes or links by the fields that every version of a run has."""
    if isinstance(part, list):
        return [_stripped(item) for item in part]
    if isinstance(part, dict):
        return {key: part.get(key) for key in ("name", "path", "uplink_mbps", "downlink_mbps")}
    return part


def create_problem(config: dict[str, Any], changed: dict[str, Any], **objects: Any) -> Any:
    """Return the problem of a run with other costs.

    Args:
        config: Resolved configuration of the run.
        changed: Of :func:`changed_config`.
        objects: Options that are objects.

    Raises:
        UserError: If the run is of a class of problems that does not ship, or an option is wrong.
    """
    from omegaconf import OmegaConf

    from nasc_evo.hydra_app import instantiate

    options = dict(config["problem"])
    if options.get("_target_") not in TARGETS:
        raise UserError(
            f"repick knows runs of {' and '.join(TARGETS)}, this one is of "
            f"{options.get('_target_')!r}; use nasc_evo.search.repick from Python."
        )
    options |= {name: changed[name] for name in ("chain", "objectives", "limits")}
    return instantiate(OmegaConf.create(options), **objects)


def without_collector(options: argparse.Namespace) -> int:
    """Run without the garbage collector: thousands of designs are read and stay to the end."""
    gc.disable()
    try:
        return repick(options)
    finally:
        gc.enable()


def repick(options: argparse.Namespace) -> int:
    """Re-cost the designs of a run, write and print their front or a sweep; return an exit code."""
    request = read_request(options.words)

    import nasc_evo.report.files
    import nasc_evo.report.table  # noqa: F401 - what takes time before the clock runs
    from nasc_evo.hydra_app import EXIT_INFEASIBLE
    from nasc_evo.report.display import create_console
    from nasc_evo.search.folder import JOURNAL, MANIFEST
    from nasc_evo.search.repick import RecordedEvaluator, RecordedRun, Repick

    start = time.perf_counter()
    console = create_console()
    if (request.out / MANIFEST).exists():
        raise UserError(f"out={request.out} is the folder of a run; write to another one.")
    run = RecordedRun.read(request.run, request.out / JOURNAL)
    swept = [] if request.sweep is None else [request.sweep]
    changed = changed_config(run.config, request.changes, swept)
    check_sweep(request.sweep, changed)
    evaluator = RecordedEvaluator(run.problem["evaluator"])
    problem = create_problem(run.config, changed, evaluator=evaluator, parallel="serial")
    picked = Repick(run, problem)
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        if request.evaluate:
            with held(request.out):
                picked = Repick(RecordedRun.read(request.run, request.out / JOURNAL), problem)
                evaluate(console, request, run, changed, picked)
                start = time.perf_counter()
                picked = Repick(RecordedRun.read(request.run, request.out / JOURNAL), problem)
        write = write_repick if request.sweep is None else write_sweep
        found = write(console, request, picked, changed, start)
    except OSError as error:
        raise UserError(
            f"The folder {request.out} cannot be written ({one_line(error)})."
        ) from error
    return 0 if found else EXIT_INFEASIBLE


def check_sweep(key: str | None, changed: dict[str, Any]) -> None:
    """Raise a UserError where a link has no rate that could be swept."""
    group, _, field = (key or "").partition(".")
    if field == "uplink_mbps" and changed[group].get(field) is None:
        raise UserError(
            f"{key} cannot be swept: a trace or relay gives the rates of {changed[group]['name']}; "
            f"give a link with a rate of its own, such as {group}=wifi."
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from evaluating designs into a folder.

    Raises:
        UserError: If one does so already.
    """
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise UserError(
            f"Another repick evaluates designs into {folder}; wait for it to end."
        ) from error


def evaluate(
    console: Any, request: Request, run: Any, changed: dict[str, Any], picked: Any
) -> None:
    """Evaluate the most promising designs, into a journal in the output folder."""
    from contextlib import closing
    from dataclasses import replace

    import numpy as np

    from nasc_evo.search.folder import JOURNAL, first_difference
    from nasc_evo.search.journal import Journal

    offers = picked.offers(picked.front(), request.evaluate)
    if not offers:
        console.print("No design that was not evaluated promises to be on the front.")
        return
    problem = create_problem(run.config, changed)
    with closing(problem), closing(Journal(request.out / JOURNAL)) as journal:
        difference = first_difference(run.problem["evaluator"], problem.evaluator.describe())
        if difference is not None:
            key, before, now = difference
            raise UserError(
                f"New designs cannot be scored as those of {run.path} were: {key} was {before!r}, "
                f"here it is {now!r}."
            )
        first = picked.next_index

        def keep(evaluation: Any, computed: bool) -> None:
            journal.append(replace(evaluation, index=first + evaluation.index))
            console.print(
                f"{evaluation.index + 1}/{len(offers)} evaluated: error "
                f"{evaluation.score.error:.4f} where {errors[evaluation.design.key]:.4f} was "
                "assumed",
                highlight=False,
            )

        errors = {offer.design.key: offer.error for offer in offers}
        problem.on_evaluation = keep
        problem.assess(np.array([problem.space.encode(offer.design) for offer in offers]))


def write_repick(
    console: Any, request: Request, picked: Any, changed: dict[str, Any], start: float
) -> bool:
    """Write and print the new front; return whether there is one."""
    from nasc_evo.report.files import write_front
    from nasc_evo.report.table import print_infeasible, print_result
    from nasc_evo.search.loop import SearchResult

    problem = picked.problem
    front = picked.front()
    offers = picked.offers(front, SHOWN_OFFERS) if front else []
    result = picked.result(front)
    search = SearchResult(picked.evaluations, 0, f"re-picked from {request.run}")
    further = {
        "repick": {
            "run": str(request.run),
            "changes": request.changes,
            "origins": {str(key): text for key, text in picked.origins(front).items()},
            "offers": [
                {
                    "key": offer.design.key,
                    "parent": offer.parent,
                    "assumed_error": offer.error,
                    "latency_ms": offer.latency_ms,
                }
                for offer in offers
            ],
        }
    }
    write_front(request.out, problem, search, result, further=further)
    seconds = time.perf_counter() - start
    if front:
        from nasc_evo.report.pictures import draw_front

        draw_front(request.out, problem, search, result)
        print_result(console, problem, result)
    else:
        print_infeasible(console, problem, result)
    for name in picked.other_tables():
        console.print(
            f"Note: the cost table of {name} is not the one that the run had.", highlight=False
        )
    for offer in offers:
        cuts, bits = ("/".join(map(str, part)) for part in (offer.design.cuts, offer.design.bits))
        how = f"with cut {cuts} at {bits} bits" if any(offer.design.bits) else f"with cut {cuts}"
        console.print(
            f"Not evaluated: design {offer.parent} {how} would take {offer.latency_ms:.3f} ms; its "
            f"error is not known, that of design {offer.parent} is {100 * offer.error:.2f} %.",
            highlight=False,
        )
    if offers:
        console.print(f"Evaluate such designs with evaluate={len(offers)}.", highlight=False)
    _say_where(
        console,
        f"{len(picked.evaluations)} designs of the run re-costed, front written in {seconds:.2f} s",
        request.out,
    )
    return bool(front)


def _say_where(console: Any, what: str, out: Path) -> None:
    from nasc_evo.report.display import short_path

    console.print(f"{what}: {short_path(out)}", highlight=False, markup=False, soft_wrap=True)


def rates() -> Iterator[float]:
    """Yield the rates of a sweep, in Mbps, evenly on a logarithmic scale."""
    import math

    lowest, highest = math.log10(LOWEST_MBPS), math.log10(HIGHEST_MBPS)
    steps = round((highest - lowest) * RATES_A_DECADE)
    for i in range(steps + 1):
        yield float(f"{10 ** (lowest + i * (highest - lowest) / steps):.4g}")


def write_sweep(
    console: Any, request: Request, picked: Any, changed: dict[str, Any], start: float
) -> bool:
    """Write how the chosen design moves with a rate; return whether there is one at any rate."""
    from nasc_evo.cost import Link
    from nasc_evo.problem import VARYING
    from nasc_evo.report.files import write_rows
    from nasc_evo.report.pictures import draw_sweep
    from nasc_evo.search.final import COLUMNS, front_rows

    key = request.sweep
    assert key is not None
    group, field = key.split(".")
    rows = []
    picked = picked.over_any_links()
    for rate in rates():
        value = {**changed[group], field: rate}
        values = changed_config(changed, {group: value})
        links = [Link.create(link) for link in values["chain"]["links"]]
        here = picked.with_chain(picked.problem.chain.with_links(links))
        front = here.front()
        row: dict[str, Any] = {key: rate, "front": len(front)}
        if front:
            result = here.result(front, references=False)
            accurate = min(range(len(front)), key=lambda i: front[i].score.error)
            row |= front_rows(result)[accurate if picked.problem.limits else result.recommended]
        rows.append(row)
    varying = VARYING if picked.problem.chain.varies else ()
    columns = (key, "front", *(name for name in COLUMNS if name != "error_test"), *varying)
    write_rows(
        request.out / "sweep.csv",
        columns,
        [{name: row.get(name, "") for name in columns} for row in rows],
    )
    draw_sweep(request.out, picked.problem, key, rows)
    cuts = list(dict.fromkeys(str(row["cut"]) for row in rows if "cut" in row))
    chosen = ", ".join(cuts) or "none, no design meets the limits"
    _say_where(
        console,
        f"Chosen cuts from {LOWEST_MBPS:g} to {HIGHEST_MBPS:g} Mbps: {chosen}. sweep.csv and "
        f"sweep.png written in {time.perf_counter() - start:.2f} s",
        request.out,
    )
    return bool(cuts)


if __name__ == "__main__":
    sys.exit(main())
