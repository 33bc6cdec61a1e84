# SPDX-License-Identifier: Apache-2.0
"""A client on a helper that says what the test tells it to."""

from collections.abc import Iterator

import pytest
from tests.unit.proxy.fake_helper import Helper


@pytest.fixture
def helper() -> Iterator[Helper]:
    helper = Helper()
    yield helper
    helper.client.close()
    helper.ours.close()
