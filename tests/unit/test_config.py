"""Every option is validated with its own name in the text, in one place, however it is given."""

import dataclasses

import pytest

from nlsq_nb import ConfigError, HybridStreamingConfig
from nlsq_nb.config.flat import config_from

FIELDS = [field.name for field in dataclasses.fields(HybridStreamingConfig)]

INVALID = {
    "normalize": ["yes", 1, None],
    "normalization_strategy": ["magic", None, 3, "AUTO", ["auto"]],
    "separable": ["always", None, 1],
    "gauss_newton_max_iterations": [0, -1, 1.5, "10", None, True],
    "gauss_newton_tol": [0, 0.0, -1e-8, float("nan"), "1e-8", None, True],
    "trust_region_initial": [0, -1.0, float("nan"), "1", None],
    "regularization_factor": [-1e-10, float("nan"), "0", None],
    "chunk_size": [0, -5, 1e4, "10", None],
    "precision": ["float16", None, float, ["float32"]],
    "validate_numerics": [1, "no", None],
    "n_threads": [0, -1, 2.0, "2", True],
    "callback_frequency": [0, 2.5, None],
    "verbose": [-1, 3, "1", None, True],
    "log_frequency": [0, 1.0, None],
}
VALID = {
    "normalize": [True, False],
    "normalization_strategy": ["auto", "bounds", "p0", "none"],
    "separable": ["auto", True, False],
    "gauss_newton_max_iterations": [1, 10**6],
    "gauss_newton_tol": [1e-300, 1, 0.5],
    "trust_region_initial": [1e-3, 100],
    "regularization_factor": [0, 0.0, 1e-3],
    "chunk_size": [1, 10**9],
    "precision": ["float64", "float32", "auto"],
    "validate_numerics": [True, False],
    "n_threads": [None, 1, 64],
    "callback_frequency": [1, 10],
    "verbose": [0, 1, 2],
    "log_frequency": [1, 10],
}


def cases(table):
    return [pytest.param(name, value, id=f"{name}={value!r}") for name, values in table.items() for value in values]


def test_every_field_is_in_the_tables():
    assert list(INVALID) == list(VALID) == FIELDS


@pytest.mark.parametrize(("name", "value"), cases(INVALID))
def test_invalid_value_names_its_field(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}="):
        HybridStreamingConfig(**{name: value})
    with pytest.raises(ConfigError, match=rf"^{name}="):
        config_from(None, {name: value})


@pytest.mark.parametrize(("name", "value"), cases(VALID))
def test_valid_value_reaches_the_groups(name, value):
    options = config_from(None, {name: value})
    groups = [getattr(options, group.name) for group in dataclasses.fields(options)]
    found = [
        getattr(group, field.name)
        for group in groups
        for field in dataclasses.fields(group)
        if field.metadata["flat"] == name
    ]
    assert found == [value]


@pytest.mark.parametrize(("name", "value"), cases(INVALID))
def test_assigned_value_is_validated_when_it_is_read(name, value):
    config = HybridStreamingConfig()
    setattr(config, name, value)
    with pytest.raises(ConfigError, match=rf"^{name}="):
        config.groups()


@pytest.mark.parametrize("name", FIELDS)
def test_misspelt_name_is_recognised(name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}s'; did you mean '{name}'"):
        config_from(None, {f"{name}s": 1})


def test_misspelt_name_in_the_constructor():
    with pytest.raises(TypeError, match=r"'gauss_newton_tols'.*did you mean 'gauss_newton_tol'"):
        HybridStreamingConfig(gauss_newton_tols=1e-6)


def test_unknown_name_without_a_close_one():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'$"):
        config_from(None, {"zzz": 1})


def test_no_field_can_be_added():
    config = HybridStreamingConfig()
    with pytest.raises(AttributeError):
        config.gauss_newton_tolerance = 1.0


def test_keywords_override_a_configuration_and_leave_it_alone():
    base = HybridStreamingConfig(gauss_newton_tol=1e-5, chunk_size=7)
    options = config_from(base, {"gauss_newton_tol": 1e-3})
    assert options.gauss_newton.tol == 1e-3
    assert options.data.chunk_rows == 7
    assert base.gauss_newton_tol == 1e-5
    with pytest.raises(TypeError, match="config must be a HybridStreamingConfig, not int"):
        config_from(3, {})


def test_defaults_of_the_specification():
    c = HybridStreamingConfig()
    assert (c.normalize, c.normalization_strategy, c.separable) == (True, "auto", "auto")
    assert (c.gauss_newton_max_iterations, c.gauss_newton_tol, c.trust_region_initial) == (100, 1e-8, 1.0)
    assert (c.regularization_factor, c.chunk_size, c.precision) == (1e-10, 10_000, "float64")
    assert (c.validate_numerics, c.n_threads) == (True, None)
    assert (c.callback_frequency, c.verbose, c.log_frequency) == (10, 1, 1)
