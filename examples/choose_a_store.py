"""One program, any backend: where the data lives is a line of configuration.

python examples/choose_a_store.py                                 # memory and a folder
KV_STORE=redis://localhost:6379/0 python examples/choose_a_store.py
"""

import os
import tempfile
from pathlib import Path

from kv_store_adapter import KVStoreProtocol, open_store


def work(store: KVStoreProtocol) -> None:
    """Hand out tickets once each, in a namespace that is swept afterwards."""
    with store.namespace("tickets", ttl=60, clear_on_exit=True) as tickets:
        tickets.set_many({"row 1": "free", "row 2": "free"})
        assert tickets.add("row 3", "free") is True
        assert tickets.add("row 3", "taken") is False  # somebody was faster

        # Of many callers, in any thread or process that shares the store, one gets it.
        assert tickets.pop("row 1") == "free"
        assert tickets.pop("row 1", default="sold") == "sold"

        table = tickets.as_mapping()
        table["row 2"] = {"name": "Ada", "paid": True}
        assert dict(table) == {"row 2": {"name": "Ada", "paid": True}, "row 3": "free"}
        assert sorted(tickets.keys(pattern="row [1-9]")) == ["row 2", "row 3"]
    assert "tickets" not in store.list_namespaces()


def main() -> None:
    """Do the same work on every store at hand."""
    with tempfile.TemporaryDirectory() as folder:
        urls = ["memory://", (Path(folder) / "store").as_uri().replace("file:", "disk:", 1)]
        if "KV_STORE" in os.environ:
            urls.append(os.environ["KV_STORE"])
        for url in urls:
            with open_store(url) as store:
                work(store)
                print(f"{type(store).__name__}: the same answers")


if __name__ == "__main__":
    main()
