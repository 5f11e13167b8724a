"""gpubp: multilayer perceptrons with hand-written, batched backprop on NumPy and CuPy arrays.

Importing this package imports NumPy alone; what else a function needs is imported when it is called.
"""

from gpubp.backend import Device, array_module, resolve_device, to_device, to_host, why_no_cuda
from gpubp.callbacks import Callback, EarlyStopping, History
from gpubp.checkpoint import load, load_metadata, save
from gpubp.errors import GpubpError, TrainingDivergedError
from gpubp.gradcheck import check_backward, check_gradients
from gpubp.initializers import Glorot, He, TruncatedNormal
from gpubp.layers.base import Activation, Layer, activation_by_name
from gpubp.layers.dense import Dense
from gpubp.layers.identity import Identity
from gpubp.layers.leaky_relu import LeakyReLU
from gpubp.layers.relu import ReLU
from gpubp.layers.sigmoid import Sigmoid
from gpubp.layers.standardize import Standardize
from gpubp.layers.tanh import Tanh
from gpubp.losses.base import Loss, loss_by_name
from gpubp.losses.binary_cross_entropy import BinaryCrossEntropy
from gpubp.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from gpubp.losses.squared_error import SquaredError
from gpubp.network import Network, mlp
from gpubp.optimizers.adam import Adam
from gpubp.optimizers.base import Optimizer, optimizer_by_name
from gpubp.optimizers.sgd import SGD
from gpubp.plan import StepPlan
from gpubp.rules import Rule
from gpubp.trainer import Trainer, fit

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Activation",
    "Adam",
    "BinaryCrossEntropy",
    "Callback",
    "Dense",
    "Device",
    "EarlyStopping",
    "Glorot",
    "GpubpError",
    "He",
    "History",
    "Identity",
    "Layer",
    "LeakyReLU",
    "Loss",
    "Network",
    "Optimizer",
    "ReLU",
    "Rule",
    "Sigmoid",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "Standardize",
    "StepPlan",
    "Tanh",
    "Trainer",
    "TrainingDivergedError",
    "TruncatedNormal",
    "activation_by_name",
    "array_module",
    "check_backward",
    "check_gradients",
    "fit",
    "load",
    "load_metadata",
    "loss_by_name",
    "mlp",
    "optimizer_by_name",
    "resolve_device",
    "save",
    "to_device",
    "to_host",
    "why_no_cuda",
]
