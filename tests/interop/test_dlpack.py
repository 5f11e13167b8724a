"""DLPack both ways: tensors go in without a copy, and parameters and results come out without one."""

from __future__ import annotations

import numpy as np
import pytest
from outside import required

import gpubp
from gpubp.backend import CPU, as_array, resolve_device
from gpubp.errors import DataError

torch = required("torch", "GPUBP_REQUIRE_TORCH")


def small(**settings):
    return gpubp.mlp([4, 5, 3], **{"device": "cpu", **settings})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("members", [None, 2])
def test_parameters_are_shared_with_torch(dtype, members):
    network = small(dtype=dtype, members=members)
    tensor = torch.from_dlpack(network.theta)
    assert tensor.dtype == getattr(torch, dtype)
    assert tensor.data_ptr() == network.theta.ctypes.data
    W = torch.from_dlpack(network.parameters["0.W"])
    tensor.zero_()
    assert not network.theta.any()
    W[..., 1, 2] = 7
    assert (network.parameters["0.W"][..., 1, 2] == 7).all()
    network.parameters["0.W"][...] = 3
    assert (W == 3).all()


def test_results_and_gradients_go_to_torch():
    network, X = small(), np.ones((6, 4), "f4")
    P = network.predict(X)
    assert torch.from_dlpack(P).data_ptr() == P.ctypes.data
    _, gradients = network.loss_and_gradients(X, np.zeros(6, int))
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(torch.from_dlpack(gradient), gradient, err_msg=name)


def test_a_tensor_that_fits_is_shared():
    tensor = torch.ones(6, 4)
    array = as_array(tensor, CPU, dtype=np.dtype("float32"))
    assert array.ctypes.data == tensor.data_ptr()
    np.testing.assert_array_equal(small().predict(tensor), small().predict(np.ones((6, 4))))


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool"],
)
def test_other_dtypes(dtype):
    tensor = torch.arange(24).reshape(6, 4).to(getattr(torch, dtype))
    np.testing.assert_array_equal(small().predict(tensor), small().predict(tensor.numpy().astype("f4")))


def test_tensors_that_are_not_contiguous():
    base = torch.randn(8, 12)
    for tensor in (base[:, ::3], base.T[:6, :4], base[1:7, 5:9], base[0].as_strided((6, 4), (0, 1))):
        expected = small().predict(tensor.numpy().copy())
        np.testing.assert_allclose(small().predict(tensor), expected, rtol=1e-6)


def test_whole_trainings_on_tensors():
    rng = np.random.default_rng(0)
    X, T, w = rng.normal(size=(40, 4)).astype("f4"), rng.integers(0, 3, 40), rng.uniform(0.5, 2, 40)
    settings = {"epochs": 3, "batch_size": 16, "rng": 1}
    by_arrays, by_tensors = small(), small()
    gpubp.fit(by_arrays, X, T, sample_weight=w, **settings, optimizer=gpubp.SGD(0.1))
    tensors = [torch.from_numpy(array) for array in (X, T, w)]
    gpubp.fit(by_tensors, *tensors[:2], sample_weight=tensors[2], **settings, optimizer=gpubp.SGD(0.1))
    np.testing.assert_array_equal(by_arrays.theta, by_tensors.theta)


def test_arrays_that_may_not_be_written():
    X = np.ones((6, 4), "f4")
    X.flags.writeable = False
    np.testing.assert_array_equal(small().predict(X), small().predict(np.ones((6, 4))))

    class Foreign:
        """Read-only data of a library that is neither NumPy nor PyTorch."""

        def __dlpack_device__(self):
            return X.__dlpack_device__()

        def __dlpack__(self, **settings):
            return X.__dlpack__(**{**settings, "max_version": (1, 0)})

    array = as_array(Foreign(), CPU)
    assert array.ctypes.data == X.ctypes.data
    assert not array.flags.writeable
    np.testing.assert_array_equal(small().predict(Foreign()), small().predict(X))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(6, 4, requires_grad=True), "X can't be read as an array of numbers: .*requires? grad.*detach"),
        (torch.ones(6, 4, dtype=torch.complex64), "X holds complex64 values; numbers are needed"),
        (torch.ones(6, 4, dtype=torch.bfloat16), "X can't be read as an array of numbers"),
        (torch.ones(6, 4).to_sparse(), "X can't be read as an array of numbers"),
        (torch.ones(6, 4, device="meta"), "X can't be read as an array of numbers"),
    ],
    ids=["grad", "complex", "bfloat16", "sparse", "meta"],
)
def test_tensors_that_can_not_be_read(tensor, said):
    with pytest.raises(DataError, match=said):
        small().predict(tensor)


@pytest.mark.gpu
def test_on_a_gpu_both_ways():
    network = small(device="cuda")
    tensor = torch.from_dlpack(network.theta)
    assert tensor.data_ptr() == network.theta.data.ptr
    X = torch.ones(6, 4, device="cuda")
    array = as_array(X, resolve_device("cuda"))
    assert array.data.ptr == X.data_ptr()
    expected = gpubp.to_host(network.predict(np.ones((6, 4))))
    np.testing.assert_allclose(gpubp.to_host(network.predict(X)), expected, rtol=1e-5)
