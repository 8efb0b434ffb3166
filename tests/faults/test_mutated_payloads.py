"""Mutated payloads by the ten thousand: a value or one of our errors, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.timeout(600)
def test_a_mutated_payload_is_a_value_or_our_error(
    tmp_path: Path, redis_server: Any, rounds: Any, seed: int, count: Any
) -> None:
    """Whatever is done to stored bytes, reading them raises nothing outside of the tree, and ends."""
    child = Path(__file__).with_name("mutants.py")
    number = rounds(2_000, 100_000)
    command = [sys.executable, str(child), str(seed), str(number), str(redis_server.port)]
    ran = subprocess.run(
        [*command, str(tmp_path)],
        capture_output=True,
        # Nothing of the parent's environment that a mutant could get hold of.
        env={"PATH": os.defpath, "HOME": str(tmp_path), "PYTHONHASHSEED": "0"},
        timeout=540,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr.decode()[-3000:]
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["escaped"] == []
    assert told["counts"]["payloads"] == number
    # Mutants that are all refused, or all read, would show nothing.
    assert told["counts"]["refused"] > number / 10 and told["counts"]["read as a value"] > 100
    assert told["longest"] < 60
    count(
        "mutated payloads", told["counts"]["payloads"] + told["counts"]["payloads through stores"]
    )
    count("mutated payloads that were refused", told["counts"]["refused"])
    count("mutated payloads that raised anything else", 0)
