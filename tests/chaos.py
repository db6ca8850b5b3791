"""Each stage killed again and again at random moments, finished, and compared with a run that was left alone: `make chaos`.

mini + digits, float32. The table counts SIGKILLs, starts that went on from saved work, how much of it the last start found,
what was lost (a file that was there at a kill and not, or not the same, in the end; an epoch, image or trial that one start
found and the next did not), temporary files left over, and says whether the results have the same bytes.
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
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

from Experiment.progress import TO_PIPELINE

REPOSITORY = Path(__file__).resolve().parent.parent
COMMON = ("--dataset", "digits", "--exp", "chaos")
MODEL = ("--backbone", "mini", "--precision", "float32")
SMALL = ("--classifier", "resnet20_16", "--batch_size", "32")
STAGES = {
    "adapt": ("SD_adapting.py", *MODEL, "--epochs", "60", "--batch_size", "256"),
    "generate": ("generate_dataset.py", *MODEL, "--img_total", "2000", "--enc_epoch", "60", "--dif_epoch", "0", "--inf_steps", "10",
                 "--ugs", "1.5", "--batch_size", "50"),
    "classify": ("classifier_training.py", *SMALL, "--synthetic", "False", "--epochs", "100"),
    "lora": ("SD_adapting.py", *MODEL, "--train_model", "dif", "--enc_epoch", "60", "--lora_rank", "4", "--epochs", "12",
             "--batch_size", "100"),
    "search": ("hyp_opt.py", *MODEL, *SMALL, "--num_imgs", "60", "--is_max", "8", "--epochs", "8", "--n_trials", "24",
               "--gen_batch_size", "20", "--pruner", "none"),
}  # fmt: skip
# What the output of a process shows when the first of its work is done, and with how much of it done it begins.
BEGUN = {**dict.fromkeys(("adapt", "lora"), rb"(?s)Epoch \d.*Epoch \d"), "generate": rb'\["image", [1-9]', "classify": rb"(?s)Epoch \d.*Epoch \d",
         "search": rb"trial +\d+:"}  # fmt: skip
DONE_BEFORE = {**dict.fromkeys(("adapt", "lora"), rb"going on after epoch (\d+)"), "generate": rb", (\d+) there", "classify": rb"Epoch (\d+)/",
               "search": rb"(\d+) of 24 trials there"}  # fmt: skip
UNIT = {"adapt": "epochs", "lora": "epochs", "generate": "images", "classify": "epochs", "search": "trials"}
# What a stage leaves, and of these what must not change once it is there.
RESULTS = ("*/epoch*.weights.h5", "history.csv", "manifest.json", "class_*/img_*.png", "best_model.weights.h5",
           "model_history.csv", "class_accuracies.csv", "test_accuracies_expchaos.json", "trials.csv")  # fmt: skip
LASTING = re.compile(r"epoch\d+\.weights\.h5|img_\d+\.png")


def start(stage, root, log):
    script, *flags = STAGES[stage]
    command = [sys.executable, str(REPOSITORY / script), *COMMON, *flags, "--root", str(root)]
    # Generation tells of its progress twice a second to a pipeline, and once a minute to a file.
    environment = os.environ | ({TO_PIPELINE: "1"} if stage == "generate" else {})
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=environment)


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
    """Of a search: {settings: result} of its finished trials, how many they are, and how many are stuck."""
    (file,) = root.rglob("trials.csv")
    rows = list(csv.DictReader(file.open()))
    finished = [row for row in rows if row["state"] in ("COMPLETE", "PRUNED")]
    results = {(r["is"], r["ugs"], r["epoch"]): (r["state"], r["accuracy"], r["epochs_trained"]) for r in finished}
    return results, len(finished), sum(row["state"] in ("RUNNING", "WAITING") for row in rows)


def compare(stage, whole, broken):
    """Whether the results are as they should be, and in words."""
    if stage != "search":
        now, expected = outputs(broken), outputs(whole)
        differing = sorted(str(path) for path in {*now, *expected} if now.get(path) != expected.get(path))
        return not differing, f"no: {', '.join(differing[:3])}" if differing else f"yes, {len(now)} files"
    # A killed trial is repeated under another number, so the suggestions after it are others than in the whole run.
    (ours, finished, stuck), (theirs, budget, _) = trials(broken), trials(whole)
    both = set(ours) & set(theirs)
    same = sum(ours[key] == theirs[key] for key in both)
    words = f"{finished} of {budget} trials, {stuck} stuck; {same} of the {len(both)} settings that both tried gave the same"
    return finished == budget and not stuck and same == len(both), words


def chaos(stage, kills, seed, folder):
    """Run a stage undisturbed and disturbed. Returns whether all is well, and the row of the table."""
    moments, log = random.Random(f"{seed} {stage}"), open(folder / f"{stage}.log", "w")
    whole, broken = folder / f"{stage} whole", folder / f"{stage} broken"

    def begin(root):
        """An empty root, but for what the stage needs of the one before."""
        shutil.rmtree(root, ignore_errors=True)
        if stage in ("generate", "search", "lora"):
            shutil.copytree(folder / "adapt whole/Checkpoints", root / "Checkpoints")

    def output(since):
        return Path(log.name).read_bytes()[since:]

    def work_found(since):
        """Epochs, images or trials that the process whose output begins there found saved, in a list: empty if it died too soon."""
        told = output(since)
        if found := re.search(DONE_BEFORE[stage], told):
            return [int(found[1]) - (stage == "classify")]  # its epochs are counted from 1
        return [0] if re.search(BEGUN[stage], told) else []

    def wait_for_work(process, since):
        """Wait until the process whose output begins there has done some work, or has ended."""
        while process.poll() is None and not re.search(BEGUN[stage], output(since)):
            time.sleep(0.05)

    def finish(root):
        """How long the stage took to start up, and in all, s, and where its output begins."""
        began, before = time.time(), Path(log.name).stat().st_size
        process = start(stage, root, log)
        wait_for_work(process, before)
        start_up = time.time() - began
        if process.wait():
            sys.exit(f"{stage} failed:\n{Path(log.name).read_text()[-3000:]}")
        return start_up, time.time() - began, before

    def disturb(turn):
        """Start the stage and kill it, `kills` times or until it is finished; half of the times when it starts up, half of them
        within `turn` seconds after its first work. Returns how often, the saved work that each start found, what was there."""
        begin(broken)
        given, seen, killed, found = outputs(broken), {}, 0, []
        while killed < kills:
            before = Path(log.name).stat().st_size
            process = start(stage, broken, log)
            if killed % 2:
                wait = start_up * moments.random()
            else:
                wait_for_work(process, before)
                wait = turn * moments.random()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(wait)
            if process.poll() is not None:
                if process.returncode:
                    sys.exit(f"{stage} failed after kill {killed}:\n{Path(log.name).read_text()[-3000:]}")
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
            found += work_found(before)
            there = outputs(broken)
            seen |= {path: there[path] for path in there if LASTING.fullmatch(path.name) and path not in given}
        return killed, found, seen

    begin(whole)
    start_up, alone, _ = finish(whole)
    turn = (alone - start_up) / kills  # so that a quarter of the work is done at the last kill, besides the first of each start
    while (disturbed := disturb(turn))[0] < kills:
        turn /= 2  # the machine has become faster
    killed, found, seen = disturbed
    _, last, before = finish(broken)
    found += work_found(before)
    now = outputs(broken)
    lost = sum(now.get(path) != content for path, content in seen.items())
    lost += sum(max(0, earlier - later) for earlier, later in pairwise(found))
    left = len(left_over(broken))
    well, words = compare(stage, whole, broken)
    row = {"stage": stage, "kills": killed, "starts from saved work": sum(work > 0 for work in found),
           "saved at the last": f"{found[-1]} {UNIT[stage]}", "lost": lost, "left over": left,
           "alone, s": round(alone), "last run, s": round(last), "identical": words}  # fmt: skip
    return well and not lost and not left, row


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--work", type=Path, help="folder that stays; some --stages need the first one's there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        folder, results = args.work or folder, []
        Path(folder).mkdir(parents=True, exist_ok=True)
        # All but the first two need what the first has trained.
        for pair in (("adapt", "classify"), ("generate", "search"), ("lora",)):
            pair = [stage for stage in pair if stage in args.stages]
            for row in pool.map(lambda stage: chaos(stage, args.kills, args.seed, Path(folder)), pair):
                results.append(row)
                print(row[1], flush=True)
    print("\n| " + " | ".join(results[0][1]) + " |\n|" + "---|" * len(results[0][1]))
    for _, row in results:
        print("| " + " | ".join(map(str, row.values())) + " |")
    return not all(well for well, _ in results)


if __name__ == "__main__":
    sys.exit(main())
