"""Does the audit find what is wrong? Plants leaks and wrong labels in a copy of a data set, and counts.

Run: python -m benchmarks.audit [--data FOLDER] [--backbone resnet18] [--images 0] [--seed 0] [--keep FOLDER]

FOLDER holds train and test with class folders (default: pneumonia below $FIRN_DATA). Twenty training images are
copied into the test under another name: five byte for byte, the others as images leak in life, saved again as JPEG,
resized, brightened, with another contrast, cropped. Twenty other training images go into a wrong class folder. The
copy, with the images that have no fault planted, is extracted and audited like any data set.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from PIL import Image, ImageEnhance

from features.options import DatasetOptions, ExtractOptions, FeatureOptions
from features.storage import artifacts_root, data_root
from models.runs.options import RunOptions
from pipeline.audit import audit
from pipeline.extract import extract

LEAKS, FLIPS = 20, 20
IDENTICAL = 5
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


def _resized(image: Image.Image, rng: random.Random) -> Image.Image:
    scale = rng.choice([0.8, 0.9, 1.1, 1.25])
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)


def _cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    """Cut two to six per cent off each dimension, not in the middle."""
    width, height = (round(side * (1 - rng.uniform(0.02, 0.06))) for side in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


CHANGES: Mapping[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "saved again": lambda image, rng: image,
    "resized": _resized,
    "brightness": lambda image, rng: ImageEnhance.Brightness(image).enhance(rng.choice([0.85, 0.92, 1.08, 1.15])),
    "contrast": lambda image, rng: ImageEnhance.Contrast(image).enhance(rng.choice([0.8, 0.9, 1.1, 1.25])),
    "cropped": _cropped,
}


def copy(source: Path, target: Path, most: int, rng: random.Random) -> list[Path]:
    """Copy at most `most` images (0: all) into the target; return its training images."""
    images = sorted(p for p in source.glob("*/*/*") if p.suffix.lower() in SUFFIXES)
    rng.shuffle(images)
    chosen = images[:most] if most else images
    for image in chosen:
        place = target / image.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, place)
    return sorted((target / "train").glob("*/*"))


def plant_leaks(target: Path, images: list[Path], rng: random.Random) -> dict[str, tuple[str, str]]:
    """Copy training images into the test; return id of the copy -> (id of the original, what was changed)."""
    planted = {}
    for i, original in enumerate(images):
        name = "as it is" if i < IDENTICAL else list(CHANGES)[i % len(CHANGES)]
        place = target / "test" / original.parent.name / f"study_{rng.randrange(10**6):06d}_{i}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        if i < IDENTICAL:
            shutil.copy(original, place)
        else:
            with Image.open(original) as image:
                CHANGES[name](image, rng).save(place, quality=rng.choice([60, 75, 85]))
        ids = [str(path.relative_to(target)) for path in (place, original)]
        planted[ids[0]] = (ids[1], name)
    return planted


def plant_flips(target: Path, images: list[Path], rng: random.Random) -> set[str]:
    """Move training images into a wrong class folder; return their new ids."""
    classes = sorted(p.name for p in (target / "train").iterdir() if p.is_dir())
    flipped = set()
    for image in images:
        wrong = rng.choice([name for name in classes if name != image.parent.name])
        place = image.parents[1] / wrong / image.name
        image.rename(place)
        flipped.add(str(place.relative_to(target)))
    return flipped


def report(rows: list[dict[str, str]], leaks: Mapping[str, tuple[str, str]], flips: set[str]) -> None:
    """Print what was caught, by kind, and how much else was found."""
    found = {(row["image"], row["other"]) for row in rows if row["check"] in ("exact-leak", "near-leak")}
    print("| leak | planted | caught |\n|---|---|---|")
    for kind in ("as it is", *CHANGES):
        own = [copied for copied, (_, how) in leaks.items() if how == kind]
        print(f"| {kind} | {len(own)} | {sum((c, leaks[c][0]) in found for c in own)} |")
    caught = sum((c, original) in found for c, (original, _) in leaks.items())
    others = len(found) - caught
    print(f"\nleaks caught: {caught} of {len(leaks)} (bar: 19); other pairs across splits reported: {others}")
    doubted = [row["image"] for row in rows if row["check"] == "label-error"]
    hit = [image in flips for image in doubted]
    top = sum(hit[: len(flips)])
    print(f"flips caught: {sum(hit)} of {len(flips)} (bar: 12) among {len(hit)} doubted labels;")
    print(f"of the first {len(flips)} doubted labels {top} are planted flips")
    rest = {row["check"] for row in rows} - {"exact-leak", "near-leak", "label-error"}
    print("other findings: " + (", ".join(f"{c} {sum(r['check'] == c for r in rows)}" for c in sorted(rest)) or "none"))


def main() -> None:
    """Plant, extract, audit, count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=data_root() / "pneumonia")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--images", type=int, default=0, help="0 is all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="plant in this folder, and leave it there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        target, rng = options.keep or Path(scratch) / f"planted-{options.seed}", random.Random(options.seed)
        drawn = rng.sample(copy(options.data, target, options.images, rng), LEAKS + FLIPS)
        leaks = plant_leaks(target, drawn[:LEAKS], rng)
        flips = plant_flips(target, drawn[LEAKS:], rng)
        asked = FeatureOptions(DatasetOptions(str(target)), options.backbone)
        extract(asked, ExtractOptions())
        start = time.perf_counter()
        audit(asked, RunOptions())
        print(f"audited in {time.perf_counter() - start:.0f} s\n")
        with (artifacts_root() / "audit" / target.name / "findings.csv").open(newline="") as file:
            report(list(csv.DictReader(file)), leaks, flips)


if __name__ == "__main__":
    main()
