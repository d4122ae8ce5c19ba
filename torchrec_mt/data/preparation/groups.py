"""Pairs derived from events: two items of one group, by support and size-adjusted lift (see `GroupPairs`).

Counts of 1 / (s - 1) are summed as whole multiples of 1 / UNIT, so that sums do not depend on the order of rows.
"""

import ibis
import ibis.expr.types as ir

from torchrec_mt.data.preparation.engine import Engine
from torchrec_mt.schema import GroupPairs

UNIT = 720_720 * 4096
"""720720 is divisible by 1..16: counts of groups of up to 17 items are exact; 2^31 groups fit an int64 sum."""

_SLACK = 1 - 1e-9  # a lift that is exactly min_lift in the books must not fail by a rounded division


def make_members(engine: Engine, events: ir.Table, rule: GroupPairs) -> ir.Table:
    """Distinct items per group: part, number (of the group), item, place (its first), size (of the group)."""
    names = [f"group_{i}" for i in range(len(rule.group))]
    groups = events.select("part", *names).distinct()
    groups = groups.mutate(number=ibis.row_number().over(order_by=["part", *names]))
    numbered = events.inner_join(groups, ["part", *names])
    members = numbered.group_by("part", "number", "item").agg(place=numbered.place.min())
    return engine.cache(with_sizes(members))


def with_sizes(members: ir.Table) -> ir.Table:
    """Adds the number of items of the group."""
    sizes = members.group_by("number").agg(size=members.count())
    return members.inner_join(sizes, "number")


def count_too_large(engine: Engine, members: ir.Table, rule: GroupPairs) -> int:
    """Groups left out because they hold more items than allowed."""
    large = members.filter(members["size"] > rule.max_group_size)
    return engine.one(large.agg(n=large.number.nunique()))["n"] or 0


def usable(members: ir.Table, rule: GroupPairs) -> ir.Table:
    """Members of groups of two items up to the largest size allowed."""
    return members.filter(members["size"].between(2, rule.max_group_size))


def derive_pairs(engine: Engine, members: ir.Table, rule: GroupPairs, entity: ir.Table) -> ir.Table:
    """Pairs that pass the rule: part, anchor, candidate, count (float64, size-adjusted).

    `same` and `different` compare values that both items have: an item without a value is in no pair.

    Args:
        members: as `usable` gives them.
        entity: the entity's table, with `key` and the columns that `same` and `different` name.
    """
    totals = members.group_by("part", "item").agg(groups=members.count())
    whole = members.group_by("part").agg(whole=members.count())
    found = _count_pairs(members, rule, entity)
    found = engine.cache(
        found.filter((found.support_up >= rule.min_support) | (found.support_down >= rule.min_support))
    )
    forward = found.select("part", anchor="low", candidate="high", support="support_up", units="units_up")
    backward = found.select("part", anchor="high", candidate="low", support="support_down", units="units_down")
    pairs = forward.union(backward, distinct=False)
    pairs = pairs.filter(pairs.support >= rule.min_support)
    of_anchor = totals.select("part", anchor="item", anchor_groups="groups")
    of_candidate = totals.select("part", candidate="item", candidate_groups="groups")
    pairs = (
        pairs.inner_join(of_anchor, ["part", "anchor"])
        .inner_join(of_candidate, ["part", "candidate"])
        .inner_join(whole, "part")
    )
    count = pairs.units.cast("float64") / UNIT
    # Half of the pairs of unrelated items go either way, so a directed count is doubled to keep 1 for "unrelated".
    sides = 2.0 if rule.direction == "forward" else 1.0
    expected = pairs.anchor_groups.cast("float64") * pairs.candidate_groups.cast("float64")
    lift = count * sides * pairs.whole.cast("float64") / expected
    passed = pairs.mutate(count=count, lift=lift).filter(ibis._.lift >= rule.min_lift * _SLACK)
    result = engine.cache(passed.select("part", "anchor", "candidate", "count"))
    engine.drop(found)
    return result


def _count_pairs(members: ir.Table, rule: GroupPairs, entity: ir.Table) -> ir.Table:
    """Support and units of each unordered pair (low < high), for low -> high ("up") and high -> low ("down")."""
    attributes = {}
    for name, column in (("same", rule.same), ("different", rule.different)):
        if column is not None:
            attributes[name] = f"c:{column}"
    if attributes:
        members = members.inner_join(entity.select(item="key", **attributes), "item")
    units = (ibis.literal(float(UNIT)) / (members["size"] - 1)).round().cast("int64")
    members = members.select("part", "number", "place", *attributes, low="item", units=units)
    others = {f"other_{name}": name for name in ("number", "place", *attributes)}
    high = members.view().select(high="low", **others)
    conditions = [members.number == high.other_number, members.low < high.high]
    if "same" in attributes:
        conditions.append(members.same == high.other_same)
    if "different" in attributes:
        conditions.append(members.different != high.other_different)
    joined = members.inner_join(high, conditions)
    grouped = joined.group_by("part", "low", "high")
    if rule.direction == "both":
        counts = grouped.agg(support=joined.count(), units=joined.units.sum())
        return counts.mutate(support_up="support", support_down="support", units_up="units", units_down="units")
    up, down = (joined.place < joined.other_place).cast("int64"), (joined.place > joined.other_place).cast("int64")
    return grouped.agg(
        support_up=up.sum(),
        support_down=down.sum(),
        units_up=(up * joined.units).sum(),
        units_down=(down * joined.units).sum(),
    )


def permute_items(engine: Engine, members: ir.Table) -> ir.Table:
    """The same groups with their items dealt anew: sizes and item frequencies kept, association destroyed.

    Deterministic. Where an item lands twice in a group it counts once (the group shrinks a little).
    """
    slots = members.mutate(slot=ibis.row_number().over(order_by=["number", "item"]))
    mixed = slots.select("slot", "item", mix=scramble(slots.slot, ibis.literal(0, "int64")))
    dealt = mixed.select("item", dealt=ibis.row_number().over(order_by=["mix", "slot"]))
    places = slots.select("part", "number", "place", "slot")
    joined = places.inner_join(dealt, places.slot == dealt.dealt)
    distinct = joined.group_by("part", "number", "item").agg(place=joined.place.min())
    return engine.cache(with_sizes(distinct))


_PRIME = 2_147_483_647


def scramble(first: ir.IntegerValue, second: ir.IntegerValue) -> ir.IntegerValue:
    """A number that looks random, below 2^31, of two whole numbers below 2^31; every product fits an int64."""
    mixed = (first.cast("int64") * 48_271 + second.cast("int64") * 1_566_083_941 + 1_234_567) % _PRIME
    for multiplier in (1_812_433_253, 742_938_285):
        mixed = (mixed * mixed + multiplier) % _PRIME
        mixed = (mixed * multiplier + 12_345) % _PRIME
    return mixed
