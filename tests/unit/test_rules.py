"""Scalars of NumPy are options like those of Python, and reach the library as plain values."""

from dataclasses import fields

import numpy as np
import pytest

from nlsq_nb import ConfigError, GlobalOptimizationConfig, HybridStreamingConfig, UnsupportedOption
from nlsq_nb.config.groups import OWNERS
from nlsq_nb.config.rules import Choice, Flag, Number, Whole

DEFAULTS = {f.name: getattr(HybridStreamingConfig(), f.name) for f in fields(HybridStreamingConfig)}
FLAGS = [name for name, value in DEFAULTS.items() if isinstance(value, bool)]
WHOLES = [name for name, value in DEFAULTS.items() if type(value) is int]
REFUSED = {"use_learning_rate_schedule"}
NEEDED = {
    "enable_group_variance_regularization": {"group_variance_indices": [(0, 1)]},
    "enable_residual_weighting": {"residual_weights": [1.0, 2.0]},
}
NUMBERS = [name for name, value in DEFAULTS.items() if isinstance(value, float)]


def grouped(**given):
    """The value as the library reads it."""
    ((name, _),) = given.items()
    group, inner = OWNERS[name]
    return getattr(getattr(HybridStreamingConfig(**given).groups(), group), inner)


def test_there_are_fields_of_each_kind():
    assert min(len(FLAGS), len(WHOLES), len(NUMBERS)) >= 12


@pytest.mark.parametrize(("name", "value"), [(n, v) for n in FLAGS for v in (True, False) if not (v and n in REFUSED)])
def test_flags(name, value):
    needed = NEEDED.get(name, {}) if value else {}
    plain = HybridStreamingConfig(**{name: value}, **needed)
    config = HybridStreamingConfig(**{name: np.bool_(value)}, **needed)
    assert config == plain
    assert repr(config.groups()) == repr(plain.groups())  # no scalar of NumPy is left


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_flags_that_are_refused(name):
    with pytest.raises(UnsupportedOption, match=f"^{name}=True; "):
        HybridStreamingConfig(**{name: np.True_})


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int64])
@pytest.mark.parametrize("name", WHOLES)
def test_integers(name, kind):
    if DEFAULTS[name] > np.iinfo(kind).max:
        kind = np.int64
    read = grouped(**{name: kind(DEFAULTS[name])})
    assert type(read) is int
    assert read == DEFAULTS[name]


@pytest.mark.parametrize("name", NUMBERS)
def test_floats(name):
    read = grouped(**{name: np.float64(DEFAULTS[name])})
    assert type(read) is float
    assert read == DEFAULTS[name]


@pytest.mark.parametrize("name", ["separable", "second_opinion"])
def test_flags_among_words(name):
    assert grouped(**{name: np.False_}) is False
    assert grouped(**{name: np.str_("auto")}) == "auto"
    with pytest.raises(ConfigError, match=f"^{name}=1;"):
        grouped(**{name: np.int64(1)})


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        (Flag(), np.int64(1)),
        (Flag(), np.float64(1.0)),
        (Flag(), np.array(True)),  # noqa: FBT003
        (Whole(1), 10**30),
        (Whole(0), np.True_),
        (Whole(0), np.float64(3.0)),
        (Number(), np.True_),
        (Number(), np.str_("3")),
        (Choice(("auto", True)), np.int64(1)),
    ],
)
def test_another_kind_is_still_refused(rule, value):
    with pytest.raises(ConfigError, match=r"^option="):
        rule("option", value)


def test_the_search_alone_takes_them_too():
    config = GlobalOptimizationConfig(
        n_starts=np.int32(7), center_on_p0=np.False_, scale_factor=np.float32(2.0), sampler=np.str_("sobol")
    )
    assert config == GlobalOptimizationConfig(n_starts=7, center_on_p0=False, scale_factor=2.0, sampler="sobol")
    assert {type(value) for value in config.to_dict().values()} == {int, bool, float, str}


def test_several_starts_without_any_say_what_to_do():
    with pytest.raises(ConfigError, match=r"^n_starts=0; .*enable_multistart=True; for p0 alone leave that False$"):
        HybridStreamingConfig(enable_multistart=True, n_starts=0)
