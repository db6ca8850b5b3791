"""Runs the example of an export's card in the environment of diffusers, and compares its images with ours.

    python run_card.py FOLDER NAME      FOLDER/NAME: the export; FOLDER/NAME.npz: our noise and images

The code is the one in README.md, as it stands there, but that `torch.randn` gives our noise, and that `a-stable-diffusion`
is FOLDER/diffusers, as the card asks for. Exit code 1: images differ.
"""

import os
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

MOST_GREY_LEVELS, OF_PIXELS = 1, 0.999


def images_of(code, noise):
    """What the example draws from our noise (B, h, w, 4): uint8 (B, H, W, 3)."""

    def our_noise(*shape):
        assert shape == (len(noise), noise.shape[3], *noise.shape[1:3]), shape
        return torch.from_numpy(noise).permute(0, 3, 1, 2)

    torch.randn = our_noise
    exec(compile(code, "README.md", "exec"), {})
    return np.stack([np.asarray(Image.open(f"{i}.png")) for i in range(len(noise))])


def without_patch(code):
    """The example without the lines that speak of KerasCV's arithmetic."""
    return re.sub(r"for module in .*?\n(?=prompts)", "", code, flags=re.DOTALL)


def without_updates(code):
    """The example without the line that loads low-rank updates."""
    return re.sub(r"unet\.load_lora_adapter.*\n", "", code)


def compare(what, theirs, ours):
    levels = np.abs(theirs.astype(int) - ours)
    near = (levels <= MOST_GREY_LEVELS).mean()
    print(
        f"{what}: {(levels == 0).mean():.4%} of the pixel values are equal, {near:.4%} within a grey level, largest "
        f"difference {levels.max()} (images: standard deviation {ours.std():.0f})",
        flush=True,
    )
    return near >= OF_PIXELS


def main(folder, name):
    with np.load(folder / f"{name}.npz") as data:
        noise, ours = data["noise"], data["images"]
    os.chdir(folder / name)
    code = re.search(r"```python\n(.*?)```", Path("README.md").read_text(), re.DOTALL)[1]
    code = code.replace("a-stable-diffusion", str(folder / "diffusers"))
    lines = [line for line in code.splitlines() if line]
    good = compare(f"the example of the card, {len(lines)} lines, in diffusers", images_of(code, noise), ours)
    if without_patch(code) != code:
        compare("the same without the lines on KerasCV's arithmetic", images_of(without_patch(code), noise), ours)
    if without_updates(code) != code:
        good &= not compare("the same without the updates, to be seen", images_of(without_updates(code), noise), ours)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2]))
