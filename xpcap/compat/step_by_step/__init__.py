"""The recurrent networks of the course "Building a recurrent network step by step".

DeepLearning.AI, Sequence Models, week 1: features come first, weights stand on the left, biases are
columns, and the LSTM has one matrix a gate, on `a_prev` and `xt` one above the other. These
functions turn that layout into the one of `xpcap.layers`, let the layers compute, and turn the
results back. n_x inputs, n_a hidden units, n_y classes, m examples, T_x steps.

Every gradient of a step is that of `a_next` (and `c_next`) only; nothing comes through `y`.
"""

from xpcap.compat.step_by_step.lstm import (
    lstm_backward,
    lstm_cell_backward,
    lstm_cell_forward,
    lstm_forward,
)
from xpcap.compat.step_by_step.rnn import (
    rnn_backward,
    rnn_cell_backward,
    rnn_cell_forward,
    rnn_forward,
)

__all__ = [
    "lstm_backward",
    "lstm_cell_backward",
    "lstm_cell_forward",
    "lstm_forward",
    "rnn_backward",
    "rnn_cell_backward",
    "rnn_cell_forward",
    "rnn_forward",
]
