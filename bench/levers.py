"""The study of the levers: what each does to CAS by itself, against the plain recipe of `pipeline.py`.

    python -m bench.levers --work FOLDER [--datasets digits retinamnist] [--seeds 1234 1 2] [--variants plain dpmpp_8] [--jobs 1]

A variant is the plain recipe with other flags of some scripts. For each dataset and seed, a backbone is adapted, a set is
generated, and classifiers of several seeds learn from it: by the scripts' own command lines, so each resumes by itself.
Variants that need the same adapted model or the same set share it. Nothing is searched: steps and scale are given.
What is in --results is not measured again. Levers are chosen by the validation accuracies; test is reported.
"""

import argparse
import csv
import json
import logging
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import generate_dataset
import pipeline
from bench.levers_table import machines, table
from bench.variants import VARIANTS, Variant
from Data.synthetic import read_manifest
from Experiment.files import read_json, write_json
from Experiment.paths import REPOSITORY, TRAINING_RECORD, Experiment, home, repeat_folder
from Experiment.predictions import hits_of
from Experiment.records import short
from Models.backbones import BACKBONES
from Search.pareto import passes
from Search.settings import Settings
from Stages.recipes import recipe
from Stages.stages import as_flags


class Once:
    """Work that several variants need is done by the first that asks for it; the others wait."""

    def __init__(self):
        self.guard, self.locks, self.done = threading.Lock(), defaultdict(threading.Lock), set()

    def __call__(self, key, work):
        with self.guard:
            lock = self.locks[key]
        with lock:
            if key not in self.done:
                work()
                self.done.add(key)


class Subject:
    """A dataset and a seed, of which variants are measured.

    Args:
        args: The command line.
        dataset: A name or a path.
        seed: Of everything.
        once: A `Once`.
    """

    def __init__(self, args, dataset, seed, once):
        self.args, self.dataset, self.seed, self.once = args, dataset, seed, once

    @cached_property
    def planned(self):
        """What the pipeline would do with this dataset: its spec and the recipe of the backbone."""
        flags = ["--dataset", self.dataset, "--exp", "levers", "--backbone", self.args.backbone]
        args = pipeline.parse_args([*flags, *self.place])
        known = pipeline.plan(args)
        return known.spec, recipe(args, known.spec), args.resolution

    @property
    def recipe(self):
        """What the plain recipe of the pipeline gives this dataset: rows of another one are not compared."""
        _, values, _ = self.planned
        flags = {**values["classifier"], "epochs": values["classifier_epochs"](1)}
        known = {part: values[part]["epochs"] for part in ("enc", "dif")}
        return known | {name: value for name, value in flags.items() if value is not None}

    @property
    def place(self):
        return [*as_flags({"root": self.args.work, "data_dir": self.args.data_dir}), "--seed", str(self.seed)]

    @property
    def name(self):
        return self.planned[0].name

    def flags(self, exp, backbone=True):
        resolution = as_flags({"resolution": self.planned[2]})
        model = as_flags({"backbone": self.args.backbone, "precision": self.args.precision}) if backbone else []
        return ["--dataset", self.dataset, "--exp", f"s{self.seed}{exp}", *self.place, *resolution, *model]

    def script(self, name, *flags):
        """Run a script, with its output in a file."""
        log_file = self.args.work / "logs" / f"{self.name}-{threading.get_ident()}.txt"
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with open(log_file, "a") as log:
            print(shlex.join([name, *flags]), file=log, flush=True)
            done = subprocess.run([sys.executable, REPOSITORY / name, *flags], stdout=log, stderr=log, check=False)
        if done.returncode:
            raise RuntimeError(f"{shlex.join([name, *flags])}: exit code {done.returncode}, see {log_file}")

    def adapted(self, variant):
        """Train Class Encoder and UNet of a variant. Returns the name of the experiment and their epochs."""
        _, values, _ = self.planned
        exp = "a" + "".join(c for c in variant.enc + variant.dif if c.isalnum())
        exp += f"x{variant.tuned}" if variant.tuned > 1 else ""
        enc, dif = values["enc"]["epochs"], variant.tuned * values["dif"]["epochs"]

        def work():
            common = self.flags(exp)
            self.script("SD_adapting.py", *common, *as_flags({**values["enc"], "freq": enc}), *shlex.split(variant.enc))
            self.script("SD_adapting.py", *common, "--train_model", "dif", "--enc_epoch", str(enc),
                        *as_flags({**values["dif"], "epochs": dif, "freq": max(1, dif // 4)}), *shlex.split(variant.dif))  # fmt: skip

        self.once((self.dataset, self.seed, exp), work)
        return exp, enc, dif

    def generated(self, variant):
        """Generate the set of a variant. Returns its folder and the passes of the UNet for an image."""
        exp, enc, dif = self.adapted(variant)
        total = variant.size * self.planned[0].unit
        settings = {**self.args.plain, "enc_epoch": enc, "dif_epoch": dif, "img_total": total}
        flags = [*self.flags(exp), *as_flags(settings), *shlex.split(variant.made.format(early=max(1, dif // 4)))]
        args = generate_dataset.parse_args(flags)
        if args.filter is not None:
            self.once((self.dataset, self.seed, exp, "filter"), lambda: self.classify(exp, Variant(real=True), 1, None))
        self.once((self.dataset, self.seed, *flags), lambda: self.script("generate_dataset.py", *flags))
        return generate_dataset.plan(args).folder, passes(args, Settings(args.inf_steps, args.ugs, dif))

    def borrow_teachers(self, exp):
        """Copy what another variant or seed has trained: a teacher depends on the real training and validation images alone.

        A folder without validation images is divided by the seed.
        """
        spec, values, _ = self.planned
        of = f"Exp_s{self.seed}[ac]*" if spec.scan and "val" not in spec.scan.splits else "*"
        experiment = Experiment(self.args.work, f"s{self.seed}{exp}", self.name)
        for augment in ("none", "standard", "mirrored"):
            mine = experiment.teacher_dir(values["classifier"]["classifier"], augment)
            there = mine.parents[3].glob(str(Path(of, *mine.parts[-3:], TRAINING_RECORD)))
            finished = next(there, None)
            with self.once.guard:  # of variants at a time two may share an experiment
                if finished and not mine.exists():
                    copied = mine.with_name(f"{mine.name}.copied")
                    shutil.copytree(finished.parent, copied, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".lock*"))
                    copied.rename(mine)

    def classify(self, exp, variant, repeats, folder):
        spec, values, _ = self.planned
        self.borrow_teachers(exp)
        epochs = variant.longer * values["classifier_epochs"](variant.size)
        flags = {**values["classifier"], "epochs": epochs, "repeats": repeats}
        flags |= {"synthetic": "False"} if variant.real else {"take": variant.size, "synthetic_dir": folder}
        self.script("classifier_training.py", *self.flags(exp, backbone=False), *as_flags(flags), *shlex.split(variant.learned))

    def measure(self, name):
        """Measure a variant. Returns a row of the results."""
        variant, started = VARIANTS[name], time.time()
        folder, cost = (None, 0) if variant.real else self.generated(variant)
        exp = f"c{name.removesuffix('_4x')}"  # one teacher for both sizes
        self.classify(exp, variant, self.args.repeats, folder)
        made = {} if variant.real else read_manifest(folder)
        return {
            "dataset": self.name, "seed": self.seed, "variant": name, "passes": cost,
            "seconds": round(time.time() - started, 1), **self.scores(exp, variant), "precision": made.get("precision"),
            "adapted": short(made["weights"]["dif"]) if made else None, "recipe": self.recipe,
        }  # fmt: skip

    def scores(self, exp, variant):
        """What the classifiers of an experiment have left: accuracies on validation, hits on test, and on which machine."""
        spec, values, _ = self.planned
        experiment, classifier = (
            Experiment(self.args.work, f"s{self.seed}{exp}", spec.name),
            values["classifier"]["classifier"],
        )
        entry = read_json(experiment.cas_file)[classifier][spec.name]["real" if variant.real else f"x{variant.size}"]
        hits, test = hits_of(experiment.root, entry)
        first = experiment.root / entry["predictions"]
        machine = read_json(first / TRAINING_RECORD)["machine"]
        infos = [repeat_folder(first, i) / "training_info.csv" for i in range(1, entry["repeats"] + 1)]
        val = [float(next(csv.DictReader(info.read_text().splitlines()))["Best Score"]) for info in infos]
        return {
            "val": val,
            "test": hits.mean(axis=1).tolist(),
            "hits": ["".join("01"[int(h)] for h in row) for row in hits],
            "test_images": short(test),
            "machine": {name: machine[name] for name in ("processor", "gpus")},
        }


def main(args):
    from Models.runtime import resolve_precision

    logging.getLogger("experiment").setLevel(logging.WARNING)
    unet = short(BACKBONES[args.backbone].weights_hash("unet"))  # what other weights give is not compared
    study = {"backbone": args.backbone, "unet": unet, "plain": args.plain}
    rows = []
    if args.results.exists():
        before = read_json(args.results)
        rows = before.pop("rows")
        if before != study:
            raise SystemExit(f"{args.results} is of {before}, not {study}: name another --results")
    known = {(row["dataset"], row["seed"], row["variant"]) for row in rows}
    once, guard = Once(), threading.Lock()
    subjects = [Subject(args, dataset, seed, once) for dataset in args.datasets for seed in args.seeds]
    for subject in subjects:
        if other := [row for row in rows if row["dataset"] == subject.name and row.get("recipe") != subject.recipe]:
            raise SystemExit(f"{args.results} has rows of {subject.name} by another recipe, {other[0].get('recipe')}, not "
                             f"{subject.recipe}: name another --results")  # fmt: skip
    used = resolve_precision(args.precision or "auto")
    if other := [row for row in rows if row.get("precision") not in (None, used)]:
        raise SystemExit(f"{args.results} has rows of {other[0]['precision']}, not {used}: name another --results")
    wanted = [(subject, name) for name in args.variants for subject in subjects
              if (subject.name, subject.seed, name) not in known]  # fmt: skip

    def work(subject, name):
        try:
            row = subject.measure(name)
        except RuntimeError as error:
            print(error, flush=True)
            return
        with guard:
            if any(
                there.get("test_images", row["test_images"]) != row["test_images"]
                for there in rows
                if there["dataset"] == row["dataset"]
            ):
                print(
                    f"{row['dataset']}, seed {row['seed']}: tested on other images than the rows that are there: left out",
                    flush=True,
                )
                return
            rows.append(row)
            write_json(args.results, {**study, "rows": rows})
        told = {key: value for key, value in row.items() if key != "hits"}
        print(json.dumps(told), flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda one: work(*one), wanted))
    print("\n".join([*table(rows), "", *machines(rows)]))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--work", type=Path, required=True, help="folder of everything that is made on the way")
    add("--results", type=Path, help="the rows (WORK/levers.json)")
    add("--backbone", default="mini", choices=[name for name in BACKBONES if BACKBONES[name].light], help="(mini)")
    add("--inf_steps", type=int, default=13, help="of the plain recipe (13)")
    add("--ugs", type=float, default=1.5, help="of the plain recipe (1.5)")
    add("--datasets", nargs="+", default=["digits", "retinamnist"], help="names or paths (digits retinamnist)")
    add("--data_dir", type=Path, help="folder of official files")
    add("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS,
        metavar="NAME", help=f"of {', '.join(VARIANTS)} (all)")  # fmt: skip
    add("--seeds", nargs="+", type=int, default=[1234], help="(1234)")
    add("--repeats", type=int, default=3, help="classifiers of each variant (3)")
    add("--precision", help="of the diffusion model (auto)")
    add("--jobs", type=int, default=1, help="variants at a time (1)")
    args = parser.parse_args(argv)
    args.work, args.plain = home(args.work).resolve(), {"inf_steps": args.inf_steps, "ugs": args.ugs}
    args.results = args.results or args.work / "levers.json"
    return args


if __name__ == "__main__":
    main(parse_args())
