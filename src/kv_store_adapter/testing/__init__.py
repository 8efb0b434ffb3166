"""The conformance suite: what every store promises, as tests. For us and for authors of backends.

A backend is held to the promise in five lines::

    from kv_store_adapter.testing import KVStoreContract

    class TestMyStore(KVStoreContract):
        @pytest.fixture
        def store(self):
            return MyStore()          # fresh and empty

`AsyncKVStoreContract` does the same for ``store.aio``, and `state_machine` lets hypothesis look for
a sequence of calls in which the store and a dictionary disagree. Needs pytest; time-machine for
expiry (or your own `KVStoreContract.travel`), and hypothesis for `state_machine` alone.
"""

from __future__ import annotations

try:
    import pytest
except ImportError as error:
    raise ImportError("kv_store_adapter.testing needs pytest: pip install pytest.") from error

# Before they are imported: a failed assert then shows what was compared, as in any test module.
pytest.register_assert_rewrite(
    *(f"{__name__}.{room}" for room in ("asynchronous", "contract", "derived", "machine"))
)

from .asynchronous import AsyncKVStoreContract  # noqa: E402  # see above
from .contract import KVStoreContract  # noqa: E402
from .machine import state_machine  # noqa: E402
from .samples import travel  # noqa: E402

__all__ = ["AsyncKVStoreContract", "KVStoreContract", "state_machine", "travel"]
