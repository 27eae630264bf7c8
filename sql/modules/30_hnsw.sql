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
