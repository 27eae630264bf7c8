-- 90_grants.sql: every GRANT and REVOKE of the extension, on one page.
--
-- The rule: the schema is open, private objects (leading underscore) and all
-- that spends money, reaches the network, reads files or changes what other
-- roles run is closed to PUBLIC.

GRANT USAGE ON SCHEMA swarm TO PUBLIC;
