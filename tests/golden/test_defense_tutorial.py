"""The cells of the defence tutorial: which layer fires from which start, and how the counts of a batch add up."""

import logging

import numpy as np
import pytest

from nlsq_nb import (
    AdaptiveHybridStreamingOptimizer,
    HybridStreamingConfig,
    curve_fit,
    get_defense_telemetry,
    reset_defense_telemetry,
)

MODEL = "a*exp(-b*x) + c"
SSE = 4.788553
POPT = [4.97480136, 0.49754672, 1.00100807]
PERR = [0.01946782, 0.00422352, 0.00862452]
NEAR = [5.00926178, 0.51909417, 0.98601432]
NEAR_RELATIVE_LOSS = 8.1283e-03
OPTIMAL, GOOD = [5.1, 0.505, 0.99], [4.5, 0.45, 1.1]
CAREFUL, POOR, FAR = [6.0, 0.4, 1.3], [1.0, 0.1, 5.0], [10.0, 0.1, 5.0]
each_way = pytest.mark.parametrize("separable", ["auto", False])


@pytest.fixture(scope="module")
def data():
    random = np.random.RandomState(42)
    x = np.linspace(0.0, 10.0, 500)
    return x, 5.0 * np.exp(-0.5 * x) + 1.0 + random.normal(0.0, 0.1, 500)


@pytest.fixture(autouse=True)
def fresh():
    reset_defense_telemetry()


def fit(data, p0, config=None, **fields):
    config = config or HybridStreamingConfig(verbose=0, **fields)
    result = AdaptiveHybridStreamingOptimizer(config).fit(data, MODEL, p0, verbose=0)
    assert result.success
    assert result.sse == pytest.approx(SSE, abs=5.1e-7)
    np.testing.assert_allclose(result.popt, POPT, atol=1.1e-8, rtol=0)
    np.testing.assert_allclose(result.perr, PERR, atol=1.1e-8, rtol=0)
    return result


def counts(telemetry):
    """(warm-ups, layer 1, modes, layer 3)."""
    modes = {mode: n for mode, n in telemetry.layer2_lr_mode_counts.items() if n}
    return (
        telemetry.total_warmup_calls,
        telemetry.layer1_warm_start_triggers,
        modes,
        telemetry.layer3_cost_guard_triggers,
    )


def both(result):
    """The result's own telemetry, which after one fit must agree with that of the process."""
    own, shared = result.streaming_diagnostics["telemetry"], get_defense_telemetry()
    assert own is not shared
    assert own.export_metrics() == shared.export_metrics()
    assert own.get_summary() == shared.get_summary()
    return own


@each_way
@pytest.mark.parametrize("p0", [NEAR, OPTIMAL])
def test_a_near_optimal_start_counts_layer_1_and_nothing_else(data, p0, separable):
    result = fit(data, p0, separable=separable)
    telemetry = both(result)
    assert counts(telemetry) == (1, 1, {}, 0)
    assert telemetry.layer4_clip_triggers == 0
    assert telemetry.lbfgs_history_buffer_fill_events == telemetry.lbfgs_line_search_failures == 0
    assert {name: rate for name, rate in telemetry.get_trigger_rates().items() if rate} == {
        "layer1_warm_start_rate": 100.0
    }
    assert result.streaming_diagnostics["phase_iterations"]["lbfgs_warmup"] == 0
    (event,) = telemetry.get_recent_events()
    assert event["type"] == "layer1_warm_start"
    assert event["data"]["threshold"] == 0.01
    x, y = data
    a, b, c = p0
    relative = np.mean((y - a * np.exp(-b * x) - c) ** 2) / np.var(y)
    assert event["data"]["relative_loss"] == pytest.approx(relative, rel=1e-9)


def test_the_relative_loss_that_the_log_tells(data, caplog):
    with caplog.at_level(logging.INFO, logger="nlsq_nb"):
        curve_fit(MODEL, *data, NEAR, verbose=1)
    line = "Phase 1: Skipping L-BFGS warmup - warm start detected (relative_loss=8.1283e-03)"
    assert line in [record.getMessage() for record in caplog.records]
    (event,) = get_defense_telemetry().get_recent_events()
    assert event["data"]["relative_loss"] == pytest.approx(NEAR_RELATIVE_LOSS, abs=5.1e-8)


@each_way
@pytest.mark.parametrize("p0", [NEAR, OPTIMAL])
def test_the_same_start_without_detection_is_a_refinement(data, p0, separable):
    result = fit(data, p0, enable_warm_start_detection=False, separable=separable)
    assert counts(both(result)) == (1, 0, {"refinement": 1}, 0)
    assert result.streaming_diagnostics["warmup_diagnostics"]["mode"] == "refinement"


@each_way
@pytest.mark.parametrize(("p0", "mode"), [(CAREFUL, "careful"), (POOR, "exploration"), (FAR, "exploration")])
def test_the_tier_follows_the_start(data, p0, mode, separable):
    result = fit(data, p0, separable=separable)
    telemetry = both(result)
    assert counts(telemetry) == (1, 0, {mode: 1}, 0)
    assert telemetry.get_trigger_rates()[f"layer2_{mode}_rate"] == 100.0
    first = telemetry.get_recent_events(1000)[0]
    assert (first["type"], first["data"]["mode"]) == ("layer2_lr_mode", mode)


@each_way
@pytest.mark.parametrize("p0", [NEAR, CAREFUL, POOR, FAR])
def test_all_layers_off_leaves_all_rates_at_zero(data, p0, separable):
    result = fit(data, p0, HybridStreamingConfig.defense_disabled(separable=separable))
    telemetry = both(result)
    assert counts(telemetry) == (1, 0, {"fixed": 1}, 0)
    layers = {name: rate for name, rate in telemetry.get_trigger_rates().items() if name.startswith("layer")}
    assert len(layers) == 7
    assert set(layers.values()) == {0.0}
    assert set(telemetry.get_summary()["layer2"]["rates_pct"].values()) == {0.0}


@each_way
def test_five_fits_of_mixed_quality_add_up(data, separable):
    starts = [OPTIMAL, GOOD, CAREFUL, POOR, FAR]
    results = [fit(data, p0, separable=separable) for p0 in starts]
    own = [result.streaming_diagnostics["telemetry"] for result in results]
    shared = get_defense_telemetry()
    assert counts(shared)[:2] == (5, 1)
    assert shared.layer2_lr_mode_counts == {"refinement": 1, "careful": 1, "exploration": 2, "fixed": 0}
    assert shared.total_warmup_calls == shared.layer1_warm_start_triggers + sum(shared.layer2_lr_mode_counts.values())
    total = {name: sum(t.export_metrics()[name] for t in own) for name in shared.export_metrics()}
    assert shared.export_metrics() == total
    assert total["nlsq_defense_layer4_triggers_total"] > 0
    rates = shared.get_trigger_rates()
    assert rates["layer1_warm_start_rate"] == 20.0
    assert rates["layer2_exploration_rate"] == 40.0
    assert rates["layer4_clip_rate"] == pytest.approx(20.0 * shared.layer4_clip_triggers)
    clipped = sum(t.layer4_clip_triggers > 0 for t in own)
    assert rates["layer4_clipped_fits_rate"] == 20.0 * clipped
    for result, telemetry in zip(results, own, strict=True):
        assert telemetry.total_warmup_calls == 1
        found = result.streaming_diagnostics["warmup_diagnostics"]
        assert telemetry.layer4_clip_triggers == found.get("clips", 0)


def test_clipping_alone_from_far_away(data):
    result = fit(
        data,
        FAR,
        enable_warm_start_detection=False,
        enable_adaptive_warmup_lr=False,
        enable_cost_guard=False,
        enable_step_clipping=True,
    )
    telemetry = both(result)
    assert counts(telemetry) == (1, 0, {"fixed": 1}, 0)
    assert telemetry.layer4_clip_triggers > 0
    clips = [e["data"] for e in telemetry.get_recent_events(1000) if e["type"] == "layer4_clip"]
    assert len(clips) == telemetry.layer4_clip_triggers
    assert all(clip["original_norm"] > clip["max_norm"] == 0.1 for clip in clips)


@pytest.mark.parametrize(
    "preset",
    ["aggressive", "conservative", "memory_optimized", "scientific_default", "defense_strict", "defense_relaxed"],
)
def test_presets_count_each_fit_once(data, preset):
    config = getattr(HybridStreamingConfig, preset)()
    for p0 in (NEAR, CAREFUL, POOR):
        result = AdaptiveHybridStreamingOptimizer(config).fit(data, MODEL, p0, verbose=0)
        assert result.success
        assert result.sse == pytest.approx(SSE, abs=5.1e-6)  # memory_optimized stores float32
    shared = get_defense_telemetry()
    assert shared.total_warmup_calls == 3
    assert shared.layer1_warm_start_triggers + sum(shared.layer2_lr_mode_counts.values()) == 3


@pytest.mark.parametrize("method", ["lm", "trf"])
def test_methods_without_a_warmup_count_nothing(data, method):
    result = curve_fit(MODEL, *data, CAREFUL, method=method)
    assert counts(both(result)) == (0, 0, {}, 0)
    assert set(result.streaming_diagnostics["telemetry"].get_trigger_rates().values()) == {0.0}
