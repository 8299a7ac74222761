"""The built-in data set: drawn scenes with captions whose truth can be checked.

A scene is sampled first (`world`), then drawn (`drawing`) and captioned (`grammar`), so it is known
which sentences are true of each image. `build` makes the data folder.
"""

from xpcap.data.scenes.build import built_in_scenes, make_scenes, read_picture, read_scenes
from xpcap.data.scenes.drawing import draw
from xpcap.data.scenes.grammar import captions, is_true
from xpcap.data.scenes.world import Scene, Thing, random_scene

__all__ = [
    "Scene",
    "Thing",
    "built_in_scenes",
    "captions",
    "draw",
    "is_true",
    "make_scenes",
    "random_scene",
    "read_picture",
    "read_scenes",
]
