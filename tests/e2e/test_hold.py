"""The points at which fault tests hold a program are still in it: a renamed function fails here, not after minutes."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("hold", Path(__file__).parent / "hold" / "sitecustomize.py")
hold = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hold)


@pytest.mark.parametrize("point", hold.POINTS)
def test_the_function_of_a_point_exists(point):
    holder, name = hold.found(hold.POINTS[point][1])
    assert callable(getattr(holder, name))
