"""What the stand-in has of CuPy 14.2: names, and the arguments that CuPy takes besides those that must be given."""

from __future__ import annotations

_REDUCTION = ("axis", "dtype", "out", "keepdims")
_EXTREMUM = ("axis", "out", "keepdims")

# fmt: off
UFUNCS = (
    "add", "subtract", "multiply", "divide", "true_divide", "floor_divide", "power", "maximum", "minimum", "fmax",
    "fmin", "negative", "positive", "absolute", "abs", "fabs", "sign", "exp", "expm1", "exp2", "log", "log1p", "log2",
    "log10", "sqrt", "square", "cbrt", "reciprocal", "sin", "cos", "tan", "tanh", "sinh", "cosh", "arctanh", "arctan",
    "greater", "greater_equal", "less", "less_equal", "equal", "not_equal", "logical_and", "logical_or",
    "logical_not", "logical_xor", "isfinite", "isnan", "isinf", "floor", "ceil", "rint", "trunc", "hypot",
    "logaddexp", "copysign", "mod", "remainder", "signbit", "bitwise_and", "bitwise_or", "bitwise_xor", "invert",
)
# fmt: on

FUNCTIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(UFUNCS, ("out", "dtype", "casting")),
    **dict.fromkeys(("sum", "prod", "mean", "nansum"), _REDUCTION),
    **dict.fromkeys(("var", "std"), (*_REDUCTION, "ddof")),
    **dict.fromkeys(("max", "min", "amax", "amin", "all", "any", "nanmax"), _EXTREMUM),
    **dict.fromkeys(("argmax", "argmin"), ("axis", "keepdims")),
    **dict.fromkeys(("cumsum", "cumprod"), ("axis", "dtype", "out")),
    "count_nonzero": ("axis",),
    "matmul": ("out", "dtype", "casting"),
    **dict.fromkeys(("dot", "outer"), ("out",)),
    "einsum": (),
    **dict.fromkeys(("empty", "zeros", "ones", "full"), ("dtype", "order")),
    **dict.fromkeys(("empty_like", "zeros_like", "ones_like", "full_like"), ("dtype", "order", "shape")),
    "arange": ("stop", "step", "dtype"),
    "linspace": ("num", "endpoint", "dtype", "axis"),
    "eye": ("M", "k", "dtype"),
    "ascontiguousarray": ("dtype",),
    "reshape": ("order",),
    "transpose": ("axes",),
    **dict.fromkeys(("swapaxes", "moveaxis", "ravel", "matrix_transpose", "broadcast_to", "nonzero"), ()),
    **dict.fromkeys(("expand_dims", "squeeze", "flip", "roll", "repeat"), ("axis",)),
    **dict.fromkeys(("concatenate", "stack"), ("axis", "out", "dtype", "casting")),
    **dict.fromkeys(("vstack", "hstack"), ("dtype", "casting")),
    "split": ("axis",),
    "tile": (),
    "take": ("axis", "out"),
    "where": ("x", "y"),
    "copyto": ("casting", "where"),
    **dict.fromkeys(("sort", "argsort"), ("axis",)),
    "searchsorted": ("side",),
    "bincount": ("weights", "minlength"),
    "round": ("decimals", "out"),
    **dict.fromkeys(("allclose", "isclose"), ("rtol", "atol", "equal_nan")),
    "array_equal": ("equal_nan",),
    **dict.fromkeys(("diag", "tril", "triu"), ("k",)),
    "may_share_memory": (),
    "shares_memory": (),
}
SPECIAL_FUNCTIONS = ("erf", "erfc", "ndtr", "expit", "gammaln", "xlogy")
"""Of ``cupyx.scipy.special``; ufuncs."""
METHODS: dict[str, tuple[str, ...]] = {  # of an array
    **{name: FUNCTIONS[name] for name in ("sum", "prod", "mean", "var", "std", "max", "min", "all", "any", "cumsum")},
    **{name: FUNCTIONS[name] for name in ("argmax", "argmin", "take", "round", "nonzero", "repeat", "argsort")},
    "clip": ("min", "max", "out"),
    "astype": ("dtype", "order", "casting", "copy"),
    "reshape": ("order",),
    "squeeze": ("axis",),
    **dict.fromkeys(("ravel", "flatten", "copy"), ("order",)),
    **dict.fromkeys(("transpose", "swapaxes", "fill", "view", "dot"), ()),
}
# fmt: off
VIEWS = {
    "reshape", "ravel", "transpose", "swapaxes", "squeeze", "view", "moveaxis", "expand_dims", "broadcast_to",
    "getitem",
}
"""What makes views, for which the device of an array need not be the current one."""
CONSTANTS = (
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "bool_", "dtype", "integer", "floating", "finfo", "iinfo", "issubdtype", "result_type", "promote_types",
    "can_cast", "pi", "e", "inf", "nan",
)
# fmt: on
BY_VALUE = {"nonzero", "repeat", "bincount", "allclose", "array_equal"}
"""What waits for the values of its arguments: the shape of the result follows from them, or it is for the host."""
OF_ADDRESSES = {"may_share_memory", "shares_memory"}
"""What does not look at values."""
