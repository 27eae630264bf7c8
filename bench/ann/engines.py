"""The engines: how each makes its table and index, and is asked.

{t} table, {dim} columns, {op} operator, {ops} operator class of the metric, {knob} and {k} are filled in.
`param` is how annclient sends a vector, `type` what the column is.
"""

METRICS = {
    "l2": {"op": "<->", "vector": "vector_l2_ops", "array": "real_l2_ops"},
    "cosine": {"op": "<=>", "vector": "vector_cosine_ops", "array": "real_cosine_ops"},
}
KNOBS = [10, 12, 15, 16, 18, 20, 25, 30, 40, 64, 100, 200]
QUERY = "SELECT id FROM {t} ORDER BY v {op} $1 LIMIT {k}"
LATERAL = "SELECT n.id FROM q CROSS JOIN LATERAL (SELECT id FROM t ORDER BY v {op} q.v LIMIT {k}) n"
FLOOR = "SELECT id, v {op} $1 FROM {t} LIMIT {k}"       # the same statement without a search

PGVECTOR = {
    "extension": "vector", "am": "hnsw", "param": "vector", "type": "vector({dim})",
    "index": "CREATE INDEX {t}_ann ON {t} USING hnsw (v {ops}) WITH (m = 16, ef_construction = 200)",
    "knob": "SET hnsw.ef_search = {knob}",
}


# pgvector's own table and operator class; only the name of the access method differs.
ON_VECTOR = dict(PGVECTOR, extension="pg_swarm_vector CASCADE", am="qhnsw", index=PGVECTOR["index"].replace("USING hnsw", "USING qhnsw"),
                 knob="SET qhnsw.ef_search = {knob}")


def qhnsw(**options):
    more = "".join(f", {k} = {v}" for k, v in options.items())
    return {
        "extension": "pg_swarm", "am": "qhnsw", "param": "array", "type": "real[]",
        "index": "CREATE INDEX {t}_ann ON {t} USING qhnsw (v {ops}) WITH (m = 16, ef_construction = 200" + more + ")",
        "knob": "SET qhnsw.ef_search = {knob}",
        "many": "SELECT * FROM swarm.search_many('{t}', 'v', $1, {k})",
    }


ENGINES = {
    "pgvector": PGVECTOR,
    "qhnsw": qhnsw(),
    "qhnsw-heap": qhnsw(rerank="heap"),
    "qhnsw-refine": qhnsw(refine_bits=4),
    "qhnsw-vector": ON_VECTOR,
    "qhnsw-rabitq2": qhnsw(quantizer="rabitq2"),
    "qhnsw-rabitq1": qhnsw(quantizer="rabitq1"),
    "qhnsw-sq8": qhnsw(quantizer="sq8"),
    "qhnsw-direct": qhnsw(fastupdate="off"),
    "bare": {"extension": None, "am": None, "param": "array", "type": "real[]", "index": None, "knob": None},
}

# Who takes part where; ENGINES in the environment limits it.
PARTS = {
    "search": ["pgvector", "qhnsw", "qhnsw-heap", "qhnsw-refine", "qhnsw-vector", "qhnsw-rabitq2", "qhnsw-rabitq1", "qhnsw-sq8"],
    "size": ["pgvector", "qhnsw", "qhnsw-heap", "qhnsw-refine", "qhnsw-vector", "qhnsw-rabitq2", "qhnsw-rabitq1", "qhnsw-sq8"],
    "build": ["pgvector", "qhnsw"],
    "insert": ["pgvector", "qhnsw", "qhnsw-direct", "bare"],
    "delete": ["pgvector", "qhnsw"],
    "cold": ["pgvector", "qhnsw"],
    "many": ["pgvector", "qhnsw"],
}
