"""Write a data folder of the size of CS231n's COCO, with generated numbers, 2.3 GB in all.

    python tools/make_full_size.py datasets/full
    xpcap train --data datasets/full --features fc7 --lazy --epochs 1

Names, keys, shapes and types are those of the course's archive. Nothing can be learned from it;
it shows how long a set of that size takes, and how much memory.
"""

from __future__ import annotations

from pathlib import Path

import click
import h5py
import numpy

from xpcap.benchmark.workload import draw_captions
from xpcap.data import folder as layout
from xpcap.data.vocabulary import SPECIAL, Vocabulary
from xpcap.errors import XpcapError
from xpcap.files import new_folder

IMAGES = {"train": 82_783, "val": 40_504}
CAPTIONS = {"train": 400_135, "val": 195_954}
COLUMNS, WORDS = 17, 1004
WIDTHS = {"fc7": 4096, "pca": 512}
BLOCK_ROWS = 2048
SHIFT = 97  # by how many numbers a block differs from the one before


def write_captions(path: Path, share: float, rng: numpy.random.Generator) -> None:
    """Write captions like COCO's, four or five an image, in random order."""
    with h5py.File(path, "w") as file:
        for name, images in IMAGES.items():
            count = scaled(CAPTIONS[name], share)
            owners = rng.permutation(count) % scaled(images, share)
            file[f"{name}_captions"] = draw_captions(count, WORDS, COLUMNS - 1, rng)
            file[f"{name}_image_idxs"] = owners.astype(numpy.int32)


def write_features(path: Path, images: int, width: int, rng: numpy.random.Generator) -> None:
    """Write features block by block; each block is the same random numbers, shifted."""
    shifts = images // BLOCK_ROWS * SHIFT
    numbers = rng.standard_normal(BLOCK_ROWS * width + shifts, dtype=numpy.float32)
    with h5py.File(path, "w") as file:
        array = file.create_dataset("features", (images, width), numpy.float32)
        for first in range(0, images, BLOCK_ROWS):
            rows = min(BLOCK_ROWS, images - first)
            shift = first // BLOCK_ROWS * SHIFT
            array[first : first + rows] = numbers[shift : shift + rows * width].reshape(rows, width)


def scaled(count: int, share: float) -> int:
    """Return a share of a number of images or captions, at least one."""
    return max(1, round(count * share))


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--share", default=1.0, help="Of all images and captions; 0.01 makes a small set.")
def main(out: Path, share: float) -> None:
    """Write the data folder OUT, a new name."""
    rng = numpy.random.default_rng(0)
    try:
        with new_folder(out) as folder:
            words = [*SPECIAL, *(f"w{k}" for k in range(len(SPECIAL), WORDS))]
            Vocabulary(words).write(folder / layout.VOCABULARY)
            click.echo(layout.CAPTIONS, err=True)
            write_captions(folder / layout.CAPTIONS, share, rng)
            for name, images in IMAGES.items():
                count = scaled(images, share)
                urls = [f"http://localhost/{name}/{image}.jpg\n" for image in range(count)]
                layout.write_text(folder / layout.urls_file(name), "".join(urls))
                for kind, width in WIDTHS.items():
                    click.echo(layout.features_file(name, kind), err=True)
                    write_features(folder / layout.features_file(name, kind), count, width, rng)
    except XpcapError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
