"""Layers against naive versions, and against PyTorch."""

import numpy
import oracle
import pytest

from xpcap import layers
from xpcap.backend import to_host
from xpcap.errors import ShapeError
from xpcap.selfcheck.cases import LAYERS, Sizes, on_device

CASES = {case.name: case for case in LAYERS}
N, T, D, H, V = 3, 4, 5, 2, 6


def draw(name):
    return CASES[name].make_args(numpy.random.default_rng(3), Sizes(N, T, D, H, V))


def close(ours, expected):
    ours = numpy.asarray(to_host(ours))
    assert ours.shape == numpy.shape(expected)
    numpy.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)


def test_relu(backend):
    x, dout = numpy.array([[-2.0, 0.0, 3.0]]), numpy.array([[5.0, 6.0, 7.0]])
    out, cache = layers.relu_forward(backend.to_device(x))
    close(out, [[0.0, 0.0, 3.0]])
    close(layers.relu_backward(backend.to_device(dout), cache), [[0.0, 0.0, 7.0]])


def test_affine(backend):
    a = draw("affine")
    out, cache = layers.affine_forward(**on_device(backend, a))
    dout = numpy.random.default_rng(4).standard_normal((N, H))
    gradients = layers.affine_backward(backend.to_device(dout), cache)

    def expected(x, w, b):
        return x.reshape(*x.shape[:-3], N, T * D) @ w + b[..., None, :]

    close(out, expected(**a))
    for (name, value), gradient in zip(a.items(), gradients, strict=True):

        def product(moved, name=name):
            return (expected(**{**a, name: moved}) * dout).sum(axis=(-2, -1))

        close(gradient, oracle.gradient(product, value))


def test_temporal_affine(backend):
    a = draw("temporal_affine")
    out, _ = layers.temporal_affine_forward(**on_device(backend, a))
    close(out, a["x"] @ a["w"] + a["b"])


@pytest.mark.parametrize("cell", oracle.CELL_STEPS)
def test_recurrent_layers(cell, backend):
    a = draw(f"{cell}_step")
    *found, _ = CASES[f"{cell}_step"].forward(**on_device(backend, a))
    state = [a[name] for name in ("prev_h", "prev_c") if name in a]
    ax, weights = a["x"] @ a["Wx"] + a["b"], oracle.weights_of(a)
    expected, _ = oracle.CELL_STEPS[cell](ax, state, **weights)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)

    a = draw(cell)
    h, _ = CASES[cell].forward(**on_device(backend, a))
    ax, weights = a["x"] @ a["Wx"] + a["b"], oracle.weights_of(a)
    close(h, oracle.hidden_states(cell, ax, oracle.first_state(cell, a["h0"]), weights))


def test_word_embedding_with_repeated_words(backend):
    x = numpy.array([[1, 1, 4], [4, 1, 0]])
    W = numpy.random.default_rng(0).standard_normal((V, D))
    dout = numpy.random.default_rng(1).standard_normal((2, 3, D))
    out, cache = layers.word_embedding_forward(backend.to_device(x), backend.to_device(W))
    expected_dW = numpy.zeros((V, D))
    for n, t in numpy.ndindex(2, 3):
        close(out[n, t], W[x[n, t]])
        for d in range(D):
            expected_dW[x[n, t], d] += dout[n, t, d]
    close(layers.word_embedding_backward(backend.to_device(dout), cache), expected_dW)


@pytest.mark.parametrize("dtype", [numpy.int32, numpy.int64, numpy.uint16])
def test_word_embedding_takes_every_integer(dtype, backend):
    x = backend.to_device(numpy.array([[1, 0, 1]], dtype))
    out, cache = layers.word_embedding_forward(x, backend.to_device(numpy.eye(3)))
    close(out[0], numpy.eye(3)[[1, 0, 1]])
    dW = layers.word_embedding_backward(out, cache)
    close(dW, numpy.diag([1.0, 2.0, 0.0]))


def test_temporal_softmax_loss(backend):
    a = draw("temporal_softmax_loss")
    assert 0 < a["mask"].sum() < N * T
    loss, dx = layers.temporal_softmax_loss(**on_device(backend, a))

    def expected(x):
        of_words = [oracle.log_softmax(x)[..., n, range(T), a["y"][n]] for n in range(N)]
        return -sum((of_words[n] * a["mask"][n]).sum(axis=-1) for n in range(N)) / N

    close(loss, expected(a["x"]))
    close(dx, oracle.gradient(expected, a["x"]))


def test_temporal_softmax_loss_without_a_word(backend):
    a = draw("temporal_softmax_loss")
    a["mask"][:] = False
    loss, dx = layers.temporal_softmax_loss(**on_device(backend, a))
    assert float(loss) == 0.0
    assert (to_host(dx) == 0).all()


def test_temporal_softmax_loss_takes_a_numeric_mask(backend):
    a = on_device(backend, draw("temporal_softmax_loss"))
    expected, _ = layers.temporal_softmax_loss(**a)
    loss, _ = layers.temporal_softmax_loss(a["x"], a["y"], a["mask"].astype(numpy.float64))
    assert float(loss) == float(expected)


def test_temporal_softmax_loss_prints_only_when_asked(capsys):
    a = draw("temporal_softmax_loss")
    layers.temporal_softmax_loss(**a)
    assert capsys.readouterr().out == ""
    layers.temporal_softmax_loss(**a, verbose=True)
    assert str((N, T, V)) in capsys.readouterr().out


def permuted(blocks, order):
    """Reorder the blocks of H columns of a weight or bias."""
    parts = numpy.split(blocks, len(order), axis=-1)
    return numpy.concatenate([parts[k] for k in order], axis=-1)


@pytest.mark.parametrize(
    ("name", "order"), [("rnn", [0]), ("lstm", [0, 1, 3, 2]), ("gru", [0, 1, 2])]
)
def test_sequences_against_pytorch(name, order, backend):
    """PyTorch's gates are i, f, g, o and r, z, n; its weights stand on the left."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    case = CASES[name]
    a = case.make_args(numpy.random.default_rng(8), Sizes(N=4, T=6, D=5, H=3))
    dh = numpy.random.default_rng(9).standard_normal((4, 6, 3))

    net = getattr(torch.nn, name.upper())(5, 3, batch_first=True, dtype=torch.float64)
    hidden_bias = numpy.zeros(3 * len(order))
    if name == "gru":
        hidden_bias[6:] = a["bn"]
    with torch.no_grad():
        net.weight_ih_l0.copy_(torch.tensor(permuted(a["Wx"], order).T))
        net.weight_hh_l0.copy_(torch.tensor(permuted(a["Wh"], order).T))
        net.bias_ih_l0.copy_(torch.tensor(permuted(a["b"], order)))
        net.bias_hh_l0.copy_(torch.tensor(hidden_bias))
    x = torch.tensor(a["x"], requires_grad=True)
    h0 = torch.tensor(a["h0"][None], requires_grad=True)
    state = (h0, torch.zeros_like(h0)) if name == "lstm" else h0
    expected, _ = net(x, state)
    expected.backward(torch.tensor(dh))

    h, cache = case.forward(**on_device(backend, a))
    gradients = case.backward(backend.to_device(dh), cache)
    close(h, expected.detach().numpy())
    close(gradients.dx, x.grad.numpy())
    close(gradients.dh0, h0.grad.numpy()[0])
    close(permuted(to_host(gradients.dWx), order), net.weight_ih_l0.grad.numpy().T)
    close(permuted(to_host(gradients.dWh), order), net.weight_hh_l0.grad.numpy().T)
    close(permuted(to_host(gradients.db), order), net.bias_ih_l0.grad.numpy())
    if name == "gru":
        close(gradients.dbn, net.bias_hh_l0.grad.numpy()[6:])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scoring", ["additive", "dot_product"])
def test_attention(scoring, masked, backend):
    """One region after the other; one query has no region."""
    a = draw(f"{scoring}_attention" + " masked" * masked)
    if masked:
        a["mask"][0] = False
    context, weights, cache = getattr(layers, f"{scoring}_attention_forward")(
        **on_device(backend, a)
    )
    rng = numpy.random.default_rng(5)
    dcontext, dweights = rng.standard_normal((N, D)), rng.standard_normal((N, T))
    gradients = getattr(layers, f"{scoring}_attention_backward")(
        *on_device(backend, {"dcontext": dcontext, "dweights": dweights}).values(), cache
    )

    def expected(query, keys, values, w=None, mask=None):
        total = 0
        for n in range(N):
            powers, q = {}, query[..., n, :]
            for l in range(T):  # noqa: E741
                k = keys[..., n, l, :]
                score = (q * k).sum(-1) / H**0.5 if w is None else (w * numpy.tanh(q + k)).sum(-1)
                if mask is None or mask[n, l]:
                    powers[l] = numpy.exp(score)
            for l, power in powers.items():  # noqa: E741
                weight = power / sum(powers.values())
                found = (values[..., n, l, :] * dcontext[n]).sum(-1) + dweights[n, l]
                total = total + weight * found
        return total

    close((to_host(context) * dcontext).sum() + (to_host(weights) * dweights).sum(), expected(**a))
    for name, gradient in zip(gradients._fields, gradients, strict=True):
        value = a[name[1:]]

        def moved(value, name=name):
            return expected(**{**a, name[1:]: value})

        close(gradient, oracle.gradient(moved, value))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scoring", ["additive", "dot_product"])
def test_attention_against_pytorch(scoring, masked, backend):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    a = draw(f"{scoring}_attention" + " masked" * masked)
    if masked:
        a["mask"][:, 1] = True  # PyTorch gives NaN where there is nothing
    context, weights, cache = getattr(layers, f"{scoring}_attention_forward")(
        **on_device(backend, a)
    )
    above = {"dcontext": numpy.ones((N, D)), "dweights": numpy.arange(N * T).reshape(N, T) / 7}
    gradients = getattr(layers, f"{scoring}_attention_backward")(
        *on_device(backend, above).values(), cache
    )
    mask = torch.tensor(a.pop("mask")) if masked else torch.ones(N, T, dtype=torch.bool)
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in a.items()}
    q, k, v = theirs["query"][:, None], theirs["keys"], theirs["values"]
    if scoring == "dot_product":
        scores = torch.bmm(k, q.transpose(1, 2))[:, :, 0] / H**0.5
    else:
        scores = torch.tanh(q + k) @ theirs["w"]
    alpha = scores.masked_fill(~mask, -torch.inf).softmax(dim=1)
    found = torch.bmm(alpha[:, None], v)[:, 0]
    if scoring == "dot_product":
        fused = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None])
        close(context, fused.detach().numpy()[:, 0])
    torch.autograd.backward([found, alpha], [torch.tensor(value) for value in above.values()])
    close(context, found.detach().numpy())
    close(weights, alpha.detach().numpy())
    for gradient, argument in zip(gradients, theirs.values(), strict=True):
        close(gradient, argument.grad.numpy())


def test_layers_of_a_transformer(backend):
    """One row after the other, one head after the other."""
    a = draw("layer_norm")
    out, _ = layers.layer_norm_forward(**on_device(backend, a))
    params = {"w_norm": a["w"], "b_norm": a["b"]}
    close(out, [oracle.normalized(params, "", x) for x in a["x"]])

    a = draw("feed_forward")
    out, _ = layers.feed_forward_forward(**on_device(backend, a))
    close(out, [oracle.feed(a, "", x) for x in a["x"]])

    for masked in (False, True):
        a = draw("self_attention" + " masked" * masked)
        out, _ = layers.self_attention_forward(**on_device(backend, a))
        for n, x in enumerate(a["x"]):
            if masked:
                there = numpy.flatnonzero(a["mask"][n])
                found = [*oracle.self_attention(a, "", 2, x[there], causal=False)]
                close(to_host(out)[n, there], numpy.reshape(found, (len(there), H)))
            else:
                close(out[n], [*oracle.self_attention(a, "", 2, x, causal=True)])

        a = draw("cross_attention" + " masked" * masked)
        out, _ = layers.cross_attention_forward(**on_device(backend, a))
        for n, (x, regions) in enumerate(zip(a["x"], a["regions"], strict=True)):
            there = [*regions[a["mask"][n]]] if masked else [*regions]
            close(out[n], [found for found, _ in oracle.cross_attention(a, "", 2, x, there)])


def test_layer_norm_against_pytorch(backend):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    a = draw("layer_norm")
    out, cache = layers.layer_norm_forward(**on_device(backend, a))
    dout = numpy.random.default_rng(4).standard_normal(a["x"].shape)
    theirs = {name: torch.tensor(value, requires_grad=True) for name, value in a.items()}
    expected = torch.nn.functional.layer_norm(theirs["x"], (D,), theirs["w"], theirs["b"])
    expected.backward(torch.tensor(dout))
    close(out, expected.detach().numpy())
    gradients = layers.layer_norm_backward(backend.to_device(dout), cache)
    for gradient, argument in zip(gradients, theirs.values(), strict=True):
        close(gradient, argument.grad.numpy())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["self_attention", "cross_attention"])
def test_multi_head_attention_against_pytorch(name, masked, backend):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    sizes = Sizes(N, T, D, H=6, L=5)
    case = CASES[name + " masked" * masked]
    a = {**case.make_args(numpy.random.default_rng(3), sizes), "heads": 3}
    if masked:
        a["mask"][:, 1] = True  # PyTorch gives NaN where there is nothing
    out, cache = case.forward(**on_device(backend, a))
    dout = numpy.random.default_rng(4).standard_normal((N, T, 6))
    gradients = case.backward(backend.to_device(dout), cache)
    mask = torch.tensor(~a.pop("mask")) if masked else None
    t = {k: torch.tensor(v, requires_grad=True) for k, v in a.items() if k != "heads"}
    x, causal = t["x"], None
    if name == "self_attention":
        seen, weights, bias = x, t["W_qkv"].T.chunk(3), t["b_qkv"]
        causal = None if masked else ~torch.ones(T, T, dtype=torch.bool).tril()
    else:
        seen, weights = t["regions"], [t[k].T for k in ("W_query", "W_key", "W_value")]
        bias = torch.cat([t["b_query"], torch.zeros(6, dtype=torch.float64), t["b_value"]])
    q, k, v = weights
    expected, _ = torch.nn.functional.multi_head_attention_forward(
        x.transpose(0, 1), *[seen.transpose(0, 1)] * 2, 6, 3, None, bias, None, None, False, 0.0,
        t["W_out"].T, t["b_out"], key_padding_mask=mask, attn_mask=causal,
        use_separate_proj_weight=True, q_proj_weight=q, k_proj_weight=k, v_proj_weight=v,
    )  # fmt: skip
    expected = expected.transpose(0, 1)
    expected.backward(torch.tensor(dout))
    close(out, expected.detach().numpy())
    for gradient, argument in zip(gradients, t.values(), strict=True):
        close(gradient, argument.grad.numpy())


# where one more on the last axis fits: a longer sentence, longer vectors, more words
FITS = {("word_embedding", "x"), ("word_embedding", "W"), ("temporal_softmax_loss", "x")}
FITS |= {(name, "values") for name in CASES if "attention" in name}


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("dropout", "relu")])
def test_wrong_shapes_are_named(name, backend):
    """Each array in turn gets a last axis that is one too long, and one axis too many."""
    case = CASES[name]
    arguments = on_device(backend, draw(name))
    function = name if name == "temporal_softmax_loss" else case.forward.__name__
    arrays = {name: value for name, value in arguments.items() if hasattr(value, "shape")}
    for argument, value in arrays.items():
        longer = backend.xp.concatenate([value, value[..., :1]], axis=-1)
        for wrong in [value[None]] if (name, argument) in FITS else [value[None], longer]:
            with pytest.raises(ShapeError) as caught:
                case.forward(**{**arguments, argument: wrong})
            assert str(caught.value).startswith(f"{function}: expected")
            assert str(tuple(wrong.shape)) in str(caught.value)


def test_a_shape_message_names_every_array():
    a = draw("lstm")
    a["Wh"] = a["Wh"][:, 1:]
    with pytest.raises(ShapeError) as caught:
        layers.lstm_forward(**a)
    assert str(caught.value) == (
        "lstm_forward: expected x (N, T, D), h0 (N, H), Wx (D, 4H), Wh (H, 4H), b (4H,);"
        " got x (3, 4, 5), h0 (3, 2), Wx (5, 8), Wh (2, 7), b (8,)"
    )


def test_an_affine_message_says_how_many_numbers_a_row():
    a = draw("affine")
    a["x"] = a["x"][:, 1:]
    with pytest.raises(ShapeError, match=r"20 numbers a row.* x \(3, 3, 5\)"):
        layers.affine_forward(**a)


@pytest.mark.parametrize("bad", [-1, V])
def test_indices_out_of_range(bad):
    x = numpy.array([[0, bad, 1]])
    with pytest.raises(ShapeError, match=rf"do not all lie in 0\.\.{V - 1}"):
        layers.word_embedding_forward(x, numpy.zeros((V, D)))
    mask = numpy.ones((1, 3), bool)
    with pytest.raises(ShapeError, match=rf"do not all lie in 0\.\.{V - 1}"):
        layers.temporal_softmax_loss(numpy.zeros((1, 3, V)), x, mask)


@pytest.mark.parametrize("dtype", [numpy.float64, bool])
def test_indices_must_be_integers(dtype, backend):
    x = backend.to_device(numpy.ones((1, 3), dtype))
    with pytest.raises(ShapeError, match="integer indices"):
        layers.word_embedding_forward(x, backend.to_device(numpy.zeros((V, D))))
    mask = backend.to_device(numpy.ones((1, 3), bool))
    with pytest.raises(ShapeError, match="integer indices"):
        layers.temporal_softmax_loss(backend.to_device(numpy.zeros((1, 3, V))), x, mask)


def test_arguments_must_be_arrays():
    with pytest.raises(TypeError, match="got list"):
        layers.affine_forward([[1.0]], numpy.ones((1, 1)), numpy.ones(1))


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "temporal_softmax_loss"])
def test_large_inputs_stay_finite(name, scale, backend):
    a = draw(name)
    a["x"] = a["x"] * scale
    case = CASES[name]
    *outputs, cache = case.forward(**on_device(backend, a))
    gradients = case.backward(*outputs, cache)
    for value in [*outputs, *(gradients if isinstance(gradients, tuple) else [gradients])]:
        assert numpy.isfinite(to_host(value)).all()


def test_the_embedding_gradient_repeats_to_the_bit(backend):
    x = backend.to_device(numpy.random.default_rng(0).integers(V, size=(50, 20)))
    dout = numpy.random.default_rng(1).standard_normal((50, 20, D)).astype(numpy.float32)
    dout, W = backend.to_device(dout), backend.to_device(numpy.zeros((V, D), numpy.float32))
    _, cache = layers.word_embedding_forward(x, W)
    first = layers.word_embedding_backward(dout, cache)
    assert (layers.word_embedding_backward(dout, cache) == first).all()
