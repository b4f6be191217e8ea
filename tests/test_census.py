"""What is told of learned groups: scores against labels, the log on the way, the table and the figure."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import grouped
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import probe
import pytest
import toy
from grouped import GROUP, SESSIONS, case, one_level
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from fedjax_vp.federated import census
from fedjax_vp.federated.grouping.settings import CFL, IFCA, PACFL, KMeans
from fedjax_vp.federated.settings import Engine, Evaluate, Level
from fedjax_vp.problem import Outcome, Problem
from fedjax_vp.report import groups
from fedjax_vp.simulate import simulate
from fedjax_vp.summarizing import groups_table

LEARNED = KMeans(groups=2, warmup=2, sketch=16)
LABELS = {
    "session": np.arange(5),
    "video": np.array([0, 0, 1, 1, 2]),
    "video_category": np.array([1, 1, 0, 0, -1]),
    "user_category": np.array([0, 1, 0, 1, 1]),
}


@pytest.mark.parametrize(
    ("name", "by", "wanted"),
    [
        ("video_category", "", [1, 1, 0, 0, -1]),
        ("user_category", "", [0, 1, 0, 1, 1]),
        ("user_category", "video", [0, 1, 2, 3, 4]),
        ("cluster", "", [2, 3, 0, 1, -1]),
        ("cluster", "video", [0, 1, 2, 3, -1]),
    ],
)
def test_the_truth_is_the_label_of_the_levels_name_within_by(name: str, by: str, wanted: list[int]) -> None:
    found = census.truth(LABELS, Level(name, by=by, grouping=LEARNED))
    assert found is not None
    assert found.tolist() == wanted


def test_there_is_no_truth_without_labels() -> None:
    few = {key: LABELS[key] for key in ("video", "video_category")}
    assert census.truth(few, Level("cluster", grouping=LEARNED)) is None
    unknown = LABELS | {"user_category": np.full(5, -1)}
    assert census.truth(unknown, Level("user_category", grouping=LEARNED)) is None


def test_only_training_sessions_of_units_that_took_part_count() -> None:
    """Unit 0 was never heard and unit 11 does not train; of the others all but unit 1 are grouped right."""
    one = case(one_level(LEARNED), noise=0.06, empty=(11,))
    state = one.start()
    group = GROUP.copy()
    group[[0, 1, 11]] = 1 - group[[0, 1, 11]]
    signal = np.where(group[:, None] == 0, 1.0, -1.0) * np.eye(16)[0]
    signal[2] = np.eye(16)[1]
    seen = np.ones(SESSIONS)
    seen[[0, 11]] = 0
    known = state.levels[0].learned._replace(
        share=jnp.asarray(np.eye(2)[group]), seen=jnp.asarray(seen), signal=jnp.asarray(signal)
    )
    (found,) = census.take(one.sim, (state.levels[0]._replace(learned=known),))
    heard = np.arange(1, 11)
    assert found["groups"] == 2
    assert found["sizes"] == sorted(np.bincount(group[heard]).tolist(), reverse=True)
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    assert found["ari"] == pytest.approx(adjusted_rand_score(GROUP[heard], group[heard]))
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(GROUP[heard], group[heard]))
    pairs = [(i, j) for i in heard for j in heard if i < j]
    cosine = {(i, j): float(signal[i] @ signal[j]) for i, j in pairs}
    for name, same in (("within", True), ("between", False)):
        wanted = np.mean([cosine[i, j] for i, j in pairs if (group[i] == group[j]) == same])
        assert found[name] == pytest.approx(wanted, abs=1e-6)


ROUNDS = 6
STACK = (
    Level("planted", grouping=CFL(groups=3, warmup=2, every=2, sketch=0, relative=False, eps1=1.0, eps2=0.5)),
    Level("taste", by="video", grouping=IFCA(groups=2, windows=4, warmup=3)),
)
METHOD = replace(one_level(LEARNED, steps=3), levels=STACK)


def problem(chunk: int) -> Problem:
    lines = grouped.traces(noise=0.06)
    split = toy.split(lines)
    return Problem(
        federation=grouped.federation(noise=0.06),
        predictor=probe.predictor(),
        method=METHOD,
        engine=Engine(devices=1, chunk=chunk),
        evaluate=Evaluate(horizons_s=(0.2, 0.6), tile_horizons_s=(0.4,), every=3, history_windows=2),
        traces=lines,
        split=split,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> Outcome:
    return simulate(problem(chunk=2), ROUNDS, 0, folder)


def of(outcome: Outcome, level: str) -> dict[int, dict[str, Any]]:
    return {one["round"]: one for one in outcome.groups if one["level"] == level}


def test_a_run_tells_of_its_learned_groups(outcome: Outcome) -> None:
    counters = outcome.counters
    assert counters["num_groups"]["planted"] == 2  # of three rows
    assert counters["ari"] == {"planted": 1.0}  # no label is called taste
    assert counters["nmi"] == {"planted": pytest.approx(1.0)}
    assert outcome.timings["clustering_s"] > 0
    planted, taste = of(outcome, "planted"), of(outcome, "taste")
    assert sorted(planted) == [2, 3, 4, 6]  # looks at 3 and 6, regroupings at 2, 4 and 6
    assert sorted(taste) == list(range(1, ROUNDS + 1))
    split = next(done for done, one in sorted(planted.items()) if one.get("splits"))
    assert planted[split]["churn"] == 0.5
    assert planted[split]["sizes"] == [6, 6]
    assert planted[split]["within"] > planted[split]["between"]
    assert planted[3].get("splits") is None
    assert planted[3]["within"] is not None
    assert taste[1]["churn"] == 0.0
    assert "sizes" in taste[3]
    assert "sizes" not in taste[2]
    assert sum(taste[3]["sizes"]) == SESSIONS


def test_only_groups_by_losses_are_chosen_inside_the_round() -> None:
    assert census.choice_s(case(one_level(LEARNED), noise=0.06, empty=(11,)).sim) == 0.0


@pytest.mark.slow
def test_a_resumed_run_tells_the_same(outcome: Outcome, folder: Path, tmp_path: Path) -> None:
    """The last checkpoint is lost; the one before holds the units, the tree of splits and the log."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    again = simulate(problem(chunk=2), ROUNDS, 0, tmp_path, resume=True)
    for x, y in zip(jax.tree.leaves(outcome.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(x, y)
    assert again.groups == outcome.groups
    assert again.counters == outcome.counters


def test_the_table_has_all_columns_and_nulls_for_what_is_not_known(outcome: Outcome) -> None:
    table = groups_table(outcome.groups)
    assert table.columns == [
        *("level", "round", "groups", "sizes", "churn", "within", "between", "silhouette", "ari", "nmi"),
        *("splits", "mean_norm", "max_norm", "alpha_cross_max"),
    ]
    taste = table.filter(pl.col("level") == "taste")
    assert taste["churn"].null_count() == 0
    assert taste["within"].null_count() == taste.height
    judged = table.drop_nulls("splits")
    assert judged["alpha_cross_max"].list.len().to_list() == judged["mean_norm"].list.len().to_list()
    numbers = table.select(pl.selectors.float()).to_numpy()
    assert not any(math.isinf(x) for x in numbers.ravel() if x is not None)


def test_the_figure_marks_splits_and_has_a_column_a_level(outcome: Outcome) -> None:
    figure = groups.over_rounds(groups_table(outcome.groups))
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    assert len(figure.axes) == 3 * 2
    text = [one.get_text().strip() for one in figure.findobj(Text)]
    assert text.count("split") == 1
    wanted = {"within groups", "between groups", "best bipartition", "units that move", "planted", "taste"}
    assert wanted <= set(text)
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert lines["within groups"].get_linestyle() != lines["between groups"].get_linestyle()


def test_no_figure_where_nothing_is_learned() -> None:
    assert groups.over_rounds(pl.DataFrame()) is None
    assert groups.over_rounds(groups_table([])) is None


def test_groups_found_in_the_data_are_scored_as_well() -> None:
    """Nothing was learned of them: their sizes count training sessions."""
    level = Level("planted", by="", grouping=PACFL(groups=2, of="session", rank=1))
    one = case(replace(one_level(LEARNED), levels=(level,)), noise=0.06, empty=(11,))
    (found,) = census.take(one.sim, one.start().levels)
    assert sum(found["sizes"]) == SESSIONS - 1
    assert found["groups"] == len(found["sizes"])
    assert found["ari"] is not None
    assert found["within"] is None
    (entry,) = census.history(one.sim, [found | {"round": 3}], [[0]] * 3)
    assert (entry["round"], entry["churn"]) == (3, 0.0)
