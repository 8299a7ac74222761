"""What of xpcap reads files: for each a valid one, how it is changed, and what reads it."""

import gzip
import hashlib
import importlib.util
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
from hypothesis.strategies import SearchStrategy
from own import own
from runs import begin, resume, stopping
from tiny import make_tiny

from fuzzing import pictures
from fuzzing.archives import zipped
from fuzzing.changes import flipped, json_file, json_lines, safetensors
from fuzzing.hdf5 import hdf5, with_decoys
from fuzzing.pictures import picture
from xpcap.data import folder as layout
from xpcap.data.archive import Expected, unpack
from xpcap.data.captions_file import read_captions
from xpcap.data.coco_json import build_from_coco
from xpcap.data.dataset import open_dataset
from xpcap.data.extraction import Extraction
from xpcap.data.extractors import make_extractor, open_extractor
from xpcap.data.images import open_picture
from xpcap.data.pca import PCA
from xpcap.data.prepare import prepare
from xpcap.data.progress import no_progress
from xpcap.data.scenes import make_scenes, read_picture, read_scenes
from xpcap.data.summary import summarize
from xpcap.data.vocabulary import Vocabulary
from xpcap.decoding import Beam
from xpcap.exchange import export_run, import_run
from xpcap.files import read_json
from xpcap.models import CaptioningRNN
from xpcap.report.images import open_image, view
from xpcap.runs import BEST, HISTORY, LAST, open_run
from xpcap.runs.captions import caption_dataset
from xpcap.runs.checkpoint import (
    Checkpoint,
    TrainingProgress,
    TrainingState,
    read_checkpoint,
    write_checkpoint,
)
from xpcap.runs.dataset import open_data
from xpcap.training.history import read_history


class Loader(NamedTuple):
    """Something that reads files.

    Parameters
    ----------
    make
        Fills an empty folder with valid files, and returns the one that is to be changed.
    load
        Reads that file.
    changed
        From the bytes of the valid file, a strategy of others.
    needs
        Libraries that need not be installed.
    """

    make: Callable[[Path], Path]
    load: Callable[[Path], Any]
    changed: Callable[[bytes], SearchStrategy[bytes]]
    needs: Sequence[str] = ()

    @property
    def missing(self):
        """The libraries that are not there."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def tiny(folder, name, **options):
    path = make_tiny(folder / "tiny", 12, 6, **options) / name
    return with_decoys(path) if name.endswith(".h5") else path


def load_dataset(path, **options):
    dataset = open_dataset(path.parent, "fc7", **options)
    for name, split in dataset.splits.items():
        dataset.references(name)
        dataset.image_ids(name)
        assert numpy.isfinite(split.features[split.image_idxs]).all()
        if options.get("lazy"):
            split.features.close()


def chunked(folder, name):
    """Make a data folder whose features are compressed in chunks."""
    import h5py

    path = tiny(folder, name)
    with h5py.File(path, "a") as file:
        features = file["features"][...]
        del file["features"]
        options = {"chunks": (5, 3), "compression": "gzip", "shuffle": True}
        file.create_dataset("features", data=features, **options)
    return path


def load_shown(path):
    dataset = open_dataset(path.parent, "fc7", lazy=True)
    for row in range(2):
        view(dataset, "val", row, open_image(dataset, "val", row))
    for split in dataset.splits.values():
        split.features.close()


def scenes(folder, name):
    make_scenes(folder / "scenes", train=3, val=2)
    return folder / "scenes" / name


def run(folder):
    """Make a run of random weights, with its data folder."""
    data = make_tiny(folder / "tiny", 12, 6)
    vocabulary = Vocabulary.read(data / layout.VOCABULARY)
    sizes = {"input_dim": 7, "wordvec_dim": 4, "hidden_dim": 5}
    model = CaptioningRNN(vocabulary.word_to_idx, **sizes, cell_type="lstm", seed=0, backend="cpu")
    memory = dict.fromkeys(("m", "v"), model.params)
    config = {
        "model": {**sizes, "cell_type": "lstm", "dtype": "float32", "dropout": 0.0, "seed": 0},
        "data": {
            "folder": str(data),
            "kind": "fc7",
            "name": "tiny",
            "features": "given away",
            "max_words": 6,
        },
    }
    numbers = {"t": 9, "learning_rate": 1e-3}
    state = TrainingState(model.params, memory, numbers, TrainingProgress(step=9))
    (folder / "run").mkdir()
    path = folder / "run" / "best.safetensors"
    write_checkpoint(path, Checkpoint(config, vocabulary, state, {"xpcap": "0.1.0"}))
    return path


def load_run(path):
    opened = open_run(path, "cpu")
    caption_dataset(opened, open_data(opened, path.parent.parent / "tiny"), "val", 2, Beam(2, 2))


def resumable(folder, name):
    """Make a run that has come to its end, which the process that goes on with it sees at once."""
    begin(make_tiny(folder / "tiny", 12, 6), folder / "run", epochs=1)
    return folder / "run" / name


def load_resumed(path):
    """Go on with a copy, for a step at most: a file may ask for as many as it likes."""
    out = path.parent.with_name("out")
    shutil.copytree(path.parent, out)
    try:
        resume(out, watch=stopping(), data=path.parent.with_name("tiny"))
    finally:
        shutil.rmtree(out)


def weights(folder, to):
    opened = open_run(run(folder), "cpu")
    path = folder / "weights"
    export_run(opened, to, path)
    return path


def load_weights(path):
    out = path.parent / "out"
    try:
        import_run(path, out, vocab=path.parent / "tiny" / layout.VOCABULARY)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def written(name, content):
    def make(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return make


def history(folder):
    lines = [
        {"step": step, "epoch": 1 + step // 3, "lr": 1e-3, "loss": 2.0 / step, "grad_norm": None}
        for step in range(1, 6)
    ]
    lines.append({"step": 5, "epoch": 1, "train_loss": 1.0, "val_loss": 1.5, "val_perplexity": 4.0})
    return written(HISTORY, "".join(f"{json.dumps(line)}\n" for line in lines))(folder)


def captioned(folder, name="captions.json", change=lambda records: records):
    file, records = own(folder, 4)
    path = file.with_name(name)
    path.write_text(json.dumps(change(records)))
    return path


def csv_file(folder):
    rows = ["image,caption,split"]
    rows += [f'photos/{k}.png,"A picture, {k}.",{"val" if k else "train"}' for k in range(3)]
    return written("captions.csv", "\n".join(rows))(folder)


def token_file(folder):
    rows = [f"{k}.png#{j}\tA picture , {k} ." for k in range(3) for j in range(2)]
    (folder / "testImages.txt").write_text("2.png\n")
    (folder / "trainImages.txt").write_text("0.png\n1.png\n")
    return written("Flickr8k.token.txt", "\n".join(rows))(folder)


def lists_of_images(folder):
    token_file(folder)
    return folder / "trainImages.txt"


def compressed(folder):
    path = folder / "captions.jsonl.gz"
    rows = [json.dumps({"file_name": f"{k}.png", "text": "A picture."}) for k in range(3)]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    return path


def coco(records):
    images = [{"id": k, "file_name": r["image"], "coco_url": "a"} for k, r in enumerate(records)]
    said = [
        {"image_id": k, "caption": text} for k, r in enumerate(records) for text in r["captions"]
    ]
    return {"images": images, "annotations": said}


SPLITS = ("train", "restval", "val", "test")


def karpathy(records):
    return {
        "images": [
            {"filename": r["image"], "filepath": ".", "split": split, "cocoid": k,
             "sentences": [{"raw": text} for text in r["captions"]]}
            for k, (r, split) in enumerate(zip(records, SPLITS, strict=True))
        ]
    }  # fmt: skip


def load_captions(path):
    read_captions(path)
    out = path.parent / "out"
    try:
        prepare(path, out)
    finally:
        shutil.rmtree(out, ignore_errors=True)


def annotations(folder, name):
    sides = {"width": 40, "height": 30}
    images = [{"id": k, "coco_url": f"http://localhost/{k}", **sides} for k in range(6)]
    said = [{"image_id": k, "caption": "A dog on a mat."} for k in range(6)]
    boxes = [
        {"image_id": k, "category_id": k % 2, "bbox": [1, 2.5, 10, 20], "area": 150.5}
        for k in range(6)
    ]
    categories = [{"id": k, "name": "dog"} for k in range(2)]
    content = {
        "captions.json": {"images": images, "annotations": said},
        "instances.json": {"annotations": boxes, "categories": categories},
    }
    for file, value in content.items():
        (folder / file).write_text(json.dumps(value))
    return folder / name


def load_annotations(path):
    out = path.parent / "out"
    try:
        build_from_coco(
            path.parent / "captions.json", path.parent / "instances.json", out, min_count=1
        )
    finally:
        shutil.rmtree(out, ignore_errors=True)


class Small:
    """Features of a picture at once: its mean colour."""

    name, dim = "small", 3

    def prepare(self, picture):
        return numpy.asarray(picture, numpy.float32)

    def __call__(self, images):
        return images.mean(axis=(1, 2))

    def describe(self):
        return {"name": self.name}


def extraction(folder):
    paths = [folder / f"{k}.png" for k in range(3)]
    for path in paths:
        path.write_bytes(pictures.made("PNG"))
    return Extraction(Small(), paths, folder / "out")


def interrupted(folder):
    made = extraction(folder)
    made.run()
    return made.path


def load_extraction(path):
    pictures = sorted(path.parent.glob("*.png"))
    made = Extraction(Small(), pictures, path.parent / "out")
    made.run(workers=1)
    assert next(made.features({pictures[0], pictures[2]})).shape == (2, 3)


def transform(folder):
    draw = numpy.random.default_rng(0).standard_normal
    PCA(draw(7), draw((3, 7)), numpy.ones(3)).write(folder / "pca.h5")
    return with_decoys(folder / "pca.h5")


FILES = {"captions.h5": b"many words " * 3000, "vocab.json": b"{}"}


def archive(folder):
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in FILES.items():
            file.writestr(f"coco/{name}", content)
    return folder / "archive.zip"


def load_archive(path):
    manifest = {
        name: Expected(len(content), hashlib.sha256(content).hexdigest())
        for name, content in FILES.items()
    }
    out = path.parent / "out"
    out.mkdir()
    try:
        unpack(path, out, manifest, "coco", no_progress)
    finally:
        assert {entry.name for entry in out.iterdir()} <= FILES.keys()
        shutil.rmtree(out)


def network(folder):
    from networks import flat_product

    flat_product(folder / "network.onnx")
    return folder / "network.onnx"


def network_in_two(folder):
    """Make a network whose weights are in a file of their own."""
    import onnx

    model, path = onnx.load(network(folder)), folder / "two.onnx"
    beside = {"save_as_external_data": True, "size_threshold": 0}
    onnx.save(model, path, location=f"{path.name}.data", **beside)
    return path


SMALL = {"size": 8, "shorter_side": 8}


def load_network(path):
    make_extractor("onnx", path, changes=SMALL)


def preprocessing(folder):
    network(folder)
    return written("preprocessing.json", json.dumps({**SMALL, "mean": [0, 0.5, 1]}))(folder)


def load_preprocessing(path):
    make_extractor("onnx", path.parent / "network.onnx", changes=read_json(path))


def description(folder):
    made = make_extractor("onnx", network(folder), changes=SMALL)
    return written("description.json", json.dumps(made.describe()))(folder)


def load_description(path):
    found = read_json(path)
    if isinstance(found, dict):
        open_extractor(found)


def tensors(folder):
    """Write what others make with `safetensors.torch.save_file`: no text of ours."""
    from safetensors.numpy import load_file, save_file

    path = weights(folder, "torch")
    save_file(load_file(path), path)
    return path


ONNX = ("onnx", "onnxruntime")
PICTURES = {
    "PNG": {},
    "PNG, 16 bits": {"kind": "PNG", "mode": "I;16"},
    "PNG, clear": {"kind": "PNG", "mode": "RGBA"},
    "PNG, palette": {"kind": "PNG", "mode": "P"},
    "JPEG": {},
    "JPEG, progressive": {"kind": "JPEG", "progressive": True},
    "JPEG, CMYK": {"kind": "JPEG", "mode": "CMYK"},
    "GIF": {"mode": "P"},
    "BMP": {},
    "WEBP": {},
    "WEBP, lossless": {"kind": "WEBP", "lossless": True},
    "TIFF": {},
    "TIFF, clear": {"kind": "TIFF", "mode": "RGBA"},
    "PPM": {},
}

LOADERS = {
    "captions.h5": Loader(partial(tiny, name=layout.CAPTIONS), load_dataset, hdf5),
    "features": Loader(
        partial(tiny, name=layout.features_file("train", "fc7")), load_dataset, hdf5
    ),
    "features, lazy": Loader(
        partial(tiny, name=layout.features_file("val", "fc7")),
        partial(load_dataset, lazy=True), hdf5,
    ),
    "features, float16": Loader(
        partial(tiny, name=layout.features_file("val", "fc7")),
        partial(load_dataset, dtype="float16"), hdf5,
    ),
    "features, chunked": Loader(
        partial(chunked, name=layout.features_file("val", "fc7")),
        partial(load_dataset, lazy=True), hdf5,
    ),
    "vocabulary": Loader(partial(tiny, name=layout.VOCABULARY), load_dataset, json_file),
    "urls": Loader(partial(tiny, name=layout.urls_file("val")), load_dataset, flipped),
    "dataset.json": Loader(partial(tiny, name=layout.DESCRIPTION), load_dataset, json_file),
    "references.json": Loader(partial(tiny, name=layout.REFERENCES), load_dataset, json_file),
    "data info": Loader(
        partial(tiny, name=layout.CAPTIONS), lambda path: summarize(path.parent), hdf5
    ),
    "data info, dataset.json": Loader(
        partial(tiny, name=layout.DESCRIPTION), lambda path: summarize(path.parent), json_file
    ),
    "pca.h5": Loader(transform, PCA.read, hdf5),
    "scenes.json": Loader(
        partial(scenes, name="scenes.json"), lambda path: read_scenes(path.parent), json_file
    ),
    "pictures.zip": Loader(
        partial(scenes, name="pictures.zip"), lambda path: read_picture(path.parent, "val", 0),
        partial(zipped, inner=picture),
    ),
    "pictures.zip, report": Loader(
        partial(scenes, name="pictures.zip"), load_shown, partial(zipped, inner=picture)
    ),
    "dataset.json, report": Loader(
        partial(scenes, name=layout.DESCRIPTION), load_shown, json_file
    ),
    "captions, own": Loader(captioned, load_captions, json_file),
    "captions, COCO": Loader(partial(captioned, change=coco), load_captions, json_file),
    "captions, Karpathy": Loader(partial(captioned, change=karpathy), load_captions, json_file),
    "captions, CSV": Loader(csv_file, load_captions, flipped),
    "captions, Flickr8k": Loader(token_file, load_captions, flipped),
    "captions, list of a split": Loader(
        lists_of_images, lambda path: load_captions(path.parent / "Flickr8k.token.txt"), flipped
    ),
    "captions, compressed": Loader(compressed, load_captions, flipped),
    "annotations, captions": Loader(
        partial(annotations, name="captions.json"), load_annotations, json_file
    ),
    "annotations, boxes": Loader(
        partial(annotations, name="instances.json"), load_annotations, json_file
    ),
    "archive": Loader(archive, load_archive, zipped),
    "extraction": Loader(interrupted, load_extraction, flipped),
    "network": Loader(network, load_network, flipped, ONNX),
    "network, in two files": Loader(network_in_two, load_network, flipped, ONNX),
    "preprocessing": Loader(preprocessing, load_preprocessing, json_file, ONNX),
    "extractor": Loader(description, load_description, json_file, ONNX),
    "checkpoint": Loader(run, read_checkpoint, safetensors),
    "run": Loader(run, load_run, safetensors),
    "resume, last": Loader(partial(resumable, name=LAST), load_resumed, safetensors),
    "resume, best": Loader(partial(resumable, name=BEST), load_resumed, safetensors),
    "resume, history": Loader(partial(resumable, name=HISTORY), load_resumed, json_lines),
    "history": Loader(history, read_history, json_lines),
    "import, ours": Loader(partial(weights, to="torch"), load_weights, safetensors),
    "import, theirs": Loader(tensors, load_weights, safetensors),
    "import, npz": Loader(partial(weights, to="npz"), load_weights, zipped),
}  # fmt: skip
for name, options in PICTURES.items():
    content = pictures.made(**{"kind": name, **options})
    LOADERS[f"picture, {name}"] = Loader(written("picture", content), open_picture, picture)
