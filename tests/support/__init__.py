"""What tests of every folder share: real servers, waiting, and the processes a test run leaves behind."""

import pkgutil

import pytest

# So that a failing `assert` in a shared module shows its values, as one in a test file does.
pytest.register_assert_rewrite(
    "conformance",
    "understudy.cluster.testing",
    *(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)),
)
