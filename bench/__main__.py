"""Speed and memory against the published way and against diffusers, as a table of ratios: `make bench`.

    python -m bench [--topics generation training ...] [--rounds 3] [--peer PYTHON] [--out FOLDER]

Both sides of a row are measured in turn, A B A B, in this one run; medians count. Full-size `sd1` has random weights.
Results are merged into FOLDER/results.json, and drawn as results.png.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.environment import peer_python

REPOSITORY = Path(__file__).resolve().parent.parent
HERE = Path(__file__).resolve().parent
GFLOP_PER_PASS = 43  # of sd1's UNet at 128 px, a sample; convolutions over their padding included


class Side:
    """A process of `bench.worker` or `bench.peer` that waits for jobs."""

    def __init__(self, module, *arguments, python=sys.executable):
        environment = {
            **os.environ,
            "SD_UNTRAINED_BACKBONE": "1",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        self.name, self.memory_gb = " ".join(map(str, (module, *arguments))), 0
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [python, "-m", module, *map(str, arguments)],
            cwd=REPOSITORY,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        self.jobs = self.answer()["jobs"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError(f"{self.name} ended with code {self.process.wait()}:\n{self.errors.read()[-2000:]}")
        return json.loads(line)

    def run(self, job, save=None):
        """Do a job and return how long it took, s."""
        self.process.stdin.write(json.dumps({"job": job, "save": str(save) if save else None}) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.memory_gb = answer["memory_gb"]
        return answer["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def sides(*descriptions):
    """Sides that are started one after the other and ended together; a description is (module, argument ...)."""
    with contextlib.ExitStack() as stack:
        started = []
        for description in descriptions:
            side = Side(*description) if isinstance(description, tuple) else description()
            stack.callback(side.close)
            started.append(side)
        yield started


def alternate(rounds, *jobs):
    """Times of jobs (side, name), in turn, after one uncounted turn of each that needs one. Returns medians, s."""
    seconds = [[] for _ in jobs]
    for _ in range(rounds):
        for times, (side, name) in zip(seconds, jobs):
            times.append(side.run(name))
            print(f"    {side.name}, {name}: {times[-1]:.2f} s", flush=True)
    return [statistics.median(times) for times in seconds]


def row(number, work, value, least, **facts):
    """A row of the table: `value` is a ratio, and `least` what it should reach (a bound from above has `most`)."""
    print(f"row {number}: {work}: {value:.2f} (to reach {least})", flush=True)
    return {"row": str(number), "work": work, "value": round(value, 3), "to_reach": least, **facts}


def peer(args, dtype):
    """A description of the peer's side, or None where it is not to be had."""
    return (lambda: Side("bench.peer", dtype, python=str(args.peer))) if args.peer else None


def generation(args):
    """Rows 1 to 4."""
    import numpy as np

    rows = []
    for precision, dtype in (("auto", "bfloat16"), ("float32", "float32")):
        known = [
            ("bench.worker", "published_generation"),
            ("bench.worker", "our_generation", precision),
            peer(args, dtype),
        ]
        with sides(*filter(None, known)) as started, tempfile.TemporaryDirectory() as folder:
            for side in started:
                side.run("warm")
                side.run("unet")
            published, ours, *others = started
            jobs = [(side, "generation") for side in started]
            if precision == "auto":
                jobs += [(ours, "generation, no guidance"), (ours, "decoder")]
            base, mine, *rest = alternate(args.rounds, *jobs)
            work = "generate 8 images, 10 steps, scale 1.5, decoder"
            memory = {"memory_gb": [round(side.memory_gb, 1) for side in started[:2]]}
            if precision == "auto":
                rows.append(
                    row(
                        "1",
                        f"{work}: default precision against published",
                        base / mine,
                        3.0,
                        seconds=[base, mine],
                        **memory,
                    )
                )
                if others:
                    rows.append(
                        row(
                            "1b",
                            f"{work}: default precision against diffusers bfloat16",
                            rest[0] / mine,
                            1.05,
                            seconds=[rest[0], mine],
                        )
                    )
                *_, alone, decoder = rest
                rows.append(row("3", "guidance scale 1.0 against 1.5, ours", mine / alone, 1.9, seconds=[mine, alone]))
                rows.append(
                    row(
                        "3b",
                        "the same without the decoder, which both need",
                        (mine - decoder) / (alone - decoder),
                        None,
                        decoder_seconds=decoder,
                    )
                )
            else:
                files = [Path(folder) / f"{i}.npy" for i in range(2)]
                for side, file in zip(started, files):
                    side.run("generation", file)
                ours_images, published_images = (
                    np.load(file, allow_pickle=False).astype(int) for file in reversed(files)
                )
                levels = int(np.abs(ours_images - published_images).max())
                rows.append(
                    row(
                        "2",
                        f"{work}: float32 against published",
                        base / mine,
                        1.4,
                        seconds=[base, mine],
                        grey_levels=levels,
                        equal_pixels=float((ours_images == published_images).mean()),
                        **memory,
                    )
                )
                if others:
                    rows.append(
                        row(
                            "2b",
                            f"{work}: float32 against diffusers float32",
                            rest[0] / mine,
                            1.0,
                            seconds=[rest[0], mine],
                        )
                    )
            *passes, limit = alternate(2 * args.rounds, *((side, "unet") for side in started), (ours, "limit"))
            rate, bound = 8 * GFLOP_PER_PASS / passes[1], 2 * 4096**3 / 1e9 / limit
            facts = {
                "seconds": passes,
                "ours_gflop_s": round(rate),
                "limit_gflop_s": round(bound),
                "share": round(rate / bound, 2),
            }
            name = "4" if precision == "auto" else "4b"
            rows.append(
                row(
                    name, f"UNet, a pass of 8, {dtype}: against published float32", passes[0] / passes[1], None, **facts
                )
            )
            if others:
                rows.append(
                    row(
                        f"{name} peer",
                        f"UNet, a pass of 8, {dtype}: against diffusers {dtype}",
                        passes[2] / passes[1],
                        1.05 if precision == "auto" else 1.0,
                        seconds=passes[1:],
                    )
                )
    return rows


def training(args):
    """Rows 5 and 6."""
    rows = []
    known = {
        "published": ("published_training",),
        "default precision": ("our_training", "auto"),
        "float32": ("our_training", "float32"),
    }
    seconds, _ = in_turn(args, "enc", 8, known)
    for number, name, least in (("5", "default precision", 2.5), ("5b", "float32", 1.5)):
        both = [seconds["published"], seconds[name]]
        rows.append(
            row(number, f"Class Encoder, a step of 8: {name} against published", both[0] / both[1], least, seconds=both)
        )

    seconds, memory = in_turn(
        args, "dif", 4, {"published": ("published_training",), "ours": ("our_training", "auto", "checkpoints")}
    )
    work, (base, mine) = "UNet, a step of 4, gradient checkpoints", memory.values()
    rows.append(row("6", f"{work}: peak memory over published", mine / base, "at most 0.7", memory_gb=[base, mine]))
    base, mine = seconds.values()
    rows.append(row("6b", f"{work}: speed against published", base / mine, 1.0, seconds=[base, mine]))
    return rows


def lora(args):
    """Rows 10: fine-tuning sd1 by low-rank updates of rank 4 against fine-tuning all of it."""
    names = {"full": (), "attention": ("attention",), "all": ("all",)}
    known = {name: ("our_training", "auto", "checkpoints", *flags) for name, flags in names.items()}
    seconds, memory = in_turn(args, "dif", 4, known)
    rows = []
    for number, name in (("10", "attention"), ("10 all", "all")):
        work = f"UNet, a step of 4, gradient checkpoints: LoRA of {name}"
        both = [memory["full"], memory[name]]
        rows.append(row(number, f"{work}: peak memory over full", both[1] / both[0], "at most 0.6", memory_gb=both))
        both = [seconds["full"], seconds[name]]
        rows.append(row(f"{number} speed", f"{work}: speed against full", both[0] / both[1], 1.0, seconds=both))
    return rows


def in_turn(args, part, batch_size, known):
    """Medians of a training step's time, s, and of the peak memory, GB, by name.

    Several trainings of the full UNet do not fit into memory together, so A B A B is of processes that come and go.
    """
    seconds, memory = {name: [] for name in known}, {name: [] for name in known}
    for _ in range(2):
        for name, (side, *flags) in known.items():
            with sides(("bench.worker", side, part, batch_size, *flags)) as (process,):
                process.run("step")
                seconds[name].append(alternate(args.rounds, (process, "step"))[0])
                memory[name].append(process.memory_gb)
    return [{name: statistics.median(values) for name, values in found.items()} for found in (seconds, memory)]


def disk(args):
    """Rows 7 to 9."""
    rows = []
    with sides(("bench.worker", "writing")) as (side,):
        side.run("sampler")
        side.run("to disk")
        sampler, to_disk = alternate(args.rounds, (side, "sampler"), (side, "to disk"))
    rows.append(
        row(
            "7",
            "mini: generation to PNG on disk against the sampler alone",
            sampler / to_disk,
            0.9,
            seconds=[sampler, to_disk],
        )
    )
    few, many = (generation_memory(count) for count in (500, 20_000))
    rows.append(
        row(
            "8",
            "mini: memory of generating 20,000 images less that of 500, MB",
            (many - few) / 2**10,
            "at most 100",
            memory_gb=[few / 2**20, many / 2**20],
        )
    )
    with sides(("bench.worker", "classifier")) as (side,):
        side.run("in memory")
        tree, memory = alternate(args.rounds, (side, "from PNGs"), (side, "in memory"))
    rows.append(
        row(
            "9",
            "classifier, epochs after the first: from a tree of PNGs against arrays in memory",
            memory / tree,
            0.9,
            seconds=[memory, tree],
        )
    )
    return rows


def generation_memory(count):
    """Most memory of generate_dataset.py making `count` images of mini, KiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            REPOSITORY / "generate_dataset.py",
            "--dataset",
            "digits",
            "--backbone",
            "mini",
            "--root",
            folder,
            "--img_total",
            count,
            "--enc_epoch",
            0,
            "--dif_epoch",
            0,
            "--inf_steps",
            2,
            "--ugs",
            1,
        ]
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(errors.decode()[-2000:])
    return usage.ru_maxrss


def precision(args):
    """CAS of mini on digits in float32 and in the default precision, five seeds: no row to reach, but no difference."""
    with sides(("bench.worker", "precision")) as (side,), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cas.npy"
        side.run("cas", file)
        import numpy as np

        cas = np.load(file, allow_pickle=False)  # (precisions, seeds)
    exact, default = cas.tolist()
    difference = statistics.mean(default) - statistics.mean(exact)
    return [
        row(
            "CAS",
            "mini on digits, 1x, five seeds: mean CAS in default precision less that in float32",
            difference,
            "about 0",
            float32=exact,
            default=default,
        )
    ]


TOPICS = {"generation": generation, "training": training, "lora": lora, "disk": disk, "precision": precision}


def machine():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory),
        "system": platform.platform(),
    }


def draw(rows, path):
    """The ratios as bars, with a mark at what each should reach."""
    from matplotlib import pyplot as plt

    from plots import save_figure

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
    axis.set(
        xlabel="times as fast (row 6: share of the memory); orange: to reach", title="Measured in one run, medians"
    )
    axis.margins(x=0.1)
    return save_figure(figure, path)


def print_table(results):
    print(f"\n{results['machine']}\n\n| row | what | ratio | to reach |\n|---|---|---|---|")
    for r in results["rows"]:
        print(f"| {r['row']} | {r['work']} | {r['value']:.2f} | {'' if r['to_reach'] is None else r['to_reach']} |")


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--topics", nargs="+", default=list(TOPICS), choices=TOPICS)
    parser.add_argument("--rounds", type=int, default=3, help="counted turns of each job (3)")
    parser.add_argument("--peer", type=Path, help="a Python with torch and diffusers (else .venv-peer is made)")
    parser.add_argument("--no-peer", action="store_true", help="leave diffusers out")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and results.png (bench)")
    args = parser.parse_args()
    if "generation" in args.topics and not args.no_peer:
        args.peer = args.peer or peer_python()
    file = args.out / "results.json"
    before = json.loads(file.read_text())["rows"] if file.exists() else []
    rows = {r["row"]: r for r in before}
    for topic in args.topics:
        rows |= {r["row"]: r for r in TOPICS[topic](args)}
        results = {"machine": machine(), "rows": sorted(rows.values(), key=lambda r: r["row"])}
        file.write_text(json.dumps(results, indent=1) + "\n")
    print_table(results)
    print(draw(results["rows"], args.out / "results.png"))


if __name__ == "__main__":
    main()
