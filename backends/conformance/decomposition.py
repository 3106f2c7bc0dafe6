"""The residual stream as a sum of what is written to it, and the logits as a reading of it."""

from __future__ import annotations

import numpy as np

from backends.conformance.check import T0, T1, Check, Finding
from backends.conformance.subject import Reading, Subject, apart, farthest
from backends.writes import Site

SECTION = "decomposition"


def _contribution(subject: Subject, found: Reading, site: Site, layer: int) -> np.ndarray:
    """What attention or MLP adds to the residual stream: behind its post-norm where there is one."""
    normed: Site = "attn_out_normed" if site == "attn_out" else "mlp_out_normed"
    return found[(normed if normed in subject.info.sites else site, layer)].astype(np.float64)


def _everything(subject: Subject) -> tuple[tuple[int, ...], Reading]:
    ids = subject.ids("target")
    return ids, subject.read(subject.row(ids), subject.spots(subject.sites()))


def blocks(subject: Subject) -> Finding:
    """resid_post = resid_pre + attention + MLP, at every layer; resid_mid between them."""
    _, found = _everything(subject)
    pairs = []
    for layer in range(subject.depth):
        before = found[("resid_pre", layer)].astype(np.float64)
        attention = _contribution(subject, found, "attn_out", layer)
        mlp = _contribution(subject, found, "mlp_out", layer)
        pairs.append((found[("resid_post", layer)], before + attention + mlp))
        if "resid_mid" in subject.info.sites:
            pairs.append((found[("resid_mid", layer)], before + attention))
    return Finding(farthest(pairs))


def heads(subject: Subject) -> Finding:
    """attn_out = the sum over heads of head_z W_O, and the bias."""
    _, found = _everything(subject)
    info = subject.info
    pairs = []
    for layer in range(subject.depth):
        weight = subject.backend.weight("o_proj", layer).astype(np.float64)
        z = found[("head_z", layer)].astype(np.float64).reshape(-1, info.heads, info.head_width)
        each = np.einsum("phd,hdw->hpw", z, weight.reshape(info.heads, info.head_width, -1))
        bias = subject.backend.weight("o_proj_bias", layer).astype(np.float64)
        pairs.append((found[("attn_out", layer)], each.sum(axis=0) + bias))
    return Finding(farthest(pairs))


def whole(subject: Subject) -> Finding:
    """What enters the first block and all contributions = the last resid_post.

    Where positions are learned, what enters is resid_pre of layer 0 as it stands: no site carries the
    positions apart from it, so that embed + positions could only be taken from resid_pre itself.
    """
    _, found = _everything(subject)
    total = found[("embed" if subject.info.rotary else "resid_pre", 0)].astype(np.float64)
    for layer in range(subject.depth):
        total = total + _contribution(subject, found, "attn_out", layer)
        total = total + _contribution(subject, found, "mlp_out", layer)
    return Finding(apart(found[("resid_post", subject.depth - 1)], total))


def entrance(subject: Subject) -> Finding:
    """resid_pre of layer 0 is embed; with learned positions the two differ by what the position alone
    decides."""
    ids, found = _everything(subject)
    if subject.info.rotary:
        return Finding(apart(found[("resid_pre", 0)], found[("embed", 0)]))
    other = subject.read(subject.row(ids[::-1]), [("resid_pre", 0), ("embed", 0)])
    one, two = (
        each[("resid_pre", 0)].astype(np.float64) - each[("embed", 0)].astype(np.float64)
        for each in (found, other)
    )
    size = np.abs(found[("resid_pre", 0)]).max()
    return Finding(float(np.abs(one - two).max() / size))


def embedding(subject: Subject) -> Finding:
    """embed is the token's row of the embedding."""
    ids, found = _everything(subject)
    return Finding(apart(found[("embed", 0)], subject.backend.weight("embed")[list(ids)]))


def lens(subject: Subject) -> Finding:
    """The lens at the last layer gives the logits that the model returns."""
    rows = [subject.row(subject.ids("target")), subject.row(subject.ids("donor", subject.length - 3))]
    returned = [subject.returned([row])[0] for row in rows]
    read = [subject.backend.unembed(subject.final([row])[0])[-1] for row in rows]
    return Finding(farthest(list(zip(read, returned, strict=True))))


def chain(subject: Subject) -> Finding:
    """resid_pre of layer l + 1 is resid_post of layer l."""
    _, found = _everything(subject)
    return Finding(
        farthest(
            [
                (found[("resid_pre", layer + 1)], found[("resid_post", layer)])
                for layer in range(subject.depth - 1)
            ]
        )
    )


CHECKS = (
    Check("resid_chain", SECTION, T0, chain, "resid_pre of a layer is resid_post of the one below"),
    Check(
        "block_sum",
        SECTION,
        T1,
        blocks,
        "resid_post = resid_pre + attention + MLP contributions, resid_mid between them",
        ("float32",),
    ),
    Check(
        "head_sum", SECTION, T1, heads, "attn_out = sum over heads of head_z W_O, and the bias", ("float32",)
    ),
    Check(
        "entrance",
        SECTION,
        T1,
        entrance,
        "what enters layer 0 is embed, and positions where they are learned",
    ),
    Check(
        "embedding",
        SECTION,
        T1,
        embedding,
        "embed is the row of the embedding",
        ("float32",),
    ),
    Check(
        "whole_sum",
        SECTION,
        T1,
        whole,
        "what enters and all contributions add up to the last resid_post",
        ("float32",),
    ),
    Check(
        "lens_last_layer",
        SECTION,
        T1,
        lens,
        "the lens at the last layer is the logits that the model returns",
    ),
)
