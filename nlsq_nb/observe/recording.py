"""From the events of a fit to the counts of its telemetry."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nlsq_nb import events
from nlsq_nb.observe.telemetry import DefenseLayerTelemetry

__all__ = ["TelemetryObserver", "with_events"]


class TelemetryObserver:
    """Records the events of one fit in every telemetry given.

    Parameters
    ----------
    *sinks : DefenseLayerTelemetry
        The result's own, and the one of the process.
    """

    def __init__(self, *sinks: DefenseLayerTelemetry) -> None:
        self._sinks = sinks

    def __call__(self, event: events.Event) -> None:
        """Receive an event."""
        for sink in self._sinks:
            _record(sink, event)


def with_events(
    telemetry: DefenseLayerTelemetry, coming: Iterable[events.Event]
) -> DefenseLayerTelemetry:
    """A telemetry as it will be once it has been told of some events.

    Parameters
    ----------
    telemetry : DefenseLayerTelemetry
        Is left as it is.
    coming : iterable of Event
        What it will be told of.

    Returns
    -------
    DefenseLayerTelemetry
        A copy that knows them.
    """
    ahead = DefenseLayerTelemetry()
    ahead.restore(telemetry.to_dict())
    for event in coming:
        _record(ahead, event)
    return ahead


def _record(sink: DefenseLayerTelemetry, event: events.Event) -> None:
    record = _RECORDS.get(type(event))
    if record is not None:
        record(sink, event)


_RECORDS: dict[type[events.Event], Callable[[DefenseLayerTelemetry, Any], None]] = {
    events.WarmupStarted: lambda to, _: to.record_warmup_start(),
    events.WarmStartDetected: lambda to, e: to.record_layer1_trigger(e.relative_loss, e.threshold),
    events.StepModeChosen: lambda to, e: to.record_layer2_lr_mode(e.mode, e.relative_loss),
    events.CostGuardTripped: lambda to, e: to.record_layer3_trigger(e.cost_ratio, e.tolerance, e.iteration),
    events.StepClipped: lambda to, e: to.record_layer4_clip(e.original_norm, e.max_norm),
    events.StepsClipped: lambda to, e: to.record_layer4_clips(e.original_norms, e.max_norm),
    events.HistoryFilled: lambda to, e: to.record_lbfgs_history_fill(e.iteration),
    events.LineSearchFailed: lambda to, e: to.record_lbfgs_line_search_failure(e.iteration, e.reason),
}
