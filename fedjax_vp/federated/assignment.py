"""Loss-based grouping inside a round: each unit joins the row that predicts its training windows best.

    share_u <- one-hot argmin_k F_u(theta^(<l) + delta_l[k])                                       (1)

IFCA (Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS
2020): (1) is taken at the start of a round, on training windows only. Averaging the gradients of one
full-batch step (`denominator: participants`) or the models of many (`group`) are its two forms. With `soft`,
a unit uses all rows, each as much as the share of windows that it predicts best (`grouping/soft.py`). Where
rows are merged (`grouping/drift.py`), units choose among those in use.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from fedjax_vp.federated import batches, keys, levels, stretches
from fedjax_vp.federated import learned as learned_of
from fedjax_vp.federated.federation import Arrays, cut
from fedjax_vp.federated.grouping import drift, soft
from fedjax_vp.federated.grouping.settings import IFCA
from fedjax_vp.federated.learned import Learned
from fedjax_vp.federated.levels import LevelState
from fedjax_vp.federated.local import Client, Task, bag_traces, slots
from fedjax_vp.federated.simulator import Simulator
from fedjax_vp.models.base import Inputs, Params

# Windows judged in one product, where clients choose among the same models. More gain little, and of larger
# products XLA keeps some memory until the round ends: 5 KB a client with 512 (jax 0.12 on a CPU).
_TOGETHER = 64


class Chosen(NamedTuple):
    """Windows that candidates are judged by."""

    session: Int[Array, ""]  # whose model is asked for
    windows: tuple[Inputs, Float[Array, "window horizon 3"]]
    weight: Float[Array, "window"]
    seen: Float[Array, "window horizon"] | None = None  # samples of the targets that count; None: all


def assign(
    sim: Simulator,
    states: tuple[LevelState, ...],
    arrays: Arrays,
    clients: Client,
    round_index: Int[Array, ""],
    seed: Array | None = None,
) -> tuple[tuple[LevelState, ...], Int[Array, "level"]]:
    """Moves the participants' units at every loss-based level, coarse to fine.

    Args:
        sim: static parts.
        states: rows of every level.
        arrays: the federation.
        clients: the participants.
        round_index: of this round.
        seed: of the run, for starts; None chooses among the rows as they are: none is started or seeded anew.

    Returns:
        The levels, and how many units changed groups at each.
    """
    moved = [jnp.zeros((), jnp.int32)] * len(states)
    session = jax.vmap(lambda c: slots(arrays, c, sim.task.num_slots)[0])(clients.index)  # over the cohort
    for index, level in enumerate(sim.layout.levels):
        states = learned_of.follow(sim.layout.levels, states, index)
        if not isinstance(level.grouping, IFCA):
            continue
        settings, training = level.grouping, seed is not None
        if seed is not None:
            states = _diverge(sim, states, index, round_index, seed)
        value, weight = _judge(sim, index, states, arrays, clients)
        # What was said of the rows before they parted is not about the rows there are now.
        memory = jnp.where(round_index > settings.warmup, settings.memory, 0.0)
        report = session.reshape(-1), weight.reshape(-1), value.reshape(weight.size, -1)
        known, heard = learned_of.observe(states[index].learned, *report, memory)
        before = learned_of.row_of(known)
        offered = learned_of.offered(states[index].learned, states[index].mass.shape[0])
        share = _share(settings, known, (heard, offered), round_index, seed)
        state = learned_of.with_share(states[index], known, share, settings.soft)
        if training and settings.reseed and not settings.soft:
            may = heard & (round_index > settings.warmup + settings.hold)
            state = _reseed(state, may & _isolated(settings, states[index].learned, known, offered))
        moved[index] = jnp.sum((learned_of.row_of(state.learned) != before) & (known.seen > 0))
        states = (*states[:index], state, *states[index + 1 :])
    return states, jnp.stack(moved)


def _share(
    settings: IFCA,
    known: Learned,
    may: tuple[Bool[Array, "unit"], Bool[Array, "unit group"]],
    round_index: Int[Array, ""],
    seed: Array | None,
) -> Float[Array, "unit group"]:
    """(1), or one group for all while warming up, or random groups while training holds the rows apart.

    `may` says which units choose at all, and among which groups once rows are merged.
    """
    (heard, offered), groups = may, known.share.shape[1]
    if settings.soft:
        share = soft.importance(known.signal, settings.floor)
    else:
        merging = bool(settings.every) & (round_index > settings.warmup + settings.hold)
        offered = jnp.where(merging, offered, True)
        share = jax.nn.one_hot(jnp.argmin(jnp.where(offered, known.signal, jnp.inf), axis=1), groups)
    share = jnp.where(heard[:, None], share, known.share)
    units = known.seen.shape[0]
    if seed is not None and settings.hold:
        dealt = jax.random.randint(keys.key_of(seed, keys.HOLD), (units,), 0, groups)
        held = round_index < settings.warmup + settings.hold
        share = jnp.where(held, jax.nn.one_hot(dealt, groups), share)
    first = jax.nn.one_hot(jnp.zeros(units, jnp.int32), groups)
    return jnp.where(round_index < settings.warmup, first, share)


def _isolated(
    settings: IFCA, before: Learned, now: Learned, offered: Bool[Array, "unit group"]
) -> Bool[Array, "unit"]:
    """Units that may open a row of their own: those whose least loss has risen; if not said, all or none."""
    if settings.isolate is None:
        return jnp.full(now.seen.shape, not settings.every)  # what has merged would part again at once
    then, today = (jnp.where(offered, known.signal, jnp.inf) for known in (before, now))
    return (before.seen > 0) & drift.isolates(then, today, settings.isolate)


def _judge(
    sim: Simulator, index: int, states: tuple[LevelState, ...], arrays: Arrays, clients: Client
) -> tuple[Float[Array, "client slot group"], Float[Array, "client slot"]]:
    """What the participants think of the candidate rows, on all devices; weight 0 for who does not report."""
    block_size = judged_together(sim, index)

    def device_fn(clients: Client, states: tuple, arrays: Arrays) -> tuple[Array, Array]:
        def block_fn(none: tuple, block: Client) -> tuple[tuple, tuple[Array, Array]]:
            def one(client: Client) -> tuple[Array, Array]:
                return candidates(sim.task, states, arrays, index, client)

            return none, jax.lax.map(one, block, batch_size=None if block_size == 1 else block_size)

        return stretches.scan(block_fn, (), sim.task, arrays, clients, block_size)[1]

    own, whole = PartitionSpec("clients"), PartitionSpec()
    sharded = jax.shard_map(
        device_fn, mesh=sim.mesh, in_specs=(own, whole, whole), out_specs=own, check_vma=False
    )
    return sharded(clients._replace(state=None), states, arrays)


def judged_together(sim: Simulator, index: int) -> int:
    """Clients whose choice at a level is made side by side.

    Where a candidate is the same model for every client (the level's own row, whole, in one parent group), it
    meets the windows of many clients in one product.
    """
    layout, settings = sim.layout, cast(IFCA, sim.layout.levels[index].grouping)
    whole = all(layout.coarsest(leaf) == index for names in layout.owned for leaf in names)
    if not whole or layout.num_groups[index] != settings.groups:
        return sim.block
    return max(sim.block, _TOGETHER // (settings.windows or sim.federation.max_windows))


def candidates(
    task: Task, states: tuple[LevelState, ...], arrays: Arrays, index: int, client: Client
) -> tuple[Float[Array, "slot group"], Float[Array, "slot"]]:
    """One client's verdict on the rows it may join, on training windows: for each of its sessions, or in all.

    Returns:
        Mean losses (shares of windows won where memberships are soft), and their weights: the windows.
    """
    settings = cast(IFCA, task.layout.levels[index].grouping)
    federation, bags = task.federation, arrays.bags
    session, real = slots(arrays, client.index, task.num_slots)
    first = bags.first[client.index]
    traces, row = bag_traces(task, arrays, client)

    def one(slot: Int[Array, ""]) -> tuple[Array, Array]:
        member = first + jnp.where(real[slot], slot, 0)
        end = bags.first[client.index + 1] if task.mixed else member + 1
        begin, count = bags.rank[member], bags.rank[end] - bags.rank[member]
        size = settings.windows or federation.max_windows
        place = jnp.arange(size)
        if settings.windows:
            key = keys.apart(client.key, 1 + slot)
            place = batches.below(count, jax.random.bits(key, (size,)))
        rank = begin + jnp.minimum(place, jnp.maximum(count, 1) - 1)
        at = batches.members(federation, arrays, client.index, rank)
        now = arrays.train.at(bags.session[at], rank - bags.rank[at])
        windows = cut(traces, federation.shape, row[at - first], now)
        weight = jnp.where(settings.windows > 0, 1.0, (place < count).astype(jnp.float32))
        verdict = judge(task, states, index, Chosen(session[slot], windows, weight))
        return verdict, jnp.where(real[slot] & client.reports, count, 0).astype(jnp.float32)

    return jax.lax.map(one, jnp.arange(session.shape[0]))


def judge(task: Task, states: tuple[LevelState, ...], index: int, chosen: Chosen) -> Float[Array, "group"]:
    """Mean loss of each candidate row of a session (or the share of windows it predicts best, where soft).

    A candidate is the prefix of the hierarchy that ends at this level: finer rows were trained on top of the
    row the session has now, and would speak for it. Leaves that only finer levels own (private heads, say)
    are the session's own: without them no model predicts anything.
    """
    settings, state, learned = task.layout.levels[index].grouping, states[index], states[index].learned
    unit = jnp.maximum(learned.unit[chosen.session], 0)
    groups = learned.share.shape[1]
    alone = state.mass.shape[0] == groups  # one parent group: its rows are nobody's in particular
    model_of = with_row(task, states, index, chosen.session)
    (inputs, target), loss_fn = chosen.windows, task.local.loss.build()
    view = task.predictor.see(inputs)

    def one(group: Int[Array, ""]) -> Array:
        row = group if alone else learned.within[unit] * groups + group
        model = model_of({n: rows[row] for n, rows in state.rows.items()})
        output = task.predictor.output(model, view)
        return task.predictor.loss_of(output, view, target, loss_fn, chosen.seen)

    loss = jax.lax.map(one, jnp.arange(groups))  # [group, window]
    if isinstance(settings, IFCA) and settings.soft:
        loss = soft.wins(loss)
    weight = chosen.weight / jnp.maximum(jnp.sum(chosen.weight), 1e-9)
    return loss @ weight


def with_row(
    task: Task, states: tuple[LevelState, ...], index: int, session: Int[Array, ""]
) -> Callable[[Params], Params]:
    """A session's candidate model (see `judge`) as a function of the row it has at a level."""
    layout = task.layout

    def base(leaf: str) -> Array:
        depth = index if layout.coarsest(leaf) < index else None
        return levels.compose(states, session[None], leaf, depth)[0]

    # A leaf that this level is the first to own is its row as it is: nothing is added up for each candidate.
    rest = {n for names in layout.owned for n in names if layout.coarsest(n) != index}
    theta = {n: base(n) for n in sorted(rest)}
    return lambda own: own | {n: p + own[n] if n in own else p for n, p in theta.items()}


def _diverge(
    sim: Simulator, states: tuple[LevelState, ...], index: int, round_index: Int[Array, ""], seed: Array
) -> tuple[LevelState, ...]:
    """Breaks the symmetry of the rows when the warm-up ends."""
    settings = cast(IFCA, sim.layout.levels[index].grouping)
    if not settings.warmup:
        return states  # the rows differ from the start
    spread = 0.0 if settings.hold else settings.spread  # what is held apart parts by itself
    new = jax.lax.cond(
        round_index == settings.warmup,
        lambda: learned_of.perturbed(sim.layout, states, index, spread, seed),
        lambda: states[index].rows,
    )
    return (*states[:index], states[index]._replace(rows=new), *states[index + 1 :])


def _reseed(state: LevelState, heard: Bool[Array, "unit"]) -> LevelState:
    """Gives a row nobody uses to the worst-served unit of its parent group, starting from that unit's row.

    At most one row of each parent group a round; no other row is left without units by it.
    """
    learned = cast(Learned, state.learned)
    rows, groups = state.mass.shape[0], learned.share.shape[1]
    parents, units = rows // groups, learned.seen.shape[0]
    row, users = learned_of.row_of(learned), learned_of.users(learned, rows)
    dead = users.reshape(parents, groups) == 0
    target = jnp.argmax(dead, axis=1)  # [parent] group that is given away
    may = heard & (users[row] > 1) & dead.any(axis=1)[learned.within]
    served = jnp.where(may, jnp.min(learned.signal, axis=1), -jnp.inf)
    worst = jnp.full(parents, -jnp.inf).at[learned.within].max(served)
    is_worst = may & (served == worst[learned.within])
    chosen = jnp.full(parents, -1).at[learned.within].max(jnp.where(is_worst, jnp.arange(units), -1))
    do = chosen >= 0  # [parent]
    source = row[jnp.maximum(chosen, 0)]
    into = jnp.where(do, jnp.arange(parents) * groups + target, rows)  # beyond the end: dropped
    moved = jax.tree.map(lambda x: x.at[into].set(x[source], mode="drop"), (state.rows, state.optimizer))
    new = jax.nn.one_hot(target, groups)
    share = learned.share.at[jnp.where(do, chosen, units)].set(new, mode="drop")
    # A copy is as good as its source: what is remembered of the dead row says nothing of it.
    same = learned.signal[jnp.arange(units), (source % groups)[learned.within]]
    replaced = (do[:, None] & (new > 0))[learned.within]
    learned = learned._replace(signal=jnp.where(replaced, same[:, None], learned.signal))
    return learned_of.with_share(state._replace(rows=moved[0], optimizer=moved[1]), learned, share)
