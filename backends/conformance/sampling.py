"""How tokens are drawn, and what probes read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from backends.conformance.check import CHANCE, T0, T1, T2, Check, Finding
from backends.conformance.subject import RANDOM, Subject, apart, constant, farthest, listed, make, scalar
from backends.measures import Measured, Probe, ScoreRow
from backends.noise import step_keys, stream_of, uniform
from backends.rows import Decoded, Row, Sampling

SECTION = "sampling and readouts"


def _drawn(subject: Subject, count: int, sampling: Sampling) -> tuple[list[Row], list[Decoded]]:
    """One prompt, `count` streams."""
    ids = subject.ids("target")
    rows = [
        replace(subject.row(ids, stream=stream_of("draw", number)), sampling=sampling)
        for number in range(count)
    ]
    return rows, subject.decode(rows)


def _kept(log_probs: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Log-probabilities at a temperature, -inf outside the top k and then the top p: float64 [vocabulary]."""
    scores = log_probs / sampling.temperature
    order = np.argsort(-scores, kind="stable")
    keep = np.ones(len(scores), dtype=bool)
    if sampling.top_k:
        keep[order[sampling.top_k :]] = False
    shares = _softmax(np.where(keep, scores, -np.inf))[order]
    keep[order[np.cumsum(shares) - shares >= sampling.top_p]] = False
    kept: np.ndarray = np.where(keep, scores, -np.inf)
    return kept


def _softmax(scores: np.ndarray) -> np.ndarray:
    shares = np.exp(scores - scores.max())
    normed: np.ndarray = shares / shares.sum()
    return normed


def _gumbel(streams: list[int], step: int, count: int) -> np.ndarray:
    """The reference noise of these streams at a step: float64 [streams, vocabulary]."""
    drawn = uniform(step_keys(np.array(streams, dtype=np.uint64), step), count).astype(np.float64)
    noise: np.ndarray = -np.log(-np.log(drawn))
    return noise


def chi_square(subject: Subject) -> Finding:
    """Counts of drawn tokens against the softmax, as standard deviations of a chi-square (Wilson and
    Hilferty 1931); tokens expected fewer than five times are counted as one."""
    count = 4096 if subject.full else 512
    details = {}
    for temperature in (1.0, 0.6):
        rows, drawn = _drawn(subject, count, Sampling(temperature, 1))
        shares = _softmax(subject.first(rows[:1])[0] / temperature)
        seen = np.bincount([each.output_ids[0] for each in drawn], minlength=len(shares)).astype(np.float64)
        expected = shares * count
        rare = expected < 5
        seen = np.append(seen[~rare], seen[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        filled = expected > 0
        freedom = int(filled.sum()) - 1
        if freedom == 0:
            continue
        statistic = float(((seen - expected)[filled] ** 2 / expected[filled]).sum())
        spread = 2 / (9 * freedom)
        details[f"temperature {temperature:g}"] = (
            (statistic / freedom) ** (1 / 3) - 1 + spread
        ) / spread**0.5
    subject.need(bool(details), "one token has nearly all the probability")
    return Finding(max(map(abs, details.values())), details=details)


def noise(subject: Subject) -> Finding:
    """Drawn tokens are those that the numpy reference of the noise gives, truncated or not. error: draws that
    differ, near-ties aside."""
    count = 512 if subject.full else 96
    differ = near = 0
    for sampling in (
        Sampling(1.0, 1),
        Sampling(0.7, 1, top_k=5),
        Sampling(1.3, 1, top_p=0.6),
        Sampling(1.0, 1, top_k=12, top_p=0.8),
    ):
        rows, drawn = _drawn(subject, count, sampling)
        scores = _kept(subject.first(rows[:1])[0], sampling)
        for first in range(0, count, 64):
            streams = [row.stream for row in rows[first : first + 64]]
            ranked = scores + _gumbel(streams, 0, len(scores))
            for each, one in zip(drawn[first : first + 64], ranked, strict=True):
                best = int(one.argmax())
                if each.output_ids[0] != best:
                    tie = abs(one[each.output_ids[0]] - one[best]) < 1e-4
                    near, differ = near + int(tie), differ + int(not tie)
    broken = (f"{differ} draws are not the reference's",) if differ else ()
    return Finding(float(differ), broken, {"draws": 4.0 * count, "near-ties": float(near)})


def later_steps(subject: Subject) -> Finding:
    """The noise of later steps: each token of sampled rows from the probabilities given those before it."""
    rows, drawn = _drawn(subject, 6, Sampling(1.0, 5))
    differ = near = 0
    for row, found in zip(rows, drawn, strict=True):
        for step, token in enumerate(found.output_ids):
            given = replace(row, ids=row.ids + found.output_ids[:step])
            scores = subject.first([given])[0] + _gumbel([row.stream], step, subject.info.vocabulary)[0]
            best = int(scores.argmax())
            if token != best:
                tie = abs(scores[token] - scores[best]) < 1e-3
                near, differ = near + int(tie), differ + int(not tie)
    broken = (f"{differ} draws are not the reference's",) if differ else ()
    return Finding(float(differ), broken, {"near-ties": float(near)})


def _prompts(subject: Subject) -> list[Row]:
    return [subject.row(subject.ids(f"read {n}", subject.length - n % 4)) for n in range(6)]


def ranks(subject: Subject) -> Finding:
    """Rank 0 is the token that greedy decoding takes. error: rows where it is not."""
    rows = _prompts(subject)
    drawn = subject.decode(rows)
    likely = subject.first(rows)
    broken = []
    for row, found, scores in zip(rows, drawn, likely, strict=True):
        order = np.argsort(-scores, kind="stable")
        for place in (0, 1, len(order) // 2):
            token = int(order[place])
            rank = scalar(_read(subject, row, Probe("rank", name="rank", tokens="one"), token)["rank"])
            if rank != int((scores > scores[token]).sum()):
                broken.append(f"rank {rank} of a token with {place} more likely ones")
        top = _read(subject, row, Probe("rank", name="rank", tokens="one"), found.output_ids[0])["rank"]
        if scalar(top) != 0 and found.min_margin > 1e-4:
            broken.append("the greedy token has not rank 0")
    return Finding(float(len(broken)), tuple(broken))


def _read(subject: Subject, row: Row, probe: Probe, *tokens: int) -> Mapping[str, Measured]:
    scored = subject.score([ScoreRow(row, tokens={"one": tokens})], [probe])[0]
    return scored.values


def divergence(subject: Subject) -> Finding:
    """KL(p | p) is 0, and KL is never negative."""
    probe = Probe("kl", name="kl")
    ids = subject.ids("target")
    plain = [ScoreRow(row) for row in _prompts(subject)]
    own = [scalar(found.values["kl"]) for found in subject.score(plain, [probe])]
    written = []
    for site in subject.sites():
        write = make(site, site, subject.only(site), "add", RANDOM, "index:-1", alpha=0.01)
        written.append(ScoreRow(subject.row(ids, write)))
    other = [scalar(found.values["kl"]) for found in subject.score(written, [probe])]
    broken = [f"KL of {value:.3g}" for value in other if value < 0]
    broken += [] if max(other) > 0 else ["KL is 0 for every write"]
    return Finding(max(map(abs, own)), tuple(broken), {"largest": max(other)})


def probabilities(subject: Subject) -> Finding:
    """next_token, log_odds and top_k say the same of one distribution, which sums to 1."""
    rows = _prompts(subject)
    likely = np.exp(subject.first(rows))
    chosen = (int(likely[0].argmax()), int(np.argsort(likely[0])[len(likely[0]) // 2]))
    other = (int(np.argsort(likely[0])[-2]),)
    scored = subject.score(
        [ScoreRow(row, tokens={"one": chosen, "two": other}) for row in rows],
        [
            Probe("next_token", name="p", tokens="one"),
            Probe("log_odds", name="o", tokens="one", against="two"),
        ],
    )
    pairs = [(likely.sum(axis=1), np.ones(len(rows)))]
    p = likely[:, list(chosen)].sum(axis=1)
    pairs.append((np.array([scalar(found.values["p"]) for found in scored]), p))
    odds = np.log(p) - np.log(likely[:, list(other)].sum(axis=1))
    pairs.append((np.array([scalar(found.values["o"]) for found in scored]), odds))
    return Finding(max(apart(found, expected) for found, expected in pairs))


def shift(subject: Subject) -> Finding:
    """Log-odds do not feel a constant added to all logits."""
    subject.need("logits" in subject.info.sites, "the architecture has no site 'logits'")
    ids = subject.ids("target")
    value = constant(np.full(subject.info.vocabulary, 3.7))
    moved = make("shift", "logits", subject.only("logits"), "add", value, "index:-1")
    likely = subject.first([subject.row(ids)])[0]
    order = np.argsort(-likely)
    sets = {"one": (int(order[0]), int(order[3])), "two": (int(order[1]),)}
    probes = [
        Probe("log_odds", name="pair", tokens="one", against="two"),
        Probe("log_odds", name="rest", tokens="one"),
    ]
    found = subject.score(
        [ScoreRow(subject.row(ids), tokens=sets), ScoreRow(subject.row(ids, moved), tokens=sets)], probes
    )
    before, after = (np.array([scalar(each.values["pair"]), scalar(each.values["rest"])]) for each in found)
    return Finding(apart(after, before))


def lens_read(subject: Subject) -> Finding:
    """The lens probe at the last layer reads the next-token distribution."""
    last = subject.depth - 1
    ids = subject.ids("target")
    token = int(subject.first([subject.row(ids)])[0].argmax())
    row = ScoreRow(subject.row(ids), tokens={"one": (token,)})
    probes = [
        Probe("lens", name="lens", tokens="one", layers=(last,)),
        Probe("next_token", name="p", tokens="one"),
    ]
    values = subject.score([row], probes)[0].values
    broken = [] if listed(values["lens.rank"])[0] == 0 else ["its most likely token has not rank 0"]
    broken += [] if listed(values["lens.top"])[0] == token else ["its top token is another one"]
    return Finding(apart(listed(values["lens.prob"]), np.array([scalar(values["p"])])), tuple(broken))


def named_positions(subject: Subject) -> Finding:
    """Rows of one batch are read at positions of their own, kl with the clean side at the same; each as its
    row alone is read there."""
    write = make("add", "resid_post", (subject.depth // 2,), "add", constant(subject.vector("moved")))
    long, short = subject.ids("target"), subject.ids("other", subject.short_length)
    asked = [(long, 1), (long, len(long) // 2), (long, len(long) - 1), (short, 0)]
    probes = [Probe("next_token", name="p", tokens="one"), Probe("kl", name="kl")]
    rows = [
        ScoreRow(subject.row(ids, write), tokens={"one": ids[:3]}, positions={"here": at})
        for ids, at in asked
    ]
    together = subject.score(rows, [replace(probe, at="here") for probe in probes])
    pairs = []
    for row, (_, at), found in zip(rows, asked, together, strict=True):
        alone = subject.score([row], [replace(probe, position=at) for probe in probes])[0]
        read, expected = ([scalar(one.values["p"]), scalar(one.values["kl"])] for one in (found, alone))
        pairs.append((np.array(read), np.array(expected)))
    drifts = [scalar(found.values["kl"]) for found in together]
    broken = () if len(set(drifts)) == len(drifts) else ("KL is the same at different positions",)
    return Finding(farthest(pairs), broken)


CHECKS = (
    Check("chi_square", SECTION, CHANCE, chi_square, "Gumbel-max draws follow the softmax"),
    Check(
        "reference_noise",
        SECTION,
        T0,
        noise,
        "draws are those of the reference noise, top-k and top-p included",
    ),
    Check("later_noise", SECTION, T0, later_steps, "so are those of later steps", ("float32",)),
    Check("ranks", SECTION, T0, ranks, "rank 0 is the argmax", ("float32",)),
    Check("kl", SECTION, T0, divergence, "KL(p | p) is 0, and KL is never negative"),
    Check("probabilities", SECTION, T1, probabilities, "next_token, log_odds and top_k agree", ("float32",)),
    Check("logit_shift", SECTION, T1, shift, "log-odds do not feel a shift of all logits", ("float32",)),
    Check(
        "lens_probe",
        SECTION,
        T2,
        lens_read,
        "the lens probe at the last layer reads the next token",
        ("float32",),
    ),
    Check(
        "named_positions",
        SECTION,
        T2,
        named_positions,
        "rows of one batch are read at positions of their own",
        ("float32",),
    ),
)
