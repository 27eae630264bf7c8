-- pg_swarm_vector--0.1.sql: operator classes of qhnsw for pgvector's types.
--
-- They have the names of pgvector's own classes for hnsw and use its operators,
-- so that an index changes its method by one word.  As there, none is the
-- default of its type.
--
-- C: src/hnsw/hnsw_handler.c, in the library of pg_swarm.  Types and operators
-- are found where extension vector has put them: CREATE EXTENSION has the
-- schemas of required extensions on its search_path.  The classes go to the
-- schema that CREATE EXTENSION names.

\echo Use "CREATE EXTENSION pg_swarm_vector" to load this file. \quit

DO $$
BEGIN
    IF to_regtype('halfvec') IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = format('pg_swarm_vector needs pgvector 0.7.0 or later, this is %s',
                (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector')),
            HINT = 'Where a later one is installed: ALTER EXTENSION vector UPDATE.';
    END IF;
END $$;

-- Support function 1 of an operator class says for which metric and type it is.
CREATE FUNCTION swarm._qhnsw_vector_l2(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'swarm__qhnsw_vector_l2'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
REVOKE ALL ON FUNCTION swarm._qhnsw_vector_l2(internal) FROM PUBLIC;

CREATE FUNCTION swarm._qhnsw_vector_cosine(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'swarm__qhnsw_vector_cosine'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
REVOKE ALL ON FUNCTION swarm._qhnsw_vector_cosine(internal) FROM PUBLIC;

CREATE FUNCTION swarm._qhnsw_vector_ip(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'swarm__qhnsw_vector_ip'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
REVOKE ALL ON FUNCTION swarm._qhnsw_vector_ip(internal) FROM PUBLIC;

CREATE FUNCTION swarm._qhnsw_halfvec_l2(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'swarm__qhnsw_halfvec_l2'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
REVOKE ALL ON FUNCTION swarm._qhnsw_halfvec_l2(internal) FROM PUBLIC;

CREATE FUNCTION swarm._qhnsw_halfvec_cosine(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'swarm__qhnsw_halfvec_cosine'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
REVOKE ALL ON FUNCTION swarm._qhnsw_halfvec_cosine(internal) FROM PUBLIC;

CREATE FUNCTION swarm._qhnsw_halfvec_ip(internal)
RETURNS internal
AS 'MODULE_PATHNAME', 'swarm__qhnsw_halfvec_ip'
LANGUAGE C IMMUTABLE PARALLEL SAFE;
REVOKE ALL ON FUNCTION swarm._qhnsw_halfvec_ip(internal) FROM PUBLIC;

CREATE OPERATOR CLASS @extschema@.vector_l2_ops
FOR TYPE vector USING qhnsw AS
	OPERATOR 1 <-> (vector, vector) FOR ORDER BY pg_catalog.float_ops,
	FUNCTION 1 swarm._qhnsw_vector_l2(internal);
COMMENT ON OPERATOR CLASS @extschema@.vector_l2_ops USING qhnsw
	IS 'nearest by Euclidean distance';

CREATE OPERATOR CLASS @extschema@.vector_cosine_ops
FOR TYPE vector USING qhnsw AS
	OPERATOR 1 <=> (vector, vector) FOR ORDER BY pg_catalog.float_ops,
	FUNCTION 1 swarm._qhnsw_vector_cosine(internal);
COMMENT ON OPERATOR CLASS @extschema@.vector_cosine_ops USING qhnsw
	IS 'nearest by cosine distance';

CREATE OPERATOR CLASS @extschema@.vector_ip_ops
FOR TYPE vector USING qhnsw AS
	OPERATOR 1 <#> (vector, vector) FOR ORDER BY pg_catalog.float_ops,
	FUNCTION 1 swarm._qhnsw_vector_ip(internal);
COMMENT ON OPERATOR CLASS @extschema@.vector_ip_ops USING qhnsw
	IS 'nearest by inner product, the largest first';

CREATE OPERATOR CLASS @extschema@.halfvec_l2_ops
FOR TYPE halfvec USING qhnsw AS
	OPERATOR 1 <-> (halfvec, halfvec) FOR ORDER BY pg_catalog.float_ops,
	FUNCTION 1 swarm._qhnsw_halfvec_l2(internal);
COMMENT ON OPERATOR CLASS @extschema@.halfvec_l2_ops USING qhnsw
	IS 'nearest by Euclidean distance';

CREATE OPERATOR CLASS @extschema@.halfvec_cosine_ops
FOR TYPE halfvec USING qhnsw AS
	OPERATOR 1 <=> (halfvec, halfvec) FOR ORDER BY pg_catalog.float_ops,
	FUNCTION 1 swarm._qhnsw_halfvec_cosine(internal);
COMMENT ON OPERATOR CLASS @extschema@.halfvec_cosine_ops USING qhnsw
	IS 'nearest by cosine distance';

CREATE OPERATOR CLASS @extschema@.halfvec_ip_ops
FOR TYPE halfvec USING qhnsw AS
	OPERATOR 1 <#> (halfvec, halfvec) FOR ORDER BY pg_catalog.float_ops,
	FUNCTION 1 swarm._qhnsw_halfvec_ip(internal);
COMMENT ON OPERATOR CLASS @extschema@.halfvec_ip_ops USING qhnsw
	IS 'nearest by inner product, the largest first';
