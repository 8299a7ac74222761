import numpy
import pytest
from tiny import make_tiny

import xpcap
from xpcap.data.coco import load_coco_data
from xpcap.data.dataset import open_dataset
from xpcap.data.minibatch import EpochBatches, sample_coco_minibatch
from xpcap.errors import ConfigurationError, DataError


@pytest.fixture
def tiny(tmp_path):
    return make_tiny(tmp_path / "tiny")


def test_a_random_minibatch_keeps_captions_features_and_urls_together(tiny, backend):
    with xpcap.use_backend(backend):
        data = load_coco_data(tiny, pca_features=False)
    numpy.random.seed(0)
    captions, features, urls = sample_coco_minibatch(data, batch_size=30, split="val")
    assert xpcap.namespace(captions, features) is backend.xp
    whole = open_dataset(tiny).splits["val"]
    for caption, feature, url in zip(
        backend.to_host(captions), backend.to_host(features), urls, strict=True
    ):
        image = whole.urls.index(url)
        assert feature.tolist() == whole.features[image].tolist()
        assert caption.tolist() in whole.captions[2 * image : 2 * image + 2].tolist()
    with pytest.raises(DataError, match="expected train or val"):
        sample_coco_minibatch(data, split="test")


def test_an_epoch_has_every_caption_once(tiny):
    split = open_dataset(tiny).splits["train"]
    batches = EpochBatches(split, 10, seed=3)
    epochs = [list(batches.epoch(k)) for k in (0, 0, 1)]
    rows = [numpy.concatenate([batch.rows for batch in epoch]).tolist() for epoch in epochs]
    assert [len(batch.rows) for batch in epochs[0]] == [10, 10, 10, 10, 8]
    assert len(batches) == 5
    assert sorted(rows[0]) == list(range(48))
    assert rows[0] == rows[1] != rows[2]
    batch = epochs[0][0]
    numpy.testing.assert_array_equal(batch.captions, split.captions[batch.rows])
    numpy.testing.assert_array_equal(batch.features, split.features[batch.rows // 2])
    # two captions an image: 3 words and <END>, or 5 and <END>
    assert batch.words == sum(4 if row % 2 == 0 else 6 for row in batch.rows)


def test_without_a_seed_the_order_is_that_of_the_file(tiny):
    split = open_dataset(tiny).splits["train"]
    rows = [batch.rows.tolist() for batch in EpochBatches(split, 24).epoch(5)]
    assert rows == [list(range(24)), list(range(24, 48))]


@pytest.mark.parametrize("size", [0, -1, 49])
def test_a_batch_must_fit_in_the_split(tiny, size):
    with pytest.raises(ConfigurationError, match=rf"batch size {size} is not in 1\.\.48"):
        EpochBatches(open_dataset(tiny).splits["train"], size)
