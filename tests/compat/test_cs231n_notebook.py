"""What the notebooks of the CS231n assignment do with the library, on every backend.

The assignment's own numbers for the layers are checked by `xpcap.selfcheck`.
"""

import numpy
import pytest
from tiny import make_tiny

import xpcap
import xpcap.compat.cs231n as cs231n
from xpcap import layers, optim
from xpcap.backend import CPU, namespace
from xpcap.compat.cs231n import *  # noqa: F403 - the notebooks import like this
from xpcap.compat.cs231n import (
    CaptioningRNN,
    CaptioningSolver,
    CaptioningTrainer,
    affine_relu_backward,
    affine_relu_forward,
    decode_captions,
    eval_numerical_gradient_array,
    eval_numerical_gradient_blobs,
    eval_numerical_gradient_net,
    grad_check_sparse,
    load_coco_data,
    rel_error,
    sample_coco_minibatch,
    sigmoid,
)
from xpcap.data.folder import CaptionedImage, SplitContents, write_contents
from xpcap.data.vocabulary import Vocabulary
from xpcap.errors import DataError


def test_names_can_be_imported_by_a_star():
    assert set(cs231n.__all__) <= set(globals()), "the star import of this file's head"


def test_layers_and_update_rules_are_the_librarys_own():
    for module in (layers, optim):
        for name in set(cs231n.__all__) & set(dir(module)) - {"adam"}:
            assert getattr(cs231n, name) is getattr(module, name)


def linspace(backend, start, stop, *shape):
    values = numpy.linspace(start, stop, num=int(numpy.prod(shape))).reshape(shape)
    return backend.to_device(values)


def test_affine_relu_backward_is_the_numerical_gradient(backend):
    randn = numpy.random.RandomState(231).randn
    arguments = [backend.to_device(randn(*shape)) for shape in [(4, 2, 3), (6, 5), (5,)]]
    out, cache = affine_relu_forward(*arguments)
    assert float(out.min()) == 0
    dout = backend.to_device(randn(*out.shape))
    for argument, gradient in zip(arguments, affine_relu_backward(dout, cache), strict=True):
        numerical = eval_numerical_gradient_array(
            lambda _: affine_relu_forward(*arguments)[0], argument, dout
        )
        assert rel_error(numerical, gradient) < 1e-7


def test_sigmoid_takes_one_argument_and_never_overflows(backend):
    x = backend.to_device(numpy.array([-1000.0, -numpy.log(3), 0.0, numpy.log(3), 1000.0]))
    numpy.testing.assert_allclose(
        backend.to_host(sigmoid(x)), [0, 0.25, 0.5, 0.75, 1], rtol=0, atol=1e-15
    )


def test_loss_of_a_captioner_with_given_parameters(backend):
    word_to_idx = {"<NULL>": 0, "cat": 2, "dog": 3}
    model = CaptioningRNN(
        word_to_idx,
        input_dim=20,
        wordvec_dim=30,
        hidden_dim=40,
        cell_type="lstm",
        dtype=numpy.float64,
        backend=backend,
    )
    for name, value in model.params.items():
        model.params[name] = linspace(backend, -1.4, 1.3, *value.shape)
    features = linspace(backend, -0.5, 1.7, 10, 20)
    captions = backend.to_device((numpy.arange(10 * 13) % 3).reshape(10, 13))
    loss, _ = model.loss(features, captions)
    assert abs(float(loss) - 9.82445935443) < 1e-10


WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat", "dog", "on", "the", "mat", "runs"]


def small_data(backend):
    """Make 12 training and 4 validation images with a caption of 2 to 5 words each."""
    rng = numpy.random.RandomState(0)
    data = {"idx_to_word": WORDS, "word_to_idx": {word: i for i, word in enumerate(WORDS)}}
    for split, images in (("train", 12), ("val", 4)):
        captions = numpy.zeros((images, 7), numpy.int32)
        for row in captions:
            length = rng.randint(2, 6)
            row[0], row[length + 1] = 1, 2
            row[1 : length + 1] = rng.randint(4, len(WORDS), size=length)
        data[f"{split}_captions"] = backend.to_device(captions)
        data[f"{split}_image_idxs"] = backend.to_device(rng.permutation(images).astype("int32"))
        data[f"{split}_features"] = backend.to_device(rng.randn(images, 16).astype("float32"))
        data[f"{split}_urls"] = numpy.array([f"http://localhost/{split}{i}" for i in range(images)])
    return data


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
def test_overfitting_a_few_captions(backend, cell_type, capsys):
    numpy.random.seed(231)
    data = small_data(backend)
    model = CaptioningRNN(
        cell_type=cell_type,
        word_to_idx=data["word_to_idx"],
        input_dim=data["train_features"].shape[1],
        hidden_dim=32,
        wordvec_dim=16,
        seed=0,
        backend=backend,
    )
    solver = CaptioningSolver(
        model,
        data,
        update_rule="adam",
        num_epochs=100,
        batch_size=6,
        optim_config={"learning_rate": 1e-2},
        lr_decay=0.995,
        verbose=True,
        print_every=50,
    )
    solver.train()
    assert len(solver.loss_history) == 200
    assert solver.loss_history[0] > 6
    assert max(solver.loss_history[-10:]) < 0.1
    assert len(capsys.readouterr().out.splitlines()) == 4

    captions, features, urls = sample_coco_minibatch(data, split="train", batch_size=12)
    assert urls.shape == (12,)
    truth = decode_captions(captions, data["idx_to_word"])
    sampled = decode_captions(model.sample(features), data["idx_to_word"])
    assert [f"<START> {sentence}" for sentence in sampled] == truth
    assert all(sentence.endswith("<END>") for sentence in sampled)
    assert decode_captions(captions[0], data["idx_to_word"]) == truth[0]


def test_load_coco_data_reads_the_assignments_folder(backend, tmp_path, monkeypatch):
    made = small_data(CPU)
    contents = {
        split: SplitContents(
            captions=made[f"{split}_captions"],
            image_idxs=made[f"{split}_image_idxs"],
            features={"pca": made[f"{split}_features"]},
            images=[
                CaptionedImage(k, url, ["a cat"])
                for k, url in enumerate(made[f"{split}_urls"].tolist())
            ],
        )
        for split in ("train", "val")
    }
    folder = tmp_path / "datasets" / "coco_captioning"
    folder.mkdir(parents=True)
    write_contents(folder, Vocabulary(WORDS), contents, {"name": "little", "features": "random"})
    monkeypatch.chdir(tmp_path)
    with xpcap.use_backend(backend):
        data = load_coco_data(pca_features=True)
        some_data = load_coco_data(max_train=5)
        assert some_data["train_captions"].shape == (5, 7)
        assert set(data) == set(made)
        for name, value in made.items():
            loaded = data[name]
            if name in ("idx_to_word", "word_to_idx"):
                assert loaded == value
            elif name.endswith("_urls"):
                assert loaded.tolist() == value.tolist()
            else:
                assert backend.xp is namespace(loaded)
                assert loaded.dtype == value.dtype
                numpy.testing.assert_array_equal(backend.to_host(loaded), value)
        model = CaptioningRNN(data["word_to_idx"], input_dim=16, cell_type="lstm", seed=0)
        solver = CaptioningSolver(model, some_data, num_epochs=2, batch_size=5, verbose=False)
        solver.train()
        assert len(solver.loss_history) == 2
        for split in ("train", "val"):
            captions, features, urls = sample_coco_minibatch(some_data, split=split, batch_size=2)
            assert len(decode_captions(captions, data["idx_to_word"])) == len(urls) == 2
            assert len(decode_captions(model.sample(features), data["idx_to_word"])) == 2


@pytest.mark.parametrize("folder", ["datasets", "cs231n/datasets"])
@pytest.mark.parametrize("kinds", [("pca",), ("fc7",), ("pca", "fc7")], ids="+".join)
@pytest.mark.parametrize("pca_features", [True, False])
def test_load_coco_data_finds_folder_and_features(
    tmp_path, monkeypatch, capsys, folder, kinds, pca_features
):
    make_tiny(tmp_path / folder / "coco_captioning", kinds=kinds)
    monkeypatch.chdir(tmp_path)
    data = load_coco_data(pca_features=pca_features)
    assert data["train_features"].shape == (24, 7)
    kind = kinds[-1] if not pca_features else kinds[0]
    said = f"base dir  {folder}/coco_captioning: {kind} features, 7 per image\n"
    assert capsys.readouterr().out == said


def test_without_a_data_set_load_coco_data_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = "; `xpcap data download coco` fetches .*`xpcap data scenes --out datasets/scenes` draws"
    with pytest.raises(DataError, match=f"^there is no data set in .* or .*{how}"):
        load_coco_data()
    make_tiny(tmp_path / "datasets" / "coco_captioning", kinds=())
    with pytest.raises(DataError, match=f"^datasets/coco_captioning has no image features{how}"):
        load_coco_data()
    with pytest.raises(DataError, match=r"^none is not a folder"):
        load_coco_data("none")


def test_captioning_trainer_is_captioning_solver(backend):
    data = small_data(backend)

    def history(kind, **settings):
        numpy.random.seed(5)
        model = CaptioningRNN(data["word_to_idx"], 16, 8, 8, seed=0, backend=backend)
        trainer = kind(model, data, **settings, batch_size=4, num_epochs=2, verbose=False)
        trainer.train()
        return trainer.loss_history

    settings = {"learning_rate": 0.03}
    solver = history(CaptioningSolver, optim_config=settings)
    assert len(solver) == 6
    assert history(CaptioningTrainer, updater_config=settings) == pytest.approx(solver, rel=1e-5)
    assert history(CaptioningTrainer) != pytest.approx(solver, rel=1e-5)  # the default rate


def test_grad_check_sparse_prints_both_gradients(backend, capsys):
    numpy.random.seed(0)
    x = backend.to_device(numpy.random.randn(3, 4))
    before = backend.to_host(x).copy()
    right, wrong = 2 * x, 3 * x
    for gradient, count in ((right, 10), (wrong, 4)):
        grad_check_sparse(lambda x: (x * x).sum(), x, gradient, num_checks=count)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == count
        errors = [float(line.rpartition(" ")[2]) for line in lines]
        assert all(line.startswith("numerical: ") and " analytic: " in line for line in lines)
        # |2x - 3x| / (|2x| + |3x|) = 1/5
        assert max(errors) < 1e-8 if gradient is right else errors == pytest.approx([0.2] * count)
    numpy.testing.assert_array_equal(backend.to_host(x), before)


class Blob:
    def __init__(self, vals, diffs):
        self.vals = vals
        self.diffs = diffs


def multiply(left, right, product):
    product.vals[...] = left.vals * right.vals


class Product:
    def __init__(self, *blobs):
        self.blobs = blobs

    def forward(self):
        multiply(*self.blobs)


@pytest.mark.parametrize("way", ["blobs", "net"])
def test_numerical_gradients_of_blobs(backend, way):
    randn = numpy.random.RandomState(1).randn
    left, right, product = (
        Blob(backend.to_device(randn(2, 3)), backend.to_device(randn(2, 3))) for _ in range(3)
    )
    if way == "blobs":
        dleft, dright = eval_numerical_gradient_blobs(multiply, (left, right), product, h=1e-5)
    else:
        net = Product(left, right, product)
        dleft, dright = eval_numerical_gradient_net(net, (left, right), product)
    assert rel_error(dleft, product.diffs * right.vals) < 1e-8
    assert rel_error(dright, product.diffs * left.vals) < 1e-8
