"""Which rank is worth it: CAS of mini on digits after fine-tuning by low-rank updates, and of all weights.

    python -m bench.lora --work FOLDER [--variants full 4 16 64] [--seeds 1234 1 2] [--epochs 16]

A variant is `full` or a rank, with `@` and a learning rate where it is not the default: `16@0.002`. For each seed one Class
Encoder is trained; each variant goes on from it through the scripts' own command lines. No settings are searched: 13 steps
and scale 1.5 for all. What is in bench/lora.json is not measured again, and an interrupted stage goes on.
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from Experiment.files import read_json, write_json
from Experiment.paths import REPOSITORY, TRAINING_RECORD, Experiment
from Models.weight_names import epoch_path

DATASET, IMAGES, ENC_EPOCHS, STEPS, SCALE = "digits", 1000, 12, 13, 1.5
RESULTS = Path(__file__).resolve().parent / "lora.json"
CLASSIFIER = ("--classifier", "resnet20_16", "--batch_size", "64")


def script(name, experiment, *flags):
    """Run one of the project's scripts on the digits."""
    command = [sys.executable, REPOSITORY / name, "--dataset", DATASET, "--exp", experiment.exp, "--root", experiment.root]
    subprocess.run(list(map(str, [*command, *flags])), check=True, stdout=sys.stderr)  # fmt: skip


def encoder_of(args, seed):
    """The experiment in which the Class Encoder of a seed is trained."""
    experiment = Experiment(args.work, f"s{seed}", DATASET)
    script("SD_adapting.py", experiment, "--backbone", "mini", "--seed", seed, "--freq", ENC_EPOCHS)
    return experiment


def measure(args, variant, seed):
    """Train, generate and classify. Returns a row of the results."""
    rank, _, rate = variant.partition("@")
    encoder = encoder_of(args, seed)
    experiment = Experiment(args.work, f"s{seed}-{variant.replace('@', '-')}-e{args.epochs}", DATASET)
    shutil.copytree(encoder.part_dir("enc"), experiment.part_dir("enc"), dirs_exist_ok=True)
    common = ("--backbone", "mini", "--seed", seed, "--enc_epoch", ENC_EPOCHS)
    flags = [] if rank == "full" else ["--lora_rank", rank]
    flags += ["--lr", rate] if rate else []
    script(
        "SD_adapting.py", experiment, *common, "--train_model", "dif", "--epochs", args.epochs, "--freq", args.epochs, *flags
    )
    script("generate_dataset.py", experiment, *common, "--dif_epoch", args.epochs, "--img_total", IMAGES,
           "--inf_steps", STEPS, "--ugs", SCALE)  # fmt: skip
    script("classifier_training.py", experiment, *CLASSIFIER, "--seed", seed, "--epochs", args.classifier_epochs)
    return row_of(args, experiment, variant, seed)


def row_of(args, experiment, variant, seed):
    """What the stages have left, as one row."""
    dif = experiment.part_dir("dif")
    record = read_json(dif / TRAINING_RECORD)
    (of_dataset,) = read_json(experiment.cas_file).values()
    (cas,) = of_dataset[DATASET].values()
    (info,) = experiment.root.glob(f"Checkpoints/Classifiers/Exp_{experiment.exp}/*/{DATASET}/*/training_info.csv")
    with open(info, newline="") as file:
        (trained,) = csv.DictReader(file)
    return {
        "variant": variant,
        "seed": seed,
        "epochs": args.epochs,
        "classifier_epochs": args.classifier_epochs,
        "lr": record["arguments"]["lr"],
        "precision": record["precision_used"],
        "loss": record["loss"],
        "epoch_bytes": epoch_path(dif, args.epochs).stat().st_size,
        "val_accuracy": float(trained["Best Score"]),
        "test_accuracy": cas["top_1_accuracy"],
    }


def key(row):
    return tuple(row[name] for name in ("variant", "epochs", "classifier_epochs", "precision", "seed"))


def print_table(rows):
    print("\n| variant | epochs | classifier's | precision | lr | MB an epoch | seeds | loss | validation | test |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for variant, epochs, classifier_epochs, precision in sorted({key(row)[:-1] for row in rows}):
        of_variant = [row for row in rows if key(row)[:-1] == (variant, epochs, classifier_epochs, precision)]
        means = [statistics.mean(row[name] for row in of_variant) for name in ("loss", "val_accuracy", "test_accuracy")]
        first = of_variant[0]
        print(
            f"| {variant} | {epochs} | {classifier_epochs} | {precision} | {first['lr']:g} | {first['epoch_bytes'] / 1e6:.2f} | {len(of_variant)} "
            f"| {means[0]:.4f} | {means[1]:.3f} | {means[2]:.3f} |"
        )


def main(args):
    rows = read_json(RESULTS)["rows"] if RESULTS.exists() else []
    known = {key(row) for row in rows}
    for seed in args.seeds:
        for variant in args.variants:
            if (variant, seed, args.epochs, args.classifier_epochs) in known:
                continue
            rows.append(measure(args, variant, seed))
            settings = {"dataset": DATASET, "backbone": "mini", "inf_steps": STEPS, "ugs": SCALE, "enc_epochs": ENC_EPOCHS}
            write_json(RESULTS, {"settings": settings, "rows": rows})
            print(json.dumps(rows[-1]), flush=True)
    print_table(rows)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--variants", nargs="+", default=["full", "4", "16", "64"], help="full, RANK or RANK@LR")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1234, 1, 2])
    parser.add_argument("--epochs", type=int, default=16, help="of the fine-tuning (16, a quarter of mini's default)")
    parser.add_argument("--classifier_epochs", type=int, default=30, help="of the classifier resnet20_16 (30)")
    parser.add_argument("--work", type=Path, required=True, help="folder of everything that is made on the way")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse_args())
