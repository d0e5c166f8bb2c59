"""Where rows come from, what they weigh, and samples of them; a source reads the same rows every time."""

from __future__ import annotations
