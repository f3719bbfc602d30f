"""Draw 480 small images for a tutorial: bright discs and bright rings on noise, of 240 imaginary patients."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

folder = Path("scans")
folder.mkdir(exist_ok=True)
generator = np.random.default_rng(0)
rows, columns = np.mgrid[:96, :96]
labels = []
for number in range(480):
    shape = "ring" if number % 4 >= 2 else "disc"
    centre, radius = generator.uniform(32, 64, size=2), generator.uniform(10, 16)
    distance = np.hypot(rows - centre[0], columns - centre[1])
    inside = distance < radius if shape == "disc" else abs(distance - radius) < 2.5
    pixels = generator.normal(90, 12, size=(96, 96)) + 110 * inside
    name = f"{number:03d}.png"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
    labels.append({"file": name, "shape": shape, "patient": f"P{number // 2:03d}"})
with Path("labels.csv").open("w", newline="") as file:
    writer = csv.DictWriter(file, ["file", "shape", "patient"])
    writer.writeheader()
    writer.writerows(labels)
