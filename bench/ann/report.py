#!/usr/bin/env python3
"""Markdown of a run: report.py FILE.jsonl.  First what was promised, then every measure.

A ratio is taken inside a round, where both sides saw the same machine; shown are the median over rounds and the spread.
"""
import json
import statistics
import sys
from collections import defaultdict

PEER, OURS = "pgvector", "qhnsw"


def number(x):
    if x is None:
        return ""
    if isinstance(x, str):
        return x
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def spread(values):
    return f"{number(min(values))} to {number(max(values))}" if len(values) > 1 else ""


def at_recall(points, target):
    """Linear between the two knobs around it; None where the recall is never reached."""
    before = None
    for recall, value in sorted(points):
        if recall >= target:
            if before is None or recall == before[0]:
                return value
            return before[1] + (target - before[0]) / (recall - before[0]) * (value - before[1])
        before = (recall, value)
    return None


class Run:
    def __init__(self, file):
        with open(file, encoding="utf8") as f:
            lines = [json.loads(line) for line in f]
        self.about = next((x["about"] for x in lines if "about" in x), {})
        self.settings = next((x["settings"] for x in lines if "settings" in x), {})
        self.failed = [x["failed"] for x in lines if "failed" in x]
        self.rows = defaultdict(list)               # (set, engine, measure)
        self.sets, self.engines = [], []
        for x in lines:
            if "measure" in x:
                self.rows[x["set"], x["engine"], x["measure"]].append(x)
                for known, name in ((self.sets, x["set"]), (self.engines, x["engine"])):
                    if name not in known:
                        known.append(name)

    def by_round(self, s, engine, measure, field, **where):
        """{round: value}"""
        return {x["round"]: x[field] for x in self.rows[s, engine, measure] if x.get(field) is not None and all(x.get(k) == v for k, v in where.items())}

    def at(self, s, engine, measure, field, target):
        """{round: the field at this recall}"""
        rounds = defaultdict(list)
        for x in self.rows[s, engine, measure]:
            rounds[x["round"]].append((x["recall"], x[field]))
        found = {r: at_recall(p, target) for r, p in rounds.items()}
        return {r: v for r, v in found.items() if v is not None}


def ratios(over, under):
    return [over[r] / under[r] for r in over if under.get(r)]


# ---------------------------------------------------------------- what was promised

def promises(run):
    """(what, values, must, aim, more is better)"""
    def cost(s, measure, field):
        """How many times cheaper than the peer."""
        return ratios(run.by_round(s, PEER, measure, field), run.by_round(s, OURS, measure, field))

    for s in run.sets:
        for target in (0.95, 0.99):
            ours = run.at(s, OURS, "search", "qps", target)
            yield f"{s}: queries/s at recall {target} ÷ pgvector", ratios(ours, run.at(s, PEER, "search", "qps", target)), 4, 8, True
            for e in run.engines:
                if e.startswith(OURS):
                    cpu = [(run.at(s, x, "search", "cpu_us", target), run.by_round(s, x, "floor", "cpu_us")) for x in (PEER, e)]
                    yield f"{s}: pgvector's CPU a query at recall {target} ÷ {e}'s", ratios(cpu[0][0], cpu[1][0]), 4, 8, True
                    net = [{r: v - floor[r] for r, v in at.items() if r in floor} for at, floor in cpu]
                    yield f"{s}: the same at {target} with {e}, each less a statement without a search", ratios(*net), None, None, True
        for name, target, must, aim in (("s10k", 0.95, 70, 35), ("s100k", 0.975, 110, 60)):
            if s == name:
                inside = list(run.by_round(s, OURS, "scan", "scan_us", target=target).values())
                yield f"{s}: inside the index scan, recall ≥ {target}, µs (median)", inside, must, aim, False
                for e, bars in ((OURS, (must, aim)), (PEER, (None, None))):
                    inside = list(run.by_round(s, e, "scan_lateral", "scan_us", target=target).values())
                    yield f"{s}: the same in one statement of 500 queries, {e}, µs (mean)", inside, *bars, False
        size = ratios(run.by_round(s, PEER, "size", "bytes"), run.by_round(s, OURS, "size", "bytes"))
        yield f"{s}: pgvector's index ÷ ours, bytes", size, *((6, 12) if s == "fashion" else (None, None)), True
        for workers in (0, 2):
            for field, unit in (("wall", "time"), ("cpu", "CPU")):
                yield f"{s}: build, {workers} workers: pgvector's {unit} ÷ ours", cost(s, f"build{workers}", field), 2, 4, True
        yield f"{s}: single-row inserts: pgvector's CPU ÷ ours", cost(s, "insert_sync_off", "cpu_us"), 2, 5, True
        for how in ("copy", "select"):
            yield f"{s}: 10,000 rows by {how.upper()}: pgvector's CPU ÷ ours", cost(s, "batch_" + how, "cpu"), 2, 5, True
        folded = {x["round"]: x["cpu"] + x["fold_cpu"] for x in run.rows[s, OURS, "batch_copy"]}
        yield f"{s}: the same with our pending rows folded in", ratios(run.by_round(s, PEER, "batch_copy", "cpu"), folded), None, None, True
        if s == "s100k":
            copied = [x["wall"] * 1000 for x in run.rows[s, OURS, "batch_copy"]]
            yield f"{s}: 10,000 rows in one COPY, ms", copied, 500, 200, False
            yield f"{s}: 100 queries in one call, ms", list(run.by_round(s, OURS, "many_call", "ms").values()), 20, 10, False
        yield f"{s}: DELETE 20 % and VACUUM: pgvector's CPU ÷ ours", cost(s, "delete", "cpu"), 3, 10, True
        for what, theirs, mine in (("each one's own index is", "own", "own"), ("pgvector's index is", "own", "pgvector"), ("our index is", "qhnsw", "own")):
            peer = run.by_round(s, PEER, "cold_" + theirs, "read")
            ours = {r: max(v, 0.01) for r, v in run.by_round(s, OURS, "cold_" + mine, "read").items()}
            yield f"{s}: pages read a query where {what} 4 × shared_buffers: pgvector ÷ ours", ratios(peer, ours), 4, 10, True
        limit = run.at(s, "hnswlib", "lib", "cpu_us", 0.95)
        yield f"{s}: our CPU a query at 0.95 ÷ hnswlib's", ratios(run.at(s, OURS, "search", "cpu_us", 0.95), limit), None, None, False
        yield f"{s}: pgvector's CPU a query at 0.95 ÷ hnswlib's", ratios(run.at(s, PEER, "search", "cpu_us", 0.95), limit), None, None, False


def verdict(value, must, aim, more):
    if must is None:
        return ""
    better = (lambda a, b: a >= b) if more else (lambda a, b: a <= b)
    return "aim" if better(value, aim) else "yes" if better(value, must) else "**no**"


# ---------------------------------------------------------------- every measure

def table(head, lines):
    if lines:
        print("\n| " + " | ".join(head) + " |\n|" + "---|" * 1 + "---:|" * (len(head) - 1))
        for line in lines:
            print("| " + " | ".join(number(x) for x in line) + " |")


def medians(run, s, engine, measure, *fields, **where):
    """One line: the median of each field over the rounds, the spread of the first; None where nothing was measured."""
    rows = [x for x in run.rows[s, engine, measure] if all(x.get(k) == v for k, v in where.items())]
    if not rows:
        return None
    out = []
    for i, field in enumerate(fields):
        values = [x[field] for x in rows if x.get(field) is not None]
        out.append(statistics.median(values) if values else None)
        if i == 0:
            out.append(spread(values) if values else "")
    return out


def lines_of(run, s, measure, *fields):
    found = ((e, medians(run, s, e, measure, *fields)) for e in run.engines)
    return [[e, *m] for e, m in found if m]


def search_tables(run, s):
    lines, equal, inside, lateral = [], [], [], []
    for e in run.engines:
        for measure in ("search", "lib"):
            for knob in sorted({x["knob"] for x in run.rows[s, e, measure]}):
                m = medians(run, s, e, measure, "cpu_us", "recall", "p50_us", "p95_us", "p99_us", "qps", knob=knob)
                lines.append([e, str(knob), f"{m[2]:.4f}", m[0], m[1], *m[3:]])
            for target in (0.95, 0.99):
                cpu, peer = run.at(s, e, measure, "cpu_us", target), run.at(s, PEER, "search", "cpu_us", target)
                if cpu:
                    ratio = ratios(peer, cpu)
                    equal.append([e, str(target), statistics.median(cpu.values()), spread(list(cpu.values())), statistics.median(ratio) if ratio else None, spread(ratio) if ratio else ""])
        for target in (0.95, 0.975, 0.99):
            m = medians(run, s, e, "scan", "scan_us", "recall", "knob", "buffers", target=target)
            if m:
                inside.append([e, str(target), str(int(m[3])), f"{m[2]:.4f}", m[0], m[1], m[4]])
            m = medians(run, s, e, "scan_lateral", "scan_us", "recall", "knob", target=target)
            if m:
                lateral.append([e, str(target), str(int(m[3])), f"{m[2]:.4f}", m[0], m[1]])
    if lines:
        print("\nSearch, LIMIT 10, one client, statement prepared:")
    table(["engine", "ef", "recall@10", "CPU, µs a query", "spread", "p50 µs", "p95", "p99", "queries/s"], lines)
    if equal:
        print("\nAt equal recall, between the knobs (the lowest knob where that is above already); ratio > 1 is cheaper than pgvector:")
    table(["engine", "recall@10", "CPU, µs a query", "spread", "pgvector ÷ this", "spread"], equal)
    if inside:
        print("\nInside the index scan (EXPLAIN ANALYZE), smallest ef with that recall:")
    table(["engine", "recall ≥", "ef", "recall@10", "median µs", "spread", "buffers a query"], inside)
    if lateral:
        print("\nThe same in one statement of 500 queries (LATERAL), so that no processor rests between them:")
    table(["engine", "recall ≥", "ef", "recall@10", "mean µs", "spread"], lateral)


def part(title, head, lines):
    if lines:
        print(f"\n{title}:")
        table(head, lines)


def set_tables(run, s):
    print(f"\n## {s}")
    part("A statement with the same parameter and ten rows, without a search", ["engine", "CPU, µs a query", "spread", "p50 µs"], lines_of(run, s, "floor", "cpu_us", "p50_us"))
    part("Index", ["engine", "bytes", "spread", "bytes a row", "table, bytes"], lines_of(run, s, "size", "bytes", "per_row", "table"))
    for w in (0, 2):
        part(f"Build, {w} workers", ["engine", "CPU s", "spread", "wall s"], lines_of(run, s, f"build{w}", "cpu", "wall"))
    search_tables(run, s)
    part("The first 1,000 statements of a session, at the knob for 0.95", ["engine", "CPU, µs a query", "spread", "p50 µs", "ef", "recall@10"],
         lines_of(run, s, "fresh", "cpu_us", "p50_us", "knob", "recall"))
    for m, what in (("many_single", "100 queries, a statement each"), ("many_lateral", "100 queries in one statement, LATERAL"), ("many_call", "100 queries by swarm.search_many")):
        part(what, ["engine", "ms", "spread", "CPU ms", "ef", "recall@10"], lines_of(run, s, m, "ms", "cpu_ms", "knob", "recall"))
    for sync in ("off", "on"):
        part(f"Single-row inserts, synchronous_commit = {sync}", ["engine", "CPU, µs a row", "spread", "rows/s", "p50 µs", "p99 µs", "CPU s to fold the pending rows"],
             lines_of(run, s, f"insert_sync_{sync}", "cpu_us", "qps", "p50_us", "p99_us", "fold_cpu"))
    for how in ("copy", "select"):
        part(f"10,000 rows by {'one COPY' if how == 'copy' else 'INSERT .. SELECT'}",
             ["engine", "CPU s", "spread", "wall s", "CPU s to fold", "recall, CPU µs a query before", "", "after", ""],
             lines_of(run, s, "batch_" + how, "cpu", "wall", "fold_cpu", "recall", "cpu_us", "recall_folded", "cpu_us_folded"))
    part("DELETE of 20 % and VACUUM", ["engine", "CPU s", "spread", "wall s", "DELETE, CPU s", "VACUUM, CPU s", "index, bytes", "recall after", "CPU µs a query after"],
         lines_of(run, s, "delete", "cpu", "wall", "delete_cpu", "vacuum_cpu", "bytes", "recall", "cpu_us"))
    for which, whose in (("own", "Its own"), ("pgvector", "pgvector's"), ("qhnsw", "qhnsw's")):
        part(f"{whose} index is four times shared_buffers", ["engine", "pages read a query", "spread", "pages visited", "shared_buffers", "ef", "recall@10", "CPU µs", "p50 µs"],
             lines_of(run, s, "cold_" + which, "read", "buffers", "shared_buffers", "knob", "recall", "cpu_us", "p50_us"))


def main(file):
    run = Run(file)
    print(f"# Vector indexes side by side, {run.about.get('date')}\n")
    for k in ("command", "commit", "machine", "versions", "rounds"):
        print(f"- {k}: {run.about.get(k)}")
    print("- settings: " + ", ".join(f"{k} = {v}" for k, v in run.settings.items()))
    print("- CPU is of the backend (and parallel workers), from /proc; recall@10 over 1,000 queries against exact answers; pgvector: hnsw (m = 16, ef_construction = 200)")
    if run.failed:
        print("- left out: " + "; ".join(run.failed))
    kept = [(what, v, must, aim, more) for what, v, must, aim, more in promises(run) if v]
    if kept:
        print("\n## What was promised\n\n| what | median | spread | rounds | must | aim | kept |\n|---|---:|---:|---:|---:|---:|---|")
        for what, v, must, aim, more in kept:
            middle, sign = statistics.median(v), "≥ " if more else "≤ "
            bars = (sign + number(must), sign + number(aim)) if must is not None else ("", "")
            print(f"| {what} | {number(middle)} | {spread(v)} | {len(v)} | {bars[0]} | {bars[1]} | {verdict(middle, must, aim, more)} |")
    for s in run.sets:
        set_tables(run, s)


if __name__ == "__main__":
    main(sys.argv[1])
