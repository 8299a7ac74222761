"""Arguments of the operations that have a CUDA source, at awkward sizes; floats are float64."""

import functools

import numpy


def cell_arguments(name, N, H):
    rng = numpy.random.default_rng(N + H)
    count = {"rnn": 1, "lstm": 4, "gru": 3}[name.split("_")[0]]
    normal, unwritten = rng.standard_normal, functools.partial(numpy.full, fill_value=numpy.nan)
    narrow, wide = (N, H), (N, count * H)
    return {
        "rnn_cell": lambda: {
            "gates": normal(narrow), "ah": normal(wide), "h": unwritten(narrow),
        },
        "rnn_cell_gradient": lambda: {
            "above": normal(narrow), "back": normal(narrow), "h": rng.random(narrow),
            "da": unwritten(narrow),
        },
        "lstm_cell": lambda: {
            "gates": normal(wide), "ah": normal(wide), "prev_c": normal(narrow),
            "c": unwritten(narrow), "tanh_c": unwritten(narrow), "h": unwritten(narrow),
        },
        "lstm_cell_gradient": lambda: {
            "above": normal(narrow), "back": normal(narrow), "dc": normal(narrow),
            "gates": rng.random(wide), "prev_c": normal(narrow), "tanh_c": rng.random(narrow),
            "da": unwritten(wide),
        },
        "gru_cell": lambda: {
            "gates": normal(wide), "ah": normal(wide), "bn": normal(H), "prev_h": normal(narrow),
            "ah_n": unwritten(narrow), "h": unwritten(narrow),
        },
        "gru_cell_gradient": lambda: {
            "above": normal(narrow), "back": normal(narrow), "gates": rng.random(wide),
            "ah_n": normal(narrow), "prev_h": normal(narrow), "dax": unwritten(wide),
            "dah": unwritten(wide),
        },
    }[name]()  # fmt: skip


def softmax_arguments(M, V, silent=(), smoothing=0.0):
    rng = numpy.random.default_rng(M + V)
    scores, scale = 3 * rng.standard_normal((M, V)), rng.random(M)
    scores[list(silent)], scale[list(silent)] = numpy.nan, 0
    return {
        "scores": scores, "bias": rng.standard_normal(V), "targets": rng.integers(V, size=M),
        "scale": scale, "losses": numpy.full(M, numpy.nan), "smoothing": smoothing,
    }  # fmt: skip


def take_rows_arguments(size, D, M):
    rng = numpy.random.default_rng(size + D)
    table = rng.standard_normal((size, D))
    return {"table": table, "indices": rng.integers(size, size=M), "out": numpy.zeros((M, D))}


def add_rows_arguments(size, D, M):
    rng = numpy.random.default_rng(size + D)
    indices = rng.integers(-1, max(1, size - 1), size=M)
    return {
        "indices": indices, "rows": rng.standard_normal((M, D)), "out": numpy.full((size, D), 7.0),
    }  # fmt: skip


def column_sum_arguments(M, D):
    rows = numpy.random.default_rng(M + D).standard_normal((M, D))
    rows = numpy.round(2**20 * rows) / 2**20  # summed without rounding, in double precision
    return {"rows": rows, "out": numpy.full(D, numpy.nan)}


def keep_mask_arguments(size, threshold=20_000):
    return {
        "threshold": threshold, "seed": 2**64 - 5, "stream": 2**35 + 1,
        "out": numpy.ones(size, bool),
    }  # fmt: skip


def adam_arguments(P, weight_decay):
    rng = numpy.random.default_rng(P)
    return {
        "w": rng.standard_normal(P), "dw": rng.standard_normal(P), "m": rng.standard_normal(P),
        "v": rng.random(P), "settings": numpy.array([0.7, 0.1, 0.3, 0.2]), "beta1": 0.9,
        "beta2": 0.999, "epsilon": 1e-8, "weight_decay": weight_decay,
    }  # fmt: skip


def square_sum_arguments(P):
    return {
        "values": numpy.random.default_rng(P).standard_normal(P), "out": numpy.full(1, numpy.nan),
    }  # fmt: skip


def loss_and_norm_arguments(S, P, max_norm):
    rng = numpy.random.default_rng(S + P)
    return {
        "losses": rng.random(S), "gradients": rng.standard_normal(P), "max_norm": max_norm,
        "totals": numpy.full(2, numpy.nan), "settings": numpy.array([1.0, 0.1, 0.3, 0.2]),
    }  # fmt: skip


def next_batch_arguments(M, T, N, K, batch):
    rng = numpy.random.default_rng(M + T)
    captions = rng.integers(4, size=(M, T + 1)).astype(numpy.int32)
    return {
        "captions": captions, "image_idxs": rng.integers(9, size=M).astype(numpy.int32),
        "order": rng.permutation(M).astype(numpy.int32),
        "table": rng.standard_normal((-(-M // N), K)), "position": numpy.array([batch, 2**33 + 1]),
        "null": 0, "words": numpy.full(T * N, -1, numpy.int32),
        "targets": numpy.full(T * N, -1, numpy.int32), "weight": numpy.full(T * N, numpy.nan),
        "images": numpy.full(N, -1, numpy.int32), "settings": numpy.full(K, numpy.nan),
        "streams": numpy.zeros(2, numpy.uint64),
    }  # fmt: skip


def attention_arguments(name, R, L, A, D, absent=0.0, image=False, dweights=False):
    """Of three images the second has no region at all if any are `absent`, a share of them."""
    rng = numpy.random.default_rng(L + A)
    normal, unwritten = rng.standard_normal, functools.partial(numpy.full, fill_value=numpy.nan)
    images = 3 if image else R
    there = rng.random((images, L)) >= absent
    there[1:2] &= not absent
    scores = there[:R] * rng.random((R, L)) if not image else None
    common = {"query": normal((R, A)), "keys": normal((images, L, A)),
              "values": normal((images, L, D))}  # fmt: skip
    w = {"w": normal(A) / A**0.5} if name.startswith("additive") else {}
    if not name.endswith("gradient"):
        return {
            **common, **w, "present": there if absent else None,
            "image": rng.integers(images, size=R) if image else None,
            "weights": unwritten((R, L)), "context": unwritten((R, D)),
        }  # fmt: skip
    return {
        "dcontext": normal((R, D)), "dweights": normal((R, L)) if dweights else None, **common,
        **w, "weights": scores / numpy.maximum(scores.sum(axis=1, keepdims=True), 1e-30),
        "dquery": unwritten((R, A)), "dkeys": normal((R, L, A)), "dvalues": normal((R, L, D)),
        **({"dw": unwritten((R, A))} if w else {}),
    }  # fmt: skip


def region_arguments(name, N, L, D):
    rng = numpy.random.default_rng(N + D)
    there = rng.random((N, L)) < 0.7
    there[:1] = False
    regions = there[:, :, None] * rng.integers(2, size=(N, L, D)) * rng.standard_normal((N, L, D))
    if name == "present_regions":
        return {"regions": regions, "out": numpy.ones((N, L), bool)}
    return {"regions": regions, "present": there, "out": numpy.full((N, D), numpy.nan)}


ATTENTIONS = ["dot_product_attention", "additive_attention"]
REGIONS = ["present_regions", "mean_of_present"]
CELLS = [
    f"{cell}_cell{gradient}" for cell in ("rnn", "lstm", "gru") for gradient in ("", "_gradient")
]
CASES = [
    *(
        (name, cell_arguments(name, N, H))
        for name in CELLS
        for N, H in [(1, 1), (3, 129), (129, 3), (2, 256), (0, 5)]
    ),
    ("softmax_cross_entropy", softmax_arguments(1, 1)),
    ("softmax_cross_entropy", softmax_arguments(5, 1004, silent=[0, 3])),
    ("softmax_cross_entropy", softmax_arguments(3, 257, silent=[1])),
    ("softmax_cross_entropy", softmax_arguments(40, 11, smoothing=0.9)),
    ("softmax_cross_entropy", softmax_arguments(2, 10_000)),
    ("softmax_cross_entropy", softmax_arguments(3, 10_000, silent=[2], smoothing=0.1)),
    ("softmax_cross_entropy", softmax_arguments(0, 7)),
    *(
        ("take_rows", take_rows_arguments(*sizes))
        for sizes in [(1, 1, 1), (11, 5, 300), (4, 129, 7), (3, 2, 0)]
    ),
    *(
        ("add_rows", add_rows_arguments(*sizes))
        for sizes in [(1, 1, 1), (9, 5, 600), (4, 300, 257), (3, 2, 0), (2, 3, 1), (70, 3, 4500)]
    ),
    *(
        ("column_sum", column_sum_arguments(*sizes))
        for sizes in [(1, 1), (1030, 9), (515, 8), (63, 100), (0, 3), (2, 0)]
    ),
    *(("keep_mask", keep_mask_arguments(size)) for size in [0, 1, 15, 16, 17, 4096, 70_003]),
    *(("keep_mask", keep_mask_arguments(1000, threshold)) for threshold in [0, 65_535]),
    *(
        ("adam_update", adam_arguments(*which))
        for which in [(1, 0.0), (5000, 0.01), (257, 0.0), (0, 0.1)]
    ),
    *(("square_sum", square_sum_arguments(P)) for P in [0, 1, 300, 200_003]),
    *(
        ("loss_and_norm", loss_and_norm_arguments(*which))
        for which in [(1, 1, 5.0), (700, 70_003, 5.0), (257, 20, 5.0), (3, 9, None), (0, 0, 1.0)]
    ),
    *(
        ("next_batch", next_batch_arguments(*which))
        for which in [(20, 4, 7, 4, 2), (1, 1, 1, 1, 0), (300, 16, 128, 2, 1), (5, 3, 8, 3, 0)]
    ),
    *(
        (name, attention_arguments(name, *which))
        for name in ATTENTIONS
        for which in [
            (1, 1, 1, 1),
            (4, 49, 33, 70, 0.4),
            (5, 64, 300, 40, 0.4, True),
            (2, 100, 65, 600),
            (3, 7, 600, 9, 0.0, True),
            (0, 3, 4, 5),
        ]
    ),
    *(
        (f"{name}_gradient", attention_arguments(f"{name}_gradient", *which))
        for name in ATTENTIONS
        for which in [
            (1, 1, 1, 1),
            (4, 49, 33, 70, 0.4, False, True),
            (2, 64, 600, 40, 0.4),
            (2, 100, 65, 600, 0.0, False, True),
            (3, 7, 31, 31),
            (0, 3, 4, 5),
        ]
    ),
    *(
        (name, region_arguments(name, *sizes))
        for name in REGIONS
        for sizes in [(1, 1, 1), (3, 49, 70), (2, 100, 129), (5, 8, 32), (0, 3, 4)]
    ),
]

TYPICAL = {
    **{name: cell_arguments(name, 3, 129) for name in CELLS},
    "softmax_cross_entropy": softmax_arguments(5, 1004, smoothing=0.1),
    "take_rows": take_rows_arguments(11, 5, 300),
    "add_rows": add_rows_arguments(9, 5, 600),
    "column_sum": column_sum_arguments(700, 20),
    "keep_mask": keep_mask_arguments(70_003),
    "adam_update": adam_arguments(5000, 0.01),
    "square_sum": square_sum_arguments(20_003),
    "loss_and_norm": loss_and_norm_arguments(700, 20_000, 5.0),
    "next_batch": next_batch_arguments(300, 16, 128, 2, 1),
    **{name: attention_arguments(name, 4, 49, 33, 70, 0.4, True) for name in ATTENTIONS},
    **{
        f"{name}_gradient": attention_arguments(f"{name}_gradient", 4, 49, 33, 70, 0.4, False, True)
        for name in ATTENTIONS
    },
    **{name: region_arguments(name, 3, 49, 70) for name in REGIONS},
}
