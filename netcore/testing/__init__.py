"""What adapter authors test with: the contract as a suite, test doubles, real servers, faults.

Install `netcore-bus[testing]`. A module a subject; import from the module:

- `contract`: `AdapterContract`, a pytest class that runs the whole adapter contract.
- `faults`: `FaultyAdapter`, which fails as a test scripts it; `plugin_for` registers an adapter.
- `clock`: a wall clock that a test moves by hand.
- `proxy`: a TCP proxy that delays, stalls, cuts and swallows.
- `servers`: Redis and NATS servers as subprocesses. `tls`: certificates for them.
"""
