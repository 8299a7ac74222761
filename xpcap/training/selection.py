"""What the best epoch is: that with the lowest validation loss, or with the best captions."""

from __future__ import annotations

from xpcap.data.dataset import Dataset
from xpcap.errors import DataError
from xpcap.evaluation import evaluate_run, with_references
from xpcap.metrics import QUALITY
from xpcap.runs import Run, make_search

LOSS = "loss"
SELECTIONS = (LOSS, *QUALITY)
"""What may select the best epoch: the validation loss, or a metric of validation captions."""

IMAGES = 1000  # that are captioned after each epoch, at most


class CaptionMetric:
    """A metric of a model's greedy captions of the validation images; higher is better.

    It is that of `evaluate_run`; of more than 1,000 images, that many evenly spaced ones are
    captioned.

    Parameters
    ----------
    name
        One of `xpcap.metrics.QUALITY`.
    run
        The model, whose ranks share the images.
    dataset
        Its validation images need references; a `DataError` is raised at once if they have none.
    """

    def __init__(self, name: str, run: Run, dataset: Dataset) -> None:
        images = len(with_references(dataset, "val"))
        if name.startswith("CIDEr") and images == 1:
            raise DataError(
                f"{dataset.folder}: '{name}' of a single validation image is always 0; expected"
                " more images with captions, or select another metric"
            )
        self.name = name
        self.figure = f"val_{name}"  # its name in `Trainer.figures` and the history
        self._run = run
        self._dataset = dataset

    def __call__(self) -> float:
        """Caption the images with the model's present parameters, and return the metric."""
        how = make_search(self._run.vocabulary)
        found = evaluate_run(self._run, self._dataset, "val", how, [self.name], IMAGES)
        return found.scores.corpus[self.name]
