"""Hypothesis profiles: `--hypothesis-profile=ci` is the long run."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile("jsonpath", max_examples=300, deadline=None, suppress_health_check=_UNHURRIED)
settings.register_profile("ci", max_examples=10_000, deadline=None, suppress_health_check=_UNHURRIED)
