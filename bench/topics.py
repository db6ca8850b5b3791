"""What `make bench` measures: each topic is a function that returns rows of the table."""

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.processes import Side, alternate, in_turn, peak_memory, sides
from Experiment.machine import computes_bfloat16
from Experiment.paths import REPOSITORY
from Models.backbones import BACKBONES

GENERATE = "generate 8 images, 10 steps, scale 1.5, decoder"


def row(number, work, value, least, **facts):
    """A row: `value` is a ratio, `least` what it should reach (`at most` a number, or None)."""
    print(f"row {number}: {work}: {value:.2f} (to reach {least})", flush=True)
    return {"row": str(number), "work": work, "value": round(value, 3), "to_reach": least, **facts}


def generation(args):
    """Rows 1 to 4: in the default precision where the processor has bfloat16, and in float32."""
    rows = []
    for exact, dtype in ((False, "bfloat16"), (True, "float32")):
        if not exact and not computes_bfloat16():
            print("bfloat16 is left out: this processor has no instructions for it, and a step takes minutes", flush=True)
            continue
        known = [("bench.worker", "published_generation"), ("bench.worker", "our_generation", dtype_name(exact))]
        if args.peer:
            known.append(lambda dtype=dtype: Side("bench.peer", dtype, python=str(args.peer)))
        with sides(*known) as started:
            for side in started:
                side.run("warm")
                side.run("unet")
            rows += whole_generation(args, started, exact, dtype)
            rows += unet_passes(args, started, exact, dtype)
    return rows


def dtype_name(exact):
    return "float32" if exact else "auto"


def whole_generation(args, started, exact, dtype):
    """Ours against published (row 1 or 2) and diffusers (1b or 2b), guided against not (3, 3b)."""
    published, ours, *others = started
    number, least, least_peer = ("2", 1.4, 1.0) if exact else ("1", 3.0, 1.05)
    jobs = [(side, "generation") for side in started] + [(ours, "generation, no guidance"), (ours, "decoder")]
    base, mine, *theirs, alone, decoder = alternate(args.rounds, *jobs)
    facts = {"seconds": [base, mine], "memory_gb": [round(side.memory_gb, 1) for side in (published, ours)]}
    if exact:
        facts |= agreement(published, ours)
    rows = [row(number, f"{GENERATE}: {dtype} against published float32", base / mine, least, **facts)]
    for their in theirs:
        work = f"{GENERATE}: {dtype} against diffusers {dtype}"
        rows.append(row(f"{number}b", work, their / mine, least_peer, seconds=[their, mine]))
    if not exact or not computes_bfloat16():
        rows.append(row("3", "guidance scale 1.0 against 1.5, ours", mine / alone, None, seconds=[mine, alone]))
        work, value = "the same without the decoder, which both need", (mine - decoder) / (alone - decoder)
        rows.append(row("3b", work, value, 1.9, decoder_seconds=decoder))
    return rows


def agreement(*both):
    """How far the same images of two sides differ: in grey levels, and the share of equal pixels."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.npy" for i in range(2)]
        for side, file in zip(both, files):
            side.run("generation", file)
        first, second = (np.load(file, allow_pickle=False).astype(int) for file in files)
    return {"grey_levels": int(np.abs(first - second).max()), "equal_pixels": float((first == second).mean())}


def unet_passes(args, started, exact, dtype):
    """A pass of the UNet, of each side, and the share of the machine's matrix-product limit (rows 4, 4b)."""
    *passes, limit = alternate(2 * args.rounds, *((side, "unet") for side in started), (started[1], "limit"))
    rate, bound = 8 * BACKBONES["sd1"].gflop / passes[1], 2 * 4096**3 / 1e9 / limit  # of `sides.MATRIX`
    facts = {"ours_gflop_s": round(rate), "limit_gflop_s": round(bound), "share": round(rate / bound, 2)}
    number, work = "4b" if exact else "4", f"UNet, a pass of 8, {dtype}: against"
    rows = [row(number, f"{work} published float32", passes[0] / passes[1], None, seconds=passes, **facts)]
    for their in passes[2:]:
        least = 1.0 if exact else 1.05
        rows.append(row(f"{number} peer", f"{work} diffusers {dtype}", their / passes[1], least, seconds=passes[1:]))
    return rows


def training(args):
    """Rows 5 and 6."""
    rows = []
    wanted = (("5", "default precision", 2.5), ("5b", "float32", 1.5))[0 if computes_bfloat16() else 1 :]
    known = {"published": ("bench.worker", "published_training", "enc", 8)}
    for _, name, _ in wanted:
        known[name] = ("bench.worker", "our_training", "enc", 8, dtype_name(name == "float32"))
    seconds, _ = in_turn(args.rounds, known)
    for number, name, least in wanted:
        both = [seconds["published"], seconds[name]]
        work = f"Class Encoder, a step of 8: {name} against published"
        rows.append(row(number, work, both[0] / both[1], least, seconds=both))

    known = {
        "published": ("bench.worker", "published_training", "dif", 4),
        "ours": ("bench.worker", "our_training", "dif", 4, "auto", "checkpoints"),
    }
    seconds, memory = in_turn(args.rounds, known)
    work, (base, mine) = "UNet, a step of 4, gradient checkpoints", memory.values()
    rows.append(row("6", f"{work}: peak memory over published", mine / base, "at most 0.7", memory_gb=[base, mine]))
    base, mine = seconds.values()
    rows.append(row("6b", f"{work}: speed against published", base / mine, 1.0, seconds=[base, mine]))
    return rows


def lora(args):
    """Rows 10: fine-tuning sd1 by low-rank updates of rank 4 against fine-tuning all of it."""
    names = {"full": (), "attention": ("attention",), "all": ("all",)}
    ours = ("bench.worker", "our_training", "dif", 4, "auto", "checkpoints")
    seconds, memory = in_turn(args.rounds, {name: (*ours, *flags) for name, flags in names.items()})
    rows = []
    for number, name in (("10", "attention"), ("10 all", "all")):
        work = f"UNet, a step of 4, gradient checkpoints: LoRA of {name}"
        both = [memory["full"], memory[name]]
        rows.append(row(number, f"{work}: peak memory over full", both[1] / both[0], "at most 0.6", memory_gb=both))
        both = [seconds["full"], seconds[name]]
        rows.append(row(f"{number} speed", f"{work}: speed against full", both[0] / both[1], 1.0, seconds=both))
    return rows


def disk(args):
    """Rows 7 to 9."""
    with sides(("bench.worker", "writing")) as (side,):
        side.run("sampler")
        side.run("to disk")
        both = alternate(args.rounds, (side, "sampler"), (side, "to disk"))
    work = "mini: generation to PNG on disk against the sampler alone"
    rows = [row("7", work, both[0] / both[1], 0.9, seconds=both)]

    few, many = (generation_memory(count) for count in (500, 20_000))
    work = "mini: memory of generating 20,000 images less that of 500, MB"
    rows.append(row("8", work, (many - few) * 2**10, "at most 100", memory_gb=[few, many]))

    with sides(("bench.worker", "classifier")) as (side,):
        side.run("in memory")
        tree, memory = alternate(args.rounds, (side, "from PNGs"), (side, "in memory"))
    work = "classifier, epochs after the first: from a tree of PNGs against arrays in memory"
    rows.append(row("9", work, memory / tree, 0.9, seconds=[memory, tree]))
    return rows


def generation_memory(count):
    """Most memory of generate_dataset.py making `count` images of mini, GB."""
    flags = f"--dataset digits --backbone mini --img_total {count} --enc_epoch 0 --dif_epoch 0 --inf_steps 2 --ugs 1"
    with tempfile.TemporaryDirectory() as folder:
        return peak_memory([sys.executable, REPOSITORY / "generate_dataset.py", *flags.split(), "--root", folder])


def precision(args):
    """CAS of mini on digits in float32 and in the default precision, five seeds: no row to reach, but no difference."""
    if not computes_bfloat16():
        print("the accuracies of two precisions are left out: float32 is this processor's default", flush=True)
        return []
    with sides(("bench.worker", "precision")) as (side,), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cas.npy"
        side.run("cas", file)
        exact, default = np.load(file, allow_pickle=False).tolist()  # (precisions, seeds)
    work = "mini on digits, 1x, five seeds: mean CAS in default precision less that in float32"
    difference = statistics.mean(default) - statistics.mean(exact)
    return [row("CAS", work, difference, "about 0", float32=exact, default=default)]


TOPICS = {"generation": generation, "training": training, "lora": lora, "disk": disk, "precision": precision}
