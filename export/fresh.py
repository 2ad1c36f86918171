"""A process of its own that loads one exported file and runs it: ``python -P fresh.py job.json``.

Imports numpy and what the format needs, nothing of netcarve: what runs here runs at the user's. Arrays
travel as ``.npz`` without pickle.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WARMUP, REPEATS, SECONDS = 3, 30, 1.0  # of the timing: calls before it, calls at most, seconds at most


def main(job_file: str) -> None:
    """Answer the batches of a job; the job's fields are written in :mod:`.process`."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    _bound(job["cpu_seconds"], job["memory_bytes"])
    sys.path.extend(job["search_path"])
    # As a file and not by its package: importing that would import netcarve.
    spec = importlib.util.spec_from_file_location("format_file", job["code"])
    assert spec is not None
    assert spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    if job["task"] is not None:
        code.TASK = job["task"]  # type: ignore[attr-defined]
    run = code.load(Path(job["folder"]), job["structure"], job["threads"])
    answers: dict[str, np.ndarray] = {}
    latency = None
    with np.load(job["inputs"], allow_pickle=False) as arrays:

        def leaves(batch: int) -> list[Any]:
            return [
                arrays[f"{batch}.{position}"] if constant is None else constant[0]
                for position, constant in enumerate(job["constants"])
            ]

        for batch in range(job["batches"]):
            for position, output in enumerate(run(leaves(batch))):
                answers[f"{batch}.{position}"] = as_array(output)
        if job["batches"]:
            latency = timed(run, leaves(0)) | {"threads": job["threads"]}
    np.savez(job["outputs"], **answers)  # type: ignore[arg-type]
    modules = sorted({name.partition(".")[0] for name in sys.modules})
    Path(job["report"]).write_text(json.dumps({"modules": modules, "latency": latency}), encoding="utf-8")


def _bound(cpu_seconds: int, memory_bytes: int) -> None:
    """This process ends with its parent, and takes no more than that."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "standalone"))
    import limits  # type: ignore[import-not-found]

    del sys.path[0]
    limits.tie()
    limits.limit(cpu_seconds, memory_bytes)


def timed(run: Callable[[list[Any]], list[Any]], leaves: list[Any]) -> dict[str, Any]:
    """Milliseconds of one call: median and quartiles."""
    for _ in range(WARMUP):
        run(leaves)
    taken: list[int] = []
    end = time.perf_counter() + SECONDS
    while len(taken) < REPEATS and (len(taken) < WARMUP or time.perf_counter() < end):
        start = time.perf_counter_ns()
        run(leaves)
        taken.append(time.perf_counter_ns() - start)
    q25, median, q75 = np.quantile(np.array(taken) / 1e6, [0.25, 0.5, 0.75]).tolist()
    return {"median_ms": median, "q25_ms": q25, "q75_ms": q75, "repeats": len(taken)}


def as_array(output: Any) -> np.ndarray:
    """An array as it is, a tensor as an array; bfloat16, which numpy lacks, as float32."""
    if isinstance(output, np.ndarray):
        return output
    output = output.detach().cpu()
    array: np.ndarray = (output.float() if str(output.dtype) == "torch.bfloat16" else output).numpy()
    return array


if __name__ == "__main__":
    main(sys.argv[1])
