"""Weights travel to PyTorch and back, and both sides compute the same."""

from __future__ import annotations

import sys
from collections import OrderedDict

import numpy as np
import pytest
from oracles import EXAMPLES, REGISTERED, example, randomized, require_every_layer
from outside import required
from safetensors.numpy import load_file as load_arrays

import gpubp
from gpubp.backend import device_of
from gpubp.errors import GpubpError, NotReadyError, SettingError, ShapeError
from gpubp.layers.base import Activation

torch = required("torch", "GPUBP_REQUIRE_TORCH")
nn = torch.nn

X = np.random.default_rng(0).normal(size=(7, 4))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices of a few rows gain nothing by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def assert_same(network, module):
    """Network and module, both float64, give the same scores."""
    assert network.dtype == np.float64
    with torch.no_grad():
        expected = module.eval()(torch.tensor(X))
    np.testing.assert_allclose(network.forward(X), expected, rtol=0, atol=1e-10)


def shaken(module):
    """The module in float64, with other values in every array, as a training leaves them."""
    generator = torch.Generator().manual_seed(1)
    module = module.double()
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.5, 1.5, generator=generator)
    return module


MODULES = [
    nn.Identity(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(),
    nn.LeakyReLU(0.3),
    nn.ELU(),
    nn.ELU(0.5),
    nn.GELU(),
    nn.SiLU(),
    nn.Softplus(),
    nn.Softplus(2.0),
    nn.Softplus(threshold=40),
    nn.Softmax(-1),
    nn.Softmax(1),
    nn.LayerNorm(3),
    nn.LayerNorm((3,), eps=0.1),
    nn.LayerNorm(3, elementwise_affine=False),
    nn.LayerNorm(3, bias=False),
    nn.BatchNorm1d(3),
    nn.BatchNorm1d(3, eps=0.1),
    nn.BatchNorm1d(3, affine=False),
    nn.Dropout(0.4),
    nn.Linear(3, 3),
    nn.Linear(3, 3, bias=False),
]


@pytest.mark.parametrize("middle", MODULES, ids=str)
def test_every_module(middle):
    module = shaken(nn.Sequential(nn.Linear(4, 3), middle, nn.Linear(3, 2)))
    network = gpubp.from_torch(module, loss="squared_error", device="cpu")
    assert (network.loss.name, str(network.device)) == ("squared_error", "cpu")
    if isinstance(middle, nn.Softplus) and middle.threshold == 20:
        middle.threshold = 40
    assert_same(network, module)

    again = gpubp.to_torch_module(network)
    assert not again.training
    assert type(again[1]) is type(middle)
    assert_same(network, again)
    kept, state = module.state_dict(), gpubp.to_torch(network)
    assert list(state) == list(again.state_dict())
    assert set(kept) <= set(state)  # what has no bias gets one of zeros
    for name, tensor in kept.items():
        if "num_batches" in name:
            assert state[name] == 0
        else:
            assert tensor.dtype == state[name].dtype
            assert torch.equal(tensor, state[name])
    assert repr(gpubp.from_torch(again).layers) == repr(network.layers)


NOT_IN_TORCH = {"Embedding"}
CONVERTED = [case for case in EXAMPLES if case[0] not in NOT_IN_TORCH]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "position"), CONVERTED)
def test_every_layer_there_and_back(name, position, dtype):
    layer, n_in = example(name, position)
    layers = [gpubp.Dense(4, n_in), layer, gpubp.Dense(layer.output_width(n_in), 2)]
    network = randomized(gpubp.Network(layers, "squared_error", dtype=dtype, device="cpu"))
    module = gpubp.to_torch_module(network)
    with torch.no_grad():
        Y = module(torch.tensor(X.astype(dtype)))
    np.testing.assert_allclose(Y, network.forward(X), rtol=0, atol=1e-4 if dtype == "float32" else 1e-10)
    again = gpubp.from_torch(module, loss="squared_error")
    assert [(type(layer), layer.config()) for layer in again.layers[1:2]] == [(type(layer), layer.config())]
    assert again.dtype == dtype
    np.testing.assert_array_equal(again.theta, network.theta)
    np.testing.assert_array_equal(again.predict(X), network.predict(X))


def test_nothing_is_forgotten():
    """`test_every_layer_there_and_back` is about every layer but the one that says why not."""
    require_every_layer({name for name, _ in CONVERTED} | NOT_IN_TORCH)
    assert {name for name, kind in REGISTERED.items() if isinstance(kind.torch_twin, str)} == NOT_IN_TORCH
    assert all(REGISTERED[name].torch_twin != gpubp.Layer.torch_twin for name in NOT_IN_TORCH)


def test_gradients_are_those_of_autograd():
    module = shaken(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)))
    network = gpubp.from_torch(module)
    T = np.arange(7) % 3
    loss = nn.functional.cross_entropy(module(torch.tensor(X)), torch.tensor(T))
    loss.backward()
    value, gradients = network.loss_and_gradients(X, T)
    assert value == pytest.approx(loss.item(), abs=1e-12)
    for position in (0, 2):
        np.testing.assert_allclose(gradients[f"{position}.W"], module[position].weight.grad.T, atol=1e-12)
        np.testing.assert_allclose(gradients[f"{position}.b"], module[position].bias.grad, atol=1e-12)


def test_nested_repeated_and_named_modules():
    act = nn.ReLU()
    inner = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), act=act, second=nn.Linear(4, 4), again=act))
    module = shaken(nn.Sequential(inner, nn.Sequential(), nn.Sequential(nn.Linear(4, 2))))
    network = gpubp.from_torch(module)
    assert [type(layer).__name__ for layer in network.layers] == ["Dense", "ReLU", "Dense", "ReLU", "Dense"]
    assert_same(network, module)
    assert_same(gpubp.from_torch(shaken(nn.Linear(4, 2))), shaken(nn.Linear(4, 2)))


def test_subclasses_and_parametrizations():
    class Net(nn.Sequential):
        pass

    class MyLinear(nn.Linear):
        pass

    module = shaken(Net(MyLinear(4, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))))
    assert_same(gpubp.from_torch(module), module)


def test_weights_are_copies():
    module = shaken(nn.Sequential(nn.Linear(4, 4)))
    network = gpubp.from_torch(module)
    state = gpubp.to_torch(network)
    assert all(tensor.is_contiguous() for tensor in state.values())
    before = network.theta.copy()
    module[0].weight.data.zero_()
    state["0.weight"].zero_()
    np.testing.assert_array_equal(network.theta, before)


def test_dtypes_and_devices(fake_cupy):
    double = gpubp.from_torch(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).double()))
    assert double.dtype == np.float64
    assert str(double.device) == "cuda:0"
    assert str(device_of(double.theta)) == "cuda:0"
    assert gpubp.to_torch(double)["1.bias"].dtype == torch.float64
    for half in (torch.float16, torch.bfloat16):
        module = nn.Sequential(nn.Linear(4, 3)).to(half)
        network = gpubp.from_torch(module, device="cpu")
        assert network.dtype == np.float32
        np.testing.assert_array_equal(network.parameters["0.W"], module[0].weight.detach().float().T)
    assert gpubp.from_torch(nn.Linear(4, 3), dtype="float64", device="cpu").dtype == np.float64
    narrow = nn.Linear(4, 3).double()
    assert gpubp.from_torch(narrow, dtype="float32", device="cpu").dtype == np.float32


def test_a_module_is_made_without_touching_the_generator():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    module = gpubp.to_torch_module(gpubp.mlp([4, 3]))
    assert torch.equal(torch.rand(2), expected)
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_through_safetensors(dtype, tmp_path):
    """To PyTorch, to its safetensors file, back by arrays, to a gpubp model file, and back: the same bits."""
    widths = [4, *[3] * 11, 2]  # more than ten layers: a file may sort 10 before 2
    network = randomized(gpubp.mlp(widths, activation="tanh", standardize=True, dtype=dtype, device="cpu"))
    from safetensors.torch import load_file, save_file

    save_file(gpubp.to_torch(network), tmp_path / "torch.safetensors")
    module = gpubp.to_torch_module(network)
    module.load_state_dict(load_file(tmp_path / "torch.safetensors"))
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.tensor(X.astype(dtype))), network.forward(X), atol=1e-6)
    arrays = load_arrays(tmp_path / "torch.safetensors")
    for state in (arrays, dict(reversed(arrays.items())), load_file(tmp_path / "torch.safetensors")):
        again = gpubp.from_torch(state, activation="tanh", device="cpu")
        gpubp.save(again, tmp_path / "gpubp.safetensors")
        again = gpubp.load(tmp_path / "gpubp.safetensors", device="cpu")
        assert again.dtype == dtype
        np.testing.assert_array_equal(again.theta, network.theta)
        np.testing.assert_array_equal(again.predict(X), network.predict(X))


def test_a_state_dict_of_arrays_takes_no_torch(monkeypatch):
    rng = np.random.default_rng(0)
    state = {"fc1.weight": rng.normal(size=(3, 4)), "fc1.bias": rng.normal(size=3), "out.weight": np.ones((2, 3))}
    monkeypatch.setitem(sys.modules, "torch", None)
    network = gpubp.from_torch(state, activation=gpubp.LeakyReLU(0.2), loss="squared_error", device="cpu")
    assert repr(network.layers) == "[Dense(4, 3), LeakyReLU(slope=0.2), Dense(3, 2)]"
    Z = X @ state["fc1.weight"].T + state["fc1.bias"]
    np.testing.assert_allclose(network.predict(X), np.where(Z > 0, Z, 0.2 * Z) @ np.ones((3, 2)), atol=1e-12)
    with pytest.raises(GpubpError, match="this takes PyTorch, which can't be imported .*: pip install torch"):
        gpubp.to_torch(network)


def test_the_order_of_a_state_dict():
    def order(*paths):
        """The places, among these, of the modules in the order in which they are taken."""
        state = {f"{path}.weight": np.full((3, 3), position) for position, path in enumerate(paths)}
        network = gpubp.from_torch(state, activation=gpubp.LeakyReLU(0.2), device="cpu")
        assert [repr(layer) for layer in network.layers[1::2]] == ["LeakyReLU(slope=0.2)"] * (len(paths) - 1)
        return [int(layer.parameters["W"][0, 0]) for layer in network.layers[::2]]

    assert order("10", "2", "0") == [2, 1, 0]
    assert order("net.10", "net.9", "net.0") == [2, 1, 0]
    assert order("fc10", "fc2", "fc1") == [2, 1, 0]
    assert order("2", "0.10", "0.2.1", "0.2.0") == [3, 2, 1, 0]
    assert order("body.1", "body.0", "head") == [0, 1, 2]
    assert order("b.0", "a.0") == [0, 1]
    assert order("first", "second", "0") == [0, 1, 2]


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Linear(4, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 3)],
        [nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 2)],
        [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)],
        [nn.BatchNorm1d(4), nn.Linear(4, 5), nn.ReLU(), nn.LayerNorm(5), nn.Linear(5, 3)],
        [nn.LayerNorm(4), nn.Linear(4, 5), nn.LayerNorm(5), nn.Dropout(), nn.ReLU(), nn.Linear(5, 3), nn.LayerNorm(3)],
    ],
)
def test_a_state_dict_with_normalisation_has_activations_where_a_number_is_left_out(modules):
    module = shaken(nn.Sequential(*modules)).eval()
    network = gpubp.from_torch(module.state_dict(), activation="relu")
    assert_same(network, module)
    state = gpubp.to_torch(network)
    kept, again = (
        [tensor for name, tensor in of.items() if "num_batches" not in name] for of in (module.state_dict(), state)
    )
    assert len(kept) == len(again)
    assert all(map(torch.equal, kept, again))
    again = gpubp.from_torch({key: value.numpy() for key, value in state.items()}, activation="relu")
    assert repr(again.layers) == repr(network.layers)


def test_a_state_dict_with_statistics_alone():
    module = shaken(nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))).eval()
    assert_same(gpubp.from_torch(module.state_dict()), module)


def test_a_state_dict_of_one_linear_needs_no_activation():
    module = shaken(nn.Linear(4, 2))
    assert_same(gpubp.from_torch(module.state_dict()), module)


@pytest.mark.parametrize("member", [0, 2])
def test_a_member_of_a_stack(member):
    network = randomized(gpubp.mlp([4, 5, 2], members=3, dtype="float64", standardize=True, loss="squared_error"))
    module = gpubp.to_torch_module(network, member=member)
    with torch.no_grad():
        Y = network.forward(np.broadcast_to(X, (3, *X.shape)))
        np.testing.assert_allclose(module(torch.tensor(X)), Y[member], atol=1e-12)
    shared = gpubp.mlp([4, 2], members=3, standardize=True)
    shared.adapt(X)
    np.testing.assert_array_equal(gpubp.to_torch(shared, member=member)["0.mean"], shared.layers[0].constants["mean"])


# What is refused.


class Own(nn.Module):
    """A module with a forward of its own."""

    def forward(self, X):
        return X


class OwnLinear(nn.Linear):
    """A module that is no longer a Linear."""

    def forward(self, X):
        return super().forward(X) + 1


class OwnSequential(nn.Sequential):
    """Layers with a forward of its own."""

    def forward(self, X):
        return X


def hooked():
    module = nn.Linear(4, 4)
    module.register_forward_hook(lambda *arguments: None)
    return module


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3)), r"module 0, Conv2d\(1, 2, .*\) can't be converted. Supported are nn.Seq"),
        (nn.Sequential(nn.Sequential(nn.PReLU())), r"module 0.0, PReLU\(num_parameters=1\) can't be converted"),
        (Own(), r"^Own\(\), which has a forward of its own, can't be converted. Supported are .*state_dict\(\)"),
        (nn.Sequential(OwnLinear(4, 4)), r"module 0, OwnLinear\(.*\), which has a forward of its own"),
        (OwnSequential(nn.Linear(4, 4)), "OwnSequential.*, which has a forward of its own"),
        (nn.Sequential(nn.Linear(4, 4), nn.LogSoftmax(1)), "module 1, .* softmax_cross_entropy takes .* leave it out"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), "ends with a Softmax, and softmax_cross_entropy takes what"),
        (nn.Sequential(nn.Softmax(0), nn.Linear(4, 4)), r"Softmax\(dim=0\) can't be converted: dim=-1 is needed"),
        (nn.Sequential(nn.Softmax(), nn.Linear(4, 4)), "dim=-1 is needed"),
        (nn.Sequential(nn.GELU("tanh")), "module 0, GELU.*: approximate='none' is needed"),
        (nn.Sequential(nn.Softplus(threshold=3)), "a threshold of at least 20 is needed"),
        (nn.Sequential(nn.LayerNorm((4, 3))), "one normalised axis is needed"),
        (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)), "running statistics is needed"),
        (nn.Sequential(nn.LeakyReLU(-1.0), nn.Linear(4, 4)), "module 0, LeakyReLU.*: LeakyReLU: slope=-1.0 is outside"),
        (nn.Sequential(nn.Linear(4, 4), hooked()), r"module 1, Linear\(.*\) has forward hooks"),
        (nn.Sequential(), "no parameters to train"),
        (nn.Sequential(nn.ReLU()), "no parameters to train"),
        (7, "an object of type int can't be converted"),
        (
            "model.pt",
            "type str can't be converted. Supported are nn.Sequential of BatchNorm1d, Dropout, ELU, GELU, Identity",
        ),
    ],
    ids=str,
)
def test_modules_that_can_not_be_converted(module, said):
    with pytest.raises(SettingError, match=said):
        gpubp.from_torch(module)


def test_modules_that_do_not_fit():
    with pytest.raises(ShapeError, match="layer 0, .* gives width 3, but layer 1"):
        gpubp.from_torch(nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 2)))
    with pytest.raises(SettingError, match="ends with a Sigmoid, and binary_cross_entropy takes what comes before"):
        gpubp.from_torch(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), loss="binary_cross_entropy")
    gpubp.from_torch(nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), loss="squared_error")
    gpubp.from_torch(nn.Sequential(nn.Linear(4, 2), nn.Sigmoid(), nn.Linear(2, 1)), loss="binary_cross_entropy")
    with pytest.raises(SettingError, match="activation= is for a state_dict"):
        gpubp.from_torch(nn.Linear(4, 3), activation="relu")
    with pytest.raises(SettingError, match="unknown loss"):
        gpubp.from_torch(nn.Linear(4, 3), loss="hinge")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"0.weight": np.ones((3, 4)), "2.weight": np.ones((2, 3))}, r"add activation=, such as activation='relu'"),
        (
            {"1.weight": np.ones(3), "1.other": np.ones(3)},
            r"'1' with other, weight is no Linear.*: .* the module itself",
        ),
        (
            {"fc.weight": np.ones((3, 4)), "norm.weight": np.ones(3), "out.weight": np.ones((2, 3))},
            "'fc', 'norm', 'out' do not tell on which side of it an activation stands",
        ),
        (
            {"0.0.weight": np.ones((3, 4)), "0.1.weight": np.ones(3), "1.0.weight": np.ones((2, 3))},
            "do not tell on which side",
        ),
        ({"c.weight": np.ones((3, 3, 3))}, "'c' with weight is no Linear"),
        ({"c.bias": np.ones(3)}, "'c' with bias is no Linear"),
        ({"c.mean": np.ones(3)}, "'c' with mean is no Linear"),
        ({"r.weight_ih": np.ones((3, 3))}, "'r' with weight_ih is no Linear"),
        ({"1.weight": np.ones((3, 3)), "1.running_mean": np.ones(3)}, "'1' with running_mean, weight is no Linear"),
        (
            {"a.weight": np.ones((3, 3)), "b.running_mean": np.ones(3), "b.running_var": np.ones(3)},
            "has a BatchNorm, and 'a', 'b' do not tell",
        ),
        ({"0.weight": np.ones((3, 3)), "2.block.0.weight": np.ones((3, 3))}, "a '2.block', and does not tell whether"),
        ({}, "no parameters to train"),
    ],
)
def test_state_dicts_that_can_not_be_read(state, said):
    with pytest.raises(SettingError, match=said):
        gpubp.from_torch(state)


def test_arrays_of_wrong_shapes():
    with pytest.raises(ShapeError, match=r"layer 0, Dense\(4, 3\): b has shape \(1,\), \(3,\) is needed"):
        gpubp.from_torch({"0.weight": np.ones((3, 4)), "0.bias": np.ones(1)})
    state = {"0.weight": np.ones((3, 4)), "1.weight": np.ones((2, 4))}
    with pytest.raises(ShapeError, match="gives width 3, but layer 2"):
        gpubp.from_torch(state, activation="relu")
    with pytest.raises(SettingError, match="unknown activation 'relux'"):
        gpubp.from_torch(state, activation="relux")


class Cube(Activation, register=False):
    """A layer of the user's own."""


class Capped(gpubp.ReLU, register=False):
    """Other maths than its parent's, whose twin is not its own."""

    def evaluate(self, xp, X, out, scratch):
        xp.clip(X, 0, 6, out=out)


def test_a_layer_of_the_users_own(monkeypatch):
    monkeypatch.setattr(gpubp.Layer, "by_name", dict(gpubp.Layer.by_name))

    class Softsign(Activation):
        torch_twin = gpubp.TorchTwin("Softsign")

        def evaluate(self, xp, X, out, scratch):
            out[...] = X / (1 + abs(X))

    class Scaled(gpubp.Dense):
        """A product that is scaled, which PyTorch has no module for."""

        torch_twin = gpubp.TorchTwin(
            "Scaled",
            {"n_in": "n_in", "n_out": "n_out"},
            {"W": "weight", "b": "bias"},
            forward=lambda module, X: 3 * (X @ module.weight.T + module.bias),
        )

        def forward(self, X, out=None, **settings):
            Y, saved = super().forward(X, out, **settings)
            return 3 * Y, saved

    network = gpubp.Network([gpubp.Dense(4, 5), Softsign(), Scaled(5, 2)], "squared_error", dtype="float64")
    module = gpubp.to_torch_module(network)
    assert [name for name, _ in module.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert isinstance(module[1], nn.Softsign)
    assert_same(network, module)
    assert_same(gpubp.from_torch(module), module)
    with pytest.raises(SettingError, match=r"layer 1, Capped\(\), can't be converted: PyTorch has no module for it"):
        gpubp.to_torch(gpubp.Network([gpubp.Dense(2, 3), Capped()], "squared_error"))


def test_blocks_have_the_names_of_their_modules():
    block = gpubp.Residual([gpubp.Dense(4, 5), gpubp.BatchNorm(5), gpubp.Tanh(), gpubp.Dense(5, 4)])
    network = randomized(gpubp.Network([block, gpubp.Dense(4, 2)], "squared_error", dtype="float64"))
    module = gpubp.to_torch_module(network)
    assert isinstance(module[0].block[3], nn.Linear)
    assert_same(network, module)
    assert {name.rpartition(".")[0] for name in gpubp.to_torch(network)} == {"0.block.0", "0.block.1", "0.block.3", "1"}
    assert_same(gpubp.from_torch(module), module)
    module[0].block[2] = nn.PReLU()
    with pytest.raises(SettingError, match=r"module 0.block.2, PReLU\(num_parameters=1\) can't be converted"):
        gpubp.from_torch(module)
    inner = gpubp.Network([gpubp.Residual([Cube()]), gpubp.Dense(3, 2)], "squared_error")
    with pytest.raises(SettingError, match=r"layer 0, Cube\(\) in the block of Residual\(.*\), can't be converted"):
        gpubp.to_torch(inner)


def test_networks_that_can_not_go_to_torch():
    network = gpubp.Network([gpubp.Dense(2, 3), Cube(), gpubp.Dense(3, 2)], "squared_error")
    said = r"layer 1, Cube\(\), can't be converted: PyTorch has no module for it. Supported are BatchNorm, Dense"
    for convert in (gpubp.to_torch, gpubp.to_torch_module):
        with pytest.raises(SettingError, match=said):
            convert(network)
        with pytest.raises(NotReadyError, match="has no mean and scale yet"):
            convert(gpubp.mlp([2, 3], standardize=True))
        with pytest.raises(SettingError, match="member=None: this is a stack of 3 networks; say which, 0 to 2"):
            convert(gpubp.mlp([2, 3], members=3))
        with pytest.raises(SettingError, match="member=True: this is a stack"):
            convert(gpubp.mlp([2, 3], members=3), member=True)
        with pytest.raises(SettingError, match="member=3: the stack has the members 0 to 2"):
            convert(gpubp.mlp([2, 3], members=3), member=3)
