"""Each stage killed again and again at random moments, finished, and compared with a run that was left alone: `make chaos`.

mini + digits, float32. The table counts SIGKILLs, images or epochs that were on disk at a kill and not in the end,
temporary files left over, and says whether the results have the same bytes.
"""

import argparse
import contextlib
import csv
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
COMMON = ("--dataset", "digits", "--exp", "chaos")
MODEL = ("--backbone", "mini", "--precision", "float32")
SMALL = ("--classifier", "resnet20_16", "--batch_size", "64")
STAGES = {
    "adapt": ("SD_adapting.py", *MODEL, "--epochs", "24"),
    "generate": ("generate_dataset.py", *MODEL, "--img_total", "1200", "--enc_epoch", "24", "--dif_epoch", "0", "--inf_steps", "10",
                 "--ugs", "1.5", "--batch_size", "25"),
    "classify": ("classifier_training.py", *SMALL, "--synthetic", "False", "--epochs", "40"),
    "search": ("hyp_opt.py", *MODEL, *SMALL, "--num_imgs", "60", "--is_max", "8", "--epochs", "8", "--n_trials", "12",
               "--gen_batch_size", "20"),
}  # fmt: skip
# What a stage leaves, and of these what must not change once it is there.
RESULTS = ("*/epoch*.weights.h5", "history.csv", "manifest.json", "class_*/img_*.png", "best_model.weights.h5",
           "model_history.csv", "class_accuracies.csv", "test_accuracies_expchaos.json", "trials.csv")  # fmt: skip
LASTING = re.compile(r"epoch\d+\.weights\.h5|img_\d+\.png")


def start(stage, root, log):
    script, *flags = STAGES[stage]
    command = [sys.executable, str(REPOSITORY / script), *COMMON, *flags, "--root", str(root)]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def outputs(root):
    """Hash of every result below a root, by its path."""
    found = {}
    for path in root.rglob("*"):
        if path.is_file() and any(path.match(pattern) for pattern in RESULTS):
            found[path.relative_to(root)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def left_over(root):
    """Temporary files and states that nothing will read any more."""
    return [p for p in root.rglob("*") if p.name.startswith(".partial") or p.name == "state.npz"]


def trials(root):
    """Finished trials of the search, {settings: result}, and how many are stuck."""
    (file,) = root.rglob("trials.csv")
    rows = list(csv.DictReader(file.open()))
    finished = [row for row in rows if row["state"] in ("COMPLETE", "PRUNED")]
    return {(r["is"], r["ugs"], r["epoch"]): (r["state"], r["accuracy"], r["epochs_trained"]) for r in finished}, len(finished), sum(
        row["state"] in ("RUNNING", "WAITING") for row in rows)


def chaos(stage, kills, whole, broken, log):
    """Run a stage in `whole` undisturbed and in `broken` disturbed. Returns the row of the table."""
    began = time.time()
    if start(stage, whole, log).wait():
        sys.exit(f"{stage} fails even when it is left alone: {log.name}")
    alone = time.time() - began
    seen, killed, waits = {}, 0, []
    while killed < kills:
        process = start(stage, broken, log)
        # Up to half of the whole run: start-up takes part of that, and all kills together must not outlast the work.
        waits.append(random.uniform(0, alone / 3))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(waits[-1])
        if process.poll() is not None:
            break  # finished before it could be killed often enough
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        seen |= {path: content for path, content in outputs(broken).items() if LASTING.fullmatch(path.name)}
    began = time.time()
    if start(stage, broken, log).wait():
        sys.exit(f"{stage} cannot be continued: {log.name}")
    now, expected = outputs(broken), outputs(whole)
    lost = [path for path, content in seen.items() if now.get(path) != content]
    identical = "yes" if now == expected else f"no: {[str(p) for p in {*now, *expected} if now.get(p) != expected.get(p)][:3]}"
    if stage == "search":  # a killed trial is repeated under another number, so later suggestions are others
        (ours, finished, stuck), (theirs, budget, _) = trials(broken), trials(whole)
        both = set(ours) & set(theirs)
        same = sum(ours[key] == theirs[key] for key in both)
        identical = f"{finished} of {budget} trials, {stuck} stuck; {same} of {len(both)} common settings alike"
    return {"stage": stage, "kills": killed, "on disk at kills": len(seen), "lost": len(lost), "left over": len(left_over(broken)),
            "alone s": round(alone), "last s": round(time.time() - began), "identical": identical}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", default=",".join(STAGES))
    args = parser.parse_args()
    random.seed(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log:
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        try:
            for stage in args.stages.split(","):
                if stage in ("generate", "search") and not (broken / "Checkpoints/DDPM").exists():
                    start("adapt", whole, log).wait()
                    shutil.copytree(whole / "Checkpoints/DDPM", broken / "Checkpoints/DDPM")
                rows.append(chaos(stage, args.kills, whole, broken, log))
                print(rows[-1], flush=True)
        except SystemExit:
            log.flush()
            print(Path(log.name).read_text()[-3000:])
            raise
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
    return any(row["kills"] < args.kills or row["lost"] or row["left over"] or row["identical"].startswith("no") for row in rows)


if __name__ == "__main__":
    sys.exit(main())
