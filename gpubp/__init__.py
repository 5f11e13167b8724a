"""gpubp: multilayer perceptrons with hand-written, batched backprop on NumPy and CuPy arrays.

Importing this package imports NumPy alone; what else a function needs is imported when it is called.
"""

from gpubp.backend import Device, array_module, resolve_device, to_device, to_host, why_no_cuda
from gpubp.callbacks import Callback, CSVLogger, EarlyStopping, History, Look, TensorBoard
from gpubp.checkpoint import load, load_metadata, save
from gpubp.errors import GpubpError, TrainingDivergedError
from gpubp.examples import RowsOf
from gpubp.gradcheck import check_backward, check_gradients
from gpubp.initializers import Glorot, He, LeCun, Orthogonal, TruncatedNormal
from gpubp.interop.onnx_export import to_onnx
from gpubp.interop.pytorch import from_torch, to_torch, to_torch_module
from gpubp.interop.scikit_learn import from_sklearn
from gpubp.layers.base import Activation, Layer, activation_by_name
from gpubp.layers.batch_norm import BatchNorm
from gpubp.layers.dense import Dense
from gpubp.layers.dropout import Dropout
from gpubp.layers.elu import ELU
from gpubp.layers.embedding import Embedding
from gpubp.layers.gelu import GELU
from gpubp.layers.identity import Identity
from gpubp.layers.layer_norm import LayerNorm
from gpubp.layers.leaky_relu import LeakyReLU
from gpubp.layers.relu import ReLU
from gpubp.layers.residual import Residual
from gpubp.layers.sigmoid import Sigmoid
from gpubp.layers.silu import SiLU
from gpubp.layers.softmax import Softmax
from gpubp.layers.softplus import Softplus
from gpubp.layers.standardize import Standardize
from gpubp.layers.tanh import Tanh
from gpubp.lbfgs import fit_lbfgs
from gpubp.looking import LookReport, look
from gpubp.losses.absolute_error import AbsoluteError
from gpubp.losses.base import Loss, loss_by_name
from gpubp.losses.binary_cross_entropy import BinaryCrossEntropy
from gpubp.losses.gaussian_nll import GaussianNLL
from gpubp.losses.huber import Huber
from gpubp.losses.poisson_deviance import PoissonDeviance
from gpubp.losses.quantile import Quantile
from gpubp.losses.softmax_cross_entropy import SoftmaxCrossEntropy, balanced_class_weight
from gpubp.losses.squared_error import SquaredError
from gpubp.network import Network, mlp
from gpubp.optimizers.adam import Adam, AdamW
from gpubp.optimizers.base import Optimizer, optimizer_by_name
from gpubp.optimizers.lion import Lion
from gpubp.optimizers.rmsprop import RMSprop
from gpubp.optimizers.sgd import SGD
from gpubp.plan import StepPlan
from gpubp.rules import Rule
from gpubp.schedules import Cosine, InverseScaling, OneCycle, ReduceOnPlateau, Schedule, StepDecay, WarmUp
from gpubp.trainer import Trainer, fit
from gpubp.twins import TorchTwin

__version__ = "0.1.0"

__all__ = [
    "ELU",
    "GELU",
    "SGD",
    "AbsoluteError",
    "Activation",
    "Adam",
    "AdamW",
    "BatchNorm",
    "BinaryCrossEntropy",
    "CSVLogger",
    "Callback",
    "Cosine",
    "Dense",
    "Device",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "GaussianNLL",
    "Glorot",
    "GpubpError",
    "He",
    "History",
    "Huber",
    "Identity",
    "InverseScaling",
    "Layer",
    "LayerNorm",
    "LeCun",
    "LeakyReLU",
    "Lion",
    "Look",
    "LookReport",
    "Loss",
    "Network",
    "OneCycle",
    "Optimizer",
    "Orthogonal",
    "PoissonDeviance",
    "Quantile",
    "RMSprop",
    "ReLU",
    "ReduceOnPlateau",
    "Residual",
    "RowsOf",
    "Rule",
    "Schedule",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SoftmaxCrossEntropy",
    "Softplus",
    "SquaredError",
    "Standardize",
    "StepDecay",
    "StepPlan",
    "Tanh",
    "TensorBoard",
    "TorchTwin",
    "Trainer",
    "TrainingDivergedError",
    "TruncatedNormal",
    "WarmUp",
    "activation_by_name",
    "array_module",
    "balanced_class_weight",
    "check_backward",
    "check_gradients",
    "fit",
    "fit_lbfgs",
    "from_sklearn",
    "from_torch",
    "load",
    "load_metadata",
    "look",
    "loss_by_name",
    "mlp",
    "optimizer_by_name",
    "resolve_device",
    "save",
    "to_device",
    "to_host",
    "to_onnx",
    "to_torch",
    "to_torch_module",
    "why_no_cuda",
]
