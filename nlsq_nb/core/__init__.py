"""Numerics on small arrays: sums, scaling, trust-region steps, bounds, covariance; no data, no JIT."""
