"""Where rows come from: arrays for now; each source reads the same rows every time."""

from __future__ import annotations
