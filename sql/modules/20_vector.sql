-- 20_vector.sql: text to vector, distances of real[], sign hashes.
--
-- C: src/vector/vector_sql.c.  No function here touches a table.

-- swarm.embed(content, dims): the unit vector of a text's hashed features.
-- Returns dims elements, all zero when the text has no words.
-- Errors: 22023 dims not in 8..16000.
CREATE FUNCTION swarm.embed(content text, dims integer DEFAULT 384)
RETURNS real[]
AS 'MODULE_PATHNAME', 'swarm_embed'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 2000;
COMMENT ON FUNCTION swarm.embed(text, integer)
	IS 'embedding of a text by feature hashing: deterministic, unit length, no model';

-- Distances.  Errors of all: 22023 empty array, 2202E more than one
-- dimension, 22004 null element, 22000 different lengths.

-- swarm.l2_distance(a, b): length of a - b.
CREATE FUNCTION swarm.l2_distance(a real[], b real[])
RETURNS double precision
AS 'MODULE_PATHNAME', 'swarm_l2_distance'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 10;
COMMENT ON FUNCTION swarm.l2_distance(real[], real[])
	IS 'Euclidean distance of two vectors';

-- swarm.cosine_distance(a, b): 1 - cosine of the angle, 0 to 2; NaN when a or
-- b is zero.
CREATE FUNCTION swarm.cosine_distance(a real[], b real[])
RETURNS double precision
AS 'MODULE_PATHNAME', 'swarm_cosine_distance'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 10;
COMMENT ON FUNCTION swarm.cosine_distance(real[], real[])
	IS 'cosine distance of two vectors: 0 same direction, 1 orthogonal, 2 opposite';

-- swarm.inner_product(a, b): sum of the products.
CREATE FUNCTION swarm.inner_product(a real[], b real[])
RETURNS double precision
AS 'MODULE_PATHNAME', 'swarm_inner_product'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 10;
COMMENT ON FUNCTION swarm.inner_product(real[], real[])
	IS 'inner product of two vectors';

-- swarm._negative_inner_product(a, b): what <#> calls; public through it.
CREATE FUNCTION swarm._negative_inner_product(a real[], b real[])
RETURNS double precision
AS 'MODULE_PATHNAME', 'swarm__negative_inner_product'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 10;

CREATE OPERATOR @extschema@.<-> (
	LEFTARG = real[], RIGHTARG = real[],
	FUNCTION = swarm.l2_distance, COMMUTATOR = OPERATOR(@extschema@.<->)
);
COMMENT ON OPERATOR @extschema@.<-> (real[], real[])
	IS 'Euclidean distance';

CREATE OPERATOR @extschema@.<=> (
	LEFTARG = real[], RIGHTARG = real[],
	FUNCTION = swarm.cosine_distance, COMMUTATOR = OPERATOR(@extschema@.<=>)
);
COMMENT ON OPERATOR @extschema@.<=> (real[], real[])
	IS 'cosine distance';

CREATE OPERATOR @extschema@.<#> (
	LEFTARG = real[], RIGHTARG = real[],
	FUNCTION = swarm._negative_inner_product, COMMUTATOR = OPERATOR(@extschema@.<#>)
);
COMMENT ON OPERATOR @extschema@.<#> (real[], real[])
	IS 'negative inner product';

-- swarm.simhash(v, bits): signs of random projections of v.
-- Errors: those of the distances; 22023 bits not in 1..16384, more than
-- 16,000 dimensions, an element that is not finite.
CREATE FUNCTION swarm.simhash(v real[], bits integer DEFAULT 256)
RETURNS bit varying
AS 'MODULE_PATHNAME', 'swarm_simhash'
LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE COST 500;
COMMENT ON FUNCTION swarm.simhash(real[], integer)
	IS 'bits whose Hamming distance follows the angle between vectors';

-- swarm._simd_level(): the instructions that compute distances in this
-- session; swarm._simd_levels(): those that qhnsw.simd accepts here.
CREATE FUNCTION swarm._simd_level()
RETURNS text
AS 'MODULE_PATHNAME', 'swarm__simd_level'
LANGUAGE C VOLATILE STRICT PARALLEL SAFE;

CREATE FUNCTION swarm._simd_levels()
RETURNS text[]
AS 'MODULE_PATHNAME', 'swarm__simd_levels'
LANGUAGE C STABLE STRICT PARALLEL SAFE;
