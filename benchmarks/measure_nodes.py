"""Cost tables of this machine, one after the other, as they ship.

python benchmarks/measure_nodes.py --name xeon --backends torch onnxruntime --threads 1 2
python benchmarks/measure_nodes.py --name h100 --processor cuda --threads 2 --rounds 2

Writes <folder>/<space>_<geometry>_<name>[_<backend>][_<launch>][_t<threads>].csv for every
combination asked for, each beside its samples; tables that are there already are left as they are.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

from nasc_evo.errors import UserError
from nasc_evo.measure import measure
from nasc_evo.measurement.backends import BACKENDS, LAUNCHES, PROCESSORS
from nasc_evo.measurement.session import Plan
from nasc_evo.report.display import create_console
from nasc_evo.space import SPACES
from nasc_evo.space.architecture import REFERENCE_CLASSES

ALL_SPACES = ("fbnet_32", "fbnet_224", "nasbench201_32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the machine, such as h100")
    parser.add_argument("--spaces", nargs="+", choices=ALL_SPACES, default=ALL_SPACES)
    parser.add_argument("--processor", choices=PROCESSORS, default="cpu")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=["torch"])
    parser.add_argument("--launches", nargs="+", choices=LAUNCHES, help="default: all there are")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--repeats", type=int, default=Plan.repeats)
    parser.add_argument("--networks", type=int, default=Plan.networks)
    parser.add_argument(
        "--energy", action="store_true", help="read the counter, where there is one"
    )
    parser.add_argument("--out", type=Path, default=Path("tables"), help="folder")
    args = parser.parse_args()
    launches = args.launches or (LAUNCHES if args.processor == "cuda" else LAUNCHES[:1])
    args.out.mkdir(parents=True, exist_ok=True)
    console = create_console()
    combinations = itertools.product(args.spaces, args.backends, launches, args.threads)
    for where, backend, launch, threads in combinations:
        space_name, _, geometry = where.partition("_")
        space = SPACES[space_name](int(geometry), REFERENCE_CLASSES[int(geometry)])
        name = args.name
        name += f"_{backend}" * (len(args.backends) > 1)
        name += f"_{launch}" * (len(launches) > 1)
        name += f"_t{threads}" * (len(args.threads) > 1)
        out = args.out / f"{where}_{name}.csv"
        if out.exists():
            console.print(f"{out} is there already.")
            continue
        plan = Plan(
            backend=backend,
            processor=args.processor,
            launch=launch,
            threads=threads,
            rounds=args.rounds,
            repeats=args.repeats,
            networks=args.networks,
        )
        start = time.monotonic()
        code = measure(space, plan, out, name, args.energy, console)
        if code:
            sys.exit(code)
        console.print(f"{out} took {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"Error: {error}")
