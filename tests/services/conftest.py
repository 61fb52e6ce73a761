"""For all tests of the services."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Machines are shared with training and with other tests: how long an example takes says nothing.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")
