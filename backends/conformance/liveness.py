"""Writes that must change something, and exactly what they can reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from backends.conformance.check import T0, T1, Check, Finding
from backends.conformance.reach import reached, reached_by_cut, visible
from backends.conformance.subject import DONOR, RANDOM, Subject, make
from backends.rows import Row
from backends.writes import Heads, Site, Write

SECTION = "liveness"


def _change(found: np.ndarray, clean: np.ndarray) -> np.ndarray:
    """Per position, how far its logits moved as a share of the largest logit: [positions]."""
    moved = np.abs(found.astype(np.float64) - clean).max(axis=-1)
    share: np.ndarray = moved / np.abs(clean.astype(np.float64)).max()
    return share


def _against_reach(
    subject: Subject,
    writes: list[Write],
    hot: list[np.ndarray],
    position: list[int],
    faint: frozenset[int] = frozenset(),
) -> Finding:
    """Writes in prefill against the positions that they can reach.

    error: the largest change at a position out of reach. Broken where a write leaves all later positions that
    it can reach as they are, or the position itself, but for the faint ones (by index), which may.
    """
    ids = subject.ids("target")
    rows = [subject.row(ids, write) for write in writes]
    finals = iter(zip(subject.logits(rows), subject.logits([subject.row(ids)] * len(rows)), strict=True))
    error, dead = 0.0, []
    for number, (write, able, at) in enumerate(zip(writes, hot, position, strict=True)):
        found, clean = next(finals)
        moved = _change(found, clean)
        error = max(error, float(np.where(able, 0.0, moved).max()))
        here = np.arange(len(moved)) == at
        for where, what in ((here, "at its own position"), (~here, "later")):
            if number not in faint and (able & where).any() and not moved[able & where].any():
                dead.append(f"{write.name} changes no logit {what}")
    return Finding(error, tuple(dead), {"writes": float(len(writes))})


def _one_position(subject: Subject, position: int) -> Finding:
    length = len(subject.ids("target"))
    writes, hot = [], []
    for site in subject.sites():
        if site == "logits":
            continue
        for layer in subject.layers_of(site):
            where = f"{site} of layer {layer} written at position {position}"
            writes.append(make(where, site, (layer,), value=RANDOM, positions=f"index:{position}"))
            hot.append(reached(subject.info, site, layer, position % length, length))
    return _against_reach(subject, writes, hot, [position % length] * len(writes))


def first_position(subject: Subject) -> Finding:
    """Random writes at position 0, which queries do not reach anything from."""
    return _one_position(subject, 0)


def third_position(subject: Subject) -> Finding:
    """Random writes at the third position, which earlier ones never see and, through sliding windows, far
    later ones do not."""
    return _one_position(subject, 2)


def last_position(subject: Subject) -> Finding:
    """Random writes at the last position."""
    return _one_position(subject, -1)


def returned_logits(subject: Subject) -> Finding:
    """A random write at `logits` is what the model returns, and leaves all else as it was."""
    subject.need("logits" in subject.info.sites, "the architecture has no site 'logits'")
    ids = subject.ids("target")
    row = subject.row(
        ids, make("logits", "logits", subject.only("logits"), value=RANDOM, positions="index:-1")
    )
    clean = subject.row(ids)
    found, expected = subject.returned([row])[0], subject.returned([clean])[0]
    error = float(_change(subject.final([row])[0], subject.final([clean])[0]).max())
    broken = () if (found != expected).any() else ("a write at logits does not change them",)
    return Finding(error, broken)


def edges(subject: Subject) -> Finding:
    """Cut edges, whole and for one head: all that a query sees but itself, and single ones inside and outside
    the layer's window. A single edge may weigh nothing."""
    ids = subject.ids("target")
    length = len(ids)
    writes: list[Write] = []
    hot, position, faint = [], [], []
    for layer in subject.layers():
        for query in (length // 2, length - 1):
            sees = np.flatnonzero(visible(subject.info, layer, length)[query])
            for heads in (None, Heads("query", (subject.info.heads - 1,))):
                which = "" if heads is None else " in the last head"
                for words in dict.fromkeys((f"first:{query}", f"index:{sees[-2]}", "index:0")):
                    name = f"edges from {query} to {words} of layer {layer}, cut{which}:"
                    write = make(
                        name,
                        "attention_edge",
                        (layer,),
                        "mask",
                        positions=f"index:{query}",
                        keys=words,
                        heads=heads,
                    )
                    keys = range(query) if words.startswith("first") else [int(words.partition(":")[2])]
                    if not words.startswith("first"):
                        faint.append(len(writes))
                    writes.append(write)
                    hot.append(reached_by_cut(subject.info, layer, [query], keys, length))
                    position.append(query)
    return _against_reach(subject, writes, hot, position, frozenset(faint))


def decode_steps(subject: Subject) -> Finding:
    """Writes during decode: the first new token never feels them, every later one does."""
    ids = subject.ids("target")
    continuation = subject.ids("continuation", 4)
    writes = [
        make(
            f"{site} of layer {layer} written in decode",
            site,
            (layer,),
            value=RANDOM,
            positions="index:-1",
            during="decode",
        )
        for site in subject.sites()
        for layer in subject.layers_of(site)
    ]
    rows = [subject.row(ids, write) for write in writes]
    found = subject.forced(rows, continuation)
    clean = subject.forced([subject.row(ids)] * len(rows), continuation)
    moved = np.abs(found - clean) / np.abs(clean).max()
    dead = [
        f"{write.name} leaves new token {step} as it was"
        for write, steps in zip(writes, moved, strict=True)
        for step in range(1, len(continuation))
        if steps[step] == 0
    ]
    return Finding(float(moved[:, 0].max()), tuple(dead), {"writes": float(len(writes))})


def edges_in_decode(subject: Subject) -> Finding:
    """Edges of new tokens to the beginning of the prompt, cut during decode."""
    ids = subject.ids("target")
    continuation = subject.ids("continuation", 4)
    whole = len(ids) + len(continuation)
    writes = [
        make(
            f"edges of layer {layer} cut in decode",
            "attention_edge",
            (layer,),
            "mask",
            positions="all",
            during="decode",
            keys="last:3",
        )
        for layer in subject.layers()
    ]
    rows = [subject.row(ids, write) for write in writes]
    found = subject.forced(rows, continuation)
    clean = subject.forced([subject.row(ids)] * len(rows), continuation)
    moved = np.abs(found - clean) / np.abs(clean).max()
    dead = []
    for write, steps in zip(writes, moved, strict=True):
        sees = visible(subject.info, write.layers[0], whole)
        for step in range(1, len(continuation)):
            seen = sees[len(ids) + step - 1, len(ids) - 3 : len(ids)].any()
            if seen and steps[step] == 0:
                dead.append(f"{write.name}: new token {step} is as it was")
    return Finding(float(moved[:, 0].max()), tuple(dead))


def cache_slots(subject: Subject) -> Finding:
    """Donor keys, values and single KV heads in the cache of one layer; slots that the window of the layer
    hides from the first query."""
    ids, donor = subject.ids("target"), subject.ids("donor")
    query = len(ids) - 1
    writes, live = [], []
    for layer in subject.layers():
        sees = visible(subject.info, layer, len(ids))[query]
        for part in ("keys", "values"):
            for heads in (None, Heads("kv", (subject.info.kv_heads - 1,))):
                which = "" if heads is None else " of the last KV head"
                name = f"cached {part}{which} of layer {layer}"
                writes.append(
                    make(name, "kv_cache", (layer,), positions="all", part=part, rope="keep", heads=heads)
                )
                live.append(True)
                writes.append(
                    make(f"{name}, slot 0", "kv_cache", (layer,), positions="first:1", part=part, rope="keep")
                )
                live.append(bool(sees[0]))
    rows = [subject.row(ids, write, donor=donor) for write in writes]
    found, clean = subject.first(rows), subject.first([subject.row(ids)] * len(rows))
    moved = np.abs(found - clean).max(axis=1) / np.abs(clean).max()
    alive = np.array(live)
    dead = [
        f"{write.name}: the first new token does not feel it"
        for write, able, change in zip(writes, live, moved, strict=True)
        if able and change == 0
    ]
    return Finding(float(np.where(alive, 0.0, moved).max()), tuple(dead), {"writes": float(len(writes))})


def receipts(subject: Subject) -> Finding:
    """Every site written in both phases in one batch of unequal prompts: receipts count each position once,
    as asked, and tell a change. error: positions miscounted."""
    rows: list[Row] = []
    for number, site in enumerate(subject.sites()):
        ids = subject.ids(f"target {number}", subject.length - number % 4)
        positions = "index:-1" if site == "logits" else ("all", "last:3", "first:2", "index:1")[number % 4]
        write = make(site, site, subject.every(site), value=RANDOM, positions=positions, during="both")
        rows.append(subject.row(ids, write, tokens=5))
    ids = subject.ids("target")
    cache = make("kv_cache", "kv_cache", range(subject.depth), positions="last:4", rope="keep")
    rows.append(subject.row(ids, cache, donor=subject.ids("donor"), tokens=5))
    cut = make(  # near enough for every sliding window: a receipt counts the edges that were there
        "edges",
        "attention_edge",
        range(subject.depth),
        "mask",
        positions="index:-1",
        during="both",
        keys="index:-2",
    )
    rows.append(subject.row(ids, cut, tokens=5))
    rows += [replace(row, replay_last_token=True) for row in rows if row.writes[0].site != "logits"]
    miscounted, broken = 0, []
    for row, found in zip(rows, subject.decode(rows), strict=True):
        write = row.writes[0]
        receipt = found.receipts[write.name]
        asked = len(write.positions.resolve(len(row.ids), {}))
        forwards = len(found.output_ids) - 1 + int(row.replay_last_token)
        decode = forwards if write.during == "both" else 0
        told = (receipt.positions_prefill, receipt.positions_decode)
        wanted = (asked, decode)
        miscounted += sum(abs(a - b) for a, b in zip(told, wanted, strict=True))
        miscounted += abs(receipt.asked_prefill - asked) + abs(receipt.asked_decode - decode)
        change = receipt.relative_change if write.has_old else receipt.logit_change
        if change is None or not change > 0:
            broken.append(f"{write.name}: its receipt tells no change")
        if told != wanted:
            again = ", the last token replayed" if row.replay_last_token else ""
            broken.append(f"{write.name}{again}: {told} positions in prefill and decode, {wanted} asked")
    return Finding(float(miscounted), tuple(broken), {"rows": float(len(rows))})


def kv_heads(subject: Subject) -> Finding:
    """Which query heads a write to one query or KV head reaches, within its layer."""
    info = subject.info
    group = info.heads // info.kv_heads
    ids = subject.ids("target")
    cases: list[tuple[Site, Heads, range]] = []
    for head in (0, info.kv_heads - 1):
        for site in ("k_proj", "v_proj"):
            cases.append((site, Heads("kv", (head,)), range(head * group, (head + 1) * group)))
    for head in (0, info.heads - 1):
        cases.append(("q_proj", Heads("query", (head,)), range(head, head + 1)))
    error, broken = 0.0, []
    for layer in subject.layers():
        spot: tuple[Site, int] = ("head_z", layer)
        rows = [
            subject.row(ids, make("head", site, (layer,), value=RANDOM, heads=heads))
            for site, heads, _ in cases
        ]
        found = subject.capture(rows, [spot])
        clean = subject.capture([subject.row(ids)] * len(rows), [spot])
        for (site, heads, able), one, other in zip(cases, found, clean, strict=True):
            size = np.abs(other[spot]).max()
            moved = np.abs(one[spot] - other[spot]).reshape(len(ids), info.heads, -1).max(axis=(0, 2)) / size
            inside = np.isin(np.arange(info.heads), list(able))
            error = max(error, float(np.where(inside, 0.0, moved).max()))
            if not moved[inside].all():
                what = f"{site} of {heads.of} head {heads.indices[0]} at layer {layer}"
                broken.append(f"{what} does not reach query heads {able.start} to {able.stop - 1}")
    return Finding(error, tuple(broken), {"group": float(group)})


def one_head_alone(subject: Subject) -> Finding:
    """A write limited to heads leaves the columns of the others as they are."""
    info = subject.info
    ids = subject.ids("target")
    cases: tuple[tuple[Site, Heads, int], ...] = (
        ("q_proj", Heads("query", (info.heads - 1,)), info.heads),
        ("k_proj", Heads("kv", (0,)), info.kv_heads),
        ("v_proj", Heads("kv", (info.kv_heads - 1,)), info.kv_heads),
        ("head_z", Heads("query", (0,)), info.heads),
    )
    error, broken = 0.0, []
    for layer in subject.layers():
        for site, heads, count in cases:
            row = subject.row(ids, make("head", site, (layer,), value=DONOR, heads=heads), donor=ids[::-1])
            found = subject.read(row, [(site, layer)])[(site, layer)]
            clean = subject.read(subject.row(ids), [(site, layer)])[(site, layer)]
            moved = np.abs(found - clean).reshape(len(ids), count, -1).max(axis=(0, 2)) / np.abs(clean).max()
            inside = np.isin(np.arange(count), heads.indices)
            error = max(error, float(np.where(inside, 0.0, moved).max()))
            if not moved[inside].all():
                broken.append(f"{site} of layer {layer}: the head that is written does not change")
    return Finding(error, tuple(broken))


CHECKS = (
    Check(
        "write_first_position",
        SECTION,
        T0,
        first_position,
        "a write at position 0 changes what it reaches, and nothing else, at every site",
        mixture=T1,
    ),
    Check(
        "write_third_position",
        SECTION,
        T0,
        third_position,
        "a write inside changes what it reaches, and nothing before it or beyond the windows",
        mixture=T1,
    ),
    Check(
        "write_last_position",
        SECTION,
        T0,
        last_position,
        "a write at the last position changes its logits and nothing else",
        mixture=T1,
    ),
    Check("write_logits", SECTION, T0, returned_logits, "a write at logits is what the model returns"),
    Check(
        "cut_edge",
        SECTION,
        T0,
        edges,
        "a cut edge changes its query and what that reaches; one outside the window nothing",
        mixture=T1,
    ),
    Check(
        "write_in_decode",
        SECTION,
        T0,
        decode_steps,
        "a write in decode changes every new token but the first, at every site",
        mixture=T1,
    ),
    Check(
        "cut_edge_in_decode",
        SECTION,
        T0,
        edges_in_decode,
        "edges cut in decode change every new token that sees their keys, but the first",
        mixture=T1,
    ),
    Check(
        "write_cache",
        SECTION,
        T0,
        cache_slots,
        "cached keys and values of each layer reach the first new token where its window sees them",
        mixture=T1,
    ),
    Check("receipts", SECTION, T0, receipts, "receipts count every position asked, once, in both phases"),
    Check("head_map", SECTION, T0, kv_heads, "a KV head reaches the query heads of its group alone"),
    Check(
        "head_columns", SECTION, T0, one_head_alone, "a write limited to a head leaves the others as they are"
    ),
)
