"""A data folder small enough to be made in a test: features that give their caption away."""

from pathlib import Path

import numpy

from xpcap.data import folder as layout
from xpcap.data.vocabulary import Vocabulary

COLOURS = ("red", "green", "blue", "grey")
SHAPES = ("circle", "square", "star")


def make_tiny(
    path: Path,
    train: int = 24,
    val: int = 12,
    kinds: tuple[str, ...] = ("fc7",),
    shapes: tuple[str, ...] = SHAPES,
    regions: bool = False,
) -> Path:
    """Write a data folder: two captions an image, features one-hot in colour and shape.

    Of three regions one has the colour, one the shape, and one, the first or the last, is absent.
    """
    combinations = [(c, s) for c in range(len(COLOURS)) for s in range(len(shapes))]
    vocabulary = Vocabulary.build(
        [["a", COLOURS[c], shapes[s]] for c, s in combinations] + [["there", "is", "one"]]
    )
    splits = {}
    for name, images in (("train", train), ("val", val)):
        shape = (3,) * regions + (len(COLOURS) + len(SHAPES),)
        features = numpy.zeros((images, *shape), numpy.float32)
        captions, owners, references = [], [], []
        for image in range(images):
            c, s = combinations[image % len(combinations)]
            of_image = (features[image],) * 2
            if regions:
                of_image = features[image, image % 2 :][:2]
            of_image[0][c] = of_image[1][len(COLOURS) + s] = 1
            said = [["a", COLOURS[c], shapes[s]], ["there", "is", "a", COLOURS[c], shapes[s]]]
            references.append([" ".join(words) for words in said])
            for words in said:
                captions.append(vocabulary.encode(words, 8))
                owners.append(image)
        splits[name] = layout.SplitContents(
            captions=numpy.array(captions),
            image_idxs=numpy.array(owners),
            features=dict.fromkeys(kinds, features),
            images=[
                layout.CaptionedImage(k, f"http://localhost/{name}/{k}.png", known)
                for k, known in enumerate(references)
            ],
        )
    path.mkdir(parents=True)
    layout.write_contents(path, vocabulary, splits, {"name": "tiny", "features": "given away"})
    return path
