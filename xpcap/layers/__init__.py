"""The layers of a captioner: each a pair of plain functions, forward and backward by hand.

`*_forward(...)` returns `(out, cache)`; `*_backward(dout, cache)` returns the gradients of the
forward arguments, in their order. N is the batch, T time steps, D inputs, H hidden units, W the
word vector, V the vocabulary; arrays are `(N, T, D)` and weights stand on the right, `x @ Wx`.
The library of the arguments, NumPy or CuPy, computes. Arrays are floating but for words and masks;
others, and shapes that do not fit together, raise a `ShapeError`.
"""

from xpcap.layers.activations import relu_backward, relu_forward
from xpcap.layers.affine import (
    affine_backward,
    affine_forward,
    temporal_affine_backward,
    temporal_affine_forward,
)
from xpcap.layers.attention import (
    additive_attention_backward,
    additive_attention_forward,
    dot_product_attention_backward,
    dot_product_attention_forward,
)
from xpcap.layers.cross_attention import cross_attention_backward, cross_attention_forward
from xpcap.layers.dropout import dropout_backward, dropout_forward
from xpcap.layers.embedding import word_embedding_backward, word_embedding_forward
from xpcap.layers.feed_forward import feed_forward_backward, feed_forward_forward
from xpcap.layers.gru import gru_backward, gru_forward, gru_step_backward, gru_step_forward
from xpcap.layers.loss import temporal_softmax_loss
from xpcap.layers.lstm import lstm_backward, lstm_forward, lstm_step_backward, lstm_step_forward
from xpcap.layers.normalization import layer_norm_backward, layer_norm_forward
from xpcap.layers.rnn import rnn_backward, rnn_forward, rnn_step_backward, rnn_step_forward
from xpcap.layers.self_attention import self_attention_backward, self_attention_forward

__all__ = [
    "additive_attention_backward",
    "additive_attention_forward",
    "affine_backward",
    "affine_forward",
    "cross_attention_backward",
    "cross_attention_forward",
    "dot_product_attention_backward",
    "dot_product_attention_forward",
    "dropout_backward",
    "dropout_forward",
    "feed_forward_backward",
    "feed_forward_forward",
    "gru_backward",
    "gru_forward",
    "gru_step_backward",
    "gru_step_forward",
    "layer_norm_backward",
    "layer_norm_forward",
    "lstm_backward",
    "lstm_forward",
    "lstm_step_backward",
    "lstm_step_forward",
    "relu_backward",
    "relu_forward",
    "rnn_backward",
    "rnn_forward",
    "rnn_step_backward",
    "rnn_step_forward",
    "self_attention_backward",
    "self_attention_forward",
    "temporal_affine_backward",
    "temporal_affine_forward",
    "temporal_softmax_loss",
    "word_embedding_backward",
    "word_embedding_forward",
]
