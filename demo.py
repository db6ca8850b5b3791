"""The whole method of the paper on a laptop, by the four scripts' own command lines: `make demo`.

Dataset: the 1,797 handwritten digits of scikit-learn. Backbone: mini. A second run reuses what is finished.
"""

import argparse
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

from cli.startup import share_cores
from Experiment.files import read_json
from Experiment.paths import REPOSITORY, Experiment

CLASSIFIER = "resnet20_16"  # a quarter of the paper's width, for speed


def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=REPOSITORY / "demo", help="folder of all outputs (demo)")
    parser.add_argument("--seed", type=int, default=1234)
    return parser.parse_args()


class Demo:
    """Runs the stages one after the other and remembers how long each took."""

    def __init__(self, root, seed):
        self.experiment, self.seconds, self.codes = Experiment(root.resolve(), "demo", "digits"), {}, {}
        self.common = ["--dataset", "digits", "--exp", "demo", "--root", str(self.experiment.root), "--seed", str(seed)]

    def run(self, stage, command):
        self.together((stage, command))

    def together(self, *stages):
        """Run stages that do not need each other at the same time: much of their start-up uses one core only."""
        running = [threading.Thread(target=self.follow, args=(stage, len(stages) > 1)) for stage in stages]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        failed = [code for code in self.codes.values() if code]
        if failed:
            sys.exit(failed[0])

    def follow(self, stage, several):
        """Run one stage and pass its output on, marked with its name where others are running."""
        name, line = stage
        script, *flags = line.split()
        command = [script, *self.common, *flags]
        print(f"\n[{name}] python {shlex.join(command)}", flush=True)
        start = time.time()
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True} if several else {}
        with subprocess.Popen([sys.executable, str(REPOSITORY / script), *command[1:]], **output) as process:
            for line in process.stdout or []:
                print(f"[{name}] {line.rstrip()}", flush=True)
        self.codes[name], self.seconds[name] = process.returncode, time.time() - start

    def best(self, part):
        return read_json(self.experiment.search_dir(part) / "best.json")


def main(args):
    start = time.time()
    share_cores("mini")  # for all stages, which inherit it: the digits classifier is small as well
    demo = Demo(args.root, args.seed)
    mini, small = "--backbone mini", f"--classifier {CLASSIFIER} --batch_size 64"
    search = (
        f"{mini} {small} --num_imgs 300 --test_imgs 1000 --is_min 8 --epochs 32 --warm_start --save_plots --n_trials 5"
    )

    demo.run("1 transfer learning", f"SD_adapting.py {mini} --train_model enc --freq 4")
    demo.run("2 first search", f"hyp_opt.py {search} --train_model enc --is_max 12 --ugs_max 4")
    first = demo.best("enc")
    epoch = f"--enc_epoch {first['epoch']}"
    demo.run("3 fine-tuning", f"SD_adapting.py {mini} --train_model dif {epoch} --freq 8")
    bounds = f"--is_1 {first['is']} --ugs_1 {first['ugs']}"
    demo.run("4 final search", f"hyp_opt.py {search} --train_model dif {epoch} {bounds}")
    final = demo.best("dif")
    settings = f"{epoch} --dif_epoch {final['epoch']} --inf_steps {final['is']} --ugs {final['ugs']}"
    demo.together(
        ("5 generation, 1x", f"generate_dataset.py {mini} --img_total 1000 {settings}"),
        ("5 generation, 4x", f"generate_dataset.py {mini} --img_total 4000 {settings}"),
        ("6 classifier, real", f"classifier_training.py {small} --epochs 40 --synthetic False"),
    )
    demo.together(
        ("6 classifier, 1x", f"classifier_training.py {small} --epochs 40 --take 1"),
        ("6 classifier, 4x", f"classifier_training.py {small} --epochs 20 --take 4"),
    )

    pictures = [real_beside_synthetic(demo)]
    print_table(demo, time.time() - start, pictures)


def real_beside_synthetic(demo):
    """The picture of the README: eight real training digits of each class beside eight synthetic ones."""
    import numpy as np

    from Data.loaders import load_splits, read_images
    from Data.registry import DATASETS
    from Data.synthetic import find_synthetic, synthetic_files
    from plots import side_by_side

    columns = 8
    experiment = demo.experiment
    train = load_splits(DATASETS["digits"], experiment.root).train
    real = np.concatenate([train.images[train.labels == label][:columns] for label in range(10)])
    files = synthetic_files(find_synthetic(experiment.synthetic_root, 10, 1000), 10)
    synthetic = read_images([path for of_class in files for path in of_class[:columns]], 8, "bilinear")
    labels = np.repeat(np.arange(10), columns)
    return side_by_side(
        real,
        synthetic,
        labels,
        "0123456789",
        experiment.images_dir / "real_beside_synthetic.png",
        ("real, 8x8 px", "synthetic, as the classifier sees it"),
    )


def print_table(demo, seconds, pictures):
    steps = read_json(demo.experiment.pipeline_file)["digits"]
    cas = read_json(demo.experiment.cas_file)[CLASSIFIER]["digits"]
    rows = [
        ("1 after transfer learning", steps["After Transfer Learning"]["no_opt"]["top_1"]),
        ("2 after the first search", steps["After Transfer Learning"]["opt"]["top_1"]),
        ("3 after fine-tuning", steps["After Fine-Tuning"]["no_opt"]["top_1"]),
        ("4 after the final search", steps["After Fine-Tuning"]["opt"]["top_1"]),
        ("trained on real images", cas["real"]["top_1_accuracy"]),
        ("trained on synthetic, 1x", cas["x1"]["top_1_accuracy"]),
        ("trained on synthetic, 4x", cas["x4"]["top_1_accuracy"]),
    ]
    print(f"\n{'accuracy on 500 real test digits':34} top-1\n{'-' * 40}")
    for name, value in rows:
        print(f"{name:34} {value:.3f}")
    print(f"\n{'stage':34} seconds\n{'-' * 42}")
    for stage, value in demo.seconds.items():
        print(f"{stage:34} {value:7.0f}")
    print(f"{'all':34} {seconds:7.0f}\n\npictures:")
    for pattern in (
        "Data/Synthetic/Exp_demo/digits/*.samples.png",
        "optimization_plots/demo/digits/*/history.png",
        "optimization_plots/demo/top_1.png",
        "CAS Results/CAS_plots/expdemo/digits.png",
        "Checkpoints/DDPM/Exp_demo/digits/*/loss.png",
        "Checkpoints/Classifiers/Exp_demo/*/digits/*/confusion_matrix.png",
    ):
        pictures += sorted(demo.experiment.root.glob(pattern))
    for path in pictures:
        print(f"  {path}")


if __name__ == "__main__":
    main(parse_args())
