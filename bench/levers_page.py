"""The page and the picture of the study of the levers, of all its files: python -m bench.levers_page"""

from pathlib import Path

from bench.levers_table import machines, measured, points, table
from bench.variants import VARIANTS
from Experiment.files import atomic_path, read_json
from figures import plt, save_figure

HERE = Path(__file__).resolve().parent
PAGE, PICTURE = HERE / "levers.md", HERE / "levers.png"
# What the rows of a file do not say themselves; the newest come first.
STUDIES = {
    "levers_small_seeds.json": "`small` on photographs, bfloat16, a classifier for each seed. Labels of `best_aligned`, and of "
        "`best` with seeds 1 and 2, were computed before those were flags. Of seed 1234 the clothes by `real`, "
        "`dpmpp_8` and `best_soft` (another teacher), and all of CIFAR-10 by `real`, are rows of `levers_small.json`.",
    "levers_mini_bfloat16.json": "`mini`, bfloat16. The real digits and eyes of seed 1234 are those of earlier files.",
    "levers_bfloat16.json": "`mini`, bfloat16, by an earlier version.",
    "levers_medmnist_bfloat16.json": "`mini`, bfloat16, by an earlier version.",
    "levers_medmnist.json": "`mini`, AVX2 and float32.",
    "levers_small.json": "`small` on photographs, by earlier versions. Of 5,000 of CIFAR-10 the rows of seed 1 have another "
        "adaptation than those of seed 1234; `cifar5k_reconstructed` has learnt from what the autoencoder makes of real images.",
    "levers_small_5_cycles.json": "A `small` that was pretrained for longer, with five cycles of its UNet in the place of two.",
    "levers.json": "`mini`, AVX2 and float32, by an earlier version.",
}  # fmt: skip
SHOWN = {
    ("levers_small_seeds.json", "cifar5k"): "5,000 photographs of CIFAR-10, small",
    ("levers_small_seeds.json", "clothing"): "3,068 photographs of clothes, small",
    ("levers_mini_bfloat16.json", "retinamnist"): "RetinaMNIST, mini",
    ("levers_mini_bfloat16.json", "breastmnist"): "BreastMNIST, mini",
    ("levers_mini_bfloat16.json", "digits"): "digits, mini",
    ("levers_bfloat16.json", "digits"): "digits, mini, another adaptation by an earlier version",
}
BEFORE = """# What each lever does to CAS

Written by `python -m bench.levers_page` from the files that `python -m bench.levers` leaves. A lever is measured by variants of
a plain recipe: 13 steps of DDIM (28 passes of the UNet), scale 1.5, the last epochs, as many images as there are real ones, and
the classifier of `pipeline.py`, which learns above 16 px with `--optimizer adam_steps`, and of 4x for half as many epochs.
`dpmpp_8` is nearer to what `pipeline.py` does with `mini` and `small`. What was learnt from it is in
[Models/levers.md](../Models/levers.md#the-recipe-best).

Tested on 500 digits, 400 images of RetinaMNIST (the largest class has 0.435 of them), 156 of BreastMNIST (0.731), all 10,000 of
CIFAR-10 (`cifar5k` and `cifar2k` are JPEG copies of the first 500 and 200 training images of each class) and 372 photographs of
clothes (`clothing`, 3,068 in all).

![Differences to the plain recipe with their intervals](levers.png)

Differences are in percentage points, with 95 % intervals. Each seed is an adapted model of its own; variants of one seed and of
the same adaptation share it, and are compared by the seeds that both have. Intervals of several seeds hold test images and
trainings; those of several classifiers of one seed hold these too, but not how another adaptation would differ; those of one
classifier a side hold test images alone: "of these two trainings". Where one side has several trainings, the other is taken to
vary as they do. No word stands beside two adapted models of one seed each, nor beside one against those of several seeds.
**Better** and **worse** in bold are of several trainings on both sides. Rows of a dataset whose labels are a teacher's share
one teacher, but where a note says otherwise. Each interval misses in one of twenty cases by itself, and there are many. Levers
were chosen by the validation accuracies, but for `adam_steps`, which was by test.
"""


def page(folder=HERE):
    """The page, as text."""
    rows = {name: read_json(folder / name)["rows"] for name in STUDIES}
    used = {row["variant"] for of_file in rows.values() for row in of_file}
    parts = [BEFORE, "## The variants\n", *variants(used), ""]
    for name, note in STUDIES.items():
        parts += section(name, note, rows[name])
    return "\n".join(parts)


def section(name, note, rows):
    """Lines about a file of the study: its note, a table, and on what its rows were measured."""
    return [f"## {name}\n", f"{note}\n", *table(rows), "", *(f"- {line}" for line in machines(rows)), ""]


def variants(used):
    """Lines of a table of variants, of the names `used`: their flags beside those of the plain recipe."""
    lines = ["| variant | adaptation | sampling and set | classifier | size |", "|---|---|---|---|---|"]
    for name, variant in VARIANTS.items():
        if name not in used:
            continue
        adaptation = [f"Class Encoder: `{variant.enc}`"] if variant.enc else []
        adaptation += [f"UNet: `{variant.dif}`"] if variant.dif else []
        adaptation += [f"UNet for {variant.tuned} times the epochs"] if variant.tuned > 1 else []
        learned = [f"`{variant.learned}`"] if variant.learned else []
        learned += [f"{variant.longer} times the epochs"] if variant.longer > 1 else []
        made = f"`{variant.made.format(early='EARLY')}`" if variant.made else ""
        size = "real" if variant.real else f"{variant.size}x"
        lines.append(f"| `{name}` | {', '.join(adaptation)} | {made} | {', '.join(learned)} | {size} |")
    return lines


def draw(path, folder=HERE):
    """Draw the differences to the plain recipe with their intervals, a panel for each dataset."""
    panels = {}
    for (file, dataset), title in SHOWN.items():
        every = measured(read_json(folder / file)["rows"])
        panels[title] = [(one, points(one.rows, one.plain)) for one in every if one.dataset == dataset and one.plain]
    figure, axes = plt.subplots(
        len(panels), figsize=(9, 0.26 * sum(len(bars) + 2.5 for bars in panels.values())), layout="constrained",
        sharex=True, gridspec_kw={"height_ratios": [len(bars) + 0.5 for bars in panels.values()]}, squeeze=False,
    )  # fmt: skip
    for axis, (title, bars) in zip(axes[:, 0], panels.items()):
        for place, (one, (mean, (low, high), word)) in enumerate(bars):
            colour = "tab:gray" if not word.startswith("**") else "tab:green" if mean > 0 else "tab:red"
            several = min(len(one.rows), len(one.plain)) > 1  # else the interval leaves out how another model would differ
            axis.plot([low, high], [place, place], color=colour, linestyle="-" if several else ":", linewidth=2)
            axis.plot(mean, place, "o", color=colour, fillstyle="full" if several else "none")
        names = [f"{one.name} against {one.plain[0]['variant']}, {of_seeds(one)}" for one, _ in bars]
        axis.set_yticks(range(len(bars)), names, fontsize=8)
        axis.set_ylim(len(bars) - 0.5, -0.5)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(axis="x", alpha=0.3)
    axes[-1, 0].set_xlabel(
        "percentage points of CAS\nsolid: several adapted models a side, else dotted; coloured: better or worse, of several trainings"
    )
    return save_figure(figure, path)


def of_seeds(one):
    count, repeats = len(one.rows), len(one.rows[0]["hits"])
    return f"{count} seed{'s' * (count > 1)}" + (f", {repeats} classifiers" if repeats > 1 else "")


if __name__ == "__main__":
    with atomic_path(PAGE) as partial:
        partial.write_text(page())
    draw(PICTURE)
