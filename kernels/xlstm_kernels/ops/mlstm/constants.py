"""Numbers that every implementation of the mLSTM shares."""

EPSILON = 1e-6
"""Added to the denominator after the maximum; keeps h finite where exp(-m) underflows and n is orthogonal to q."""
