"""What every test in the repository shares, the plugins' tests included: Hypothesis's two profiles."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# A shell without job control lets what it starts in the background ignore SIGINT, and so would every
# process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Timings on a shared machine say nothing about a test, hence no deadline and no "too slow".
settings.register_profile(
    "default", max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "ci", max_examples=400, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
# `--hypothesis-profile` and the variable choose; Hypothesis itself would take its own "ci" where CI is set.
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
