"""Draw the images of the data set: ``python -m medmllm_discs.draw FOLDER``. Replace them with your own."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

ROWS, COLUMNS = np.mgrid[:48, :48]


def draw(folder: Path, patients: int = 20) -> None:
    """Draw two images of each patient and class into the folder discs of the folder of all data sets."""
    generator = np.random.default_rng(0)
    for label, sign in (("bright disc", 1), ("dark disc", -1)):
        target = folder / "discs" / label
        target.mkdir(parents=True, exist_ok=True)
        for patient in range(patients):
            for number in range(2):
                row, column = generator.integers(12, 36, 2)
                disc = (ROWS - row) ** 2 + (COLUMNS - column) ** 2 < 64
                pixels = generator.normal(120, 25, disc.shape) + 80 * sign * disc
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(target / f"{label[0]}{patient}-{number}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the images of the data set discs.")
    parser.add_argument("folder", type=Path, help="the folder that MEDMLLM_DATA names")
    draw(parser.parse_args().folder)
