"""What the notebooks of the CS231n assignment do with the library, on every backend.

Inputs that the notebooks write as `linspace` and the values they expect of them are the
assignment's; gradients are compared with central differences, as there.
"""

import inspect

import numpy
import pytest

import xpcap
import xpcap.compat.cs231n as cs231n
from xpcap.backend import CPU, namespace
from xpcap.compat.cs231n import *  # noqa: F403 - the notebooks import like this
from xpcap.compat.cs231n import (
    CaptioningRNN,
    CaptioningSolver,
    CaptioningTrainer,
    decode_captions,
    eval_numerical_gradient,
    eval_numerical_gradient_array,
    eval_numerical_gradient_blobs,
    eval_numerical_gradient_net,
    grad_check_sparse,
    load_coco_data,
    rel_error,
    relu_backward,
    relu_forward,
    sample_coco_minibatch,
    sigmoid,
    temporal_softmax_loss,
)
from xpcap.data.folder import SplitContents, write_contents
from xpcap.data.vocabulary import Vocabulary

NAMES = {
    "rnn_layers": "rnn_step_forward rnn_step_backward rnn_forward rnn_backward"
    " word_embedding_forward word_embedding_backward sigmoid lstm_step_forward lstm_step_backward"
    " lstm_forward lstm_backward temporal_affine_forward temporal_affine_backward"
    " temporal_softmax_loss",
    "gru": "gru_step_forward gru_step_backward gru_forward gru_backward",
    "classifiers.rnn": "CaptioningRNN",
    "captioning_solver": "CaptioningSolver CaptioningTrainer",
    "coco_utils": "load_coco_data sample_coco_minibatch decode_captions",
    "image_utils": "blur_image SQUEEZENET_MEAN SQUEEZENET_STD preprocess_image deprocess_image"
    " image_from_url load_image",
    "gradient_check": "eval_numerical_gradient eval_numerical_gradient_array"
    " eval_numerical_gradient_blobs eval_numerical_gradient_net grad_check_sparse rel_error",
    "layers, layer_utils": "affine_forward affine_backward relu_forward relu_backward"
    " affine_relu_forward affine_relu_backward",
    "optim": "sgd sgd_momentum rmsprop adam",
}


def test_every_name_of_the_assignment_is_there():
    assert sorted(" ".join(NAMES.values()).split()) == sorted(cs231n.__all__)
    assert set(cs231n.__all__) <= set(globals()), "the star import of this file's head"


@pytest.mark.parametrize("name", [n for n in cs231n.__all__ if not n.startswith("SQUEEZENET")])
def test_every_name_is_documented(name):
    assert inspect.getdoc(getattr(cs231n, name))


def linspace(backend, start, stop, *shape):
    values = numpy.linspace(start, stop, num=int(numpy.prod(shape))).reshape(shape)
    return backend.to_device(values)


# function, its arguments as (start, stop, *shape), the expected outputs, the error allowed
WORKED = {
    "rnn_step_forward": (
        [(-0.4, 0.7, 3, 10), (-0.2, 0.5, 3, 4), (-0.1, 0.9, 10, 4), (-0.3, 0.7, 4, 4),
         (-0.2, 0.4, 4)],
        [[[-0.58172089, -0.50182032, -0.41232771, -0.31410098],
          [0.66854692, 0.79562378, 0.87755553, 0.92795967],
          [0.97934501, 0.99144213, 0.99646691, 0.99854353]]],
        1e-8,
    ),
    "rnn_forward": (
        [(-0.1, 0.3, 2, 3, 4), (-0.3, 0.1, 2, 5), (-0.2, 0.4, 4, 5), (-0.4, 0.1, 5, 5),
         (-0.7, 0.1, 5)],
        [[[[-0.42070749, -0.27279261, -0.11074945, 0.05740409, 0.22236251],
           [-0.39525808, -0.22554661, -0.0409454, 0.14649412, 0.32397316],
           [-0.42305111, -0.24223728, -0.04287027, 0.15997045, 0.35014525]],
          [[-0.55857474, -0.39065825, -0.19198182, 0.02378408, 0.23735671],
           [-0.27150199, -0.07088804, 0.13562939, 0.33099728, 0.50158768],
           [-0.51014825, -0.30524429, -0.06755202, 0.17806392, 0.40333043]]]],
        1e-7,
    ),
    "lstm_step_forward": (
        [(-0.4, 1.2, 3, 4), (-0.3, 0.7, 3, 5), (-0.4, 0.9, 3, 5), (-2.1, 1.3, 4, 20),
         (-0.7, 2.2, 5, 20), (0.3, 0.7, 20)],
        [[[0.24635157, 0.28610883, 0.32240467, 0.35525807, 0.38474904],
          [0.49223563, 0.55611431, 0.61507696, 0.66844003, 0.7159181],
          [0.56735664, 0.66310127, 0.74419266, 0.80889665, 0.858299]],
         [[0.32986176, 0.39145139, 0.451556, 0.51014116, 0.56717407],
          [0.66382255, 0.76674007, 0.87195994, 0.97902709, 1.08751345],
          [0.74192008, 0.90592151, 1.07717006, 1.25120233, 1.42395676]]],
        1e-8,
    ),
    "lstm_forward": (
        [(-0.4, 0.6, 2, 3, 5), (-0.4, 0.8, 2, 4), (-0.2, 0.9, 5, 16), (-0.3, 0.6, 4, 16),
         (0.2, 0.7, 16)],
        [[[[0.01764008, 0.01823233, 0.01882671, 0.0194232],
           [0.11287491, 0.12146228, 0.13018446, 0.13902939],
           [0.31358768, 0.33338627, 0.35304453, 0.37250975]],
          [[0.45767879, 0.4761092, 0.4936887, 0.51041945],
           [0.6704845, 0.69350089, 0.71486014, 0.7346449],
           [0.81733511, 0.83677871, 0.85403753, 0.86935314]]]],
        1e-7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("function", WORKED)
def test_forward_gives_the_worked_numbers(backend, function):
    arguments, expected, below = WORKED[function]
    *outputs, _ = getattr(cs231n, function)(*(linspace(backend, *a) for a in arguments))
    for output, values in zip(outputs, expected, strict=True):
        assert rel_error(output, backend.to_device(numpy.array(values))) < below


def test_word_embedding_gives_the_worked_numbers(backend):
    x = backend.to_device(numpy.array([[0, 3, 1, 2], [2, 1, 0, 3]]))
    out, _ = cs231n.word_embedding_forward(x, linspace(backend, 0, 1, 5, 3))
    expected = numpy.array(
        [[[0.0, 0.07142857, 0.14285714], [0.64285714, 0.71428571, 0.78571429],
          [0.21428571, 0.28571429, 0.35714286], [0.42857143, 0.5, 0.57142857]],
         [[0.42857143, 0.5, 0.57142857], [0.21428571, 0.28571429, 0.35714286],
          [0.0, 0.07142857, 0.14285714], [0.64285714, 0.71428571, 0.78571429]]]
    )  # fmt: skip
    assert rel_error(out, backend.to_device(expected)) < 1.1e-8


# layer, the shapes of its arguments, the error allowed
BACKWARD = [
    ("rnn_step", [(4, 5), (4, 6), (5, 6), (6, 6), (6,)], 1e-7),
    ("rnn", [(2, 10, 3), (2, 5), (3, 5), (5, 5), (5,)], 1e-7),
    ("lstm_step", [(4, 5), (4, 6), (4, 6), (5, 24), (6, 24), (24,)], 1e-6),
    ("lstm", [(2, 10, 3), (2, 6), (3, 24), (6, 24), (24,)], 1e-7),
    ("gru_step", [(4, 5), (4, 6), (5, 18), (6, 18), (18,), (6,)], 1e-6),
    ("gru", [(2, 10, 3), (2, 5), (3, 15), (5, 15), (15,), (5,)], 1e-6),
    ("temporal_affine", [(2, 3, 4), (4, 5), (5,)], 1e-8),
    ("affine", [(4, 2, 3), (6, 5), (5,)], 1e-8),
    ("affine_relu", [(4, 2, 3), (6, 5), (5,)], 1e-8),
]


@pytest.mark.parametrize(("layer", "shapes", "below"), BACKWARD, ids=[row[0] for row in BACKWARD])
def test_backward_is_the_numerical_gradient(backend, layer, shapes, below):
    randn = numpy.random.RandomState(231).randn
    forward, backward = (getattr(cs231n, f"{layer}_{way}") for way in ("forward", "backward"))
    arguments = [backend.to_device(randn(*shape)) for shape in shapes]
    *outputs, cache = forward(*arguments)
    douts = [backend.to_device(randn(*output.shape)) for output in outputs]
    gradients = backward(*douts, cache)
    for argument, gradient in zip(arguments, gradients, strict=True):
        numerical = sum(
            eval_numerical_gradient_array(lambda _, k=k: forward(*arguments)[k], argument, dout)
            for k, dout in enumerate(douts)
        )
        wrong = float(abs(numerical - gradient).max()) / float(abs(gradient).max())
        assert wrong < below


def test_word_embedding_backward_is_the_numerical_gradient(backend):
    rng = numpy.random.RandomState(231)
    x = backend.to_device(rng.randint(5, size=(50, 3)))
    W = backend.to_device(rng.randn(5, 6))
    out, cache = cs231n.word_embedding_forward(x, W)
    dout = backend.to_device(rng.randn(*out.shape))
    numerical = eval_numerical_gradient_array(
        lambda W: cs231n.word_embedding_forward(x, W)[0], W, dout
    )
    assert rel_error(numerical, cs231n.word_embedding_backward(dout, cache)) < 1e-10


def test_relu_keeps_what_is_positive(backend):
    x = backend.to_device(numpy.array([[-2.0, -0.5, 0.0], [0.25, 1.0, 3.0]]))
    out, cache = relu_forward(x)
    assert backend.to_host(out).tolist() == [[0, 0, 0], [0.25, 1, 3]]
    dout = backend.to_device(numpy.full((2, 3), 7.0))
    assert backend.to_host(relu_backward(dout, cache)).tolist() == [[0, 0, 0], [7, 7, 7]]
    with pytest.raises(ValueError, match=r"expected dout \(2, 3\), as x; got \(2,\)"):
        relu_backward(x[:, 0], cache)


def test_sigmoid_takes_one_argument_and_never_overflows(backend):
    x = backend.to_device(numpy.array([-1000.0, -numpy.log(3), 0.0, numpy.log(3), 1000.0]))
    numpy.testing.assert_allclose(
        backend.to_host(sigmoid(x)), [0, 0.25, 0.5, 0.75, 1], rtol=0, atol=1e-15
    )


@pytest.mark.parametrize(
    ("N", "T", "V", "p", "about"),
    [(100, 1, 10, 1.0, 2.3), (100, 10, 10, 1.0, 23.0), (5000, 10, 10, 0.1, 2.3)],
)
def test_temporal_softmax_loss_of_scores_near_zero(backend, N, T, V, p, about):
    rng = numpy.random.RandomState(231)
    x = backend.to_device(0.001 * rng.randn(N, T, V))
    y = backend.to_device(rng.randint(V, size=(N, T)))
    mask = backend.to_device(rng.rand(N, T) <= p)
    assert float(temporal_softmax_loss(x, y, mask)[0]) == pytest.approx(about, rel=0.02)


def test_temporal_softmax_gradient(backend):
    rng = numpy.random.RandomState(231)
    x = backend.to_device(rng.randn(7, 8, 9))
    y = backend.to_device(rng.randint(9, size=(7, 8)))
    mask = backend.to_device(rng.rand(7, 8) > 0.5)
    _, dx = temporal_softmax_loss(x, y, mask, verbose=False)
    numerical = eval_numerical_gradient(
        lambda x: temporal_softmax_loss(x, y, mask)[0], x, verbose=False
    )
    assert rel_error(numerical, dx) < 1e-6


@pytest.mark.parametrize(
    ("cell_type", "low", "high", "expected"),
    [("rnn", -1.5, 0.3, 9.83235591003), ("lstm", -0.5, 1.7, 9.82445935443)],
)
def test_loss_of_a_captioner_with_given_parameters(backend, cell_type, low, high, expected):
    word_to_idx = {"<NULL>": 0, "cat": 2, "dog": 3}
    model = CaptioningRNN(
        word_to_idx,
        input_dim=20,
        wordvec_dim=30,
        hidden_dim=40,
        cell_type=cell_type,
        dtype=numpy.float64,
        backend=backend,
    )
    for name, value in model.params.items():
        model.params[name] = linspace(backend, -1.4, 1.3, *value.shape)
    features = linspace(backend, low, high, 10, 20)
    captions = backend.to_device((numpy.arange(10 * 13) % 3).reshape(10, 13))
    loss, _ = model.loss(features, captions)
    assert abs(float(loss) - expected) < 1e-10


@pytest.mark.parametrize("cell_type", ["rnn", "lstm", "gru"])
def test_gradients_of_a_captioner(backend, cell_type):
    rng = numpy.random.RandomState(231)
    word_to_idx = {"<NULL>": 0, "cat": 2, "dog": 3}
    features = backend.to_device(rng.randn(2, 4))
    captions = backend.to_device(rng.randint(3, size=(2, 3)))
    model = CaptioningRNN(
        word_to_idx,
        input_dim=4,
        wordvec_dim=5,
        hidden_dim=6,
        cell_type=cell_type,
        dtype=numpy.float64,
        seed=231,
        backend=backend,
    )
    _, grads = model.loss(features, captions)
    assert set(grads) == set(model.params)
    for name, gradient in grads.items():
        numerical = eval_numerical_gradient(
            lambda _: model.loss(features, captions)[0], model.params[name], verbose=False, h=1e-6
        )
        numpy.testing.assert_allclose(
            backend.to_host(gradient),
            backend.to_host(numerical),
            rtol=1e-5,
            atol=1e-9,  # differences of a loss near 1, at h = 1e-6
            err_msg=name,
        )


WORDS = ["<NULL>", "<START>", "<END>", "<UNK>", "a", "cat", "dog", "on", "the", "mat", "runs"]


def little_data(backend):
    """Make 12 images with one caption each, of 2 to 5 words, and 4 to validate."""
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
    data = little_data(backend)
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


def test_the_folder_of_the_assignment(backend, tmp_path, monkeypatch):
    made = little_data(CPU)
    contents = {
        split: SplitContents(
            captions=made[f"{split}_captions"],
            image_idxs=made[f"{split}_image_idxs"],
            features={"pca": made[f"{split}_features"]},
            urls=made[f"{split}_urls"].tolist(),
            ids=range(len(made[f"{split}_urls"])),
            references=[["a cat"]] * len(made[f"{split}_urls"]),
        )
        for split in ("train", "val")
    }
    folder = tmp_path / "datasets" / "coco_captioning"
    folder.mkdir(parents=True)
    write_contents(folder, Vocabulary(WORDS), contents, {"name": "little", "features": "random"})
    monkeypatch.chdir(tmp_path)
    with xpcap.use_backend(backend):
        data = load_coco_data(pca_features=True)
        small_data = load_coco_data(max_train=5)
        assert small_data["train_captions"].shape == (5, 7)
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
        solver = CaptioningSolver(model, small_data, num_epochs=2, batch_size=5, verbose=False)
        solver.train()
        assert len(solver.loss_history) == 2
        for split in ("train", "val"):
            captions, features, urls = sample_coco_minibatch(small_data, split=split, batch_size=2)
            assert len(decode_captions(captions, data["idx_to_word"])) == len(urls) == 2
            assert len(decode_captions(model.sample(features), data["idx_to_word"])) == 2


def test_the_trainer_is_the_solver_by_another_name(backend):
    data = little_data(backend)

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


def test_grad_check_sparse_prints_both_slopes(backend, capsys):
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
