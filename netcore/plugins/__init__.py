"""Plugins: `spec` says which hooks there are, `manager` finds implementations, `registry` keeps names."""
