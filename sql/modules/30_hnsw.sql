-- 30_hnsw.sql: the access method qhnsw.
--
-- C: src/hnsw; the operator classes of pgvector's types are in the companion
-- extension pg_swarm_vector.

CREATE FUNCTION swarm._qhnsw_handler(internal)
RETURNS index_am_handler
AS 'MODULE_PATHNAME', 'swarm__qhnsw_handler'
LANGUAGE C STRICT;

CREATE ACCESS METHOD qhnsw TYPE INDEX HANDLER swarm._qhnsw_handler;
COMMENT ON ACCESS METHOD qhnsw
	IS 'quantized HNSW: nearest neighbours of vectors';

-- Support function 1 of an operator class says for which metric and type it is.
CREATE FUNCTION swarm._qhnsw_real_l2(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'swarm__qhnsw_real_l2'
LANGUAGE C IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION swarm._qhnsw_real_cosine(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'swarm__qhnsw_real_cosine'
LANGUAGE C IMMUTABLE PARALLEL SAFE;

CREATE FUNCTION swarm._qhnsw_real_ip(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'swarm__qhnsw_real_ip'
LANGUAGE C IMMUTABLE PARALLEL SAFE;

CREATE OPERATOR CLASS @extschema@.real_l2_ops
DEFAULT FOR TYPE real[] USING qhnsw AS
	OPERATOR 1 @extschema@.<-> (real[], real[]) FOR ORDER BY pg_catalog.float_ops,
	FUNCTION 1 swarm._qhnsw_real_l2(internal);
COMMENT ON OPERATOR CLASS @extschema@.real_l2_ops USING qhnsw
	IS 'nearest by Euclidean distance';

CREATE OPERATOR CLASS @extschema@.real_cosine_ops
FOR TYPE real[] USING qhnsw AS
	OPERATOR 1 @extschema@.<=> (real[], real[]) FOR ORDER BY pg_catalog.float_ops,
	FUNCTION 1 swarm._qhnsw_real_cosine(internal);
COMMENT ON OPERATOR CLASS @extschema@.real_cosine_ops USING qhnsw
	IS 'nearest by cosine distance';

CREATE OPERATOR CLASS @extschema@.real_ip_ops
FOR TYPE real[] USING qhnsw AS
	OPERATOR 1 @extschema@.<#> (real[], real[]) FOR ORDER BY pg_catalog.float_ops,
	FUNCTION 1 swarm._qhnsw_real_ip(internal);
COMMENT ON OPERATOR CLASS @extschema@.real_ip_ops USING qhnsw
	IS 'nearest by inner product, the largest first';

-- swarm.search_many(rel, col, queries, lim): the lim nearest rows of each of
-- many queries, by the qhnsw index of a column.  queries: one row a query.
-- query counts from 1; row_id is the row's ctid: join with it in the same
-- statement; distance is that of the index's operator, ascending.
-- Errors: 42704 no such index, 42703 no such column, 22023 lim not in
-- 1..10000, 2202E queries not two-dimensional, 22004 nulls in them; 42501 as
-- SELECT has it.  Reads the table as the caller.
CREATE FUNCTION swarm.search_many(rel regclass, col name, queries real[], lim integer DEFAULT 10)
RETURNS TABLE (query integer, row_id tid, distance double precision)
AS 'MODULE_PATHNAME', 'swarm_search_many'
LANGUAGE C STABLE STRICT PARALLEL RESTRICTED COST 10000 ROWS 1000;
COMMENT ON FUNCTION swarm.search_many(regclass, name, real[], integer)
	IS 'nearest rows of many queries in one call';

-- The functions below name an index of this method. Errors of all: 42P01 no
-- such relation, 42809 something else than an index of qhnsw, 42501, 0A000 an
-- index of another session's temporary table, 55000 an index that is not valid.
-- C: src/hnsw/hnsw_sql.c.

-- swarm.qhnsw_stats(index): what is in an index. Reads all its node pages.
-- Needs SELECT on the table, or pg_stat_scan_tables. Also XX002 when it is
-- damaged.
CREATE FUNCTION swarm.qhnsw_stats(index regclass,
	OUT linked bigint, OUT twins bigint, OUT pending bigint, OUT joining bigint,
	OUT odd bigint, OUT dead bigint, OUT free bigint,
	OUT levels bigint[], OUT entry bigint,
	OUT meta_bytes bigint, OUT model_bytes bigint, OUT node_bytes bigint,
	OUT upper_bytes bigint, OUT refine_bytes bigint, OUT bytes_per_row double precision,
	OUT dims integer, OUT metric text, OUT quantizer text, OUT bits integer,
	OUT refine_bits integer, OUT m integer, OUT ef_construction integer,
	OUT generation bigint, OUT trained bigint, OUT drift double precision)
AS 'MODULE_PATHNAME', 'swarm_qhnsw_stats'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED COST 10000;
COMMENT ON FUNCTION swarm.qhnsw_stats(regclass)
	IS 'rows by state, levels, sizes and model of a qhnsw index';

-- swarm.qhnsw_check(index, heap): every problem of an index; no row when there
-- is none. heap: compare with the table too. Needs SELECT on the table, or
-- pg_stat_scan_tables. Also 40001 when the index is newer than the
-- transaction's snapshot.
CREATE FUNCTION swarm.qhnsw_check(index regclass, heap boolean DEFAULT true)
RETURNS TABLE (problem text, node bigint, detail text)
AS 'MODULE_PATHNAME', 'swarm_qhnsw_check'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE COST 100000 ROWS 10;
COMMENT ON FUNCTION swarm.qhnsw_check(regclass, boolean)
	IS 'problems of a qhnsw index, and of it against its table; no row: none';

-- swarm.qhnsw_recall(index, samples, k): the share of the k nearest rows that
-- the index finds, with random rows of the table as queries, and the mean
-- milliseconds of a query with it and without. Needs SELECT on the table; also
-- 22023 samples not in 1..100000 or k not in 1..10000, 0A000 under row-level
-- security.
CREATE FUNCTION swarm.qhnsw_recall(index regclass, samples integer DEFAULT 100, k integer DEFAULT 10,
	OUT recall double precision, OUT index_ms double precision, OUT exact_ms double precision,
	OUT queries integer)
AS 'MODULE_PATHNAME', 'swarm_qhnsw_recall'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE COST 1000000;
COMMENT ON FUNCTION swarm.qhnsw_recall(regclass, integer, integer)
	IS 'recall of a qhnsw index on a sample of the rows, and its time beside an exact search';

-- swarm.qhnsw_prewarm(index): read an index into shared buffers; returns the
-- blocks. Needs SELECT on the table.
CREATE FUNCTION swarm.qhnsw_prewarm(index regclass)
RETURNS bigint
AS 'MODULE_PATHNAME', 'swarm_hooked_qhnsw_prewarm'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE COST 10000;
COMMENT ON FUNCTION swarm.qhnsw_prewarm(regclass)
	IS 'read a qhnsw index into shared buffers';

-- swarm.qhnsw_flush(index): link the rows that fastupdate collected; returns
-- how many. For whoever may VACUUM the table. Also 25006 in a read-only
-- transaction or on a standby.
CREATE FUNCTION swarm.qhnsw_flush(index regclass)
RETURNS bigint
AS 'MODULE_PATHNAME', 'swarm_hooked_qhnsw_flush'
LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE COST 10000;
COMMENT ON FUNCTION swarm.qhnsw_flush(regclass)
	IS 'link the pending rows of a qhnsw index';

-- swarm.qhnsw_scan_stats(): what the scan of a qhnsw index that this session
-- began last has done; NULLs when there was none.
CREATE FUNCTION swarm.qhnsw_scan_stats(
	OUT hops bigint, OUT pages bigint, OUT scored bigint, OUT refined bigint,
	OUT fetched bigint)
AS 'MODULE_PATHNAME', 'swarm_qhnsw_scan_stats'
LANGUAGE C VOLATILE STRICT PARALLEL RESTRICTED;
COMMENT ON FUNCTION swarm.qhnsw_scan_stats()
	IS 'nodes expanded, pages visited, codes scored, codes refined and rows fetched by the last qhnsw scan of this session';
