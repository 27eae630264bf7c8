-- 90_grants.sql: every GRANT and REVOKE of the extension, on one page.
--
-- The rule: the schema is open, private objects (leading underscore) and all
-- that spends money, reaches the network, reads files or changes what other
-- roles run is closed to PUBLIC.

GRANT USAGE ON SCHEMA swarm TO PUBLIC;

-- vector: <#> calls _negative_inner_product, so that one stays open.
GRANT EXECUTE ON FUNCTION swarm._negative_inner_product(real[], real[]) TO PUBLIC;
REVOKE ALL ON FUNCTION swarm._simd_level() FROM PUBLIC;
REVOKE ALL ON FUNCTION swarm._simd_levels() FROM PUBLIC;
