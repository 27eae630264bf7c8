#!/usr/bin/env python3
"""Measures vector indexes side by side; called by bench/ann/run.

    bench.py DATA PART...       parts: build size search insert delete cold many

Every engine has, for each set, a database of its own with the table and its index.  Parts that write or damage
work in a copy of it, new in every round, so each round starts from the same files.  Engines change places from round
to round.  Every measurement is a line of JSON in $BENCH_OUT.
"""
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import numpy as np
import psycopg2
from engines import ENGINES, FLOOR, KNOBS, LATERAL, METRICS, PARTS, QUERY
from prepare import exact, read
from tables import cpu_of, encode

HERE = os.path.dirname(os.path.abspath(__file__))
QUICK = bool(os.environ.get("BENCH_QUICK"))
ROUNDS = int(os.environ.get("BENCH_ROUNDS") or (1 if QUICK else 3))
SETTINGS = ["max_wal_size=8GB", "shared_preload_libraries=", "autovacuum=off", "jit=off", "maintenance_work_mem=1GB", "work_mem=64MB",
            "max_parallel_workers_per_gather=0", "max_parallel_maintenance_workers=0", "max_worker_processes=16", "track_io_timing=on"]
BATCH, SINGLE, K = (1000, 200, 10) if QUICK else (10000, 1000, 10)
TARGETS = (0.95, 0.975, 0.99)
STORAGE = os.environ.get("ANN_STORAGE")
if os.environ.get("ANN_HUGE_PAGES"):
    SETTINGS.append("huge_pages=" + os.environ["ANN_HUGE_PAGES"])
# A session maps the pages of shared memory and learns where they are as it reads them; this many statements come before its steady state.
WARMUP = 100 if QUICK else 1000
TICK = os.sysconf("SC_CLK_TCK")


def say(*words):
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def emit(**row):
    with open(os.environ["BENCH_OUT"], "a", encoding="utf8") as f:
        f.write(json.dumps(row) + "\n")
    say(" ".join(f"{k}={v:.5g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()))


def server(shared_buffers):
    """Start the server again; bench/run exports the functions."""
    options = " ".join("-c " + s for s in SETTINGS + [f"shared_buffers={shared_buffers}"])
    subprocess.run(["bash", "-c", f"server_stop; server_start '{options}'"], check=True)


def reaped_cpu():
    """CPU of the postmaster's finished children: the parallel workers, as nothing else ends meanwhile."""
    with open(os.environ["PGDATA"] + "/postmaster.pid", encoding="ascii") as f:
        pid = int(f.readline())
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[13]) + int(fields[14])) / TICK


class Connection:
    def __init__(self, database="postgres"):
        self.c = psycopg2.connect(dbname=database)
        self.c.autocommit = True
        self.cur = self.c.cursor()
        self.pid = self.c.info.backend_pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.c.close()

    def do(self, sql):
        self.cur.execute(sql)
        return self.cur.fetchall() if self.cur.description else None

    def value(self, sql):
        return self.do(sql)[0][0]

    def timed(self, act, workers=False):
        """(wall seconds, CPU seconds) of an SQL command or a function."""
        reaped, cpu, wall = reaped_cpu() if workers else 0, cpu_of(self.pid), time.monotonic()
        if callable(act):
            act()
        else:
            self.do(act)
        wall, cpu = time.monotonic() - wall, cpu_of(self.pid) - cpu
        if workers:
            time.sleep(0.1)
            cpu += reaped_cpu() - reaped
        return wall, cpu


class Set:
    """A prepared data set."""

    def __init__(self, data, name):
        self.name, self.folder = name, os.path.join(data, name)
        with open(self.folder + "/meta.json", encoding="utf8") as f:
            self.meta = json.load(f)
        self.metric, self.dim = self.meta["metric"], self.meta["dim"]
        self.base, self.pool = read(self.folder + "/base.fbin"), read(self.folder + "/pool.fbin")
        self.all = np.concatenate([self.base, self.pool])
        self.queries = read(self.folder + "/query.fbin")
        self.truth = read(self.folder + "/gtd.fbin").astype(np.float64)[:, K - 1]
        self.rows = len(self.base)

    def truth_of(self, live):
        """Distance of the K-th nearest of these rows, for each query."""
        return exact(self.all[live], self.queries, self.metric, K)[1][:, K - 1]

    def recall(self, ids, truth):
        """A row counts when its distance is not above that of the exact K-th nearest row."""
        good = 0
        for i, row in enumerate(ids):
            row = np.unique(row[row >= 0])
            x, q = self.all[row].astype(np.float64), self.queries[i].astype(np.float64)
            if self.metric == "cosine":
                d = 1 - (x @ q) / (np.linalg.norm(x, axis=1) * np.linalg.norm(q))
            else:
                d = np.sqrt(((x - q) ** 2).sum(1))
            good += int((d <= truth[i] * (1 + 1e-5) + 1e-6).sum())
        return good / (len(ids) * K)


class Engine:
    """One engine with one data set: the database ann_ENGINE_SET."""

    def __init__(self, name, data):
        self.name, self.data, self.spec = name, data, ENGINES[name]
        self.home = f"ann_{name}_{data.name}".replace("-", "_")
        self.recalls = {}

    def text(self, template, knob=None, k=K):
        metric = METRICS[self.data.metric]
        return template.format(t="t", dim=self.data.dim, op=metric["op"], ops=metric[self.spec["param"]], knob=knob, k=k)

    def row(self, **more):
        emit(engine=self.name, set=self.data.name, **more)

    def copier(self, c, vectors, first, table="t"):
        """A function that does the COPY; the rows are encoded before, so it can be timed."""
        data = encode(vectors, first, self.spec["param"])
        return lambda: c.cur.copy_expert(f"COPY {table} (id, v) FROM STDIN (FORMAT binary)", io.BytesIO(data))

    def make(self, index=True):
        """The database with its table, and the index where it is wanted."""
        with Connection() as c:
            if not c.value(f"SELECT count(*) FROM pg_database WHERE datname = '{self.home}'"):
                c.do(f"CREATE DATABASE {self.home}")
        with Connection(self.home) as c:
            if c.value("SELECT to_regclass('t') IS NULL"):
                if self.spec["extension"]:
                    c.do(f"CREATE EXTENSION {self.spec['extension']}")
                c.do(self.text("CREATE TABLE t (id int4 PRIMARY KEY, v " + self.spec["type"] + " NOT NULL)"))
                if STORAGE:
                    c.do(f"ALTER TABLE t ALTER v SET STORAGE {STORAGE}")
                for s in range(0, self.data.rows, 20000):
                    self.copier(c, self.data.base[s:s + 20000], s)()
                c.do("VACUUM (FREEZE, ANALYZE) t")
            if index and self.spec["index"] and c.value("SELECT to_regclass('t_ann') IS NULL"):
                say(self.name, self.data.name, "builds its index")
                c.do(self.text(self.spec["index"]))
            c.do("CHECKPOINT")

    def scratch(self):
        """A copy of the database, to be written to."""
        with Connection() as c:
            c.do("DROP DATABASE IF EXISTS ann_scratch WITH (FORCE)")
            file_copy = " STRATEGY file_copy" if c.c.server_version >= 150000 else ""
            c.do(f"CREATE DATABASE ann_scratch TEMPLATE {self.home}{file_copy}")
            c.do("CHECKPOINT")
        self.warm("ann_scratch")
        return "ann_scratch"

    def warm(self, database):
        """Table, TOAST and index into shared buffers."""
        with Connection(database) as c:
            c.do("CREATE EXTENSION IF NOT EXISTS pg_prewarm")
            c.do("SELECT pg_prewarm(c.oid) FROM pg_class c JOIN pg_class t ON t.relname = 't' AND t.relnamespace = 'public'::regnamespace"
                 " WHERE c.oid IN (t.oid, t.reltoastrelid) OR c.oid IN (SELECT indexrelid FROM pg_index WHERE indrelid IN (t.oid, t.reltoastrelid))")

    def settings(self, knob):
        s = ["SET plan_cache_mode = force_generic_plan", "SET enable_seqscan = off"]
        return s + ([self.text(self.spec["knob"], knob)] if self.spec["knob"] else [])

    def client(self, sql, database=None, **options):
        command = [os.environ["ANN_CLIENT"], "--sql", sql]
        for s in options.pop("setup", []):
            command += ["--setup", s]
        for k, v in options.items():
            command += ["--" + k.replace("_", "-"), str(v)]
        env = dict(os.environ, PGDATABASE=database or self.home)
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env).stdout)

    def floor(self):
        """What a statement costs that has the same parameter and result, and no search."""
        return self.client(self.text(FLOOR), setup=["SET plan_cache_mode = force_generic_plan"], param=self.spec["param"], warmup=WARMUP,
                           limit=100 if QUICK else 1000, queries=self.data.folder + "/query.fbin")

    def search(self, knob, truth=None, database=None, warmup=WARMUP):
        """1,000 queries, each a statement; with the recall where the exact answers are given."""
        with tempfile.NamedTemporaryFile() as ids:
            more = {"ids_out": ids.name} if truth is not None else {}
            r = self.client(self.text(QUERY), database, setup=self.settings(knob), param=self.spec["param"], warmup=warmup,
                            limit=100 if QUICK else 1000, queries=self.data.folder + "/query.fbin", k=K, **more)
            if truth is not None:
                r["recall"] = self.data.recall(read(ids.name, np.int32), truth)
        return r

    def recall_at(self, knob):
        if knob not in self.recalls:
            self.recalls[knob] = self.search(knob, self.data.truth)["recall"]
        return self.recalls[knob]

    def knob_for(self, target):
        """The smallest knob that reaches this recall."""
        return next((k for k in KNOBS if self.recall_at(k) >= target), KNOBS[-1])

    def explain(self, knob):
        """The plan nodes of the index scans.  The client sends EXPLAIN as it sends the queries, so caches are as warm."""
        with tempfile.NamedTemporaryFile() as plans:
            self.client("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + self.text(QUERY), setup=self.settings(knob), param=self.spec["param"], warmup=WARMUP,
                        limit=50 if QUICK else 500, queries=self.data.folder + "/query.fbin", text_out=plans.name)
            nodes = [json.loads(p)[0]["Plan"]["Plans"][0] for p in plans.read().split(b"\0")[:-1]]
        for node in nodes:
            if node.get("Index Name") != "t_ann":
                sys.exit(f"{self.name}: the planner does not take the index: {node['Node Type']}")
        return nodes

    def queries_table(self):
        """The queries as a table of the engine's database, for statements that ask many."""
        with Connection(self.home) as c:
            c.do(self.text("CREATE TABLE IF NOT EXISTS q (id int4, v " + self.spec["type"] + ")"))
            c.do("TRUNCATE q")
            self.copier(c, self.data.queries, 0, "q")()
            c.do("VACUUM ANALYZE q")

    def explain_lateral(self, knob):
        """µs inside the index scan for one of 500 queries of one statement, median of five: no client is waited for, and no processor goes to sleep."""
        with Connection(self.home) as c:
            for s in self.settings(knob):
                c.do(s)
            sql = "EXPLAIN (ANALYZE, FORMAT JSON) " + self.text(LATERAL) + f" WHERE q.id < {50 if QUICK else 500}"
            times = []
            for _ in range(6):
                node = c.value(sql)[0]["Plan"]
                while "Plans" in node:
                    node = node["Plans"][-1]
                if node.get("Index Name") != "t_ann":
                    sys.exit(f"{self.name}: the planner does not take the index: {node['Node Type']}")
                times.append(node["Actual Total Time"] * 1000)
        return statistics.median(times[1:])


# ---------------------------------------------------------------- parts

def turns(engines, number):
    """Who comes first changes from round to round."""
    at = number % len(engines) if engines else 0
    return engines[at:] + engines[:at]


def part_build(engines):
    for e in engines:
        e.make(index=False)
    for number in range(ROUNDS):
        for e in turns(engines, number):
            for workers in (0, 2):
                with Connection(e.home) as c:
                    c.do("DROP INDEX IF EXISTS t_ann")
                    c.do(f"ALTER TABLE t SET (parallel_workers = {workers})")
                    c.do(f"SET max_parallel_maintenance_workers = {workers}")
                    c.do("CHECKPOINT")
                    wall, cpu = c.timed(e.text(e.spec["index"]), workers=True)
                    c.do("ALTER TABLE t RESET (parallel_workers)")
                    e.row(measure=f"build{workers}", round=number, wall=wall, cpu=cpu, bytes=c.value("SELECT pg_relation_size('t_ann')"))


def part_size(engines):
    for e in engines:
        e.make()
        with Connection(e.home) as c:
            size, table = c.do("SELECT pg_relation_size('t_ann'), pg_table_size('t')")[0]
            e.row(measure="size", round=0, bytes=size, per_row=size / e.data.rows, table=table)


def part_search(engines):
    for e in engines:
        e.make()
        e.queries_table()
        e.warm(e.home)
    for number in range(ROUNDS):
        for knob in KNOBS:
            for e in turns(engines, number):
                r = e.search(knob, e.data.truth if knob not in e.recalls else None)
                e.recalls.setdefault(knob, r.get("recall"))
                e.row(measure="search", round=number, knob=knob, **{**r, "recall": e.recalls[knob]})
        for e in turns(engines, number):
            e.row(measure="floor", round=number, **e.floor())
            knob = e.knob_for(0.95)
            e.row(measure="fresh", round=number, knob=knob, **{**e.search(knob, warmup=1), "recall": e.recall_at(knob)})
        # Inside the index scan, at the smallest knob that has the recall.
        for e in turns(engines, number):
            for target in TARGETS:
                knob = e.knob_for(target)
                if e.recall_at(knob) < target:
                    continue
                nodes = e.explain(knob)
                e.row(measure="scan", round=number, target=target, knob=knob, recall=e.recall_at(knob),
                      scan_us=statistics.median(n["Actual Total Time"] for n in nodes) * 1000,
                      buffers=statistics.mean(n["Shared Hit Blocks"] + n["Shared Read Blocks"] for n in nodes))
                e.row(measure="scan_lateral", round=number, target=target, knob=knob, recall=e.recall_at(knob), scan_us=e.explain_lateral(knob))


def fold(c, e):
    """Moves pending rows into the graph, where there are any."""
    if e.name.startswith("qhnsw") and c.value("SELECT to_regprocedure('swarm.qhnsw_flush(regclass)') IS NOT NULL"):
        return c.timed("SELECT swarm.qhnsw_flush('t_ann')")
    return 0.0, 0.0


def batch(e, how, pool, truth):
    """Many rows in one command, with the index there; then its recall before and after pending rows are folded in."""
    d = e.scratch()
    with Connection(d) as c:
        c.do(e.text("CREATE TABLE pool (id int4, v " + e.spec["type"] + ")"))
        e.copier(c, pool, e.data.rows, "pool")()
        c.do("ANALYZE pool")
        c.do("CHECKPOINT")
        wall, cpu = c.timed(e.copier(c, pool, e.data.rows) if how == "copy" else "INSERT INTO t SELECT * FROM pool")
    row = {"rows": len(pool), "wall": wall, "cpu": cpu}
    if e.spec["index"]:
        knob = e.knob_for(0.95)
        before = e.search(knob, truth, d)
        with Connection(d) as c:
            flush = fold(c, e)
        after = e.search(knob, truth, d)
        row.update(fold_wall=flush[0], fold_cpu=flush[1], knob=knob, recall=before["recall"], cpu_us=before["cpu_us"],
                   recall_folded=after["recall"], cpu_us_folded=after["cpu_us"])
    return row


def part_insert(engines):
    data = engines[0].data
    pool = data.pool[:BATCH]
    truth = data.truth_of(np.arange(data.rows + len(pool)))
    for e in engines:
        e.make()
    for number in range(ROUNDS):
        for e in turns(engines, number):
            for sync in ("off", "on"):
                d = e.scratch()
                r = e.client("INSERT INTO t VALUES ($1, $2)", d, setup=[f"SET synchronous_commit = {sync}"], param=e.spec["param"],
                             queries=data.folder + "/pool.fbin", first=len(pool), limit=SINGLE, id_base=10000000)
                with Connection(d) as c:
                    e.row(measure=f"insert_sync_{sync}", round=number, **r, fold_cpu=fold(c, e)[1])
            for how in ("copy", "select"):
                e.row(measure=f"batch_{how}", round=number, **batch(e, how, pool, truth))


def part_delete(engines):
    data = engines[0].data
    gone = np.random.default_rng(7).permutation(data.rows)[:data.rows // 5]
    truth = data.truth_of(np.setdiff1d(np.arange(data.rows), gone))
    for e in engines:
        e.make()
    for number in range(ROUNDS):
        for e in turns(engines, number):
            knob, d = e.knob_for(0.95), e.scratch()
            with Connection(d) as c:
                c.do("CREATE TABLE gone (id int4)")
                c.cur.copy_expert("COPY gone FROM STDIN", io.StringIO("".join(f"{x}\n" for x in gone)))
                c.do("ANALYZE gone")
                c.do("CHECKPOINT")
                deleted = c.timed("DELETE FROM t USING gone WHERE t.id = gone.id")
                vacuumed = c.timed("VACUUM (INDEX_CLEANUP ON) t")
                size = c.value("SELECT pg_relation_size('t_ann')")
            r = e.search(knob, truth, d)
            e.row(measure="delete", round=number, wall=deleted[0] + vacuumed[0], cpu=deleted[1] + vacuumed[1], delete_cpu=deleted[1], vacuum_cpu=vacuumed[1],
                  bytes=size, knob=knob, recall=r["recall"], cpu_us=r["cpu_us"])


def part_cold(engines):
    """Reads per query where the index is four times shared_buffers: each engine's own, and both at pgvector's and at ours."""
    sizes = {}
    for e in engines:
        e.make()
        with Connection(e.home) as c:
            sizes[e.name] = c.value("SELECT pg_relation_size('t_ann')")
        e.knob_for(0.95)
    for which in ("own", "pgvector", "qhnsw"):
        for e in engines:
            size = sizes.get(e.name if which == "own" else which)
            if size is None or which == e.name:
                continue
            server(f"{max(size // 4 // 1024, 256)}kB")
            knob = e.knob_for(0.95)
            r = e.search(knob)
            nodes = e.explain(knob)
            e.row(measure=f"cold_{which}", round=0, knob=knob, recall=e.recall_at(knob), shared_buffers=max(size // 4, 262144), cpu_us=r["cpu_us"], p50_us=r["p50_us"],
                  read=statistics.mean(n["Shared Read Blocks"] for n in nodes), buffers=statistics.mean(n["Shared Hit Blocks"] + n["Shared Read Blocks"] for n in nodes))
    server("2GB")


def many_recall(c, e, count):
    """Recall of search_many(): by row addresses if it returns those, else by the distances."""
    literal = "'{" + ",".join("{" + ",".join("%.9g" % x for x in q) + "}" for q in e.data.queries[:count]) + "}'::real[]"
    rows = c.do(e.text(e.spec["many"]).replace("$1", literal))
    kinds = [x.type_code for x in c.cur.description]
    number = next(i for i, k in enumerate(kinds) if k in (20, 23))
    start = min(r[number] for r in rows)
    if 27 in kinds:
        tid = kinds.index(27)
        ids = dict(c.do("SELECT ctid::text, id FROM t"))
        found = np.full((count, K), -1)
        filled = [0] * count
        for r in rows:
            q = r[number] - start
            found[q, filled[q]] = ids[r[tid]]
            filled[q] += 1
        return e.data.recall(found, e.data.truth)
    distance = max(i for i, k in enumerate(kinds) if k in (700, 701))
    return sum(r[distance] <= e.data.truth[r[number] - start] * (1 + 1e-5) + 1e-6 for r in rows) / (count * K)


def part_many(engines):
    """A hundred queries: as single statements, by a lateral join over a table of them, and in one call."""
    calls = 2 if QUICK else 10
    lateral = LATERAL + " WHERE q.id / 100 = $1"
    for e in engines:
        e.make()
        e.queries_table()
        e.warm(e.home)
    for number in range(ROUNDS):
        for e in turns(engines, number):
            knob = e.knob_for(0.95)
            more = {"knob": knob, "recall": e.recall_at(knob)}
            r = e.search(knob)
            e.row(measure="many_single", round=number, ms=1e5 / r["qps"], cpu_ms=r["cpu_us"] / 10, **more)
            r = e.client(e.text(lateral), setup=e.settings(knob), id_base=0, limit=calls, warmup=calls)
            e.row(measure="many_lateral", round=number, ms=1000 / r["qps"], cpu_ms=r["cpu_us"] / 1000, **more)
            if e.spec.get("many"):
                with Connection(e.home) as c:
                    for s in e.settings(knob):
                        c.do(s)
                    recall = many_recall(c, e, 100)
                r = e.client(e.text(e.spec["many"]), setup=e.settings(knob), param="array", group=100, limit=calls, warmup=calls, queries=e.data.folder + "/query.fbin")
                e.row(measure="many_call", round=number, ms=1000 / r["qps"], cpu_ms=r["cpu_us"] / 1000, knob=knob, recall=recall)


# ---------------------------------------------------------------- all of it

def usable(name):
    """Can this engine make its index here?  Says why not."""
    spec = ENGINES[name]
    with Connection() as c:
        c.do("DROP DATABASE IF EXISTS ann_probe WITH (FORCE)")
        c.do("CREATE DATABASE ann_probe")
    try:
        with Connection("ann_probe") as c:
            if spec["extension"]:
                c.do(f"CREATE EXTENSION {spec['extension']}")
            c.do("CREATE TABLE t (id int4, v " + spec["type"].format(dim=2) + ")")
            c.do("INSERT INTO t VALUES (1, '" + ("[1,2]" if spec["param"] == "vector" else "{1,2}") + "')")
            if spec["index"]:
                c.do(spec["index"].format(t="t", ops=METRICS["cosine"][spec["param"]]))
        return True
    except psycopg2.Error as error:
        reason = str(error).split("\n", maxsplit=1)[0]
        emit(failed=f"{name}: left out: {reason}")
        return False


def main(data, parts):
    wanted = os.environ.get("ENGINES", "").split()
    server("2GB")
    names = {n for p in parts for n in PARTS[p] if not wanted or n in wanted}
    names = {n for n in sorted(names) if usable(n)}
    for name in (os.environ.get("SETS") or "s10k s100k fashion").split():
        if not os.path.exists(os.path.join(data, name, "meta.json")):
            emit(failed=f"{name}: not prepared, left out")
            continue
        this = Set(data, name)
        engines = {n: Engine(n, this) for n in names}
        for part in parts:
            who = [engines[n] for n in PARTS[part] if n in names]
            if who:
                say(name, part)
                globals()["part_" + part](who)
        with Connection() as c:
            c.do("DROP DATABASE IF EXISTS ann_scratch WITH (FORCE)")
            for e in engines.values():
                c.do(f"DROP DATABASE IF EXISTS {e.home} WITH (FORCE)")
    with Connection() as c:
        settings = dict(c.do("SELECT name, current_setting(name) FROM pg_settings WHERE name IN"
                             " ('fsync', 'full_page_writes', 'shared_buffers', 'maintenance_work_mem', 'jit', 'autovacuum', 'max_wal_size', 'huge_pages')"))
        settings.update(c.do("SELECT 'extension ' || name, default_version FROM pg_available_extensions WHERE name IN ('vector', 'pg_swarm')"))
        emit(settings=settings)


if __name__ == "__main__":
    if len(sys.argv) < 3 or any(p not in PARTS for p in sys.argv[2:]):
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
