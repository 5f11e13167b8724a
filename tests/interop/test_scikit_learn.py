"""scikit-learn's perceptrons predict the same here."""

from __future__ import annotations

import numpy as np
import pytest
from outside import required

import gpubp
from gpubp.errors import NotReadyError, SettingError
from gpubp.losses.base import Loss

StandardScaler = required("sklearn.preprocessing", "GPUBP_REQUIRE_SKLEARN").StandardScaler
make_pipeline = required("sklearn.pipeline", "GPUBP_REQUIRE_SKLEARN").make_pipeline
PCA = required("sklearn.decomposition", "GPUBP_REQUIRE_SKLEARN").PCA
LogisticRegression = required("sklearn.linear_model", "GPUBP_REQUIRE_SKLEARN").LogisticRegression
perceptrons = required("sklearn.neural_network", "GPUBP_REQUIRE_SKLEARN")
MLPClassifier, MLPRegressor = perceptrons.MLPClassifier, perceptrons.MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.default_rng(0).normal(3, 2, size=(60, 4))
SETTINGS = {"hidden_layer_sizes": (6, 5), "max_iter": 5, "random_state": 0}
TARGETS = {
    "classes": (MLPClassifier, np.array(["a", "b", "c"])[np.arange(60) % 3]),
    "labels": (MLPClassifier, np.c_[X[:, 0] > 3, X[:, 1] > 3].astype(int)),
    "value": (MLPRegressor, X.sum(axis=1)),
    "values": (MLPRegressor, X[:, :2]),
}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("task", TARGETS)
def test_predictions(task, activation, scaled):
    kind, T = TARGETS[task]
    estimator = kind(activation=activation, **SETTINGS)
    estimator = make_pipeline(StandardScaler(), estimator) if scaled else estimator
    estimator.fit(X, T)
    network = gpubp.from_sklearn(estimator, device="cpu")
    expected = estimator.predict_proba(X) if kind is MLPClassifier else estimator.predict(X)
    np.testing.assert_allclose(network.predict(X), expected.reshape(60, -1), rtol=0, atol=1e-10)
    assert (network.dtype, str(network.device)) == (np.float64, "cpu")


def test_two_classes_have_one_probability():
    estimator = MLPClassifier(**SETTINGS).fit(X, X[:, 0] > 3)
    network = gpubp.from_sklearn(estimator)
    assert (network.n_out, network.loss.name) == (1, "binary_cross_entropy")
    np.testing.assert_allclose(network.predict(X), estimator.predict_proba(X)[:, 1:], rtol=0, atol=1e-10)


def test_the_network_can_be_trained_on():
    T = X.sum(axis=1)
    network = gpubp.from_sklearn(MLPRegressor(**SETTINGS).fit(X, T))
    history = gpubp.fit(network, X, T, optimizer=gpubp.Adam(1e-2), epochs=20, batch_size=20)
    assert history["loss"][-1] < 0.5 * history["loss"][0]


@pytest.mark.parametrize("scaler", [StandardScaler(with_mean=False), StandardScaler(with_std=False)])
def test_scalers_that_do_half(scaler):
    estimator = make_pipeline(scaler, MLPRegressor(**SETTINGS)).fit(X, X[:, 0])
    np.testing.assert_allclose(gpubp.from_sklearn(estimator).predict(X)[:, 0], estimator.predict(X), atol=1e-10)


def test_a_pipeline_of_the_perceptron_alone():
    estimator = make_pipeline(MLPRegressor(**SETTINGS)).fit(X, X[:, 0])
    np.testing.assert_allclose(gpubp.from_sklearn(estimator).predict(X)[:, 0], estimator.predict(X), atol=1e-10)


def test_dtypes():
    estimator = MLPRegressor(**SETTINGS).fit(X.astype("f4"), X[:, 0].astype("f4"))
    network = gpubp.from_sklearn(estimator)
    assert network.dtype == np.float32
    np.testing.assert_allclose(network.predict(X)[:, 0], estimator.predict(X.astype("f4")), atol=1e-5)
    assert gpubp.from_sklearn(estimator, dtype="float64").dtype == np.float64


def test_weights_are_copies():
    estimator = MLPRegressor(**SETTINGS).fit(X, X[:, 0])
    network = gpubp.from_sklearn(estimator)
    before = network.theta.copy()
    estimator.coefs_[0][...] = 0
    np.testing.assert_array_equal(network.theta, before)


def test_outputs_that_are_exponentials():
    try:
        estimator = MLPRegressor(loss="poisson", **SETTINGS)
    except TypeError:
        pytest.skip("this scikit-learn has no loss='poisson'")
    estimator.fit(X, np.arange(60) % 4)
    if "poisson" in Loss.by_name:
        np.testing.assert_allclose(gpubp.from_sklearn(estimator).predict(X)[:, 0], estimator.predict(X), atol=1e-10)
    else:
        with pytest.raises(SettingError, match="output activation 'exp'; supported are softmax, logistic, identity$"):
            gpubp.from_sklearn(estimator)


@pytest.mark.parametrize(
    "estimator", [MLPClassifier(), MLPRegressor(), make_pipeline(StandardScaler(), MLPRegressor())]
)
def test_what_is_not_fitted(estimator):
    with pytest.raises(NotReadyError, match="this (MLP|Standard).* is not fitted yet: call its fit first"):
        gpubp.from_sklearn(estimator)


def test_what_can_not_be_converted():
    wanted = "an MLPClassifier, an MLPRegressor, or a Pipeline of a StandardScaler and one of them is needed"
    fitted = MLPClassifier(**SETTINGS).fit(X, X[:, 0] > 3)
    for estimator, said in [
        (LogisticRegression(), "^LogisticRegression can't be converted"),
        (None, "^NoneType can't be converted"),
        (make_pipeline(PCA(2), fitted), "the Pipeline's step PCA can't be converted"),
        (make_pipeline("passthrough", fitted), "the Pipeline's step 'passthrough' can't be converted"),
        (make_pipeline(StandardScaler().fit(X), StandardScaler().fit(X), fitted), "step StandardScaler can't be"),
        (make_pipeline(StandardScaler().fit(X), LogisticRegression()), "^LogisticRegression can't be converted"),
    ]:
        with pytest.raises(SettingError, match=f"{said}.*{wanted}"):
            gpubp.from_sklearn(estimator)
    fitted.activation = "swish"
    with pytest.raises(SettingError, match="unknown activation 'swish'; supported are identity, logistic, tanh, relu"):
        gpubp.from_sklearn(fitted)
