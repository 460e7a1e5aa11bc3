"""Result documents as Markdown tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from benchmarks.goals import GOALS, IMPORT_SECONDS, SHELL_SECONDS
from benchmarks.report import growth, likeness

_LEFT_OUT = ": evaluation"  # is in ": in all"
_MOST_STAGES = 5


def table(document: Mapping[str, Any], wanted: Collection[str] = ()) -> str:
    """Rows of a result: those that are wanted, or all; of "likeness" and "precision" those of the wanted kind.

    The first head says how much of SDXL was run.
    """
    suite, rows = document["suite"], shown_rows(document, wanted)
    if suite in ("likeness", "precision"):
        [kind] = wanted
        head, lines = likeness.cells(document, kind)
    elif suite == "growth":
        head = ["", "first", "last", "law", "largest deviation"]
        lines = [growth.cells(row) for row in rows]
    elif suite == "best":
        head = [caption(document), "time", "ratio to the reference", "UNet, IdentityNet runs", "drift", "apart"]
        lines = [_best_cells(row) for row in rows]
    elif suite == "memory":
        head, lines = ["", "reference", "ours"], [_bytes_cells(row) for row in rows]
    elif suite == "step":
        names = "step, host, over plain, over reference, step MB, held MB, reads, launches, kernels"
        head = ["", *names.split(", ")]
        lines = [_step_cells(row) for row in rows]
    elif suite == "batch":
        head = [
            "",
            "seconds",
            "pictures/s, steady",
            "times as fast",
            "steady",
            "MB, second quarter",
            "MB, last quarter",
        ]
        lines = [_batch_cells(row) for row in rows]
    else:
        head = [caption(document), "reference", "ours", "limit", "ratio (min to max)", "goal"]
        lines = [[*_seconds_cells(document, row, GOALS.get(suite, {}).get(row["name"]))] for row in rows]
    return "\n".join([_line(head), "| --- |" + " --: |" * (len(head) - 1), *map(_line, lines)])


def stages(document: Mapping[str, Any], wanted: Collection[str] = ()) -> str:
    """The largest parts of our time, in rows that have them."""
    lines: list[str] = []
    for row in shown_rows(document, wanted):
        parts = row.get("ours_stages_seconds", {})
        largest = sorted(parts.items(), key=lambda part: -part[1])[:_MOST_STAGES]
        shares = [f"{name} {100 * share / sum(parts.values()):.0f} %" for name, share in largest]
        lines += [_line([title(document, row), ", ".join(shares)])] if shares else []
    return "\n".join([_line(("", "where ours spends its time")), "| --- | --- |", *lines])


def shown_rows(document: Mapping[str, Any], wanted: Collection[str] = ()) -> list[Mapping[str, Any]]:
    rows = [row for row in document["results"] if not row["name"].endswith(_LEFT_OUT)]
    return [row for row in rows if not wanted or row["name"] in wanted]


def caption(document: Mapping[str, Any]) -> str:
    """How much of SDXL was run, where that is less than the row's name suggests."""
    about = document.get("about", {})
    if document["suite"] not in ("headline", "best"):
        return ""
    share = "SDXL's full UNet" if about["channels"] == 320 else f"UNet of {about['channels']} of SDXL's 320 channels"
    return f"{share}, {about['side']} x {about['side']} px, {about['steps']} steps"


def title(document: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The row's name for readers. The sums of the suite "workflow" hold no UNet, and their title says so."""
    steps = document.get("about", {}).get("steps", "")
    layers = f", nodes + {steps} evaluations of the patched layers, no UNet"
    return row["name"].replace(": nodes", ", nodes").replace(": in all", layers)


def seconds(value: float) -> str:
    """4.2 ms, 310 ms, 1.45 s, 12.3 s"""
    if value < 1:
        return f"{1000 * value:.1f} ms" if value < 0.01 else f"{1000 * value:.0f} ms"
    return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"


def number(value: float) -> str:
    """Three digits and no exponent."""
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"


def _batch_cells(row: Mapping[str, Any]) -> list[str]:
    if "runs_seconds" in row:
        return [row["name"], seconds(row["runs_seconds"]["median"]), *[""] * 5]
    cells = [f"{row[name]:.1f}" if name in row else "" for name in ("seconds", "steady_per_second")]
    cells += [f"{row[name]:.2f}x" if name in row else "" for name in ("times_as_fast", "times_as_fast_steady")]
    memory = row.get("memory_bytes", {})
    cells += [f"{memory[part] / 1e6:.0f}" if part in memory else "" for part in ("second_quarter", "last")]
    return [row["name"], *cells]


def _seconds_cells(document: Mapping[str, Any], row: Mapping[str, Any], goal: float | None) -> Iterator[str]:
    reason = f": not measured: {row['not_measured']}" if "not_measured" in row else ""
    yield f"{title(document, row)}{reason}"
    for side in ("reference", "ours", "limit"):
        yield seconds(row[f"{side}_seconds"]["median"]) if f"{side}_seconds" in row else ""
    ratio = row.get("ratio")
    yield f"{number(ratio['median'])}x ({number(ratio['min'])} to {number(ratio['max'])})" if ratio else ""
    if "import" in row["name"]:
        text, is_missed = f"{IMPORT_SECONDS} s", row["ours_seconds"]["median"] > IMPORT_SECONDS
    elif "over_limit_seconds" in row:
        over = row["over_limit_seconds"]["median"]
        text, is_missed = f"{SHELL_SECONDS} s over the limit", over > SHELL_SECONDS
    else:
        text, is_missed = f"{goal}x" if goal else "", bool(ratio and goal and ratio["median"] < goal)
    yield f"**{text}, missed**" if is_missed else text


def _bytes_cells(row: Mapping[str, Any]) -> list[str]:
    sides = (row.get(f"{side}_bytes") for side in ("reference", "ours"))
    return [row["name"], *("" if size is None else f"{size / 1e6:,.2f} MB" for size in sides)]


def _best_cells(row: Mapping[str, Any]) -> list[str]:
    if "error" in row:
        return [row["name"], f"**{row['error'][:60]}**", "", "", "", ""]
    ratio, over = "", row.get("over_reference")
    if over is not None:
        middle, low, high = (number(1 / over[end]) for end in ("median", "max", "min"))
        ratio = f"**{middle}x ({low} to {high})**" if over["median"] > 1 else f"{middle}x ({low} to {high})"
    runs = ", ".join(map(str, row.get("evaluations", [])))
    drifts = (f"{row[name]:.1g}" if name in row else "" for name in ("drift", "apart"))
    return [row["name"], seconds(row["seconds"]["median"]), ratio, runs, *drifts]


def _step_cells(row: Mapping[str, Any]) -> list[str]:
    counted = row.get("counts") or {}
    times = (row.get("seconds"), row.get("host_seconds"))
    ratios, sizes = (row.get("over_plain"), row.get("over_reference")), (row.get("step_bytes"), row.get("held_bytes"))
    kernels = counted.get("kernel_seconds")
    return [
        f"{row['name']} {row.get('error', '')[:60]}".strip(),
        *("" if time is None else f"{1000 * time['median']:.2f} ms" for time in times),
        *("" if ratio is None else f"{ratio['median']:.4f}" for ratio in ratios),
        *("" if size is None else f"{size / 1e6:.2f}" for size in sizes),
        *(str(counted.get(name, "")) for name in ("scalar_reads", "launches")),
        "" if kernels is None else f"{1000 * kernels:.2f} ms",
    ]


def _line(cells: Collection[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
