#!/usr/bin/env python3
"""Makes the data sets of the bench, with exact answers.

    prepare.py OUT [SET...]

s10k, s100k  synthetic, cosine: 2,000 clusters in 48 of 384 dimensions and noise, unit length, from a fixed seed
fashion      real, Euclidean: Fashion-MNIST, 60,000 x 784, from $ANN_DATA/fashion-784/{base,query,pool}.u8.gz
             (int32 rows, int32 columns, bytes); left out with a message where that is absent

OUT/SET/base.fbin   the rows to be indexed: int32 rows, int32 columns, float32 values
        query.fbin  1,000 queries
        pool.fbin   more rows, for the inserts
        gt.ibin     the 100 nearest rows of each query, nearest first
        gtd.fbin    their distances, computed in float64
        meta.json   rows, columns, metric, what it is
A set that is already there is left alone.
"""
import gzip
import json
import os
import shutil
import sys
import numpy as np

SEED, QUERIES, NEAREST = 20240601, 1000, 100


def write(name, a, dtype=np.float32):
    with open(name, "wb") as f:
        np.array(a.shape, np.int32).tofile(f)
        np.ascontiguousarray(a, dtype).tofile(f)


def read(name, dtype=np.float32):
    with open(name, "rb") as f:
        rows, columns = (int(x) for x in np.fromfile(f, np.int32, 2))
        return np.fromfile(f, dtype, rows * columns).reshape(rows, columns)


def unit(a):
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def exact(base, query, metric, k=NEAREST):
    """The k nearest rows of each query and their distances: float32 finds candidates, float64 ranks them."""
    if metric == "cosine":
        base, query = unit(base.astype(np.float64)), unit(query.astype(np.float64))
    b32, q32 = base.astype(np.float32), query.astype(np.float32)
    norms = (base.astype(np.float64) ** 2).sum(1)
    ids, dists = np.empty((len(query), k), np.int32), np.empty((len(query), k))
    few = min(len(base), k + 50)
    for s in range(0, len(query), 100):
        rough = norms[None, :] - 2.0 * (q32[s:s + 100] @ b32.T)
        near = np.argpartition(rough, few - 1, axis=1)[:, :few]
        for i, c in enumerate(near):
            d = ((base[c].astype(np.float64) - query[s + i].astype(np.float64)) ** 2).sum(1)
            order = np.lexsort((c, d))[:k]
            ids[s + i], dists[s + i] = c[order], d[order]
    return ids, dists / 2 if metric == "cosine" else np.sqrt(dists)


def finish(out, name, base, query, pool, metric, what):
    part = os.path.join(out, name + ".part")
    os.makedirs(part, exist_ok=True)
    ids, dists = exact(base, query, metric)
    for file, a, dtype in (("base.fbin", base, np.float32), ("query.fbin", query, np.float32), ("pool.fbin", pool, np.float32),
                           ("gt.ibin", ids, np.int32), ("gtd.fbin", dists, np.float32)):
        write(os.path.join(part, file), a, dtype)
    with open(os.path.join(part, "meta.json"), "w") as f:
        json.dump({"name": name, "rows": len(base), "dim": base.shape[1], "metric": metric, "what": what}, f)
    os.rename(part, os.path.join(out, name))
    print(f"{name}: {base.shape[0]} x {base.shape[1]}, {metric}", file=sys.stderr)


def synthetic():
    """215,000 rows, of which the sets take the first; the number is part of the seed."""
    rng = np.random.default_rng(SEED)
    n, dim, low, clusters = 215000, 384, 48, 2000
    plane = rng.standard_normal((low, dim)).astype(np.float32) / np.sqrt(low)
    centers = rng.standard_normal((clusters, low)).astype(np.float32)
    member = rng.choice(clusters, n, p=rng.dirichlet(np.full(clusters, 0.5)))
    width = rng.uniform(0.3, 0.9, clusters).astype(np.float32)
    z = centers[member] + width[member][:, None] * rng.standard_normal((n, low)).astype(np.float32)
    return unit((z @ plane + 0.15 * rng.standard_normal((n, dim)).astype(np.float32)).astype(np.float32))


def fashion(out):
    folder = os.path.join(os.environ.get("ANN_DATA", ""), "fashion-784")
    if not os.path.exists(folder):
        print("prepare.py: fashion is left out; ANN_DATA names the folder with fashion-784 in it", file=sys.stderr)
        return
    parts = []
    for part in ("base", "query", "pool"):
        with gzip.open(os.path.join(folder, part + ".u8.gz"), "rb") as f:
            shape = np.frombuffer(f.read(8), np.int32)
            parts.append(np.frombuffer(f.read(), np.uint8).reshape(shape).astype(np.float32))
    finish(out, "fashion", *parts, "l2", "real: Fashion-MNIST, all train images, queries and inserts from the test images")


def main(out, names):
    os.makedirs(out, exist_ok=True)
    missing = [n for n in names or ["s10k", "s100k", "fashion"] if not os.path.exists(os.path.join(out, n, "meta.json"))]
    for n in missing:
        shutil.rmtree(os.path.join(out, n + ".part"), ignore_errors=True)
    if "fashion" in missing:
        fashion(out)
    sizes = {"s10k": 10000, "s100k": 100000}
    if any(n in sizes for n in missing):
        x = synthetic()
        for n in (n for n in missing if n in sizes):
            finish(out, n, x[QUERIES:QUERIES + sizes[n]], x[:QUERIES], x[QUERIES + 100000:QUERIES + 114000], "cosine",
                   f"synthetic: 2,000 clusters in 48 of 384 dimensions and noise, unit length, seed {SEED}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
