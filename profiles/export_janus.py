"""Writes a classifier as one ONNX graph for each layer, so that a device can stop after any.

``embed`` makes tokens of a frame, each ``block`` takes and gives tokens [n, dim] with their sizes
[n] and merges as many as it is told, ``last`` is the head. The graphs hold no weights: they point
into the classifier's own safetensors file beside them, which the server reads too.

Merging in ONNX is `server.models.merging` node by node, with the token count and the number merged
known only at run time. At zero it must not run at all: it would put the tokens in another order.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from profiles.amend import PROFILES, amend
from profiles.export_split import FRAME, TOKENS, embedding
from profiles.graph import Graph, floats, pictures
from profiles.pointing import Pointing
from server.models.checkpoint import load_model
from server.models.vit import Attention, Block, VisionTransformer

SIZES, MERGE, PROBABILITIES = "sizes", "merge", "probabilities"


def layers_onnx(vit: VisionTransformer, weights: Path) -> tuple[Path, list[Path], Path]:
    """Write the graphs of ``vit``, whose weights lie in ``weights``, beside that file.

    Returns the embedding's path, those of the blocks in order, and the head's.
    """
    stem = weights.stem
    embed, last = (weights.with_name(f"{stem}-{name}.onnx") for name in ("embed", "last"))
    _embed(Pointing(vit, weights), vit, embed)
    blocks = []
    for number, block in enumerate(vit.blocks, 1):
        assert isinstance(block, Block)
        blocks.append(weights.with_name(f"{stem}-block{number}.onnx"))
        _block(Pointing(vit, weights), block, blocks[-1])
    _last(Pointing(vit, weights), vit, last)
    return embed, blocks, last


def _embed(g: Pointing, vit: VisionTransformer, path: Path) -> None:
    """``frame`` uint8 [1, H, W, 3] to ``tokens`` float32 [1, 1+N, dim], positions added."""
    config = vit.config
    rows = embedding(g, vit)
    first = g.reshape(g.weight("class", vit.cls_token), "class.row", 1, config.dim)
    all_ = g.node("Concat", [first, rows], "unplaced", axis=0)
    count = vit.pos_embed.shape[1]
    whole = g.reshape(all_, "unplaced.all", 1, count, config.dim)
    g.node("Add", [whole, g.weight("places", vit.pos_embed)], TOKENS)
    frame = pictures(FRAME, 1, config.frames * config.image, config.image, config.channels)
    g.write(path, [frame], [floats(TOKENS, 1, count, config.dim)])


def _block(g: Pointing, block: Block, path: Path) -> None:
    """``tokens`` [n, dim], ``sizes`` [n], ``merge`` int64 [1] to ``tokens.out``, ``sizes.out``."""
    dim = block.attn.proj.in_features
    y, metric = _attention(g, g.layer_norm(TOKENS, "norm1", block.norm1), block.attn)
    g.node("Add", [TOKENS, y], "attended")
    _merged_if_asked(g, metric)
    y = g.layer_norm("merged", "norm2", block.norm2)
    y = g.gelu(g.linear(y, "fc1", block.mlp.fc1), "gelu")
    g.node("Add", ["merged", g.linear(y, "fc2", block.mlp.fc2)], f"{TOKENS}.out")
    merge = helper.make_tensor_value_info(MERGE, TensorProto.INT64, [1])
    g.write(
        path,
        [floats(TOKENS, "n", dim), floats(SIZES, "n"), merge],
        [floats(f"{TOKENS}.out", "m", dim), floats(f"{SIZES}.out", "m")],
    )


def _last(g: Pointing, vit: VisionTransformer, path: Path) -> None:
    """``tokens`` [n, dim] and ``sizes`` [n] to ``probabilities`` [classes]."""
    dim = vit.config.dim
    zero, one = g.constant("zero", np.array([0])), g.constant("one", np.array([1]))
    if vit.config.pool == "cls":
        row = g.layer_norm(g.node("Slice", [TOKENS, zero, one, zero], "class"), "norm", vit.norm)
    else:
        end, axes = g.constant("end", np.array([2**62])), zero
        rest = g.node("Slice", [TOKENS, one, end, axes], "rest")
        weight = g.node("Slice", [SIZES, one, end, axes], "weight")
        total = g.node("ReduceSum", [weight], "total")
        share = g.reshape(g.node("Div", [weight, total], "share"), "share.row", 1, -1)
        row = g.layer_norm(g.node("MatMul", [share, rest], "mean"), "norm", vit.fc_norm)
    y = g.node("Softmax", [g.linear(row, "logits", vit.head)], "row", axis=-1)
    g.reshape(y, PROBABILITIES, vit.config.classes)
    g.write(
        path,
        [floats(TOKENS, "n", dim), floats(SIZES, "n")],
        [floats(PROBABILITIES, vit.config.classes)],
    )


def _attention(g: Graph, x: str, attention: Attention) -> tuple[str, str]:
    """Proportional attention: its output rows, and the metric that merging compares [n, c]."""
    dim, heads = attention.proj.in_features, attention.heads
    y = g.reshape(g.linear(x, "qkv", attention.qkv), "parts", -1, 3, heads, dim // heads)
    q, k, v = (
        g.node("Gather", [y, g.constant(f"part{place}", np.array(place))], name, axis=1)
        for place, name in enumerate("qkv")
    )
    scale = g.constant("scale", np.array((dim // heads) ** -0.5, np.float32))
    q_heads = g.node("Mul", [g.node("Transpose", [q], "q.heads", perm=[1, 0, 2]), scale], "q.scale")
    k_heads = g.node("Transpose", [k], "k.heads", perm=[1, 2, 0])
    v_heads = g.node("Transpose", [v], "v.heads", perm=[1, 0, 2])
    scores = g.node("MatMul", [q_heads, k_heads], "scores")
    scores = g.node("Add", [scores, g.node("Log", [SIZES], "sizes.log")], "scores.sized")
    seen = g.node("MatMul", [g.node("Softmax", [scores], "row", axis=-1), v_heads], "seen")
    seen = g.node("Transpose", [seen], "seen.rows", perm=[1, 0, 2])
    rows = g.linear(g.reshape(seen, "joined", -1, dim), "attn", attention.proj)
    return rows, g.node("ReduceMean", [k], "metric", axes=[1], keepdims=0)


def _merged_if_asked(g: Graph, metric: str) -> None:
    """Adds "merged" and "sizes.out": those of "attended" and "sizes", unless ``merge`` is zero."""
    outer, g.nodes = g.nodes, []
    results = _merging(g, metric)
    inner, g.nodes = g.nodes, outer
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in zip(results, (["m", "d"], ["m"]), strict=True)
    ]
    merging = helper.make_graph(inner, "merging", [], values)
    same = [
        helper.make_node("Identity", ["attended"], ["same"]),
        helper.make_node("Identity", [SIZES], ["sizes.same"]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("same", ["n", "d"]), ("sizes.same", ["n"]))
    ]
    passing = helper.make_graph(same, "passing", [], values)
    zero = g.constant("zero", np.array([0]))
    asked = g.node("Greater", [MERGE, zero], "asked")
    g.nodes.append(
        helper.make_node(
            "If", [asked], ["merged", f"{SIZES}.out"], then_branch=merging, else_branch=passing
        )
    )


def _merging(g: Graph, metric: str) -> tuple[str, str]:
    """Bipartite soft matching; the names of the tokens and of the sizes that it leaves."""
    start, step, end = (
        g.constant(name, np.array([value]))
        for name, value in (("even", 0), ("two", 2), ("far", 2**62))
    )
    odd, axis, column = g.constant("odd", np.array([1])), "even", "odd"

    def halves(x: str) -> tuple[str, str]:
        return (
            g.node("Slice", [x, start, end, axis, step], f"{x}.a"),
            g.node("Slice", [x, odd, end, axis, step], f"{x}.b"),
        )

    here, there = halves(g.node("LpNormalization", [metric], "unit", axis=-1, p=2))
    scores = g.node("MatMul", [here, g.node("Transpose", [there], "turned")], "alike")
    # The most alike of B for every token of A; the class token, the first, has none.
    g.nodes.append(helper.make_node("TopK", [scores, odd], ["best", "partner"], axis=-1))
    best = g.reshape("best", "best.flat", -1)
    never = g.constant("never", np.array([-np.inf], np.float32))
    best = g.node("Concat", [never, g.node("Slice", [best, odd, end, axis], "best.rest")],
                  "best.free", axis=0)  # fmt: skip
    g.nodes.append(helper.make_node("TopK", [best, MERGE], ["best.most", "chosen"], axis=0))
    partner = g.reshape("partner", "partner.flat", -1)
    into = g.node("Gather", [partner, "chosen"], "into.flat")
    into = g.node("Unsqueeze", [into, column], "into")
    gone = g.node("Sub", [MERGE, MERGE], "gone.zero")
    gone = g.node("Expand", [gone, MERGE], "gone")
    ones = g.node("ConstantOfShape", [g.node("Shape", [best], "count")], "ones",
                  value=helper.make_tensor("one", TensorProto.INT64, [1], [1]))  # fmt: skip
    kept = g.node("ScatterElements", [ones, "chosen", gone], "kept.numbers", axis=0)
    kept = g.node("Cast", [kept], "kept", to=TensorProto.BOOL)

    size = g.node("Unsqueeze", [SIZES, column], "sizes.column")
    weighed = g.node("Mul", ["attended", size], "weighed")
    weighed = g.node("Concat", [weighed, size], "weighed.sized", axis=1)
    here, there = halves(weighed)
    moved = g.node("Gather", [here, "chosen"], "moved")
    there = g.node("ScatterND", [there, into, moved], "joined.b", reduction="add")
    here = g.node("Compress", [here, kept], "kept.a", axis=0)
    sums = g.node("Concat", [here, there], "sums", axis=0)
    last, before = (g.constant(name, np.array([value])) for name, value in (("l", -1), ("f", 0)))
    sizes = g.node("Slice", [sums, last, end, column], "merged.column")
    tokens = g.node("Slice", [sums, before, last, column], "merged.sums")
    tokens = g.node("Div", [tokens, sizes], "merged.tokens")
    return tokens, g.node("Squeeze", [sizes, column], "merged.sizes")


def main() -> None:
    """Adds the graphs and the strategy ``janus`` to a profile."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("profile")
    name = parser.parse_args().profile
    publish(PROFILES / name)


def publish(directory: Path) -> None:
    """Write the graphs of the profile in ``directory`` and have it offer ``janus``."""
    made = json.loads((directory / "profile.json").read_text())["models"]["vit"]
    weights = directory / made["file"]
    vit = load_model(weights, "vit", made["config"])
    assert isinstance(vit, VisionTransformer)
    embed, blocks, last = layers_onnx(vit, weights)
    files = [weights, embed, *blocks, last]
    places = [str(path.relative_to(directory)) for path in files]
    params = {
        "weights": places[0],
        "embed": places[1],
        "blocks": places[2:-1],
        "last": places[-1],
        "tokens": vit.pos_embed.shape[1],
    }
    amend(directory, strategies={"janus": params}, files=dict(zip(places, files, strict=True)))


if __name__ == "__main__":
    main()
