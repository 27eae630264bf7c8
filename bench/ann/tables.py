#!/usr/bin/env python3
"""Loads prepared sets as plain tables, for work by hand: bench/ann/tables.py DATA [SET...]

Connects as libpq does (PGHOST, PGPORT, PGDATABASE, PGUSER).  Makes SET (id int4, v real[]), q_SET (qid, v) and
gt_SET (qid, ids, dist), and where pgvector is installed SET_v (id int4, v vector) with pgvector's index on it.
"""
import io
import os
import sys
import time
import numpy as np
import psycopg2
from prepare import read


def encode(vectors, first_id, kind):
    """Rows of (int4, real[]) or (int4, pgvector's vector) as binary COPY takes them."""
    n, dim = vectors.shape
    head = [("fields", ">i2"), ("len1", ">i4"), ("id", ">i4"), ("len2", ">i4")]
    if kind == "vector":
        a = np.zeros(n, np.dtype(head + [("dim", ">i2"), ("zero", ">i2"), ("x", ">f4", dim)]))
        a["len2"], a["dim"], a["x"] = 4 + 4 * dim, dim, vectors
    else:
        a = np.zeros(n, np.dtype(head + [("array", ">i4", 5), ("e", np.dtype([("len", ">i4"), ("x", ">f4")]), dim)]))
        a["len2"] = 20 + 8 * dim
        a["array"] = [1, 0, 700, dim, 1]        # dimensions, nulls, type of the elements, length, lower bound
        a["e"]["len"], a["e"]["x"] = 4, vectors
    a["fields"], a["len1"] = 2, 4
    a["id"] = np.arange(first_id, first_id + n)
    return b"PGCOPY\n\xff\r\n\0" + bytes(8) + a.tobytes() + b"\xff\xff"


def copy_vectors(cur, table, columns, vectors):
    for s in range(0, len(vectors), 20000):
        cur.copy_expert(f"COPY {table} ({columns}) FROM STDIN (FORMAT binary)", io.BytesIO(encode(vectors[s:s + 20000], s, "array")))


def copy_truth(cur, name, ids, dist):
    def literal(a):
        return "{" + ",".join("%.9g" % x for x in a) + "}"
    lines = "".join(f"{q}\t{literal(i)}\t{literal(d)}\n" for q, (i, d) in enumerate(zip(ids, dist)))
    cur.copy_expert(f"COPY gt_{name} FROM STDIN", io.StringIO(lines))


def cpu_of(pid):
    with open(f"/proc/{pid}/schedstat", encoding="ascii") as f:
        return int(f.read().split()[0]) / 1e9


def load(cur, data, name):
    folder = os.path.join(data, name)
    base = read(folder + "/base.fbin")
    with open(folder + "/meta.json", encoding="utf8") as f:
        cosine = '"cosine"' in f.read()
    for t in (name, "q_" + name, "gt_" + name, name + "_v"):
        cur.execute(f"DROP TABLE IF EXISTS {t}")
    cur.execute(f"CREATE TABLE {name} (id int4, v real[] NOT NULL)")
    copy_vectors(cur, name, "id, v", base)
    cur.execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id)")
    cur.execute(f"CREATE TABLE q_{name} (qid int PRIMARY KEY, v real[] NOT NULL)")
    copy_vectors(cur, "q_" + name, "qid, v", read(folder + "/query.fbin"))
    cur.execute(f"CREATE TABLE gt_{name} (qid int PRIMARY KEY, ids int[], dist real[])")
    copy_truth(cur, name, read(folder + "/gt.ibin", np.int32), read(folder + "/gtd.fbin"))
    for t in (name, "q_" + name, "gt_" + name):
        cur.execute(f"VACUUM (FREEZE, ANALYZE) {t}")
    print(f"{name}: {len(base)} rows", flush=True)
    cur.execute("SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'")
    if not cur.fetchone()[0]:
        print("no pgvector here: no second set of tables")
        return
    cur.execute("CREATE EXTENSION IF NOT EXISTS vector")
    cur.execute(f"CREATE TABLE {name}_v (id int4 PRIMARY KEY, v vector({base.shape[1]}) NOT NULL)")
    cur.execute(f"INSERT INTO {name}_v SELECT id, v::vector FROM {name} ORDER BY id")
    cur.execute(f"VACUUM (FREEZE, ANALYZE) {name}_v")
    pid, wall = cur.connection.info.backend_pid, time.monotonic()
    cpu = cpu_of(pid)
    cur.execute("SET max_parallel_maintenance_workers = 0")
    ops = "vector_cosine_ops" if cosine else "vector_l2_ops"
    cur.execute(f"CREATE INDEX {name}_v_hnsw ON {name}_v USING hnsw (v {ops}) WITH (m = 16, ef_construction = 200)")
    cur.execute(f"SELECT pg_relation_size('{name}_v_hnsw')")
    size = cur.fetchone()[0]
    print(f"{name}_v: pgvector's index in {cpu_of(pid) - cpu:.1f} s CPU, {time.monotonic() - wall:.1f} s, {size} bytes, {size / len(base):.0f} a row", flush=True)


def main(data, names):
    connection = psycopg2.connect("")
    connection.autocommit = True
    for name in names or ["s10k", "s100k", "fashion"]:
        if os.path.exists(os.path.join(data, name, "meta.json")):
            load(connection.cursor(), data, name)
        else:
            print(f"{name}: not in {data}, left out")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
