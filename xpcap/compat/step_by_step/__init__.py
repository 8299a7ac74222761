"""The recurrent networks of the course "Building a recurrent network step by step".

DeepLearning.AI, Sequence Models, week 1: features come first, weights stand on the left, biases are
columns, and the LSTM has one matrix per gate, applied to `a_prev` stacked on `xt`. The functions of
a step transpose their arguments for `xpcap.layers`, call the layer, and transpose the results;
those of a sequence call them for each step. n_x inputs, n_a hidden units, n_y classes, m examples,
T_x steps.

The gradients of a step are those with respect to `a_next` (and `c_next`) only; none comes through
`y`. A missing parameter raises a `ConfigurationError`, shapes that do not fit a `ShapeError`.
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
