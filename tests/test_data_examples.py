import doctest

import pytest

from wasi.training import augment, data, dataset, loader, sources, transforms


@pytest.mark.parametrize("module", [augment, data, dataset, loader, sources, transforms])
def test_examples_of_the_docstrings_run(module):
    assert doctest.testmod(module).failed == 0
