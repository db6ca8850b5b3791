"""The house: floors, sizes, and that a new thing goes into one place."""

import ast
import logging
import re
import subprocess
from urllib.parse import unquote

import numpy as np
import pytest

from Experiment.locks import CLAIMED
from Experiment.paths import REPOSITORY
from Models.noise_schedule import STABLE_DIFFUSION
from Models.sampler import Sampler

SCRIPTS = "SD_adapting hyp_opt generate_dataset classifier_training pipeline".split()
SCRIPTS += "merge_lora export_weights export_dataset audit_dataset".split()
# From the ground up. A room imports rooms of lower floors, and itself.
FLOORS = {
    "Experiment": 0,
    "figures": 1,
    "sheets": 2,
    "plots": 2,
    "curves": 2,
    "result_plots": 3,
    "pages": 2,
    "Data": 3,
    "Models": 4,
    "Audit": 5,
    "Search": 5,
    "Scoring": 5,
    "Adapting": 5,
    "Generating": 5,
    "cli": 5,
    "Stages": 5,
    **dict.fromkeys(SCRIPTS, 6),
    "Pretraining": 6,
    "pipeline": 7,
}


def sources():
    for path in sorted(REPOSITORY.rglob("*.py")):
        inside = path.relative_to(REPOSITORY)
        if not inside.parts[0].startswith((".", "tests", "bench", "parity")):
            yield inside, ast.parse(path.read_text(encoding="utf-8"))


def imported(tree):
    """First names of all modules that a tree imports, at whatever level."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)


@pytest.mark.parametrize("path, tree", list(sources()), ids=lambda x: str(x) if not isinstance(x, ast.AST) else "")
def test_imports_go_down(path, tree):
    room = path.parts[0].removesuffix(".py")
    for other in imported(tree):
        if other in FLOORS and other != room:
            assert FLOORS[other] < FLOORS[room], f"{path} imports {other}"
    if room == "Models":
        assert "Data" not in set(imported(tree))
    if str(path) != "Models/kerascv_layers.py":
        assert "keras_cv" not in set(imported(tree))


@pytest.mark.parametrize("path, tree", list(sources()), ids=lambda x: str(x) if not isinstance(x, ast.AST) else "")
def test_what_a_reader_holds_in_the_head(path, tree):
    lines = (REPOSITORY / path).read_text(encoding="utf-8").count("\n")
    assert lines <= (200 if path.stem in SCRIPTS else 320)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, node.name


def pages():
    """The Markdown pages of the repository."""
    found = [path.relative_to(REPOSITORY) for depth in ("*.md", "*/*.md") for path in REPOSITORY.glob(depth)]
    return sorted(str(path) for path in found if not path.parts[0].startswith("."))


@pytest.mark.parametrize("page", pages())
def test_what_a_page_links_is_in_the_repository(page):
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, heading = unquote(link).partition("#")
        target = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert target.exists(), link
        if (REPOSITORY / ".git").exists():  # a copy without history has only what git keeps
            ignored = subprocess.run(["git", "check-ignore", "-q", target], cwd=REPOSITORY).returncode == 0
            assert not ignored, f"{link} is there, but git ignores it"
        if heading:
            headings = re.findall(r"(?m)^#+ (.*)$", target.read_text(encoding="utf-8"))
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings], link


# A new backbone is an entry of BACKBONES


def test_a_new_backbone_goes_through_the_stages_called_as_functions(tiny, tmp_path):
    import generate_dataset
    import SD_adapting

    common = ["--dataset", "digits", "--exp", "x", "--backbone", "tiny", "--root", str(tmp_path / "out")]
    for part, flags in (("enc", []), ("dif", ["--enc_epoch", "1"])):
        folder = SD_adapting.adapt(SD_adapting.parse_args([*common, "--train_model", part, *flags]))
        assert (folder / "epoch1.weights.h5").exists()
    flags = ["--img_total", "11", "--enc_epoch", "1", "--dif_epoch", "1", "--inf_steps", "2", "--ugs", "1.5"]
    folder = generate_dataset.generate(generate_dataset.parse_args([*common, *flags]))
    assert len(list(folder.glob("class_*/*.png"))) == 11
    # Nothing is left claimed or logged to: another stage may write there.
    assert not [lock for lock in CLAIMED if tmp_path in lock.parents]
    assert not any(isinstance(handler, logging.FileHandler) for handler in logging.getLogger("experiment").handlers)


# A new solver is a class


class Momentum:
    """A solver with a state of two tensors: DDIM whose noise is averaged with that of the step before."""

    spacing = "leading"

    @staticmethod
    def timesteps(schedule, num_steps, spacing):
        return schedule.sampling_timesteps(num_steps, spacing)

    @staticmethod
    def coefficients(schedule, timesteps):
        alpha_bar = schedule.alphas_cumprod[timesteps]
        return {"alpha_bar": alpha_bar, "next": np.append(alpha_bar[1:], np.float32(1.0))}

    @staticmethod
    def first_state(latents):
        return latents, 0 * latents

    @staticmethod
    def latents(state):
        return state[0]

    @staticmethod
    def step(state, noise, coefficients):
        now, after = coefficients["alpha_bar"], coefficients["next"]
        noise = 0.75 * noise + 0.25 * state[1]
        clean = (state[0] - (1 - now) ** 0.5 * noise) / now**0.5
        return after**0.5 * clean + (1 - after) ** 0.5 * noise, noise


def test_a_new_solver_carries_its_state(tiny_unet):
    unet, rng = tiny_unet(), np.random.default_rng(1)
    latents, contexts = (rng.standard_normal((3, 4, 4, 4), dtype="float32"), rng.standard_normal((2, 2, 3), dtype="float32"))
    found, _ = Sampler(unet, solver=Momentum).sample(latents, contexts, [0, 0, 0], 4, 1.0)
    from Models.diffusion import timestep_embedding

    timesteps = STABLE_DIFFUSION.sampling_timesteps(4)
    coefficients = Momentum.coefficients(STABLE_DIFFUSION, timesteps)
    state = Momentum.first_state(latents)
    for i, timestep in enumerate(timesteps):
        time = np.repeat(timestep_embedding(timestep[None]), 3, axis=0)
        noise = unet.predict_on_batch([state[0], time, np.repeat(contexts[:1], 3, axis=0)])
        state = Momentum.step(state, noise, {name: values[i] for name, values in coefficients.items()})
    assert np.abs(found - state[0]).max() < 1e-5
