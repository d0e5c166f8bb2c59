"""Every option is validated with its own name in the text, in one place, however it is given."""

import copy
import dataclasses
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from nlsq_nb import ConfigError, HybridStreamingConfig, UnsupportedOption
from nlsq_nb.config.given import config_from
from nlsq_nb.config.groups import OWNERS

FIELDS = [field.name for field in dataclasses.fields(HybridStreamingConfig)]

NAN, INF = math.nan, math.inf
POSITIVE = [0, 0.0, -1e-8, NAN, INF, "1", None, True, 10**400, 1j, [1.0]]
COUNT = [0, -1, 1.5, 10.0, "10", None, True, NAN]
FROM_ZERO = [-1, 1.5, "0", None, False]
FLAG = ["yes", 1, 0, None]
PATHS = [3, True, "", b"folder", ["folder"]]
ANY_NUMBER = [NAN, INF, "0.5", None, True]

INVALID = {
    "normalize": FLAG,
    "normalization_strategy": ["magic", None, 3, "AUTO", ["auto"], np.array(["auto", "p0"])],
    "warmup_iterations": FROM_ZERO,
    "max_warmup_iterations": FROM_ZERO,
    "loss_plateau_threshold": POSITIVE,
    "gradient_norm_threshold": POSITIVE,
    "active_switching_criteria": ["plateau", None, 3, ["plateau", "tired"], [["plateau"]], {"max_iter": 1}],
    "lbfgs_history_size": COUNT,
    "lbfgs_initial_step_size": POSITIVE,
    "lbfgs_exploration_step_size": POSITIVE,
    "lbfgs_careful_step_size": POSITIVE,
    "lbfgs_refinement_step_size": POSITIVE,
    "lbfgs_line_search": ["armijo", None, True],
    "warmup_learning_rate": POSITIVE,
    "warmup_lr_careful": POSITIVE,
    "warmup_lr_refinement": POSITIVE,
    "gradient_clip_value": [0, -1.0, NAN, INF, "1", False],
    "enable_warm_start_detection": FLAG,
    "warm_start_threshold": [0, 1, -0.1, 1.5, *ANY_NUMBER],
    "enable_adaptive_warmup_lr": FLAG,
    "enable_cost_guard": FLAG,
    "cost_increase_tolerance": [-0.1, 1.01, *ANY_NUMBER],
    "enable_step_clipping": FLAG,
    "max_warmup_step_size": POSITIVE,
    "gauss_newton_max_iterations": COUNT,
    "gauss_newton_tol": POSITIVE,
    "trust_region_initial": POSITIVE,
    "regularization_factor": [-1e-10, *ANY_NUMBER],
    "cg_max_iterations": COUNT,
    "cg_relative_tolerance": POSITIVE,
    "cg_absolute_tolerance": POSITIVE,
    "cg_param_threshold": COUNT,
    "enable_group_variance_regularization": FLAG,
    "group_variance_lambda": POSITIVE,
    "group_variance_indices": [
        [], 3, "01", [(0,)], [(0, 1, 2)], [3], [(-1, 2)], [(2, 2)], [(3, 2)], [(0, 1.5)], [(False, True)],
        [(0, 2), None],
    ],
    "enable_residual_weighting": FLAG,
    "residual_weights": [
        [], 3.0, "1", [[1.0]], [1.0, 0.0], [1.0, -1.0], [NAN], [1.0, INF], ["1"], [True], [1.0, None],
        [[1.0], [1.0, 2.0]],
    ],
    "chunk_size": COUNT,
    "gc_chunk_interval": COUNT,
    "loop_strategy": ["while", None, 1],
    "precision": ["float16", None, float, ["float32"]],
    "enable_checkpoints": FLAG,
    "checkpoint_frequency": COUNT,
    "checkpoint_dir": PATHS,
    "resume_from_checkpoint": PATHS,
    "validate_numerics": FLAG,
    "enable_fault_tolerance": FLAG,
    "max_retries_per_batch": FROM_ZERO,
    "min_success_rate": [-0.1, 1.1, *ANY_NUMBER],
    "enable_multi_device": FLAG,
    "callback_frequency": COUNT,
    "verbose": [-1, 3, "1", None, True],
    "log_frequency": COUNT,
    "enable_multistart": FLAG,
    "n_starts": FROM_ZERO,
    "multistart_sampler": ["random", None, 0],
    "elimination_rounds": FROM_ZERO,
    "elimination_fraction": [0, 1, -0.5, 2.0, *ANY_NUMBER],
    "batches_per_round": COUNT,
    "center_on_p0": FLAG,
    "scale_factor": POSITIVE,
    "use_learning_rate_schedule": FLAG,
    "lr_schedule_warmup_steps": FROM_ZERO,
    "lr_schedule_decay_steps": COUNT,
    "lr_schedule_end_value": POSITIVE,
    "separable": ["always", None, 1, 0],
    "warmup_sample_size": [0, -1, 2.0, "all", "", None, True],
    "covariance_method": ["svd", None, 1],
    "second_opinion": ["yes", None, 0, 1],
    "n_threads": [0, -1, 2.0, "2", True],
    "random_seed": FROM_ZERO,
}
ON_OFF = [True, False]
VALID = {
    "normalize": ON_OFF,
    "normalization_strategy": ["auto", "bounds", "p0", "none"],
    "warmup_iterations": [0, 200, 500, np.int64(7)],
    "max_warmup_iterations": [200, 10**6],
    "loss_plateau_threshold": [1e-300, 1, 0.5],
    "gradient_norm_threshold": [1e-300, 1, 0.5],
    "active_switching_criteria": [("plateau", "gradient", "max_iter"), ("gradient",), ()],
    "lbfgs_history_size": [1, 100],
    "lbfgs_initial_step_size": [1e-3, 2],
    "lbfgs_exploration_step_size": [1e-3, 2],
    "lbfgs_careful_step_size": [1e-3, 2],
    "lbfgs_refinement_step_size": [1e-3, 2],
    "lbfgs_line_search": ["wolfe", "strong_wolfe", "backtracking"],
    "warmup_learning_rate": [1e-5, 1],
    "warmup_lr_careful": [1e-6, 1e-3],
    "warmup_lr_refinement": [1e-300, 1e-5],
    "gradient_clip_value": [None, 1e-3, 10],
    "enable_warm_start_detection": ON_OFF,
    "warm_start_threshold": [1e-9, 0.999],
    "enable_adaptive_warmup_lr": ON_OFF,
    "enable_cost_guard": ON_OFF,
    "cost_increase_tolerance": [0, 0.5, 1],
    "enable_step_clipping": ON_OFF,
    "max_warmup_step_size": [1e-3, 10],
    "gauss_newton_max_iterations": [1, 10**6],
    "gauss_newton_tol": [1e-300, 1, 0.5, np.float32(0.25)],
    "trust_region_initial": [1e-3, 100],
    "regularization_factor": [0, 0.0, 1e-3],
    "cg_max_iterations": [1, 1000],
    "cg_relative_tolerance": [1e-12, 0.1],
    "cg_absolute_tolerance": [1e-300, 0.1],
    "cg_param_threshold": [1, 10**6],
    "enable_group_variance_regularization": ON_OFF,
    "group_variance_lambda": [1e-9, 100],
    "group_variance_indices": [None, ((0, 2),), ((0, 1), (3, 5))],
    "enable_residual_weighting": ON_OFF,
    "residual_weights": [None],
    "chunk_size": [1, 10**9],
    "gc_chunk_interval": [1, 100],
    "loop_strategy": ["auto", "scan", "loop"],
    "precision": ["float64", "float32", "auto"],
    "enable_checkpoints": ON_OFF,
    "checkpoint_frequency": [1, 100],
    "checkpoint_dir": [None, "folder"],
    "resume_from_checkpoint": [None, "folder/file.h5"],
    "validate_numerics": ON_OFF,
    "enable_fault_tolerance": ON_OFF,
    "max_retries_per_batch": [0, 5],
    "min_success_rate": [0, 0.5, 1],
    "enable_multi_device": ON_OFF,
    "callback_frequency": [1, 10],
    "verbose": [0, 1, 2],
    "log_frequency": [1, 10],
    "enable_multistart": ON_OFF,
    "n_starts": [0, 1, 50],
    "multistart_sampler": ["lhs", "sobol", "halton"],
    "elimination_rounds": [0, 3],
    "elimination_fraction": [0.01, 0.99],
    "batches_per_round": [1, 150],
    "center_on_p0": ON_OFF,
    "scale_factor": [0.1, 3],
    "use_learning_rate_schedule": [False],
    "lr_schedule_warmup_steps": [50],
    "lr_schedule_decay_steps": [450],
    "lr_schedule_end_value": [1e-4],
    "separable": ["auto", True, False],
    "warmup_sample_size": ["auto", 1, 10**6],
    "covariance_method": ["auto", "normal", "qr"],
    "second_opinion": ["auto", True, False],
    "n_threads": [None, 1, 64],
    "random_seed": [0, 2**40],
}
UNSUPPORTED = {
    "use_learning_rate_schedule": [True],
    "lr_schedule_warmup_steps": [0, 51],
    "lr_schedule_decay_steps": [1, 449],
    "lr_schedule_end_value": [1e-3],
}
DEFAULTS = {
    "normalize": True,
    "normalization_strategy": "auto",
    "warmup_iterations": 200,
    "max_warmup_iterations": 500,
    "loss_plateau_threshold": 1e-4,
    "gradient_norm_threshold": 1e-3,
    "active_switching_criteria": ["plateau", "gradient", "max_iter"],
    "lbfgs_history_size": 10,
    "lbfgs_initial_step_size": 0.1,
    "lbfgs_exploration_step_size": 0.1,
    "lbfgs_careful_step_size": 0.5,
    "lbfgs_refinement_step_size": 1.0,
    "lbfgs_line_search": "wolfe",
    "warmup_learning_rate": 1e-3,
    "warmup_lr_careful": 1e-5,
    "warmup_lr_refinement": 1e-6,
    "gradient_clip_value": None,
    "enable_warm_start_detection": True,
    "warm_start_threshold": 0.01,
    "enable_adaptive_warmup_lr": True,
    "enable_cost_guard": True,
    "cost_increase_tolerance": 0.05,
    "enable_step_clipping": True,
    "max_warmup_step_size": 0.1,
    "gauss_newton_max_iterations": 100,
    "gauss_newton_tol": 1e-8,
    "trust_region_initial": 1.0,
    "regularization_factor": 1e-10,
    "cg_max_iterations": 100,
    "cg_relative_tolerance": 1e-4,
    "cg_absolute_tolerance": 1e-10,
    "cg_param_threshold": 2000,
    "enable_group_variance_regularization": False,
    "group_variance_lambda": 0.01,
    "group_variance_indices": None,
    "enable_residual_weighting": False,
    "residual_weights": None,
    "chunk_size": 10_000,
    "gc_chunk_interval": 10,
    "loop_strategy": "auto",
    "precision": "float64",
    "enable_checkpoints": True,
    "checkpoint_frequency": 100,
    "checkpoint_dir": None,
    "resume_from_checkpoint": None,
    "validate_numerics": True,
    "enable_fault_tolerance": True,
    "max_retries_per_batch": 2,
    "min_success_rate": 0.5,
    "enable_multi_device": False,
    "callback_frequency": 10,
    "verbose": 1,
    "log_frequency": 1,
    "enable_multistart": False,
    "n_starts": 10,
    "multistart_sampler": "lhs",
    "elimination_rounds": 3,
    "elimination_fraction": 0.5,
    "batches_per_round": 50,
    "center_on_p0": True,
    "scale_factor": 1.0,
    "use_learning_rate_schedule": False,
    "lr_schedule_warmup_steps": 50,
    "lr_schedule_decay_steps": 450,
    "lr_schedule_end_value": 1e-4,
    "separable": "auto",
    "warmup_sample_size": "auto",
    "covariance_method": "auto",
    "second_opinion": "auto",
    "n_threads": None,
    "random_seed": 0,
}
# what a value needs beside it to be of use
COMPANIONS = {
    ("enable_group_variance_regularization", True): {"group_variance_indices": [(0, 2)]},
    ("group_variance_indices", ((0, 2),)): {"enable_group_variance_regularization": True},
    ("group_variance_indices", ((0, 1), (3, 5))): {"enable_group_variance_regularization": True},
}
PRESETS = {
    "aggressive": {
        "warmup_iterations": 50,
        "max_warmup_iterations": 100,
        "warmup_learning_rate": 3e-3,
        "loss_plateau_threshold": 5e-4,
        "gradient_norm_threshold": 5e-3,
        "gauss_newton_tol": 1e-7,
        "chunk_size": 20000,
    },
    "conservative": {
        "warmup_iterations": 30,
        "max_warmup_iterations": 80,
        "warmup_learning_rate": 3e-4,
        "loss_plateau_threshold": 1e-5,
        "gradient_norm_threshold": 1e-4,
        "gauss_newton_tol": 1e-10,
        "gauss_newton_max_iterations": 200,
        "trust_region_initial": 0.5,
    },
    "memory_optimized": {
        "warmup_iterations": 40,
        "max_warmup_iterations": 100,
        "chunk_size": 5000,
        "precision": "float32",
        "checkpoint_frequency": 50,
        "cg_param_threshold": 1000,
    },
    "with_multistart": {"enable_multistart": True},
    "defense_strict": {
        "warmup_iterations": 25,
        "max_warmup_iterations": 60,
        "warmup_lr_refinement": 1e-7,
        "warmup_lr_careful": 1e-6,
        "warmup_learning_rate": 5e-4,
        "max_warmup_step_size": 0.05,
    },
    "defense_relaxed": {
        "warmup_iterations": 50,
        "max_warmup_iterations": 120,
        "warm_start_threshold": 0.5,
        "warmup_lr_refinement": 1e-5,
        "warmup_lr_careful": 1e-4,
        "warmup_learning_rate": 3e-3,
        "cost_increase_tolerance": 0.5,
        "max_warmup_step_size": 0.5,
    },
    "defense_disabled": {
        "enable_warm_start_detection": False,
        "enable_adaptive_warmup_lr": False,
        "enable_cost_guard": False,
        "enable_step_clipping": False,
    },
    "scientific_default": {
        "warmup_iterations": 35,
        "max_warmup_iterations": 100,
        "warm_start_threshold": 0.05,
        "cost_increase_tolerance": 0.2,
        "gauss_newton_tol": 1e-10,
        "gauss_newton_max_iterations": 200,
    },
}


def cases(table):
    return [
        pytest.param(name, value, id=f"{name}={value!r:.30}") for name, values in table.items() for value in values
    ]


def values_of(config):
    return {name: getattr(config, name) for name in FIELDS}


def grouped(options, name):
    """The value of a flat field in the groups."""
    group, field = OWNERS[name]
    return getattr(getattr(options, group), field)


# -- one field -------------------------------------------------------------------------------------
def test_every_field_is_in_the_tables():
    assert list(INVALID) == list(VALID) == list(DEFAULTS) == FIELDS


def test_defaults_of_the_specification():
    config = HybridStreamingConfig()
    assert values_of(config) == DEFAULTS
    assert {type(value) for value in DEFAULTS.values()} >= {bool, int, float, str}
    assert [type(getattr(config, name)) for name in FIELDS if name != "min_success_rate"] == [
        type(value) for name, value in DEFAULTS.items() if name != "min_success_rate"
    ]


@pytest.mark.parametrize(("name", "value"), cases(INVALID))
def test_invalid_value_names_its_field(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}="):
        HybridStreamingConfig(**{name: value})
    with pytest.raises(ConfigError, match=rf"^{name}="):
        config_from(None, {name: value})


@pytest.mark.parametrize(("name", "value"), cases(VALID))
def test_valid_value_reaches_the_groups(name, value):
    options = config_from(None, {name: value, **COMPANIONS.get((name, value), {})})
    assert grouped(options, name) == value
    assert not isinstance(grouped(options, name), np.generic)


@pytest.mark.parametrize(("name", "value"), cases(UNSUPPORTED))
def test_what_is_not_honoured_is_refused(name, value):
    for refused in (lambda: HybridStreamingConfig(**{name: value}), lambda: config_from(None, {name: value})):
        with pytest.raises(UnsupportedOption, match=rf"^{name}="):
            refused()


@pytest.mark.parametrize(("name", "value"), cases(INVALID))
def test_assigned_value_is_validated_when_it_is_read(name, value):
    config = HybridStreamingConfig()
    setattr(config, name, value)
    with pytest.raises(ConfigError, match=rf"^{name}="):
        config.groups()


def test_a_changed_list_is_validated_when_it_is_read():
    config = HybridStreamingConfig()
    config.active_switching_criteria.append("tired")
    with pytest.raises(ConfigError, match=r"^active_switching_criteria=.*'tired' is none of plateau, grad"):
        config.groups()
    assert HybridStreamingConfig().active_switching_criteria == ["plateau", "gradient", "max_iter"]


def test_message_says_what_is_needed():
    with pytest.raises(ConfigError, match=r"^warm_start_threshold=1\.5; a finite number > 0 and < 1 is needed$"):
        HybridStreamingConfig(warm_start_threshold=1.5)
    with pytest.raises(ConfigError, match=r"^regularization_factor=-1; a finite number ≥ 0 is needed$"):
        HybridStreamingConfig(regularization_factor=-1)
    with pytest.raises(ConfigError, match=r"^verbose=3; an integer ≥ 0 and ≤ 2 is needed$"):
        HybridStreamingConfig(verbose=3)
    with pytest.raises(ConfigError, match=r"^warmup_sample_size='all'; 'auto' or an integer ≥ 1 is needed$"):
        HybridStreamingConfig(warmup_sample_size="all")


# -- fields together -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"warmup_iterations": 501}, "^warmup_iterations=501; at most max_warmup_iterations=500"),
        ({"max_warmup_iterations": 199}, "^warmup_iterations=200; at most max_warmup_iterations=199"),
        ({"warmup_lr_refinement": 2e-5}, "^warmup_lr_refinement=2e-05; at most warmup_lr_careful=1e-05"),
        ({"warmup_lr_careful": 2e-3}, "^warmup_lr_careful=0.002; at most warmup_learning_rate=0.001"),
        ({"warmup_learning_rate": 1e-6}, "^warmup_lr_careful=1e-05; at most warmup_learning_rate=1e-06"),
        ({"enable_multistart": True, "n_starts": 0}, "^n_starts=0; an integer ≥ 1"),
        ({"residual_weights": [1.0, 2.0]}, "^residual_weights=.*enable_residual_weighting=True"),
        ({"group_variance_indices": [(0, 2)]}, "^group_variance_indices=.*enable_group_variance_regularization=True"),
        (
            {"enable_group_variance_regularization": True},
            "^enable_group_variance_regularization=True.*group_variance_indices=",
        ),
    ],
)
def test_values_that_do_not_go_together(options, text):
    with pytest.raises(ConfigError, match=text):
        HybridStreamingConfig(**options)
    with pytest.raises(ConfigError, match=text):
        config_from(None, options)


@pytest.mark.parametrize(
    "options",
    [
        {"enable_warm_start_detection": False, "warm_start_threshold": 3.0},
        {"enable_adaptive_warmup_lr": False, "warmup_lr_refinement": 1.0},
        {"enable_cost_guard": False, "cost_increase_tolerance": 5.0},
        {"enable_step_clipping": False, "max_warmup_step_size": 0.0},
        {"enable_multistart": False, "n_starts": 0},
        {"enable_residual_weighting": True},
    ],
)
def test_numbers_of_what_is_off_may_be_anything(options):
    assert values_of(HybridStreamingConfig(**options)).items() >= options.items()


def test_keyword_mends_what_does_not_go_together():
    config = HybridStreamingConfig()
    config.warmup_iterations = 600
    assert config_from(config, {"max_warmup_iterations": 700}).warmup.iterations == 600


# -- arrays, ranges, paths ---------------------------------------------------------------------------
@pytest.mark.parametrize("given", [[1, 2.5], (1.0, 2.5), np.array([1.0, 2.5], dtype=np.float32)])
def test_weights_are_a_read_only_copy(given):
    weights = HybridStreamingConfig(enable_residual_weighting=True, residual_weights=given).groups().weights.values
    assert weights.dtype == np.float64
    assert weights.tolist() == [1.0, 2.5]
    with pytest.raises(ValueError, match="read-only"):
        weights[0] = 3.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        weights.flags.writeable = True
    given_array = np.asarray(given)
    assert not np.shares_memory(weights, given_array)


def test_bad_weight_is_named():
    with pytest.raises(ConfigError, match=r"^residual_weights=.*entry 2 is -3, a finite number > 0"):
        HybridStreamingConfig(enable_residual_weighting=True, residual_weights=[1, 2, -3])
    with pytest.raises(ConfigError) as raised:
        HybridStreamingConfig(enable_residual_weighting=True, residual_weights=[0.0] * 10**5)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("given", [[(0, 2), (3, 5)], ([0, 2], [3, 5]), np.array([[0, 2], [3, 5]])])
def test_ranges_become_pairs_of_integers(given):
    options = config_from(None, {"enable_group_variance_regularization": True, "group_variance_indices": given})
    assert options.penalty.groups == ((0, 2), (3, 5))
    assert {type(index) for pair in options.penalty.groups for index in pair} == {int}


def test_criteria_are_put_in_order_once():
    options = config_from(None, {"active_switching_criteria": ["max_iter", "plateau", "max_iter"]})
    assert options.warmup.criteria == ("plateau", "max_iter")


@pytest.mark.parametrize("name", ["checkpoint_dir", "resume_from_checkpoint"])
def test_path_objects_become_text(name):
    assert grouped(config_from(None, {name: Path("a") / "b"}), name) == os.path.join("a", "b")  # noqa: PTH118


# -- min_success_rate: its default has no effect -----------------------------------------------------
def test_success_rate_counts_only_when_asked_for():
    config = HybridStreamingConfig()
    assert config.min_success_rate == 0.5
    assert config.groups().faults.min_success == 1.0
    assert config_from(None, {}).faults.min_success == 1.0
    assert config_from(None, {"max_retries_per_batch": 1}).faults.min_success == 1.0
    assert HybridStreamingConfig(min_success_rate=0.5).groups().faults.min_success == 0.5
    assert config_from(None, {"min_success_rate": 0.5}).faults.min_success == 0.5
    assert config_from(config, {"min_success_rate": 0.5}).faults.min_success == 0.5
    config.min_success_rate = 0.5
    assert config.groups().faults.min_success == 0.5
    assert config_from(config, {"verbose": 0}).faults.min_success == 0.5
    assert config != HybridStreamingConfig()


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
    "replace": dataclasses.replace,
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("rate", [{}, {"min_success_rate": 0.5}, {"min_success_rate": 0.25}])
def test_copies_are_equal_and_mean_the_same(duplicate, rate):
    config = HybridStreamingConfig.aggressive(
        enable_residual_weighting=True, residual_weights=np.array([1.0, 2.0]), **rate
    )
    twin = duplicate(config)
    assert twin is not config
    assert twin == config
    assert twin.groups().faults.min_success == config.groups().faults.min_success == rate.get("min_success_rate", 1.0)
    twin.residual_weights = [1.0, 3.0]
    assert twin != config


def test_equality():
    assert HybridStreamingConfig() == HybridStreamingConfig()
    assert HybridStreamingConfig(verbose=0) != HybridStreamingConfig()
    assert HybridStreamingConfig() != 3
    options = {"enable_residual_weighting": True}
    arrays = HybridStreamingConfig(residual_weights=np.array([1.0, 2.0]), **options)
    assert arrays == HybridStreamingConfig(residual_weights=[1, 2], **options)
    assert arrays != HybridStreamingConfig(residual_weights=[1, 2, 3], **options)
    assert arrays != HybridStreamingConfig(**options)
    with pytest.raises(TypeError, match="unhashable"):
        hash(arrays)


def test_replace_validates_and_names_unknown_fields():
    config = HybridStreamingConfig()
    assert dataclasses.replace(config, chunk_size=7).chunk_size == 7
    with pytest.raises(ConfigError, match=r"^chunk_size=0"):
        dataclasses.replace(config, chunk_size=0)
    with pytest.raises(TypeError, match="did you mean 'chunk_size'"):
        dataclasses.replace(config, chunksize=1)


# -- names -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", FIELDS)
def test_misspelt_name_is_recognised(name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}s'; did you mean '{name}'"):
        config_from(None, {f"{name}s": 1})


def test_misspelt_name_in_the_constructor():
    with pytest.raises(TypeError, match=r"'gauss_newton_tols'.*did you mean 'gauss_newton_tol'"):
        HybridStreamingConfig(gauss_newton_tols=1e-6)
    with pytest.raises(TypeError, match=r"'warmup_iteration'.*did you mean 'warmup_iterations'"):
        HybridStreamingConfig.aggressive(warmup_iteration=3)


@pytest.mark.parametrize("name", ["ftol", "xtol", "gtol", "max_nfev", "maxfev"])
def test_names_of_scipy_are_translated(name):
    with pytest.raises(TypeError, match=rf"'{name}'; did you mean 'gauss_newton_"):
        HybridStreamingConfig(**{name: 1})


def test_unknown_name_without_a_close_one():
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'$"):
        config_from(None, {"zzz": 1})


def test_no_field_can_be_added():
    config = HybridStreamingConfig()
    with pytest.raises(AttributeError):
        config.gauss_newton_tolerance = 1.0
    assert not hasattr(config, "__dict__")


def test_keywords_override_a_configuration_and_leave_it_alone():
    base = HybridStreamingConfig(gauss_newton_tol=1e-5, chunk_size=7)
    options = config_from(base, {"gauss_newton_tol": 1e-3})
    assert options.gauss_newton.tol == 1e-3
    assert options.data.chunk_rows == 7
    assert base.gauss_newton_tol == 1e-5
    with pytest.raises(TypeError, match="config must be a HybridStreamingConfig, not int"):
        config_from(3, {})


# -- presets and explain() -----------------------------------------------------------------------------
@pytest.mark.parametrize("name", PRESETS)
def test_preset_of_the_specification(name):
    assert values_of(getattr(HybridStreamingConfig, name)()) == DEFAULTS | PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_takes_overrides(name):
    own = list(PRESETS[name])[-1]
    chosen = {"verbose": 0, own: DEFAULTS[own]}
    config = getattr(HybridStreamingConfig, name)(**chosen)
    assert values_of(config) == DEFAULTS | PRESETS[name] | chosen


def test_multistart_takes_the_number_first():
    assert HybridStreamingConfig.with_multistart(20).n_starts == 20
    config = HybridStreamingConfig.with_multistart(n_starts=5, multistart_sampler="sobol", scale_factor=2.0)
    assert (config.enable_multistart, config.n_starts) == (True, 5)
    assert (config.multistart_sampler, config.scale_factor) == ("sobol", 2.0)


def test_preset_of_a_subclass():
    class Mine(HybridStreamingConfig):
        __slots__ = ()

    assert type(Mine.conservative()) is Mine


def marked(text):
    """(name, value, default) of the marked lines of `explain()`."""
    lines = [line.split("* ", 1)[1] for line in text.splitlines() if line.startswith("  * ")]
    return {line.split()[0]: tuple(part.strip() for part in line.split(None, 1)[1].split("default")) for line in lines}


def test_explain_marks_what_differs(capsys):
    config = HybridStreamingConfig.aggressive(checkpoint_dir="a b", chunk_size=10_000)
    text = config.explain()
    preset = PRESETS["aggressive"].items()
    expected = {name: (repr(value), repr(DEFAULTS[name])) for name, value in preset if name != "chunk_size"}
    assert marked(text) == expected | {"checkpoint_dir": ("'a b'", "None")}
    assert text.startswith("7 of 71 options differ from the defaults, marked *\n")
    named = [line.split()[-1 if line.endswith(":") else 0] for line in text.replace("  * ", "    ").splitlines()[1:]]
    assert sorted(name for name in named if not name.endswith(":")) == sorted(FIELDS)
    assert capsys.readouterr() == ("", "")


def test_explain_of_the_defaults():
    text = HybridStreamingConfig().explain()
    assert text.startswith("0 of 71 options differ from the defaults\n")
    assert "*" not in text
    assert "min_success_rate                       0.5 when asked for" in text


def test_explain_shows_a_default_that_was_asked_for_and_shortens_arrays():
    config = HybridStreamingConfig(
        min_success_rate=0.5, enable_residual_weighting=True, residual_weights=np.ones(10**5)
    )
    text = config.explain()
    assert marked(text)["min_success_rate"] == ("0.5", "0.5 when asked for")
    assert set(marked(text)) == {"min_success_rate", "enable_residual_weighting", "residual_weights"}
    assert max(map(len, text.splitlines())) < 100
