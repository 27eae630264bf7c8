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
