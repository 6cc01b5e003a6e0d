"""Make the files that ship beside the trained networks: images, and the sha256 of everything.

    python data/prepare.py --images FOLDER     the two .npz files, then the sha256
    python data/prepare.py --hashes-only       only the sha256, after training a network again

FOLDER holds Fashion-MNIST's four ``*-ubyte.gz`` files (for example from Debian's package
``dataset-fashion-mnist``).  The calibration images are 200 of each class of the training set, drawn with
seed 0 and stored in the order drawn, so that the first few hold all classes.  ``sha256.json`` is what the
explorer checks when it loads a file; the table in README.md is written from it.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
from train import read_idx

from explorer.sources.files import atomic_write

HERE = Path(__file__).parent
PER_CLASS = 200
SOURCES = {
    "fashion-mnist-test.npz": "Fashion-MNIST, the 10,000 test images",
    "fashion-mnist-calibration.npz": "Fashion-MNIST, 2,000 of the 60,000 training images",
    "imagenet-wnids.txt": "the identifiers of ImageNet's 1,000 classes (ILSVRC 2012), from timm 1.0.31",
}
LICENCES = {"imagenet-wnids.txt": "Apache-2.0"}
BEGIN, END = "<!-- files: written by prepare.py -->", "<!-- end of files -->"


def npz(**arrays: np.ndarray) -> bytes:
    """A compressed .npz whose bytes depend on the arrays only, not on the clock."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED, 9)
    return buffer.getvalue()


def write_images(folder: Path) -> None:
    def read(name: str) -> np.ndarray:
        return read_idx(folder / f"{name}-ubyte.gz").numpy()

    test = npz(images=read("t10k-images-idx3"), labels=read("t10k-labels-idx1"))
    atomic_write(HERE / "fashion-mnist-test.npz", test)
    images, labels = read("train-images-idx3"), read("train-labels-idx1")
    generator = np.random.default_rng(0)
    chosen = np.concatenate(
        [generator.choice(np.flatnonzero(labels == label), PER_CLASS, replace=False) for label in range(10)]
    )
    chosen = generator.permutation(chosen)
    atomic_write(HERE / "fashion-mnist-calibration.npz", npz(images=images[chosen], labels=labels[chosen]))


def write_hashes() -> None:
    files = sorted([*HERE.glob("*.npz"), *HERE.glob("*.safetensors"), *HERE.glob("*.txt")])
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    atomic_write(HERE / "sha256.json", json.dumps(hashes, indent=2) + "\n")
    rows = ["| file | source | licence | bytes | sha256 |", "|---|---|---|--:|---|"]
    for file in files:
        source = SOURCES.get(file.name, "trained by train.py on Fashion-MNIST")
        licence = LICENCES.get(file.name, "MIT")
        rows.append(
            f"| {file.name} | {source} | {licence} | {file.stat().st_size:,} | `{hashes[file.name]}` |"
        )
    readme = HERE / "README.md"
    text = readme.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    atomic_write(readme, "\n".join([head + BEGIN, *rows, END + tail]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--images", type=Path, help="the folder of the four -ubyte.gz files")
    what.add_argument("--hashes-only", action="store_true")
    options = parser.parse_args()
    if options.images:
        write_images(options.images)
    write_hashes()


if __name__ == "__main__":
    main()
