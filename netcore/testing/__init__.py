"""What adapter authors test with: the contract as a suite, test doubles, real servers, faults.

Install `netcore-bus[testing]`. A module a subject; import from the module:

- `contract`: `AdapterContract`, a pytest class that runs the whole adapter contract.
- `faults`: `FaultyAdapter`, which fails as a test scripts it; `plugin_for` registers an adapter.
- `clock`: a wall clock that a test moves by hand.
- `proxy`: a TCP proxy that delays, stalls, cuts and swallows.
- `servers`: Redis and NATS servers as subprocesses. `tls`: certificates for them.
"""

from __future__ import annotations

try:
    import pytest
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "netcore.testing needs pytest: pip install 'netcore-bus[testing]'", name=error.name
    ) from error

# Or a failing clause would say "AssertionError" and nothing else.
pytest.register_assert_rewrite(
    "netcore.testing._base",
    "netcore.testing._lifecycle",
    "netcore.testing._payloads",
    "netcore.testing._reading",
    "netcore.testing._storing",
)
