"""What users get wrong, through each script's own command line: one line on stderr, exit code 2, nothing written."""

import importlib
import shutil
import sys
import zlib

import h5py
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from cli import process
from Experiment.errors import MAY_PASS
from Models.backbones import BACKBONES
from Models.class_encoder import class_encoder
from Models.lora_files import Facts, write_updates
from tests.conftest import STAGES, actions_of

RNG = np.random.default_rng(0)
SCRIPTS = {
    "adapt": "SD_adapting",
    "search": "hyp_opt",
    "generate": "generate_dataset",
    "classify": "classifier_training",
    "export": "export_dataset",
    "audit": "audit_dataset",
}
ADAPT, SEARCH = ["--epochs", "1"], ["--n_trials", "1"]
GENERATE = ["--img_total", "4", "--enc_epoch", "0", "--dif_epoch", "0"]
EXPORT = ["--to", "/proc/none/out", "--format", "hf"]


def picture(path, size=(9, 9), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"RGB": 3, "L": 1}[mode]
    Image.fromarray(RNG.integers(0, 256, (*size, channels), np.uint8).squeeze(), mode).save(path)


def folder(path, classes=("cat", "dog"), images=12):
    for name in classes:
        for i in range(images):
            picture(path / name / f"{i}.png")
    return path


def bomb(path, side=50_000):
    """A PNG whose header promises side x side pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(path)
    raw = bytearray(path.read_bytes())
    raw[16:24] = side.to_bytes(4, "big") * 2
    raw[29:33] = zlib.crc32(raw[12:29]).to_bytes(4, "big")
    path.write_bytes(raw)


def npz(path, **changes):
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = RNG.integers(0, 256, (12, 9, 9, 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(12)[:, None] % 3
    arrays.update(changes)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A folder full of bad input."""
    bad = tmp_path_factory.mktemp("bad")
    folder(bad / "good")
    folder(bad / "empty_class")
    (bad / "empty_class/fish").mkdir()
    folder(bad / "one_class", classes=["cat"])
    (bad / "no_classes").mkdir()
    folder(bad / "few", images=1)
    folder(bad / "train_only/train")
    for split in ("train", "test", "val", "valid"):
        folder(bad / "twice" / split)
    folder(bad / "other_classes/train")
    folder(bad / "other_classes/test", classes=["cat", "fish"])
    folder(bad / "text")
    (bad / "text/dog/5.png").write_text("no picture")
    folder(bad / "truncated")
    cut = bad / "truncated/cat/3.png"
    cut.write_bytes(cut.read_bytes()[:60])
    folder(bad / "lost", images=20)
    for i in range(1, 20):
        (bad / f"lost/dog/{i}.png").write_text("no picture")
    folder(bad / "bomb")
    bomb(bad / "bomb/dog/0.png")
    folder(bad / "first_bomb")
    bomb(bad / "first_bomb/cat/0.png")
    folder(bad / "deep")
    Image.fromarray(RNG.integers(0, 60000, (9, 9), np.int32)).save(bad / "deep/cat/1.tif")
    for i in range(1001):
        picture(bad / f"many/{i:04d}/0.png")

    images, labels = RNG.integers(0, 256, (12, 9, 9, 3), np.uint8), np.arange(12) % 3
    npz(bad / "no_key.npz", val_images=None)
    npz(bad / "float.npz", train_images=images / 255)
    npz(bad / "channels.npz", train_images=np.repeat(images[..., :1], 4, -1))
    npz(bad / "nan.npz", test_images=np.full((12, 9, 9, 3), np.nan))
    npz(bad / "out_of_range.npz", test_labels=labels + 7)
    npz(bad / "huge_label.npz", train_labels=labels.astype("int64") * 10**12)
    npz(bad / "negative.npz", train_labels=labels - 1)
    npz(bad / "fractions.npz", train_labels=labels + 0.5)
    npz(bad / "fewer_labels.npz", train_labels=labels[:5])
    npz(bad / "one_class.npz", train_labels=0 * labels)
    npz(bad / "no_images.npz", train_images=images[:0], train_labels=labels[:0])
    np.savez(bad / "pickle.npz", train_images=np.array([{"a": 1}], object), allow_pickle=True)
    (bad / "text.npz").write_text("no archive")
    (bad / "pointer.npz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (bad / "void.npz").write_bytes(b"")
    whole = (bad / "float.npz").read_bytes()
    (bad / "cut.npz").write_bytes(whole[: len(whole) // 2])

    for name in ("text", "void", "cut", "other", "pointer", "directory"):  # weight folders with one bad file each
        shutil.copytree(BACKBONES["mini"].files["unet"].folder, bad / "weights" / name)
        file = bad / "weights" / name / "unet.weights.h5"
        raw = file.read_bytes()
        file.unlink()
        if name == "directory":
            file.mkdir()
        elif name == "other":
            with h5py.File(file, "w") as written:
                written["a"] = np.zeros(3)
        else:
            file.write_bytes({"text": b"no weights", "void": b"", "cut": raw[: len(raw) // 2],
                              "pointer": b"version https://git-lfs.github.com/spec/v1\n"}[name])  # fmt: skip
    (bad / "weights/none").mkdir()
    for part in ("image_encoder", "decoder"):
        shutil.copytree(BACKBONES["mini"].files["unet"].folder, bad / "weights" / part)
        (bad / "weights" / part / f"{part}.weights.h5").write_text("no weights")
    return bad


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with synthetic sets and results that are not as they should be."""
    root = tmp_path_factory.mktemp("root")
    made = root / "Data/Synthetic/Exp_lack/digits/1kEnc1Dif1Is5Ugs1"
    for label in range(9):
        picture(made / f"class_{label:02d}/img_0.png")
    lies = root / "Data/Synthetic/Exp_lies/digits/1kEnc1Dif1Is5Ugs1"
    for label in range(10):
        picture(lies / f"class_{label:02d}/img_0.png")
    (lies / "manifest.json").write_text('{"total": 1000, "counts": [100, 100, 100, 100, 100, 100, 100, 100, 100, 100]}')
    small = root / "Data/Synthetic/Exp_small/digits/0.5kEnc1Dif1Is5Ugs1"
    for label in range(10):
        picture(small / f"class_{label:02d}/img_0.png")
    results = root / "CAS Results"
    results.mkdir()
    (results / "test_accuracies_expcut.json").write_text('{"resnet20": {"digits": ')
    (results / "test_accuracies_expodd.json").write_text('{"resnet20": {"digits": 0.9}}')
    (results / "pipeline_optimization_expthere.json").write_text("[]")
    total = root / "Data/Synthetic/Exp_total/digits/1kEnc1Dif1Is5Ugs1"
    total.mkdir(parents=True)
    (total / "manifest.json").write_text('{"total": "many"}')
    foreign = root / "Data/Synthetic/Exp_foreign/digits/4Enc0Dif0Is50Ugs7.5"
    foreign.mkdir(parents=True)
    (foreign / "mine.txt").write_text("not to be lost")
    foreign = root / "Checkpoints/DDPM/Exp_foreign/digits/MyEmbedding"
    foreign.mkdir(parents=True)
    for epoch, (classes, shape) in ((3, (4, (8, 64))), (7, (10, (100, 768)))):
        class_encoder(classes, 5, shape).save_weights(foreign / f"epoch{epoch}.weights.h5")
    encoder = root / "Checkpoints/DDPM/Exp_there/digits/MyEmbedding"
    encoder.mkdir(parents=True)
    for epoch in (3, 7):
        (encoder / f"epoch{epoch}.weights.h5").write_text("no weights")
    pretrained = BACKBONES["mini"].weights_hash("unet")
    for name, base in (("lora", pretrained), ("otherlora", "0" * 64)):
        file = root / f"Checkpoints/DDPM/Exp_{name}/digits/DiffusionFt/epoch5.weights.h5"
        file.parent.mkdir(parents=True)
        write_updates(file, Facts(2, 2.0, "attention", base), {"5.to_q": (np.zeros((4, 2)), np.zeros((2, 4)))})
    return root


LONG = "a" * 65
FLAGS = [
    *[("adapt", ["--epochs", value], "--epochs") for value in ("0", "-1", "nan", "many", "1.5", "")],
    *[("adapt", ["--batch_size", value], "--batch_size") for value in ("0", "-4", "1e3")],
    *[("adapt", ["--lr", value], "--lr") for value in ("0", "-0.1", "nan", "inf", "fast")],
    *[("adapt", [flag, "0"], flag) for flag in ("--freq",)],
    *[("adapt", ["--seed", value], "--seed") for value in ("-1", "pi", str(2**63))],
    *[("adapt", ["--exp", value], "--exp") for value in ("", "../up", "a/b", LONG, "two words", "größe", ".hidden")],
    *[("adapt", ["--dataset", value], hint) for value, hint in (
        ("cifar11", "did you mean cifar10?"), ("blodmnist", "did you mean bloodmnist?"), ("", "--dataset"))],
    ("adapt", ["--backbone", "sd3"], "--backbone"), ("adapt", ["--precision", "float16"], "--precision"),
    ("adapt", ["--lora_rank", "4"], "--lora_rank: not allowed without --train_model dif"), ("adapt", ["--lora_targets", "all"], "--lora_targets: not allowed without --lora_rank"),
    ("adapt", ["--train_model", "dif", "--lora_alpha", "2"], "--lora_alpha: not allowed without --lora_rank"), ("adapt", ["--lora_targets", "none"], "--lora_targets"),
    ("adapt", ["--train_model", "vae"], "--train_model"), ("adapt", ["--weights_dir", "nowhere"], "--weights_dir"),
    ("adapt", ["--epoch", "3", "--colour", "red"], "--colour"),
    *[("search", [flag, value], flag) for flag in ("--n_trials", "--num_imgs", "--epochs", "--rungs", "--gen_batch_size")
      for value in ("0", "-1", "x")],
    ("search", ["--num_imgs", "60", "--batch_size", "61"], "--batch_size: 61 is more than the 60 training images"),
    ("search", ["--is_min", "20", "--is_max", "10"], "--is_min: 20 is more than the most inference steps, 10"),
    ("adapt", ["--background", "whit"], "argument --background: must be the name of a colour or #rrggbb, received 'whit'"),
    *[("classify", ["--resolution", value], "in 4..1024") for value in ("3", "1025")],
    ("search", ["--is_1", "1001"], "in 1..1000"), ("search", ["--ugs_1", "0"], "--ugs_1"), ("search", ["--ugs_max", "nan"], "--ugs_max"),
    ("search", ["--epoch", "31"], "unrecognized arguments: --epoch 31"), ("adapt", ["--batch", "3"], "unrecognized arguments: --batch 3"),
    ("search", ["--restart", "--prune"], "--restart: not allowed with --prune"), ("search", ["--repeats", "-1"], "--repeats"),
    ("search", ["--restart", "--no-optimize"], "--restart"), ("search", ["--timeout", "-1"], "--timeout"), ("search", ["--pruner", "hope"], "--pruner"), ("search", ["--select_on", "train"], "--select_on"),
    ("generate", ["--img_total", "4", "--img_class", "2"], "exactly one of --img_class and --img_total"),
    ("generate", [], "exactly one of --img_class and --img_total"),
    *[("generate", ["--img_total", value], "--img_total") for value in ("0", "-3", "1e4", "nan")],
    *[("generate", [*GENERATE, "--inf_steps", value], "in 1..1000") for value in ("0", "1001", "-5")],
    *[("generate", [*GENERATE, "--ugs", value], "--ugs") for value in ("-1", "nan", "inf", "1001")],
    *[("generate", [*GENERATE, "--image_size", value], "--image_size") for value in ("0", "5000")],
    *[("generate", [*GENERATE, "--shard", value], "--shard") for value in ("0/2", "3/2", "1", "a/b", "1/0")],
    ("generate", [*GENERATE, "--shard", "1/2", "--restart"], "--restart"),
    *[("classify", ["--take", value], "--take") for value in ("0", "-1", "1001", "all")],
    ("classify", ["--synthetic", "perhaps"], "--synthetic"), ("classify", ["--synthetic_dir", "nowhere"], "--synthetic_dir"),
    ("export", ["--format", "hf"], "--to"), ("export", ["--to", "x"], "--format"), ("export", ["--to", "x", "--format", "zip"], "--format"),
    ("export", [*EXPORT, "--with_real"], "--with_real: only with --format npz"), ("export", [*EXPORT, "--license", "CC BY"], "--license"),
    ("export", [*EXPORT, "--synthetic_dir", "nowhere"], "there is no folder"),
    ("audit", ["--synthetic_dir", "nowhere"], "there is no folder"), ("audit", ["--shadows", "1"], "must be 0, or 2 or more"),
    ("audit", ["--classifier", "resnet50"], "--classifier"), ("audit", ["--sample", "9"], "--sample"),
    ("classify", ["--synthetic", "False", "--synthetic_dir", "."], "--synthetic_dir"), ("classify", ["--classifier", "resnet50"], "--classifier"),
]  # fmt: skip

FILES = [
    ("empty_class", "these class folders hold no images: fish"), ("one_class", "2 to 1000 classes. Received: 1"),
    ("no_classes", "holds no class folders"), ("few", "too few images"), ("train_only", "needs train and test"),
    ("twice", "two folders of one split: val and valid"), ("other_classes", "other classes than the training images: dog, fish"), ("text", "1 images cannot be read"),
    ("truncated", "1 images cannot be read"), ("bomb", "1 images cannot be read"), ("first_bomb", "1 images cannot be read"),
    ("deep", "32-bit numbers of unknown range"), ("lost", "--skip_broken leaves them out"), ("many", "2 to 1000 classes. Received: 1001"),
    ("no_key.npz", "Missing: val_images"), ("float.npz", "train_images must be uint8"), ("channels.npz", "train_images must be uint8"),
    ("nan.npz", "test_images must be uint8"), ("out_of_range.npz", "train has no image of these classes: 7, 8, 9"), ("negative.npz", "train has no image of these classes: 2"),
    ("fractions.npz", "labels must be whole numbers"), ("fewer_labels.npz", "12, 9, 9, 3) with 5 labels"), ("one_class.npz", "train has no image of these classes: 1, 2"),
    ("no_images.npz", "N > 0"), ("huge_label.npz", "train has no image of these classes: 1, 2"), ("pickle.npz", "Missing"), ("text.npz", "not a readable npz"), ("pointer.npz", "not a readable npz"),
    ("void.npz", "not a readable npz"), ("cut.npz", "not a readable npz"),
]  # fmt: skip

WEIGHTS = [("text", "unet.weights.h5"), ("void", "unet.weights.h5"), ("cut", "unet.weights.h5"), ("other", "unet.weights.h5"),
           ("pointer", "unet.weights.h5"), ("directory", "unet.weights.h5"), ("none", "unet.weights.h5")]  # fmt: skip

STATES = [
    ("adapt", ["--exp", "foreign", "--enc_epoch", "7", *ADAPT], "epoch7.weights.h5 does not fit"),
    ("adapt", ["--exp", "foreign", "--enc_epoch", "3", *ADAPT], "stand beside this one's. Use another --exp"),
    ("search", ["--exp", "foreign", *SEARCH], "epoch3.weights.h5 does not fit"),
    ("search", ["--exp", "there", "--no-optimize", "--storage", "journal:nowhere"], "/nowhere: run with --optimize"),
    ("classify", ["--exp", "lack"], "Missing or too many: class_09"), ("classify", ["--exp", "lies"], "counts [100, 100"),
    ("classify", ["--exp", "small"], "has 1000 images. There: 0.5kEnc1Dif1Is5Ugs1 (10 images)"),
    ("classify", ["--exp", "new"], "There: none"), ("classify", ["--exp", "new", "--train", "False"], "no trained classifier"),
    ("generate", ["--exp", "foreign", *GENERATE], "holds something that generate_dataset.py has not begun"),
    ("generate", ["--exp", "there", "--img_total", "4", "--enc_epoch", "9", "--dif_epoch", "0"], "Epochs there: 3, 7"),
    ("generate", ["--exp", "there", "--img_total", "4", "--enc_epoch", "3", "--dif_epoch", "0"], "epoch3.weights.h5"),
    *[("generate", ["--exp", "foreign", "--img_total", "5", "--enc_epoch", epoch, "--dif_epoch", "0"], f"epoch{epoch}.weights.h5")
      for epoch in ("3", "7")],
    ("adapt", ["--exp", "there", "--enc_epoch", "9", *ADAPT], "Epochs there: 3, 7"),
    ("adapt", ["--exp", "new", "--train_model", "dif", "--enc_epoch", "2", *ADAPT], "Epochs there: none"),
    *[("generate", ["--exp", exp, "--img_total", "4", "--enc_epoch", "0", "--dif_epoch", "5"], message) for exp, message in (
        ("lora", "epoch5.weights.h5 holds low-rank updates of other layers: ['5.to_q.a', '5.to_q.b']"),
        ("otherlora", "epoch5.weights.h5 holds low-rank updates of another pretrained UNet (000000000000)"))],
    ("search", ["--exp", "lora", "--train_model", "dif", *SEARCH], "holds low-rank updates of other layers"),
    ("adapt", ["--exp", "lora", "--train_model", "dif", "--dif_epoch", "5", "--lora_rank", "4", *ADAPT], "rank 4, alpha 4, targets attention cannot go on"),
    ("search", ["--exp", "new", *SEARCH], "there are no weights"),
    ("search", ["--exp", "there", "--no-optimize"], "there is no study"),
    ("search", ["--exp", "there", "--prune"], "there is no study"), ("search", ["--exp", "new", "--prune"], "there are no weights"),
    ("search", ["--exp", "there", "--no-optimize", "--storage", "nonsense"], "--storage nonsense cannot be opened"),
    ("search", ["--exp", "there", *SEARCH], "pipeline_optimization_expthere.json must hold a JSON object"),
    ("classify", ["--exp", "cut", "--synthetic", "False"], "test_accuracies_expcut.json is not readable JSON"),
    ("classify", ["--exp", "odd", "--synthetic", "False"], "does not hold accuracies in 0..1 in the published schema"),
    ("classify", ["--exp", "total"], "manifest.json says no total"),
    ("export", ["--exp", "total", *EXPORT], "manifest.json says no total"), ("export", ["--exp", "new", *EXPORT], "no complete"),
    ("export", ["--exp", "lack", *EXPORT], "Missing or too many: class_09"), ("export", ["--exp", "lies", *EXPORT], "counts [100, 100"),
    ("audit", ["--exp", "total"], "manifest.json says no total"), ("audit", ["--exp", "new"], "no complete"),
    ("audit", ["--exp", "lack"], "Missing or too many: class_09"), ("audit", ["--exp", "lies"], "counts [100, 100"),
    ("export", ["--exp", "small", *EXPORT], "and /proc has 0.0 kB left"), ("export", ["--exp", "small", *EXPORT, "--to", "/proc"], "is there already"),
    ("export", ["--exp", "small", *EXPORT, "--license", "cc0-1.0"], "that of digits is CC BY 4.0"),
    ("export", ["--exp", "new", *EXPORT, "--dataset", "cifar10", "--format", "npz", "--with_real"], "no licence is known"),
    *[(script, ["--exp", "new", "--batch_size", "1001", *flags], "--batch_size: 1001 is more than the 1000 training images")
      for script, flags in (("adapt", ADAPT), ("classify", ["--synthetic", "False"]))],
    *[(script, ["--root", "/proc/none", *flags], "/proc/none") for script, flags in (
        ("adapt", ADAPT), ("search", SEARCH), ("classify", ["--synthetic", "False"]))],
]  # fmt: skip


def snapshot(folder):
    """Everything in a folder: files with their content, and folders; but for what keeps hashes of weights and sets."""
    paths = [path for path in folder.rglob("*") if not path.name.endswith((".weights.h5.json", ".hashes.json"))]
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


def refused(script, argv, capsys, monkeypatch, root, code=2):
    """Run a script's command line in this process; returns its one line on stderr."""
    module = importlib.import_module(SCRIPTS[script])
    monkeypatch.setattr(sys, "argv", [f"{SCRIPTS[script]}.py"])
    flags = [] if "--exp" in argv else ["--exp", "bad"]
    flags += [] if "--dataset" in argv else ["--dataset", "digits"]
    flags += [] if "--backbone" in argv else ["--backbone", "mini"]
    before = snapshot(root)
    with pytest.raises(SystemExit) as ended:
        stage = getattr(module, STAGES[SCRIPTS[script]])
        process.run(stage, lambda: module.parse_args([*flags, "--root", str(root), *argv]), module.plan)
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == code and len(lines) == 1, lines
    assert snapshot(root) == before
    print(f"{SCRIPTS[script]}.py {' '.join(argv)} -> {lines[0]}")  # a table of them all: pytest tests/test_bad_input.py -rP
    return lines[0]


@pytest.mark.parametrize("script, argv, message", FLAGS)
def test_flags(script, argv, message, capsys, monkeypatch, tmp_path):
    assert message in refused(script, argv, capsys, monkeypatch, tmp_path)


def numeric_flags():
    for script, name in SCRIPTS.items():
        for action in actions_of(name):
            if getattr(action.type, "__name__", "") in ("whole number", "whole number or best", "number"):
                yield script, action.option_strings[0]


@pytest.mark.parametrize("value", ["-1", "nan", "many", "", "9" * 30, "1e400"])
@pytest.mark.parametrize("script, flag", list(numeric_flags()))
def test_no_numeric_flag_takes_nonsense(script, flag, value, capsys, monkeypatch, tmp_path):
    if flag == "--timeout" and value == "9" * 30:
        pytest.skip("a number of seconds may be as large as one likes")
    assert flag in refused(script, [flag, value], capsys, monkeypatch, tmp_path)


def test_the_first_ten_broken_images_are_listed(bad, capsys, monkeypatch, tmp_path):
    line = refused("adapt", ["--dataset", str(bad / "lost"), *ADAPT], capsys, monkeypatch, tmp_path)
    assert "19 images cannot be read" in line and line.count(".png (") == 10


@pytest.mark.parametrize("script, argv, folder", [
    ("adapt", ADAPT, "Checkpoints/DDPM/Exp_bad/digits/MyEmbedding"),
    ("generate", GENERATE, "Data/Synthetic/Exp_bad/digits/4Enc0Dif0Is50Ugs7.5"),
    ("classify", ["--synthetic", "False"], "Checkpoints/Classifiers/Exp_bad/resnet20/digits/real"),
])  # fmt: skip
def test_a_second_process_is_told_of_the_first(script, argv, folder, capsys, monkeypatch, tmp_path):
    lock = tmp_path / folder / ".lock"
    lock.parent.mkdir(parents=True)
    for name, text in ((".lock.guard", ""), (".lock.holder", "process 77 on laptop")):
        (lock.parent / name).write_text(text)
    with FileLock(lock):
        said = refused(script, argv, capsys, monkeypatch, tmp_path, code=MAY_PASS)
        assert f"process 77 on laptop is writing in {lock.parent}" in said


@pytest.mark.parametrize("name, message", FILES)
def test_datasets(name, message, bad, capsys, monkeypatch, tmp_path):
    assert message in refused("adapt", ["--dataset", str(bad / name), *ADAPT], capsys, monkeypatch, tmp_path)


@pytest.mark.parametrize("name, message", WEIGHTS)
def test_pretrained_weights(name, message, bad, capsys, monkeypatch, tmp_path, float32_after):
    argv = [*GENERATE, "--weights_dir", str(bad / "weights" / name)]
    assert message in refused("generate", argv, capsys, monkeypatch, tmp_path)


@pytest.mark.parametrize(
    "script, argv, part", [("adapt", ADAPT, "image_encoder"), ("adapt", ADAPT, "decoder"), ("generate", GENERATE, "decoder")]
)
def test_pretrained_vae(script, argv, part, bad, capsys, monkeypatch, tmp_path, float32_after):
    argv = [*argv, "--weights_dir", str(bad / "weights" / part)]
    assert f"{part}.weights.h5 is not an HDF5 file" in refused(script, argv, capsys, monkeypatch, tmp_path)


@pytest.mark.parametrize("script, argv, message", STATES)
def test_what_is_there(script, argv, message, root, capsys, monkeypatch, float32_after):
    assert message in refused(script, argv, capsys, monkeypatch, root)


FINE_TUNED = ["--train_model", "dif", "--enc_epoch", "1"]


@pytest.mark.parametrize("script, argv, named", [
    ("adapt", [], "a smaller --batch_size"), ("classify", [], "a smaller --batch_size"),
    ("generate", GENERATE, "a smaller --batch_size"), ("search", [], "a smaller --gen_batch_size or --batch_size"),
    ("adapt", FINE_TUNED, "--lora_rank 4, --gradient_checkpointing, a smaller --batch_size"),
    ("adapt", [*FINE_TUNED, "--lora_rank", "4"], "--gradient_checkpointing, a smaller --batch_size"),
])  # fmt: skip
def test_out_of_memory_names_the_flags_of_the_script(script, argv, named, capsys, monkeypatch, tmp_path):
    module = importlib.import_module(SCRIPTS[script])

    def lacking(args):
        raise MemoryError

    monkeypatch.setattr(module, "plan", lacking)
    assert refused(script, argv, capsys, monkeypatch, tmp_path).endswith(f"out of memory: try {named}")
