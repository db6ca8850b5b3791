"""Speed and memory against the published way and against diffusers, as a table of ratios: `make bench`.

    python -m bench [--topics generation training ...] [--rounds 3] [--peer PYTHON] [--out FOLDER]

Both sides of a row are measured in turn, A B A B, in this one run; medians count. Full-size `sd1` has random weights.
Results go into FOLDER/results_bfloat16.json, on a processor with AMX into results_amx.json and on one without instructions
for bfloat16 into results_float32.json, and are drawn beside it. Those of other topics stay, if they are of the same processor.
"""

import argparse
import json
import platform
import re
from pathlib import Path

from bench.environment import peer_python
from bench.topics import TOPICS
from cli.flags import integer
from Experiment.machine import computes_bfloat16, cpu_info, processor

HERE = Path(__file__).resolve().parent


def kind():
    """Kind of the processor, by its instructions for products of matrices in bfloat16: `amx`, `bfloat16` or `float32`."""
    return "amx" if "amx_bf16" in cpu_info() else "bfloat16" if computes_bfloat16() else "float32"


def rows_before(file):
    """{name: row} that an earlier run has left; none of another processor's."""
    before = json.loads(file.read_text()) if file.exists() else {"rows": []}
    if before["rows"] and before["machine"]["name"] != processor()["name"]:
        print(f"{file} is of {before['machine']['name']}: it is replaced")
        return {}
    return {row["row"]: row for row in before["rows"]}


def place(row):
    """Order of the rows: by number, then by what follows it; `CAS` is last."""
    number, rest = re.fullmatch(r"(\d*)(.*)", row["row"]).groups()
    return int(number or 99), rest


def draw(rows, path):
    """The ratios as bars, with a mark at what each should reach."""
    from figures import plt, save_figure

    shown = [r for r in rows if r["row"] not in ("8", "CAS")]
    figure, axis = plt.subplots(figsize=(10, 0.42 * len(shown) + 1), layout="constrained")
    for i, r in enumerate(shown):
        axis.barh(i, r["value"], color="#0072B2", height=0.6)
        axis.text(r["value"], i, f" {r['value']:.2f}", va="center", fontsize=9)
        goal = r["to_reach"]
        if goal is not None:
            goal = float(str(goal).split()[-1])
            axis.plot([goal, goal], [i - 0.4, i + 0.4], color="#D55E00", linewidth=2)
    axis.set_yticks(range(len(shown)), [f"{r['work']}  [{r['row']}]" for r in shown], fontsize=8)
    axis.invert_yaxis()
    axis.axvline(1, color="grey", linewidth=0.8)
    axis.set(xlabel="times as fast (peak memory: share of it); orange: to reach", title="Measured in one run, medians")
    axis.margins(x=0.1)
    return save_figure(figure, path)


def print_table(results):
    print(f"\n{results['machine']}\n\n| row | what | ratio | to reach |\n|---|---|---|---|")
    for r in results["rows"]:
        print(f"| {r['row']} | {r['work']} | {r['value']:.2f} | {'' if r['to_reach'] is None else r['to_reach']} |")


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--topics", nargs="+", default=list(TOPICS), choices=TOPICS)
    parser.add_argument("--rounds", type=integer(1), default=3, help="counted turns of each job (3)")
    parser.add_argument("--peer", type=Path, help="a Python with torch and diffusers (else .venv-peer is made)")
    parser.add_argument("--no-peer", action="store_true", help="leave diffusers out")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results and their picture (bench)")
    args = parser.parse_args()
    if "generation" in args.topics and not args.no_peer:
        args.peer = args.peer or peer_python()
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / f"results_{kind()}.json"
    rows = rows_before(file)
    for topic in args.topics:
        rows |= {r["row"]: r for r in TOPICS[topic](args)}
        machine = processor() | {"system": platform.platform()}
        results = {"machine": machine, "rows": sorted(rows.values(), key=place)}
        file.write_text(json.dumps(results, indent=1) + "\n")
    print_table(results)
    print(draw(results["rows"], file.with_suffix(".png")))


if __name__ == "__main__":
    main()
