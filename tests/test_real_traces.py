"""The plan of the real-trace tables: what each cell changes in its config, and whose models it measures."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from fedjax_vp.federated.grouping.settings import IFCA

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
cells = importlib.import_module("traces.cells")


def cell(table: str, method: str, dataset: str = "jin") -> cells.Cell:
    (found,) = cells.plan([table], [dataset], [method], [0])
    return found


def test_every_cell_has_a_config_and_its_own_name() -> None:
    plan = cells.plan(cells.TABLES, cells.SETS, [], None)
    assert len({one.name for one in plan}) == len(plan) > 60
    for one in plan:
        config = cells.config(one, one.seeds[-1])
        assert config.seed == one.seeds[-1]
        assert config.protocol.kind == ("within_session" if one.table == "within_session" else "unseen_users")


def test_offline_cells_measure_the_same_models_without_the_headsets_account() -> None:
    one = cell("unseen_users", "five_layers_offline")
    assert one.trained_by == cell("unseen_users", "five_layers")
    ours, theirs = (cells.config(c, 0) for c in (one, one.trained_by))
    assert (ours.mixing.online, theirs.mixing.online > 0) == (0.0, True)
    assert ours.levels == theirs.levels


@pytest.mark.parametrize("method", ["finetune", "fedavg", "five_layers"])
def test_no_second_of_an_unseen_user_is_known_but_where_the_table_says_so(method: str) -> None:
    protocol = cells.config(cell("unseen_users", method), 0).protocol
    assert (protocol.adapt_s, protocol.reserve_s) == (0.0, 0.0)


def test_budgets_are_measured_on_the_same_windows() -> None:
    protocols = [cells.config(cell("adaptation", f"five_layers_{s}s"), 0).protocol for s in (3, 5, 10)]
    assert [one.adapt_s for one in protocols] == [3.0, 5.0, 10.0]
    assert {one.reserve_s for one in protocols} == {10.0}
    assert cells.config(cell("adaptation", "fedavg"), 0).protocol.reserve_s == 10.0


def test_no_round_looks_at_more_than_64_windows_of_a_session() -> None:
    for one in cells.plan(["unseen_users"], cells.SETS, [], None):
        config = cells.config(one, 0)
        looked = [config.local.steps * config.local.batch] if config.local.epochs is None else []
        looked += [level.grouping.windows for level in config.levels if isinstance(level.grouping, IFCA)]
        if one.method not in ("centralized", "local_only"):
            assert 0 < max(looked) <= 64, one.name


def test_ablations_leave_out_the_level_they_name() -> None:
    whole = [level.name for level in cells.config(cell("unseen_users", "five_layers"), 0).levels]
    for name in ("user_category", "video_category"):
        left = [level.name for level in cells.config(cell("ablation", f"no_{name}"), 0).levels]
        assert left == [level for level in whole if level != name]
