"""Results as lines and Markdown tables, with the exponents of growth."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

PARTS = ("training", "clustering", "aggregation")


def line(row: dict[str, Any]) -> str:
    """One cell to read."""
    name = f"{row['method']:12s} {row['clients']:8d} clients {row['groups']:3d} groups"
    if "skipped" in row:
        return f"{name}  left out: {row['skipped']}"
    parts = "  ".join(f"{part} {row[f'{part}_s']:8.3f} s" for part in PARTS)
    return f"{name}  {parts}  clustering {share(row):5.1%}  {row['round_bytes'] / 2**20:7.0f} MiB"


def share(row: dict[str, Any]) -> float:
    """Clustering in the time of a round."""
    return row["clustering_s"] / sum(row[f"{part}_s"] for part in PARTS)


def markdown(rows: list[dict[str, Any]]) -> str:
    """All cells."""
    text = [
        "| method | clients | groups | training (s) | clustering (s) | aggregation (s) | clustering "
        "| arrays (MiB) | once, before (s) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = f"| {row['method']} | {row['clients']} | {row['groups']} "
        if "skipped" in row:
            text.append(f"{name}| {row['skipped']} | | | | | |")
            continue
        parts = " ".join(f"| {row[f'{part}_s']:.3f}" for part in PARTS)
        once = f"{row['before_training_s']:.2f}" if row["before_training_s"] else ""
        text.append(f"{name}{parts} | {share(row):.1%} | {row['round_bytes'] / 2**20:.0f} | {once} |")
    return "\n".join(text) + "\n"


def exponents(rows: list[dict[str, Any]]) -> str:
    """Growth with clients: the slope of log seconds (bytes) over log clients, from 1000 clients on."""
    text = ["Growth with the number of clients, N^a, from 1000 clients on:", ""]
    text += [
        "| method | groups | training | clustering | aggregation | memory |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    found = sorted((row for row in rows if "skipped" not in row), key=_series)
    for (method, groups), mine in groupby(found, _series):
        mine = [row for row in mine if row["clients"] >= 1000]
        if len(mine) < 2:
            continue
        keys = (*(f"{part}_s" for part in PARTS), "round_bytes")
        slopes = " | ".join(_slope(mine, key) for key in keys)
        text.append(f"| {method} | {groups} | {slopes} |")
    return "\n".join(text) + "\n"


def _series(row: dict[str, Any]) -> tuple[str, int]:
    return row["method"], row["groups"]


def _slope(rows: list[dict[str, Any]], key: str) -> str:
    known = [(row["clients"], row[key]) for row in rows if row[key] > 0]
    if len(known) < 2:
        return ""
    clients, values = np.log(np.array(known, float)).T
    return f"{np.polyfit(clients, values, 1)[0]:.2f}"


def depths(found: dict[str, list[Any]]) -> str:
    """Bytes and time by depth of the five layers."""
    text = [
        "| layers | finest | rows | server (MB) | headset (MB) | sent a round (MB) | a prediction (ms) |",
        "|--:|---|--:|--:|--:|--:|--:|",
    ]
    for depth, name in enumerate(found["level"], 1):
        server, headset, sent = (
            found[key][depth - 1] / 1e6 for key in ("server_bytes", "headset_bytes", "sent_bytes")
        )
        latency = 1e3 * found["latency_s"][depth - 1]
        text.append(
            f"| {depth} | {name} | {found['groups'][depth - 1]} | {server:.2f} | {headset:.3f} | {sent:.3f} "
            f"| {latency:.2f} |"
        )
    return "\n".join(text) + "\n"
