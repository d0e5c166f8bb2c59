"""Counts, rates and exports of the defence telemetry, alone and under many threads."""

import copy
import json
import pickle
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nlsq_nb.errors import MissingDependency
from nlsq_nb.events import (
    CostGuardTripped,
    HistoryFilled,
    LineSearchFailed,
    StepClipped,
    StepModeChosen,
    WarmStartDetected,
    WarmupStarted,
    WarmupStepDone,
)
from nlsq_nb.observe.checkpoint_tree import from_tree, pack, to_tree, unpack
from nlsq_nb.observe.recording import TelemetryObserver, with_events
from nlsq_nb.observe.telemetry import (
    DefenseLayerTelemetry,
    get_defense_telemetry,
    reset_defense_telemetry,
)

RATES = {
    "layer1_warm_start_rate",
    "layer2_refinement_rate",
    "layer2_careful_rate",
    "layer2_exploration_rate",
    "layer3_cost_guard_rate",
    "layer4_clip_rate",
    "layer4_clipped_fits_rate",
    "lbfgs_history_buffer_fill_rate",
    "lbfgs_line_search_failure_rate",
}
MODES = ("refinement", "careful", "exploration", "fixed")
# how to record, the metric that counts it, and the event that it leaves
RECORDS = {
    "start": (lambda t: t.record_warmup_start(), "warmup_calls", None),
    "layer1": (
        lambda t: t.record_layer1_trigger(0.008, 0.01),
        "layer1_triggers",
        ("layer1_warm_start", {"relative_loss": 0.008, "threshold": 0.01}),
    ),
    **{
        mode: (
            lambda t, mode=mode: t.record_layer2_lr_mode(mode, 0.5),
            f"layer2_{mode}",
            ("layer2_lr_mode", {"mode": mode, "relative_loss": 0.5}),
        )
        for mode in MODES
    },
    "layer3": (
        lambda t: t.record_layer3_trigger(1.2, 0.05, 7),
        "layer3_triggers",
        ("layer3_cost_guard", {"cost_ratio": 1.2, "tolerance": 0.05, "iteration": 7}),
    ),
    "clip": (
        lambda t: t.record_layer4_clip(3.0, 0.1),
        "layer4_triggers",
        ("layer4_clip", {"original_norm": 3.0, "max_norm": 0.1}),
    ),
    "fill": (
        lambda t: t.record_lbfgs_history_fill(10),
        "lbfgs_history_fill",
        ("lbfgs_history_fill", {"iteration": 10}),
    ),
    "failure": (
        lambda t: t.record_lbfgs_line_search_failure(3, "step underflow"),
        "lbfgs_line_search_failures",
        ("lbfgs_line_search_failure", {"iteration": 3, "reason": "step underflow"}),
    ),
}
METRICS = {name: f"nlsq_defense_{metric}_total" for name, (_, metric, _) in RECORDS.items()}


def record(telemetry, *names):
    for name in names:
        RECORDS[name][0](telemetry)


def filled():
    telemetry = DefenseLayerTelemetry()
    record(telemetry, "start", "careful", "clip", "clip", "fill")
    record(telemetry, "start", "layer1")
    record(telemetry, "start", "fixed", "layer3", "failure")
    return telemetry


def parsed(text):
    families = list(text_string_to_metric_families(text))
    assert {family.type for family in families} == {"counter"}
    assert all(family.documentation for family in families)
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_counts_once_and_leaves_its_event(name):
    telemetry = DefenseLayerTelemetry()
    record(telemetry, name)
    assert {k: v for k, v in telemetry.export_metrics().items() if v} == {METRICS[name]: 1}
    expected = RECORDS[name][2]
    assert [(e["type"], e["data"]) for e in telemetry.get_recent_events()] == ([expected] if expected else [])


def test_attributes():
    telemetry = filled()
    assert telemetry.total_warmup_calls == 3
    assert telemetry.layer1_warm_start_triggers == 1
    assert telemetry.layer2_lr_mode_counts == {"refinement": 0, "careful": 1, "exploration": 0, "fixed": 1}
    assert telemetry.layer3_cost_guard_triggers == 1
    assert telemetry.layer4_clip_triggers == 2
    assert telemetry.lbfgs_history_buffer_fill_events == 1
    assert telemetry.lbfgs_line_search_failures == 1


def test_rates_are_percent_of_the_calls():
    rates = filled().get_trigger_rates()
    third = 100 / 3
    assert rates == pytest.approx(
        {
            "layer1_warm_start_rate": third,
            "layer2_refinement_rate": 0.0,
            "layer2_careful_rate": third,
            "layer2_exploration_rate": 0.0,
            "layer3_cost_guard_rate": third,
            "layer4_clip_rate": 2 * third,
            "layer4_clipped_fits_rate": third,
            "lbfgs_history_buffer_fill_rate": third,
            "lbfgs_line_search_failure_rate": third,
        }
    )


def test_rates_without_calls_are_zero():
    telemetry = DefenseLayerTelemetry()
    assert telemetry.get_trigger_rates() == dict.fromkeys(RATES, 0.0)
    record(telemetry, "clip", "layer1")
    assert telemetry.get_trigger_rates() == dict.fromkeys(RATES, 0.0)


def test_clips_pass_100_percent_and_clipped_fits_do_not():
    telemetry = DefenseLayerTelemetry()
    record(telemetry, "clip")  # outside any warm-up
    record(telemetry, "start", *["clip"] * 5, "start", "start", "clip", "start")
    rates = telemetry.get_trigger_rates()
    assert rates["layer4_clip_rate"] == pytest.approx(100 * 7 / 4)
    assert rates["layer4_clipped_fits_rate"] == pytest.approx(100 * 2 / 4)


def test_summary():
    assert filled().get_summary() == {
        "total_warmup_calls": 3,
        "layer1": {"name": "warm_start_detection", "triggers": 1, "rate_pct": pytest.approx(100 / 3)},
        "layer2": {
            "name": "adaptive_lr_selection",
            "mode_counts": {"refinement": 0, "careful": 1, "exploration": 0, "fixed": 1},
            "rates_pct": {"refinement": 0.0, "careful": pytest.approx(100 / 3), "exploration": 0.0},
        },
        "layer3": {"name": "cost_increase_guard", "triggers": 1, "rate_pct": pytest.approx(100 / 3)},
        "layer4": {"name": "step_clipping", "triggers": 2, "rate_pct": pytest.approx(200 / 3)},
    }


def test_reset_forgets_everything():
    telemetry = filled()
    telemetry.record_warmup_start()
    telemetry.reset()
    assert telemetry.export_metrics() == DefenseLayerTelemetry().export_metrics()
    assert telemetry.get_recent_events(1000) == []
    telemetry.record_layer4_clip(1.0, 0.1)  # of the warm-up that was forgotten
    telemetry.record_warmup_start()
    assert telemetry.get_trigger_rates()["layer4_clipped_fits_rate"] == 0.0


@pytest.mark.parametrize("mode", ["", "Careful", "fast", None])
def test_an_unknown_mode_is_refused_and_not_counted(mode):
    telemetry = DefenseLayerTelemetry()
    with pytest.raises(ValueError, match="refinement, careful, exploration, fixed"):
        telemetry.record_layer2_lr_mode(mode, 0.1)
    assert set(telemetry.layer2_lr_mode_counts.values()) == {0}
    assert telemetry.get_recent_events() == []


def test_the_last_events_oldest_first(monkeypatch):
    clock = iter(range(100, 10_000))
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    telemetry = DefenseLayerTelemetry()
    for k in range(20):
        telemetry.record_lbfgs_history_fill(k)
    events = telemetry.get_recent_events()
    assert [e["data"]["iteration"] for e in events] == list(range(10, 20))
    assert [e["timestamp"] for e in events] == [110.0 + k for k in range(10)]
    assert [e["data"]["iteration"] for e in telemetry.get_recent_events(2)] == [18, 19]
    assert telemetry.get_recent_events(0) == []
    with pytest.raises(ValueError, match="n=-1"):
        telemetry.get_recent_events(-1)


def test_a_thousand_events_are_kept():
    telemetry = DefenseLayerTelemetry()
    for k in range(1234):
        telemetry.record_lbfgs_history_fill(k)
    events = telemetry.get_recent_events(5000)
    assert [e["data"]["iteration"] for e in events] == list(range(234, 1234))
    assert telemetry.lbfgs_history_buffer_fill_events == 1234


def test_what_is_returned_is_a_copy():
    telemetry = filled()
    telemetry.layer2_lr_mode_counts["careful"] = 99
    telemetry.get_summary()["layer2"]["mode_counts"]["careful"] = 99
    for event in telemetry.get_recent_events():
        event["data"].clear()
        event["type"] = "other"
    assert telemetry.layer2_lr_mode_counts["careful"] == 1
    assert all(e["data"] and e["type"] != "other" for e in telemetry.get_recent_events())


def test_numpy_numbers_become_json():
    telemetry = DefenseLayerTelemetry()
    telemetry.record_layer3_trigger(np.float32(1.5), np.float64(0.5), np.int64(4))
    event = json.loads(json.dumps(telemetry.get_recent_events()))[0]
    assert event["data"] == {"cost_ratio": 1.5, "tolerance": 0.5, "iteration": 4}


def test_eight_threads_add_up():
    telemetry, names = DefenseLayerTelemetry(), tuple(RECORDS)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads change within a record and within a summary

    def work(shift):
        for k in range(10_000):
            record(telemetry, names[(k + shift) % len(names)])

    try:
        threads = [threading.Thread(target=work, args=(shift,)) for shift in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            assert len(telemetry.get_recent_events(2000)) <= 1000
            summary = telemetry.get_summary()
            calls, clips = summary["total_warmup_calls"], summary["layer4"]["triggers"]
            assert summary["layer4"]["rate_pct"] == (100.0 * clips / calls if calls else 0.0)
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert telemetry.export_metrics() == {METRICS[name]: 80_000 // len(names) for name in names}


def test_clipped_fits_of_interleaved_threads():
    telemetry = DefenseLayerTelemetry()
    turns = [threading.Event() for _ in range(4)]

    def first():
        record(telemetry, "start", "clip")
        turns[0].set()
        assert turns[1].wait(10)
        record(telemetry, "clip")  # the other's start must not make this count again
        turns[2].set()

    def second():
        assert turns[0].wait(10)
        record(telemetry, "start")
        turns[1].set()
        assert turns[2].wait(10)
        record(telemetry, "clip", "clip")  # nor the first's clip make this not count
        turns[3].set()

    threads = [threading.Thread(target=target) for target in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert turns[3].is_set()
    rates = telemetry.get_trigger_rates()
    assert (rates["layer4_clip_rate"], rates["layer4_clipped_fits_rate"]) == (200.0, 100.0)


def test_prometheus_text_parses_back():
    telemetry = filled()
    text = telemetry.prometheus_text()
    assert parsed(text) == telemetry.export_metrics()
    for name in telemetry.export_metrics():
        assert f"# TYPE {name} counter\n" in text
        assert f"# HELP {name} " in text


def test_collector_in_a_registry():
    telemetry, registry = filled(), CollectorRegistry(auto_describe=True)
    collector = telemetry.collector()
    registry.register(collector)
    assert parsed(generate_latest(registry).decode()) == telemetry.export_metrics()
    assert registry.get_sample_value("nlsq_defense_layer4_triggers_total") == 2
    record(telemetry, "clip")
    assert registry.get_sample_value("nlsq_defense_layer4_triggers_total") == 3
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(telemetry.collector())
    registry.unregister(collector)
    assert generate_latest(registry) == b""


def test_collector_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    with pytest.raises(MissingDependency, match="prometheus_client"):
        DefenseLayerTelemetry().collector()


@pytest.mark.parametrize("duplicate", [lambda t: pickle.loads(pickle.dumps(t)), copy.deepcopy, copy.copy])
def test_copies_are_equal_and_independent(duplicate):
    telemetry = filled()
    other = duplicate(telemetry)
    assert other.get_summary() == telemetry.get_summary()
    assert other.get_recent_events(1000) == telemetry.get_recent_events(1000)
    before = telemetry.get_summary(), telemetry.get_recent_events(1000)
    record(other, "start", "careful", "clip")
    assert (telemetry.get_summary(), telemetry.get_recent_events(1000)) == before
    assert other.total_warmup_calls == 4
    assert other.get_trigger_rates()["layer4_clipped_fits_rate"] == 50.0


def everything(telemetry):
    return telemetry.get_summary(), telemetry.get_trigger_rates(), telemetry.get_recent_events(1000)


def test_what_is_known_goes_through_a_checkpoint():
    telemetry = filled()
    known = from_tree(unpack(pack(to_tree(telemetry.to_dict()))))
    other = DefenseLayerTelemetry()
    record(other, "layer3", "clip")  # is replaced
    other.restore(known)
    assert everything(other) == everything(telemetry)
    record(other, "start", "clip")
    assert everything(other) != everything(telemetry)
    assert known == telemetry.to_dict()


@pytest.mark.parametrize("before", [["start"], ["start", "clip"], []])
def test_a_warmup_that_goes_on_is_counted_as_clipped_once(before):
    telemetry, other = DefenseLayerTelemetry(), DefenseLayerTelemetry()
    record(telemetry, *before)
    other.restore(telemetry.to_dict())
    for each in (telemetry, other):
        record(each, "clip", "clip", "start")
    assert other.get_trigger_rates() == telemetry.get_trigger_rates()


@pytest.mark.parametrize(
    "change",
    [
        lambda known: known.clear(),
        lambda known: known.update(counts=None),
        lambda known: known["counts"].pop("total_warmup_calls"),
        lambda known: known["counts"].update(_lock=1),
        lambda known: known["counts"].update(total_warmup_calls=-1),
        lambda known: known["counts"].update(total_warmup_calls="1"),
        lambda known: known.update(events=3),
        lambda known: known["events"].append("event"),
        lambda known: known["events"].append({"type": "layer4_clip"}),
    ],
)
def test_what_is_not_from_a_telemetry_is_refused_and_changes_nothing(change):
    telemetry, known = filled(), filled().to_dict()
    before = everything(telemetry)
    change(known)
    with pytest.raises((LookupError, TypeError, ValueError)):
        telemetry.restore(known)
    assert everything(telemetry) == before


def test_events_to_come_are_added_to_a_copy():
    telemetry = filled()
    before = everything(telemetry)
    ahead = with_events(telemetry, [WarmupStarted(), StepClipped(3.0, 0.1), StepClipped(2.0, 0.1)])
    assert everything(telemetry) == before
    record(telemetry, "start", "clip", "clip")
    assert ahead.get_summary() == telemetry.get_summary()
    assert ahead.get_trigger_rates() == telemetry.get_trigger_rates()


def test_observer_records_in_every_sink():
    sinks = DefenseLayerTelemetry(), DefenseLayerTelemetry()
    observe = TelemetryObserver(*sinks)
    for event in (
        WarmupStarted(),
        WarmStartDetected(0.008, 0.01),
        StepModeChosen("careful", 0.5),
        StepClipped(3.0, 0.1),
        WarmupStepDone(1, 500, 2.0, 0.1, 0.1, (1.0,)),
        HistoryFilled(10),
        LineSearchFailed(3, "step underflow"),
        CostGuardTripped(1.2, 0.05, 7),
    ):
        observe(event)
    expected = DefenseLayerTelemetry()
    record(expected, "start", "layer1", "careful", "clip", "fill", "failure", "layer3")
    for sink in sinks:
        assert sink.get_summary() == expected.get_summary()
        kept = [[(e["type"], e["data"]) for e in t.get_recent_events()] for t in (sink, expected)]
        assert kept[0] == kept[1]


def test_the_telemetry_of_the_process():
    telemetry = get_defense_telemetry()
    assert telemetry is get_defense_telemetry()
    telemetry.record_warmup_start()
    assert telemetry.total_warmup_calls >= 1
    reset_defense_telemetry()
    assert get_defense_telemetry() is telemetry
    assert telemetry.total_warmup_calls == 0


@given(names=st.lists(st.sampled_from(sorted(RECORDS)), max_size=60))
@settings(deadline=None)
def test_any_sequence_is_counted_consistently(names):
    telemetry = DefenseLayerTelemetry()
    record(telemetry, *names)
    metrics, rates, summary = telemetry.export_metrics(), telemetry.get_trigger_rates(), telemetry.get_summary()
    assert metrics == {metric: names.count(name) for name, metric in METRICS.items()}
    assert set(rates) == RATES
    calls, modes = names.count("start"), summary["layer2"]["mode_counts"]
    assert summary["total_warmup_calls"] == calls
    assert modes == telemetry.layer2_lr_mode_counts == {mode: names.count(mode) for mode in MODES}
    counted = {"layer1": "layer1", "layer3": "layer3", "layer4": "clip"}
    assert {layer: summary[layer]["triggers"] for layer in counted} == {k: names.count(v) for k, v in counted.items()}
    shown = {
        "layer1_warm_start_rate": summary["layer1"]["rate_pct"],
        "layer3_cost_guard_rate": summary["layer3"]["rate_pct"],
        "layer4_clip_rate": summary["layer4"]["rate_pct"],
        **{f"layer2_{mode}_rate": rate for mode, rate in summary["layer2"]["rates_pct"].items()},
    }
    assert shown == {name: rates[name] for name in shown}
    if calls:
        assert rates["layer4_clip_rate"] * calls / 100 == pytest.approx(names.count("clip"))
        assert rates["lbfgs_history_buffer_fill_rate"] * calls / 100 == pytest.approx(names.count("fill"))
        assert rates["lbfgs_line_search_failure_rate"] * calls / 100 == pytest.approx(names.count("failure"))
        warmups = "".join("s" if n == "start" else "c" for n in names if n in {"start", "clip"}).split("s")[1:]
        assert rates["layer4_clipped_fits_rate"] * calls / 100 == pytest.approx(sum("c" in w for w in warmups))
    else:
        assert set(rates.values()) == {0.0}
    assert len(telemetry.get_recent_events(1000)) == len(names) - calls
