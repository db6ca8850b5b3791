"""Every file reader against damaged files: `make fuzz`. No traceback, no hang, no crash, no file written.

Each reader gets a sound file, changed at random: bits flipped, bytes overwritten, cut, inserted, repeated. It must
either read it or raise the one error that becomes a line for the user. Readers run in processes of their own, so that
one that hangs or crashes is found as well.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
REPOSITORY = Path(__file__).resolve().parent.parent
HANG = 60  # s without an answer: on a busy machine imports alone take long
MOST_FINDINGS = 20


# Readers: a function that writes a sound sample below a folder and returns the file to damage, and one that reads it.


def numpy_images(count, side=9):
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)


def write_npz(folder):
    import numpy as np

    arrays = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": numpy_images(6), f"{split}_labels": np.arange(6) % 3}
    random.choice([np.savez, np.savez_compressed])(folder / "own.npz", **arrays)
    return folder / "own.npz"


def read_dataset(path):
    from Data.loaders import load_splits
    from Data.registry import dataset_spec

    load_splits(dataset_spec(str(path)), "unused")


def write_images(folder):
    from PIL import Image

    suffix = random.choice([".png", ".jpg", ".bmp", ".gif", ".webp", ".tif"])
    for i, image in enumerate(numpy_images(24)):
        path = folder / "own" / ("cat", "dog")[i % 2] / f"{i:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert(random.choice(["RGB", "L", "P" if suffix in (".png", ".gif") else "RGB"])).save(path)
    return folder / "own/cat" / random.choice([f"00{suffix}", f"04{suffix}"])  # the first tells the resolution


def read_images(path):
    read_dataset(path.parent.parent)


def small_model():
    from Models.class_encoder import class_encoder

    return class_encoder(10, 12, (5, 8))


def write_weights(folder):
    from Models.weights import save_weights

    if random.random() < 0.5:
        published = REPOSITORY / "tests/golden/class_encoder_units12_tokens5_dim8_classes10.hdf5"
        return Path(shutil.copy(published, folder / "epoch3.hdf5"))
    save_weights(MODELS.setdefault("undamaged", small_model()), folder / "epoch3.weights.h5")
    return folder / "epoch3.weights.h5"


def read_weights(path):
    from Models.weight_names import epoch_file
    from Models.weights import load_weights

    load_weights(MODELS.setdefault("encoder", small_model()), epoch_file(path.parent, 3, "enc"))


KERNELS = {"5.attn1.to_q": (6, 4), "5.entry_flow.2.conv2d": (3, 3, 5, 4)}


def write_updates(folder):
    import numpy as np

    from Models import lora_files

    updates = {place: (np.ones((*shape[:-1], 2)), np.ones((2, shape[-1]))) for place, shape in KERNELS.items()}
    path = folder / "epoch3.weights.h5"
    lora_files.write_updates(path, lora_files.Facts(2, 4.0, "attention", "a" * 64), updates)
    return path


def read_updates(path):
    from Models import lora_files
    from Models.weights import load_weights

    if lora_files.read_facts(path):
        lora_files.read_updates(path, KERNELS)
    else:
        load_weights(MODELS.setdefault("encoder", small_model()), path)


MODELS = {}  # built once a process


def foreign_model():
    """A backbone of one level, its image encoder, and tensors for it: {part: ...} of `tests.foreign`."""
    from tests import foreign

    if "foreign" not in MODELS:
        backbone = foreign.small_backbone(levels=1)
        models = {"image_encoder": backbone.build["image_encoder"](backbone)}
        MODELS["foreign"] = backbone, models, foreign.foreign_tensors(models, levels=1)
    return MODELS["foreign"]


def write_foreign(folder):
    """A VAE's encoder in either layout; what is damaged is its numbers' file, a shard, an index or a configuration."""
    from tests import foreign

    _, _, tensors = foreign_model()
    tensors = {"unet": {}, "decoder": {}, **tensors}
    if random.random() < 0.4:
        arrays = foreign.original_arrays(tensors) | {"model.diffusion_model.time_embed.0.bias": numpy_images(1).ravel()}
        foreign.save_file(arrays, folder / "sd.safetensors")
        return folder / "sd.safetensors"
    shards = random.choice([1, 2])
    foreign.write_folder(folder / "sd", tensors, shards=shards, dtype=random.choice(["float32", "float16"]), heads=[2])
    return random.choice(sorted((folder / "sd/vae").iterdir()))


def read_foreign(path):
    from Models.foreign_weights import foreign_weights

    backbone, models, _ = foreign_model()
    source = foreign_weights(backbone, path if path.name == "sd.safetensors" else path.parent.parent)
    source.check("image_encoder")
    source.fill(models["image_encoder"], "image_encoder")


def write_synthetic(folder):
    from PIL import Image

    from Data.synthetic import SyntheticWriter

    made = folder / "10Enc1Dif1Is5Ugs1"
    writer = SyntheticWriter(made, [5, 5])
    writer.begin()
    for number in writer.missing():
        writer.write(number, numpy_images(1)[0])
    writer.finish({"seed": 1, "image_size": 9})
    writer.close()
    with Image.open(made / "class_00/img_0.png"):
        return random.choice([made / "manifest.json", made / "class_00/img_0.png"])


def read_synthetic(path):
    from Data.stored_set import load_synthetic
    from Data.synthetic import find_synthetic

    root = next(parent for parent in path.parents if parent.name.startswith("10Enc")).parent
    load_synthetic(find_synthetic(root, 2, 10), 2, 9, 10, 1)


CAS = {"resnet20_16": {"digits": {"real": {"top_1_accuracy": 0.9, "top_5_accuracy": 1.0},
                                  "x1": {"top_1_accuracy": 0.8, "top_5_accuracy": 1.0, "repeats": 2,
                                         "interval": {"top_1_accuracy": [0.7, 0.9]}, "predictions": "here"}}}}  # fmt: skip
STEPS = {"digits": {stage: {kind: {"top_1": 0.9, "top_5": 1.0} for kind in ("no_opt", "opt")}
                    for stage in ("After Transfer Learning", "After Fine-Tuning")}}  # fmt: skip


def write_results(folder):
    from Experiment.paths import Experiment

    experiment = Experiment(folder, "x", "digits")
    path, content = random.choice([(experiment.cas_file, CAS), (experiment.pipeline_file, STEPS)])
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))
    return path


def read_results(path):
    import curves
    import plots
    import result_plots
    from Experiment.paths import Experiment

    # The drawing is tried, not the encoding of PNGs.
    plots.save_figure = curves.save_figure = lambda figure, path: plots.plt.close(figure)
    experiment = Experiment(path.parent.parent, "x", "digits")
    if path == experiment.cas_file:
        result_plots.experiment_cas_curve(experiment)
    else:
        result_plots.experiment_pipeline_bars(experiment.root, "x")


def write_predictions(folder):
    import numpy as np

    from Experiment.predictions import FILE, Predictions, write_predictions

    write_predictions(folder, Predictions(np.zeros((9, 2), np.int16), np.zeros(9, np.int16), "a" * 64))
    return folder / FILE


def read_predictions(path):
    from Experiment.predictions import read_predictions

    found = read_predictions(path.parent)
    if found:
        found.hits().mean()


def write_record(folder):
    record = {"arguments": {"dataset": "digits", "epochs": 3}, "versions": {"python": "3.11"}, "seconds": 1.5}
    (folder / "training.json").write_text(json.dumps(record))
    return folder / "training.json"


def read_record(path):
    from Experiment.records import finished_run

    finished_run(path, argparse.Namespace(dataset="digits", epochs=3, restart=False), ())


def fit_state():
    import keras

    from Models.fit_state import FitState

    if "fit" not in MODELS:
        model = small_model()
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        MODELS["fit"] = model
        keras.utils.set_random_seed(1)
    return lambda path: FitState(path, {"seed": 1}, MODELS["fit"].variables + MODELS["fit"].optimizer.variables)


def write_state(folder):
    fit_state()(folder / "state.npz").save(2, {"loss": [1.0, 0.5]})
    return folder / "state.npz"


def read_state(path):
    fit_state()(path).load()


def moments(folder, encode):
    from Data.latents import cache_file, cached_moments

    return cached_moments(cache_file(folder, "digits", numpy_images(4), "abc"), numpy_images(4), encode)


def write_moments(folder):
    moments(folder, lambda images: (batch[:, :2, :2].repeat(3, -1)[..., :8] / 255.0 for batch in [images]))
    return next(folder.glob("*.npy"))


def read_moments(path):
    moments(path.parent, None).sum()


def write_study(folder):
    import optuna

    from Experiment.paths import Experiment
    from Models.weight_cards import read_card
    from Search.studies import open_study, pruner

    study = open_study(f"sqlite:///{folder}/study.db", "digits_expx_study_enc", 1, pruner("median", 10), True, folder / "study")
    for value in (0.5, 0.7):
        trial = study.ask({"is": optuna.distributions.IntDistribution(1, 9), "ugs": optuna.distributions.FloatDistribution(0, 2),
                           "epoch": optuna.distributions.IntDistribution(1, 9)})  # fmt: skip
        trial.set_user_attr("saved_epoch", 1)
        trial.set_user_attr("rung", "3/3")
        trial.report(value, 1)
        study.tell(trial, value)
    epoch = Experiment(folder, "x", "digits").part_dir("enc") / "epoch1.weights.h5"
    epoch.parent.mkdir(parents=True)
    epoch.touch()
    read_card(epoch)  # as a real one has its card
    return folder / "study.db"


def read_study(path):
    import hyp_opt

    hyp_opt.search(hyp_opt.parse_args(["--exp", "x", "--dataset", "digits", "--no-optimize", "--storage", f"sqlite:///{path}",
                                     "--root", str(path.parent)]))  # fmt: skip


READERS = {
    "own npz": (write_npz, read_dataset), "own image folder": (write_images, read_images),
    "HDF5 weights": (write_weights, read_weights), "low-rank updates": (write_updates, read_updates),
    "safetensors": (write_foreign, read_foreign), "synthetic set": (write_synthetic, read_synthetic),
    "results": (write_results, read_results), "record of a run": (write_record, read_record),
    "training state": (write_state, read_state), "cached moments": (write_moments, read_moments),
    "study": (write_study, read_study), "predictions": (write_predictions, read_predictions),
}  # fmt: skip


# Damage


def damage(raw):
    """A changed copy of some bytes."""
    raw = bytearray(raw)
    for _ in range(random.choice([1, 1, 1, 2, 4, 16])):
        at = random.randrange(len(raw)) if raw else 0
        length = min(random.choice([1, 2, 4, 8, 64]), len(raw) - at)
        kind = random.randrange(7)
        if kind == 0 and raw:
            raw[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            raw[at : at + length] = random.randbytes(length)
        elif kind == 2:
            raw[at : at + length] = random.choice([b"\0", b"\xff", b"\x7f", b"9", b"-", b"["]) * length
        elif kind == 3:
            del raw[at:]
        elif kind == 4:
            del raw[at : at + length]
        elif kind == 5:
            raw[at:at] = raw[at : at + length] * random.choice([1, 1, 200])
        else:
            raw[at:at] = random.randbytes(length)
    return bytes(raw)


def damage_json(raw):
    """Changed content, well-formed: what a byte's change seldom gives."""
    content = json.loads(raw)
    places = []

    def collect(node):
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            collect(node[key])

    collect(content)
    values = [None, True, -1, 1e308, float("nan"), "", "x" * 50, [], {}, [1], {"a": 1}, 10**30]
    for _ in range(random.choice([1, 2])):
        node, key = random.choice(places)
        with contextlib.suppress(KeyError, IndexError):
            if random.random() < 0.3:
                del node[key]
            else:
                node[key] = random.choice(values)
    return json.dumps(random.choice([content, content, content, random.choice(values)])).encode()


def files_below(folder):
    """What an error must leave as it is: all but logs, locks and the study, in which every run notes its settings."""
    own = (".lock", ".txt", ".db")
    return {p: hashlib.sha256(p.read_bytes()).digest() for p in folder.rglob("*") if p.is_file() and p.suffix not in own}


# One process of one reader


def worker(name, case, until, folder):
    """Try cases one after the other, a line of JSON each."""
    from Experiment.errors import UserError

    write, read = READERS[name]
    logging.disable()
    while time.time() < until:
        random.seed(f"{name} {case}")
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        print(json.dumps({"case": case}), flush=True)
        path = write(place)
        change = damage_json if path.suffix == ".json" and random.random() < 0.7 else damage
        path.write_bytes(change(path.read_bytes()))
        before, outcome = files_below(place), "read"
        try:
            with contextlib.redirect_stdout(sys.stderr):
                read(path)
        except UserError:
            outcome = "refused"
        except Exception:
            outcome = "traceback: " + traceback.format_exc()[-1500:]
        if outcome == "refused" and files_below(place) != before:
            outcome = "refused, but wrote a file"
        print(json.dumps({"outcome": outcome}), flush=True)
        case += 1


# All of them


def follow(name, seconds, folder):
    """Run a reader for some time, in as many processes as it takes. Returns {cases, read, refused, findings}."""
    until, case = time.time() + seconds, 0
    counts = {"cases": 0, "read": 0, "refused": 0, "findings": []}
    while time.time() < until and len(counts["findings"]) < MOST_FINDINGS:
        command = [sys.executable, "-m", "tests.fuzz", "--worker", name, str(case), str(until), str(folder)]
        with open(folder / "stderr", "w") as errors:
            process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=errors, text=True)
        watchdog = subprocess.Popen([sys.executable, "-c", WATCHDOG, str(process.pid), str(folder / "alive"), str(HANG)])
        outcome = "started"
        for line in process.stdout:
            (folder / "alive").touch()
            told = json.loads(line)
            case, outcome = told.get("case", case), told.get("outcome")
            if outcome:
                counts["cases"] += 1
                counts["read" if outcome == "read" else "refused"] += outcome in ("read", "refused")
                if outcome not in ("read", "refused"):
                    counts["findings"].append((case, outcome))
                    if len(counts["findings"]) == MOST_FINDINGS:
                        process.kill()
        code = process.wait()
        watchdog.kill()
        watchdog.wait()
        if code and outcome is None:  # it ended within a case
            what = f"no answer for {HANG} s" if code == -9 else f"ended with {code}"
            counts["findings"].append((case, f"{what}: {(folder / 'stderr').read_text()[-300:]}"))
        elif code and code != -9:
            sys.exit(f"the fuzzer itself failed: {(folder / 'stderr').read_text()[-2000:]}")
        case += 1
    return counts


WATCHDOG = """
import os, sys, time
pid, alive, hang = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
start = time.time()
while True:
    time.sleep(1)
    last = os.path.getmtime(alive) if os.path.exists(alive) else start
    if time.time() - max(last, start) > hang:
        os.kill(pid, 9)
"""


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600, help="time for all readers together (600)")
    parser.add_argument("--readers", default=",".join(READERS), help="which of them, by name")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        name, case, until, folder = args.worker
        return worker(name, int(case), float(until), Path(folder))
    names = args.readers.split(",")
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = follow(name, args.seconds / len(names), Path(folder))
    print(f"\n{'reader':20} {'files':>7} {'read':>7} {'refused':>8} {'findings':>9}")
    for name, counts in found.items():
        print(f"{name:20} {counts['cases']:7} {counts['read']:7} {counts['refused']:8} {len(counts['findings']):9}")
    for name, counts in found.items():
        for case, finding in counts["findings"]:
            print(f"\n{name}, case {case}: {finding}")
    return any(counts["findings"] for counts in found.values())


if __name__ == "__main__":
    sys.exit(main())
