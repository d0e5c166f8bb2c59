"""What the presets of `HybridStreamingConfig` set; data only."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

__all__ = [
    "AGGRESSIVE",
    "CONSERVATIVE",
    "DEFENSE_DISABLED",
    "DEFENSE_RELAXED",
    "DEFENSE_STRICT",
    "MEMORY_OPTIMIZED",
    "SCIENTIFIC_DEFAULT",
]

Preset = Mapping[str, Any]

AGGRESSIVE: Preset = MappingProxyType({
    "warmup_iterations": 50,
    "max_warmup_iterations": 100,
    "warmup_learning_rate": 3e-3,
    "loss_plateau_threshold": 5e-4,
    "gradient_norm_threshold": 5e-3,
    "gauss_newton_tol": 1e-7,
    "chunk_size": 20_000,
})
CONSERVATIVE: Preset = MappingProxyType({
    "warmup_iterations": 30,
    "max_warmup_iterations": 80,
    "warmup_learning_rate": 3e-4,
    "loss_plateau_threshold": 1e-5,
    "gradient_norm_threshold": 1e-4,
    "gauss_newton_tol": 1e-10,
    "gauss_newton_max_iterations": 200,
    "trust_region_initial": 0.5,
})
MEMORY_OPTIMIZED: Preset = MappingProxyType({
    "warmup_iterations": 40,
    "max_warmup_iterations": 100,
    "chunk_size": 5000,
    "precision": "float32",
    "checkpoint_frequency": 50,
    "cg_param_threshold": 1000,
})
DEFENSE_STRICT: Preset = MappingProxyType({
    "warmup_iterations": 25,
    "max_warmup_iterations": 60,
    "warmup_lr_refinement": 1e-7,
    "warmup_lr_careful": 1e-6,
    "warmup_learning_rate": 5e-4,
    "max_warmup_step_size": 0.05,
})
DEFENSE_RELAXED: Preset = MappingProxyType({
    "warmup_iterations": 50,
    "max_warmup_iterations": 120,
    "warm_start_threshold": 0.5,
    "warmup_lr_refinement": 1e-5,
    "warmup_lr_careful": 1e-4,
    "warmup_learning_rate": 3e-3,
    "cost_increase_tolerance": 0.5,
    "max_warmup_step_size": 0.5,
})
DEFENSE_DISABLED: Preset = MappingProxyType({
    "enable_warm_start_detection": False,
    "enable_adaptive_warmup_lr": False,
    "enable_cost_guard": False,
    "enable_step_clipping": False,
})
SCIENTIFIC_DEFAULT: Preset = MappingProxyType({
    "warmup_iterations": 35,
    "max_warmup_iterations": 100,
    "warm_start_threshold": 0.05,
    "cost_increase_tolerance": 0.2,
    "gauss_newton_tol": 1e-10,
    "gauss_newton_max_iterations": 200,
})
