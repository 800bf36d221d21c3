"""A real model with one more module that fails as a file says: how tests make an encoder die, lie or stand still."""

import shutil
from pathlib import Path
from typing import Any

import orjson

MODULE = '''
"""Stands between the Transformer and its Pooling, and does what the file named by $FAULTS says."""

import json
import os
import time
from pathlib import Path

import torch


class Faulty(torch.nn.Module):
    @classmethod
    def load(cls, *args, **kwargs):
        return cls()

    def save(self, *args, **kwargs):
        pass

    def forward(self, features, **kwargs):
        path = Path(os.environ.get("FAULTS", "/nonexistent"))
        faults = json.loads(path.read_text()) if path.is_file() else {}
        ids = features["input_ids"]

        def holds(name):
            return name in faults and bool((ids == faults[name]).any())

        def note(what):
            with path.with_suffix(".log").open("a") as log:
                log.write(f"{what} {os.getpid()} {ids.numel()}\\n")

        if ids.shape[0] * ids.shape[1] > faults.get("memory_tokens", 1 << 30):
            note("memory")
            raise torch.OutOfMemoryError("CUDA out of memory")
        if holds("kills"):
            note("kills")
            os._exit(139)
        if holds("raises"):
            note("raises")
            raise RuntimeError("device-side assert")
        if holds("sleeps"):
            note("sleeps")
            time.sleep(3600)
        sick = path.with_suffix(".sick")
        if faults.get("first_process_is_sick") and (not sick.exists() or sick.read_text() == str(os.getpid())):
            sick.write_text(str(os.getpid()))
            note("sick")
            raise RuntimeError("unspecified launch failure")
        if "sick_address" in faults:
            import ray

            if faults["sick_address"] in ("all", ray.util.get_node_ip_address()):
                note("sick")
                features["token_embeddings"] = features["token_embeddings"] * float("nan")
            else:  # the others wait until it has been noticed
                log = path.with_suffix(".log")
                for _ in range(3000):
                    lines = log.read_text().splitlines() if log.exists() else []
                    if len({line.split()[1] for line in lines if line.startswith("sick ")}) >= faults["processes"]:
                        break
                    time.sleep(0.1)
        if holds("nan"):
            note("nan")
            rows = (ids == faults["nan"]).any(dim=1)
            features["token_embeddings"][rows] = float("nan")
        return features
'''


def write_faulty_model(real: Path, folder: Path) -> Path:
    """Copy a sentence-transformers folder and put the module between its first and its second."""
    shutil.copytree(real, folder)
    (folder / "faulty.py").write_text(MODULE, encoding="utf-8")
    modules: list[dict[str, Any]] = orjson.loads((folder / "modules.json").read_bytes())
    modules.insert(1, {"idx": 1, "name": "faulty", "path": "faulty", "type": "faulty.Faulty"})
    for number, module in enumerate(modules):
        module["idx"] = number
    (folder / "modules.json").write_bytes(orjson.dumps(modules))
    return folder


class Faults:
    """What is to go wrong in a run, and what did.

    Args:
        folder: where the file that the module reads lies.
    """

    def __init__(self, folder: Path, **faults: Any) -> None:
        self.path = folder / "faults.json"
        self.set(**faults)

    def set(self, **faults: Any) -> None:
        """Let other things go wrong from now on."""
        self.path.write_bytes(orjson.dumps(faults))

    @property
    def environment(self) -> dict[str, str]:
        return {"FAULTS": str(self.path)}

    def noted(self, what: str) -> list[tuple[int, int]]:
        """Return (process id, padded tokens) of every time the fault happened."""
        log = self.path.with_suffix(".log")
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return [(int(process), int(tokens)) for kind, process, tokens in lines if kind == what]
