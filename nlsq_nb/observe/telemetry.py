"""Counts of what the four defence layers of the warm-up did, over one fit or over many."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nlsq_nb.observe.kept import Clips, expanded
from nlsq_nb.observe.metrics import collector_of, exposition

__all__ = [
    "DefenseLayerTelemetry",
    "get_defense_telemetry",
    "reset_defense_telemetry",
]

_MODES = ("refinement", "careful", "exploration", "fixed")
_KEPT_EVENTS = 1000
_EVENT = {"type", "timestamp", "data"}


class DefenseLayerTelemetry:
    """Counts what the defence layers did; any number of threads may record and read at once.

    Attributes
    ----------
    total_warmup_calls : int
        Warm-ups begun, those that layer 1 skipped included.
    layer1_warm_start_triggers : int
        Warm-ups skipped because the start was near the optimum.
    layer3_cost_guard_triggers : int
        Warm-ups abandoned because the loss rose.
    layer4_clip_triggers : int
        Steps shortened; a warm-up may count several.
    lbfgs_history_buffer_fill_events : int
        Warm-ups that filled the L-BFGS memory.
    lbfgs_line_search_failures : int
        Line searches that found no acceptable step.

    Examples
    --------
    >>> from nlsq_nb import DefenseLayerTelemetry
    >>> telemetry = DefenseLayerTelemetry()
    >>> telemetry.record_warmup_start()
    >>> telemetry.record_layer2_lr_mode("careful", relative_loss=0.4)
    >>> telemetry.get_trigger_rates()["layer2_careful_rate"]
    100.0
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero and forget the events."""
        with self._lock:
            self.total_warmup_calls = 0
            self.layer1_warm_start_triggers = 0
            self.layer3_cost_guard_triggers = 0
            self.layer4_clip_triggers = 0
            self.lbfgs_history_buffer_fill_events = 0
            self.lbfgs_line_search_failures = 0
            self._modes = dict.fromkeys(_MODES, 0)
            self._clipped_calls = 0
            self._events: deque[dict[str, Any] | Clips] = deque(maxlen=_KEPT_EVENTS)
            # A warm-up runs in one thread, so each thread knows whether its own was clipped.
            self._call = threading.local()

    @property
    def layer2_lr_mode_counts(self) -> dict[str, int]:
        """Warm-ups by the tier of their first step: refinement, careful, exploration, fixed."""
        with self._lock:
            return dict(self._modes)

    def record_warmup_start(self) -> None:
        """Count a warm-up."""
        with self._lock:
            self.total_warmup_calls += 1
            self._call.unclipped = True

    def record_layer1_trigger(self, relative_loss: float, threshold: float) -> None:
        """Count a warm-up skipped at a good start.

        Parameters
        ----------
        relative_loss : float
            MSE at p0 over the variance of y.
        threshold : float
            What it is below.
        """
        with self._lock:
            self.layer1_warm_start_triggers += 1
            self._keep("layer1_warm_start", relative_loss=relative_loss, threshold=threshold)

    def record_layer2_lr_mode(self, mode: str, relative_loss: float) -> None:
        """Count the tier of a first step.

        Parameters
        ----------
        mode : {"refinement", "careful", "exploration", "fixed"}
            The tier.
        relative_loss : float
            MSE at p0 over the variance of y.

        Raises
        ------
        ValueError
            For another mode.
        """
        if mode not in _MODES:
            raise ValueError(f"mode={mode!r} is not one of {', '.join(_MODES)}")
        with self._lock:
            self._modes[mode] += 1
            self._keep("layer2_lr_mode", mode=mode, relative_loss=relative_loss)

    def record_layer3_trigger(self, cost_ratio: float, tolerance: float, iteration: int) -> None:
        """Count a warm-up abandoned because the loss rose.

        Parameters
        ----------
        cost_ratio : float
            Loss over the best loss.
        tolerance : float
            Relative increase that is tolerated.
        iteration : int
            Iteration of the warm-up.
        """
        with self._lock:
            self.layer3_cost_guard_triggers += 1
            data = {"cost_ratio": cost_ratio, "tolerance": tolerance, "iteration": iteration}
            self._keep("layer3_cost_guard", **data)

    def record_layer4_clip(self, original_norm: float, max_norm: float) -> None:
        """Count a shortened step.

        Parameters
        ----------
        original_norm, max_norm : float
            Length of the step, and the longest one allowed, in normalised parameters.
        """
        self.record_layer4_clips((float(original_norm),), float(max_norm))

    def record_layer4_clips(self, original_norms: Sequence[float], max_norm: float) -> None:
        """Count the shortened steps of one warm-up.

        Parameters
        ----------
        original_norms : sequence of float
            Lengths of the steps in normalised parameters.
        max_norm : float
            The longest one allowed.
        """
        now = time.time()
        with self._lock:
            self.layer4_clip_triggers += len(original_norms)
            self._clipped_calls += getattr(self._call, "unclipped", False)
            self._call.unclipped = False
            self._events.append(Clips(now, tuple(original_norms), max_norm))

    def record_lbfgs_history_fill(self, iteration: int) -> None:
        """Count a warm-up that filled the L-BFGS memory.

        Parameters
        ----------
        iteration : int
            Iteration of the warm-up.
        """
        with self._lock:
            self.lbfgs_history_buffer_fill_events += 1
            self._keep("lbfgs_history_fill", iteration=iteration)

    def record_lbfgs_line_search_failure(self, iteration: int, reason: str = "") -> None:
        """Count a line search that found no acceptable step.

        Parameters
        ----------
        iteration : int
            Iteration of the warm-up.
        reason : str
            What went wrong.
        """
        with self._lock:
            self.lbfgs_line_search_failures += 1
            self._keep("lbfgs_line_search_failure", iteration=iteration, reason=reason)

    def get_recent_events(self, n: int = 10) -> list[dict[str, Any]]:
        """Get the last events.

        Parameters
        ----------
        n : int
            How many at most; 1000 are kept.

        Returns
        -------
        list of dict
            `type`, `timestamp` (seconds since 1970) and `data` of each, oldest first.

        Raises
        ------
        ValueError
            For a negative n.
        """
        if n < 0:
            raise ValueError(f"n={n!r} is negative; how many events are wanted?")
        with self._lock:
            known = expanded(self._events, _KEPT_EVENTS)
            return [event | {"data": dict(event["data"])} for event in known[max(0, len(known) - n) :]]

    def get_trigger_rates(self) -> dict[str, float]:
        """Get each count as percent of the warm-ups begun.

        Returns
        -------
        dict of str to float
            All 0 before the first warm-up. `layer4_clip_rate` counts steps and can pass 100;
            `layer4_clipped_fits_rate` counts the warm-ups with at least one shortened step.
        """
        with self._lock:
            counts = {
                "layer1_warm_start_rate": self.layer1_warm_start_triggers,
                "layer2_refinement_rate": self._modes["refinement"],
                "layer2_careful_rate": self._modes["careful"],
                "layer2_exploration_rate": self._modes["exploration"],
                "layer3_cost_guard_rate": self.layer3_cost_guard_triggers,
                "layer4_clip_rate": self.layer4_clip_triggers,
                "layer4_clipped_fits_rate": self._clipped_calls,
                "lbfgs_history_buffer_fill_rate": self.lbfgs_history_buffer_fill_events,
                "lbfgs_line_search_failure_rate": self.lbfgs_line_search_failures,
            }
            calls = self.total_warmup_calls
        return {name: 100.0 * count / calls if calls else 0.0 for name, count in counts.items()}

    def get_summary(self) -> dict[str, Any]:
        """Get counts and rates by layer.

        Returns
        -------
        dict
            `total_warmup_calls`, and for `layer1` to `layer4` a dict of `name` and either
            `triggers` and `rate_pct`, or for layer 2 `mode_counts` and `rates_pct`.
        """
        with self._lock:
            rates = self.get_trigger_rates()

            def layer(name: str, triggers: int, rate: str) -> dict[str, Any]:
                return {"name": name, "triggers": triggers, "rate_pct": rates[rate]}

            skips, guards = self.layer1_warm_start_triggers, self.layer3_cost_guard_triggers
            clips = self.layer4_clip_triggers
            # "fixed" has no rate: it says that the layer is off
            shares = {m: rates[f"layer2_{m}_rate"] for m in _MODES if m != "fixed"}
            modes = {"mode_counts": dict(self._modes), "rates_pct": shares}
            return {
                "total_warmup_calls": self.total_warmup_calls,
                "layer1": layer("warm_start_detection", skips, "layer1_warm_start_rate"),
                "layer2": {"name": "adaptive_lr_selection", **modes},
                "layer3": layer("cost_increase_guard", guards, "layer3_cost_guard_rate"),
                "layer4": layer("step_clipping", clips, "layer4_clip_rate"),
            }

    def export_metrics(self) -> dict[str, int]:
        """Get the counts under the names that a metrics system wants.

        Returns
        -------
        dict of str to int
            Rising counts, all named `nlsq_defense_…_total`.
        """
        with self._lock:
            return {
                "nlsq_defense_warmup_calls_total": self.total_warmup_calls,
                "nlsq_defense_layer1_triggers_total": self.layer1_warm_start_triggers,
                **{f"nlsq_defense_layer2_{mode}_total": n for mode, n in self._modes.items()},
                "nlsq_defense_layer3_triggers_total": self.layer3_cost_guard_triggers,
                "nlsq_defense_layer4_triggers_total": self.layer4_clip_triggers,
                "nlsq_defense_lbfgs_history_fill_total": self.lbfgs_history_buffer_fill_events,
                "nlsq_defense_lbfgs_line_search_failures_total": self.lbfgs_line_search_failures,
            }

    def prometheus_text(self) -> str:
        """Get the counts in Prometheus' text exposition format, version 0.0.4.

        Returns
        -------
        str
            Ends with a newline.
        """
        return exposition(self.export_metrics())

    def collector(self) -> Any:
        """Get an object for `prometheus_client`'s `CollectorRegistry.register`.

        Returns
        -------
        object
            Reads the counts anew at each scrape.

        Raises
        ------
        MissingDependency
            Without prometheus_client.
        """
        return collector_of(self.export_metrics)

    def to_dict(self) -> dict[str, Any]:
        """Get everything that is known, for `restore`; called by the thread of a running warm-up.

        Returns
        -------
        dict
            Counts, events and whether the warm-up of this thread has not been clipped yet: plain
            values that a checkpoint can hold.
        """
        with self._lock:
            counts = {name: value for name, value in vars(self).items() if type(value) is int}
            return {
                "counts": counts | {f"mode {mode}": n for mode, n in self._modes.items()},
                "unclipped": getattr(self._call, "unclipped", False),
                "events": expanded(self._events, _KEPT_EVENTS),  # an event is never changed
            }

    def restore(self, known: Mapping[str, Any]) -> None:
        """Go on from what another telemetry knew, in place of what is here.

        Parameters
        ----------
        known : mapping
            From `to_dict`.

        Raises
        ------
        LookupError, TypeError, ValueError
            When it is something else.
        """
        counts, kept = dict(known["counts"]), list(known["events"])
        sound = all(type(n) is int and n >= 0 for n in counts.values()) and all(
            isinstance(event, dict) and event.keys() == _EVENT for event in kept
        )
        if not sound or counts.keys() != self.to_dict()["counts"].keys():
            raise ValueError("these are not the counts and events of a telemetry")
        with self._lock:
            self.reset()
            self._modes = {mode: counts.pop(f"mode {mode}") for mode in _MODES}
            vars(self).update(counts)
            self._call.unclipped = known["unclipped"] is True
            self._events.extend(kept)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            own = {k: v for k, v in vars(self).items() if k not in ("_lock", "_call")}
            return own | {"_modes": dict(self._modes), "_events": self._events.copy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock(), _call=threading.local())

    def _keep(self, kind: str, **data: Any) -> None:
        """Remember an event, NumPy's numbers as Python's; the caller holds the lock."""
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in data.items()}
        self._events.append({"type": kind, "timestamp": time.time(), "data": plain})


_GLOBAL = DefenseLayerTelemetry()


def get_defense_telemetry() -> DefenseLayerTelemetry:
    """Get the telemetry that sees every fit of this process.

    It counts what happened in this process: of a fit that was resumed from a checkpoint, what came
    after the resumption, while the telemetry of its result counts the whole fit.

    Returns
    -------
    DefenseLayerTelemetry
        Always the same object.
    """
    return _GLOBAL


def reset_defense_telemetry() -> None:
    """Set the telemetry of the process to zero; results keep their own."""
    _GLOBAL.reset()
