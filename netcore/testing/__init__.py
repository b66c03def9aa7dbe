"""What adapter authors test with: the contract as a suite, test doubles, real servers, faults.

Install `netcore-bus[testing]`. A module a subject; import from the module.
"""
