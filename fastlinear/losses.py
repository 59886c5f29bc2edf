"""Losses: each returns its mean over the rows, a float, and the gradient of that by the outputs, in one pass.

``loss, grad_output = log_loss(scores, labels, out=None)``, and then ``layer.backward(x, grad_output)``. A row is what
lies along the last axis. The loss of a row is the sum over its outputs. The mean over no rows is NaN, as in NumPy and
PyTorch. A NaN in a row makes the loss NaN, and also the gradient of that element, or with softmax of that row.

The losses are added up in float64, in an order that depends on the shape alone. Those of single elements go to 16
chains (element j of the array in C order goes to chain j mod 16), and then the upper half of the chains is added to the
lower half until one is left. Those of softmax are added row after row. So the loss has the same bits on every
instruction set with fused multiply-adds. So has the gradient, and that of a row is the same in every batch of the same
number of rows.

>>> import numpy as np
>>> from fastlinear import Linear, losses
>>> layer = Linear.from_weights([[1.0, 0.0], [0.0, 1.0]])
>>> x, labels = np.array([[2, 1], [0, 3]], np.float32), np.array([0, 0])
>>> loss, grad_output = losses.log_loss(layer(x), labels)
>>> round(loss, 4)
1.6809
>>> layer.backward_params(x, grad_output)
"""

from fastlinear._losses import hinge, huber, log_loss, squared_error

__all__ = ["hinge", "huber", "log_loss", "squared_error"]
