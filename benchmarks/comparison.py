"""Keep the outcome of `python -m nasc_evo.compare` as a result, with its circumstances.

python -m nasc_evo.compare experiment=nb201 parallel=loky hydra.run.dir=out
python benchmarks/comparison.py out
"""

import argparse
import shutil
from pathlib import Path
from statistics import median

from common import RESULTS, write_result

from nasc_evo.experiment import MANIFEST, SEARCHES, read_searches, units
from nasc_evo.files import read_json

KEPT = ("results", "ranks", "speed", "curves", "attainment", "headline")
PICTURES = ("curves.png", "attainment.png", "comparison.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    experiment = read_json(args.folder / MANIFEST)["experiment"]
    out = RESULTS / f"comparison_{experiment['name']}"
    out.mkdir(parents=True, exist_ok=True)
    for name in (*(f"{name}.csv" for name in KEPT), *PICTURES):
        if (args.folder / name).is_file():
            shutil.copyfile(args.folder / name, out / name)
    wanted = {unit.key for unit in units(experiment, args.folder)}
    found, _ = read_searches(args.folder / SEARCHES, experiment)
    searches = [search for key, search in found.items() if key in wanted]
    lines = (args.folder / "comparison.md").read_text(encoding="utf-8").splitlines()
    measured = [s for s in searches if s["computed"] == s["evaluations"]]
    inherited = [s for s in measured if experiment["evaluator"]["name"] != "tabular"]
    overhead = {
        method: median(1 - s["evaluator_seconds"] / s["seconds"] for s in some)
        for method in experiment["methods"]
        if (some := [s for s in inherited if s["method"] == method])
    }
    write_result(
        out / "comparison.json",
        {
            "how": f"python -m nasc_evo.compare experiment={experiment['name']} "
            f"experiment.seeds={experiment['seeds']} parallel=loky",
            "evaluator": experiment["evaluator"],
            "searches": len(searches),
            "seconds_of_all_searches": round(sum(s["seconds"] for s in searches), 1),
            "summary": [line[2:] for line in lines if line.startswith("- ")],
            "search_overhead_of_searches_that_shared_no_score": overhead,
            "methods": experiment["methods"],
        },
    )


if __name__ == "__main__":
    main()
