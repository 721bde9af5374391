"""What differs between two runs: settings, inputs and metrics, stage by stage."""

from __future__ import annotations

from typing import Any

from pipeline.record.history import ORDER, History
from pipeline.runner.identity import differences
from pipeline.runner.store import Artifact
from pipeline.schema import flat

SHOWN = 40  # metrics of a stage


def compare(a: History, b: History) -> dict[str, dict[str, Any]]:
    """Stage to its differences: ``only_in``, ``settings``, ``inputs``, ``metrics``, ``made_by``, ``same_output``.

    ``settings``, ``metrics`` and ``made_by`` map a name to its (a, b) values.
    """
    first, second = a.by_stage(), b.by_stage()
    found: dict[str, dict[str, Any]] = {}
    for stage in ORDER:
        one, two = first.get(stage), second.get(stage)
        if one and two:
            found[stage] = _stage(one, two)
        elif one or two:
            found[stage] = {"only_in": "A" if one else "B"}
    return found


def words_of(compared: dict[str, dict[str, Any]]) -> str:
    """A comparison for people, one paragraph a stage."""
    lines = []
    for stage, entry in compared.items():
        if "only_in" in entry:
            lines.append(f"{stage}: only in {entry['only_in']}")
            continue
        if entry["same_artifact"]:
            lines.append(f"{stage}: the same artifact")
            continue
        lines.append(f"{stage}: {'same output' if entry['same_output'] else 'differs'}")
        lines += [f"  {key}: {one} -> {two}" for key, (one, two) in entry["settings"].items()]
        lines += [f"  {line}" for line in entry["inputs"]]
        metrics = list(entry["metrics"].items())
        lines += [
            f"  {name}: {_number(one)} -> {_number(two)}{_change(one, two)}"
            for name, (one, two) in metrics[:SHOWN]
        ]
        if metrics[SHOWN:]:
            lines.append(f"  and {len(metrics) - SHOWN} more figures (--json has them all)")
        lines += [f"  {name}: {one} -> {two}" for name, (one, two) in entry["made_by"].items()]
    return "\n".join(lines)


def _stage(one: Artifact, two: Artifact) -> dict[str, Any]:
    a, b = one.manifest, two.manifest
    changes = differences(b["parts"], a["parts"])
    settings = _pairs(flat(a["parts"]["settings"]), flat(b["parts"]["settings"]))
    made = [
        {
            "commit": m["made_by"]["code"]["commit"],
            "source digest": m["made_by"]["code"]["source_digest"][:12],
            "toolchain lock": m["made_by"]["toolchain"]["lock_digest"][:12],
            "processor": m["made_by"]["machine"]["processor"],
            "seconds": m["seconds"],
            "peak memory (GB)": m["peak_memory_gb"],
            "attempts": len(m["attempts"]),
        }
        for m in (a, b)
    ]
    return {
        "same_artifact": a == b,
        "same_output": one.output_digest == two.output_digest,
        "settings": settings,
        "inputs": [
            line for line in changes if line.startswith(("input ", "the output of ", "stage version"))
        ],
        "metrics": _pairs(flat(a["metrics"]), flat(b["metrics"])),
        "made_by": _pairs(*made),
    }


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = [*a, *(name for name in b if name not in a)]
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _change(one: Any, two: Any) -> str:
    numbers = [v for v in (one, two) if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 2 or not one:
        return ""
    return f" ({(two - one) / abs(one):+.1%})"
