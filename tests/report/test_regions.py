import numpy
import pytest

from xpcap.report.regions import LEVELS, Regions, map_of_attention, map_of_attribution

CAT, DOG = 0.25, 0.5


def strengths(levels):
    return [(ord(letter) - ord("a") - LEVELS) / LEVELS for letter in levels]


@pytest.mark.parametrize(
    ("side", "k", "place"),
    [
        (5, 0, "top left"),
        (4, 7, "middle right"),
        (4, 10, "centre"),
        (5, 24, "bottom right"),
        (5, 12, "centre"),
    ],
)
def test_attention_to_a_grid_names_the_strongest_third(side, k, place):
    weights = numpy.full(side * side, 0.01)
    weights[k] = 0.31
    found = map_of_attention(weights, Regions(side))
    assert found.text == f"strongest at the {place}, 31% of the attention"
    assert strengths(found.levels)[k] == max(strengths(found.levels)) == 1
    assert len(found.levels) == side * side


def test_objects_are_named_and_their_boxes_have_levels():
    regions = Regions(None, ["cat", "dog"], [0, 1])
    found = map_of_attention(numpy.array([CAT, DOG, 0, 0]), regions)
    assert found.text == "attention to dog 0.50, cat 0.25"
    assert strengths(found.levels) == pytest.approx([0.5, 1], abs=0.06)
    found = map_of_attribution(numpy.array([CAT, -DOG, 0, 0]), regions)
    assert found.text == "dog -0.50, cat +0.25"
    assert strengths(found.levels) == pytest.approx([0.5, -1], abs=0.06)


def test_regions_of_unknown_places_have_numbers_and_no_levels():
    weights = numpy.array([0.2, 0.5, 0.3])
    found = map_of_attention(weights, Regions())
    assert (found.text, found.levels) == ("strongest in region 2 of 3, 50% of the attention", "")
    found = map_of_attribution(weights - 0.4, Regions())
    assert (found.text, found.levels) == ("strongest in region 2 of 3; total -0.20", "")


def test_nothing_is_told_of_nothing():
    """Of an image without regions, and of a word that nothing speaks for."""
    assert map_of_attention(numpy.zeros(4), Regions(2)).levels == ""
    assert map_of_attribution(numpy.full(4, -0.1), Regions(2)).text == ""
