"""Fixtures of the mesh's tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mesh_cluster import Cluster  # the path above has to come first


@pytest.fixture
def cluster():
    """Node processes that end with the test."""
    nodes = Cluster()
    yield nodes
    nodes.close()
