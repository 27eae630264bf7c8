-- 50_memory.sql: expiring memory in namespaces.
--
-- src/memory/README.md explains the tables; docs/reference/memory.md the
-- functions. C: src/memory. Most public functions check the caller's rights
-- in C and then run the private function of the same name with a leading
-- underscore as the extension (memory_forward_sql.c); its first argument is
-- the caller.

-- ---------------------------------------------------------------------
-- HTTP servers that a namespace may be filled from
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._http_validator(options text[], catalog oid) RETURNS void
LANGUAGE c STABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'swarm_http_validator';

CREATE FOREIGN DATA WRAPPER swarm_http VALIDATOR swarm._http_validator;
COMMENT ON FOREIGN DATA WRAPPER swarm_http IS 'HTTP servers as origins of memory namespaces; no tables';

-- ---------------------------------------------------------------------
-- Tables
-- ---------------------------------------------------------------------

-- Namespaces with settings. Those made at install (swarm._namespace_builtin)
-- have a row only once something about them was changed, so that a restored
-- dump brings the changes and finds nothing in its way.
CREATE SEQUENCE swarm._namespace_id_seq AS int START 16;
CREATE TABLE swarm._namespace (
    id int PRIMARY KEY DEFAULT nextval('swarm._namespace_id_seq'),
    name text COLLATE "C" NOT NULL UNIQUE,
    owner regrole NOT NULL,
    default_ttl interval,
    max_entries bigint,
    max_bytes bigint,
    evict text NOT NULL DEFAULT 'reject',
    durability text NOT NULL DEFAULT 'logged',
    cached boolean NOT NULL DEFAULT true,
    embed boolean NOT NULL DEFAULT false,
    dims int NOT NULL DEFAULT 384,
    description text,
    -- where a miss is filled from: a foreign server, by name (a dump brings no
    -- OIDs); what stands before the key there; how long what came is kept
    origin text,
    origin_path text,
    origin_ttl interval,
    -- an index of the words without embeddings
    words boolean NOT NULL DEFAULT false
);

-- Rights: to read, and with may_write to write. Grantee 0 is PUBLIC. A right
-- on a namespace is one on those below it.
CREATE TABLE swarm._namespace_grant (
    namespace int,
    grantee regrole,
    may_write boolean NOT NULL,
    PRIMARY KEY (namespace, grantee)
);

-- Namespaces that were dropped and whose entries the sweep has to remove. Once
-- it finds none, it looks again when the transactions of that time are over:
-- one may have been storing.
CREATE TABLE swarm._namespace_gone (
    namespace int PRIMARY KEY,
    horizon xid8
);

-- Entries. expires_at is the truth, exclusive, and in no index. sweep_at is
-- when the sweep looks at the row: never NULL while expires_at is not, and not
-- later than a minute after it; a write that makes the entry live longer
-- leaves it alone, so that the update is HOT. C code reads rows by position.
CREATE TABLE swarm._memory (
    namespace int,
    key text COLLATE "C",
    version bigint NOT NULL,
    expires_at timestamptz,
    sweep_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    size int NOT NULL,
    owner regrole NOT NULL,
    tags text[] NOT NULL,
    value jsonb NOT NULL,
    PRIMARY KEY (namespace, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX _memory_sweep ON swarm._memory (sweep_at) WHERE sweep_at IS NOT NULL;

-- The same for namespaces with durability "unlogged": no WAL, empty after a
-- crash and on a standby.
CREATE UNLOGGED TABLE swarm._memory_unlogged (
    namespace int,
    key text COLLATE "C",
    version bigint NOT NULL,
    expires_at timestamptz,
    sweep_at timestamptz,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    size int NOT NULL,
    owner regrole NOT NULL,
    tags text[] NOT NULL,
    value jsonb NOT NULL,
    PRIMARY KEY (namespace, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX _memory_unlogged_sweep ON swarm._memory_unlogged (sweep_at) WHERE sweep_at IS NOT NULL;

-- What namespaces with embed or words are searched by: one partition a
-- namespace, with its own indexes (a dump could not bring those of the parent).
-- Without embed, embedding is NULL.
CREATE TABLE swarm._recall (
    namespace int NOT NULL,
    key text COLLATE "C" NOT NULL,
    embedding real[],
    words tsvector NOT NULL
) PARTITION BY LIST (namespace);

-- How far each table has been swept. What is dead before that need not be
-- walked over again while an old transaction keeps it from being vacuumed.
CREATE TABLE swarm._memory_swept (
    kind text PRIMARY KEY,
    swept_to timestamptz NOT NULL,
    from_start timestamptz NOT NULL
) WITH (fillfactor = 50);

SELECT pg_catalog.pg_extension_config_dump('swarm._namespace_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._namespace', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._namespace_grant', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._namespace_gone', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._memory', '');
SELECT pg_catalog.pg_extension_config_dump('swarm._memory_unlogged', '');

-- Whatever writes entries, these functions or others: cache, waiters, limits
-- and search are told.
CREATE FUNCTION swarm._memory_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'swarm__memory_changed';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON swarm._memory
    FOR EACH ROW EXECUTE FUNCTION swarm._memory_changed();
ALTER TABLE swarm._memory ENABLE ALWAYS TRIGGER changed;
CREATE TRIGGER truncated AFTER TRUNCATE ON swarm._memory
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._memory_changed();
ALTER TABLE swarm._memory ENABLE ALWAYS TRIGGER truncated;
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON swarm._memory_unlogged
    FOR EACH ROW EXECUTE FUNCTION swarm._memory_changed();
ALTER TABLE swarm._memory_unlogged ENABLE ALWAYS TRIGGER changed;
CREATE TRIGGER truncated AFTER TRUNCATE ON swarm._memory_unlogged
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._memory_changed();
ALTER TABLE swarm._memory_unlogged ENABLE ALWAYS TRIGGER truncated;

-- Sessions keep namespaces and rights in memory: these tell them to look again.
CREATE FUNCTION swarm._namespace_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'swarm__namespace_changed';
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON swarm._namespace
    FOR EACH ROW EXECUTE FUNCTION swarm._namespace_changed();
ALTER TABLE swarm._namespace ENABLE ALWAYS TRIGGER changed;
CREATE TRIGGER truncated AFTER TRUNCATE ON swarm._namespace
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._namespace_changed();
ALTER TABLE swarm._namespace ENABLE ALWAYS TRIGGER truncated;
CREATE TRIGGER changed AFTER INSERT OR UPDATE OR DELETE ON swarm._namespace_grant
    FOR EACH ROW EXECUTE FUNCTION swarm._namespace_changed();
ALTER TABLE swarm._namespace_grant ENABLE ALWAYS TRIGGER changed;
CREATE TRIGGER truncated AFTER TRUNCATE ON swarm._namespace_grant
    FOR EACH STATEMENT EXECUTE FUNCTION swarm._namespace_changed();
ALTER TABLE swarm._namespace_grant ENABLE ALWAYS TRIGGER truncated;

-- ---------------------------------------------------------------------
-- Types
-- ---------------------------------------------------------------------

CREATE TYPE swarm.memory_entry AS (
    namespace text,
    key text,
    value jsonb,
    version bigint,
    tags text[],
    expires_at timestamptz,
    created_at timestamptz,
    updated_at timestamptz
);
COMMENT ON TYPE swarm.memory_entry IS 'an entry of a memory namespace; expires_at is NULL if it never expires';

CREATE TYPE swarm.memory_match AS (
    namespace text,
    key text,
    value jsonb,
    score float8,
    distance float8,
    version bigint,
    tags text[],
    expires_at timestamptz,
    updated_at timestamptz
);
COMMENT ON TYPE swarm.memory_match IS 'an answer of swarm.memory_search(), the best first; distance is the cosine distance if it was looked at';

-- ---------------------------------------------------------------------
-- Namespaces
-- ---------------------------------------------------------------------

CREATE FUNCTION swarm._namespace_builtin(OUT id int, OUT name text, OUT default_ttl interval, OUT description text)
RETURNS SETOF record LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 4
SET search_path = pg_catalog, pg_temp AS $$
VALUES (1, 'default', NULL::interval, 'what names no other namespace'),
       (2, 'agent-activities', interval '7 days', 'spawns and completions of agents'),
       (3, 'agent-metrics', interval '1 hour', 'samples of running agents'),
       (4, 'wiki-notifications', interval '1 hour', 'one entry a completed agent')
$$;

-- All namespaces, with and without a row. Read by the library, too.
CREATE VIEW swarm._namespace_all AS
SELECT n.* FROM swarm._namespace n
UNION ALL
SELECT b.id, b.name COLLATE "C", s.nspowner::regrole, b.default_ttl, NULL, NULL, 'reject', 'logged', true, false, 384,
       b.description, NULL, NULL, NULL, false
FROM swarm._namespace_builtin() b, pg_catalog.pg_namespace s
WHERE s.nspname = 'swarm' AND NOT EXISTS (SELECT FROM swarm._namespace n WHERE n.id = b.id);

-- swarm._namespace_check(caller, name, need): id of a namespace the caller may
-- use. need: 'read', 'write' or 'own'. Errors: 42704, 42501.
CREATE FUNCTION swarm._namespace_check(caller oid, name text, need text) RETURNS int
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'swarm__namespace_check';

-- swarm._namespace_may(id, need): may the current role? For policies and views.
CREATE FUNCTION swarm._namespace_may(id int, need text) RETURNS boolean
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'swarm__namespace_may';

-- Error unless the settings of a namespace are possible.
CREATE FUNCTION swarm._namespace_validate(n swarm._namespace) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF n.name IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'name of a namespace must not be null';
    END IF;
    IF n.name = '' OR octet_length(n.name) > 200 OR n.name ~ '(^/|//|/$|[[:cntrl:]])' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('invalid namespace name "%s"', n.name),
            HINT = 'It has 1 to 200 bytes, no control characters, and parts that are separated by single slashes.';
    END IF;
    IF n.default_ttl <= '0' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'default_ttl must be greater than zero, or null for no expiry';
    END IF;
    IF n.max_entries < 1 OR n.max_bytes < 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'max_entries and max_bytes must be at least 1, or null for no limit';
    END IF;
    IF n.evict IS NULL OR n.evict NOT IN ('reject', 'oldest', 'soonest') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'evict must be "reject", "oldest" or "soonest"';
    END IF;
    IF n.durability IS NULL OR n.durability NOT IN ('logged', 'unlogged') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'durability must be "logged" or "unlogged"';
    END IF;
    IF n.cached IS NULL OR n.embed IS NULL OR n.words IS NULL OR n.dims IS NULL OR n.dims NOT BETWEEN 8 AND 2000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'cached, embed and words must not be null, and dims must be between 8 and 2000';
    END IF;
    IF n.origin_ttl <= '0' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'origin_ttl must be greater than zero, or null for one day';
    END IF;
END $$;

-- Make the partition that a namespace is searched by.
CREATE FUNCTION swarm._recall_create(id int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE TABLE swarm._recall_%s PARTITION OF swarm._recall FOR VALUES IN (%s)', id, id);
    EXECUTE format('CREATE UNIQUE INDEX ON swarm._recall_%s (key)', id);
    EXECUTE format('CREATE INDEX ON swarm._recall_%s USING gin (words)', id);
END $$;

-- Its index of embeddings; made after they are where there are some.
CREATE FUNCTION swarm._recall_index(id int, dims int) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('CREATE INDEX ON swarm._recall_%s USING qhnsw (embedding @extschema@.real_cosine_ops) WITH (dims = %s)', id, dims);
END $$;

CREATE FUNCTION swarm._namespace_create(caller oid, name text, default_ttl interval, max_entries bigint,
    max_bytes bigint, evict text, durability text, cached boolean, embed boolean, dims int, description text)
RETURNS void LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    n swarm._namespace;
    other text;
BEGIN
    n := ROW(0, name, caller, default_ttl, max_entries, max_bytes, evict, durability, cached, embed, dims, description,
             NULL, NULL, NULL, false);
    PERFORM swarm._namespace_validate(n);
    -- a right on a namespace is one on those below: both ways must be the caller's
    LOCK TABLE swarm._namespace IN SHARE ROW EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM swarm._namespace_all a WHERE a.name = n.name) THEN
        RAISE EXCEPTION USING ERRCODE = 'duplicate_object', MESSAGE = format('namespace "%s" already exists', n.name);
    END IF;
    SELECT a.name INTO other FROM swarm._namespace_all a
    WHERE (starts_with(n.name, a.name || '/') OR starts_with(a.name, n.name || '/'))
      AND NOT pg_has_role(caller, a.owner::oid, 'USAGE')
      AND NOT (SELECT rolsuper FROM pg_roles r WHERE r.oid = caller) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('permission denied to create namespace "%s"', n.name),
            DETAIL = 'A namespace above or below it belongs to another role.';
    END IF;
    n.id := nextval('swarm._namespace_id_seq');
    INSERT INTO swarm._namespace SELECT n.*;
    IF embed THEN
        PERFORM swarm._recall_create(n.id);
        PERFORM swarm._recall_index(n.id, dims);
    END IF;
END $$;

-- swarm.namespace_create(name, ...): a namespace of the current role.
-- Errors: 22023 a setting out of range, 42710 there is one of that name,
-- 42501 one above or below belongs to somebody else. Writes _namespace.
CREATE FUNCTION swarm.namespace_create(name text, default_ttl interval = NULL, max_entries bigint = NULL,
    max_bytes bigint = NULL, evict text = 'reject', durability text = 'logged', cached boolean = true,
    embed boolean = false, dims int = 384, description text = NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_namespace_create';
COMMENT ON FUNCTION swarm.namespace_create IS 'create a memory namespace, with its settings';

-- Error unless a namespace may be filled from its origin: both who says so and
-- the owner, as whom the job runs, need USAGE on the server.
CREATE FUNCTION swarm._origin_check(caller oid, n swarm._namespace) RETURNS void
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    server oid;
    wrapper name;
    part text;
BEGIN
    SELECT s.oid, w.fdwname INTO server, wrapper
    FROM pg_foreign_server s JOIN pg_foreign_data_wrapper w ON w.oid = s.srvfdw WHERE s.srvname = n.origin;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('server "%s" does not exist', n.origin);
    END IF;
    IF NOT has_server_privilege(caller, server, 'USAGE') OR NOT has_server_privilege(n.owner::oid, server, 'USAGE') THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege',
            MESSAGE = format('permission denied for foreign server %s', n.origin),
            HINT = format('The owner of the namespace needs it: GRANT USAGE ON FOREIGN SERVER %I TO ...', n.origin);
    END IF;
    IF wrapper NOT IN ('swarm_s3', 'swarm_http') THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type',
            MESSAGE = format('server "%s" is not a server of wrapper "swarm_s3" or "swarm_http"', n.origin);
    END IF;
    part := coalesce(n.origin_path, '');
    IF wrapper = 'swarm_s3' AND part !~ '^[A-Za-z0-9][A-Za-z0-9._-]{2,62}(/.*)?$' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'origin_path must begin with a bucket', HINT = 'For example: bucket, or bucket/prefix/.';
    END IF;
    IF octet_length(part) > 900 OR part ~ '[[:cntrl:]]' OR starts_with(part, '/') OR part ~ '(^|/)[.][.]?(/|$)' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'origin_path is not valid',
            HINT = 'It has no slash at its beginning, no segments "." and "..", no control characters.';
    END IF;
END $$;

-- The settings in a JSON object replace those there were.
CREATE FUNCTION swarm._namespace_alter(caller oid, name text, settings jsonb)
RETURNS void LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    space int := swarm._namespace_check(caller, name, 'own');
    was swarm._namespace;
    n swarm._namespace;
    wrong text;
BEGIN
    IF settings IS NULL OR jsonb_typeof(settings) <> 'object' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'settings must be a JSON object';
    END IF;
    SELECT k INTO wrong FROM jsonb_object_keys(settings) k
    WHERE k NOT IN ('default_ttl', 'max_entries', 'max_bytes', 'evict', 'cached', 'embed', 'dims', 'description',
                    'words', 'origin', 'origin_path', 'origin_ttl') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = format('setting "%s" of a namespace cannot be changed', wrong),
            HINT = 'default_ttl, max_entries, max_bytes, evict, cached, embed, dims, words, description, origin, origin_path and origin_ttl can.';
    END IF;
    LOCK TABLE swarm._namespace IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO was FROM swarm._namespace_all a WHERE a.id = space;
    n := jsonb_populate_record(was, settings);
    PERFORM swarm._namespace_validate(n);
    IF n.origin IS NOT NULL AND (n.origin, n.origin_path) IS DISTINCT FROM (was.origin, was.origin_path) THEN
        PERFORM swarm._origin_check(caller, n);
    END IF;
    -- whoever writes there now goes by the old settings: what is made of all
    -- entries, or counted, waits for his end, and who comes looks again
    PERFORM swarm._namespace_lock(space);
    IF (n.embed OR n.words) AND (was.embed, was.embed OR was.words, was.dims) IS DISTINCT FROM (n.embed, true, n.dims)
       OR num_nulls(was.max_entries, was.max_bytes) = 2 AND num_nulls(n.max_entries, n.max_bytes) < 2 THEN
        EXECUTE format('LOCK TABLE %s IN SHARE MODE', swarm._memory_table(space));
    END IF;
    INSERT INTO swarm._namespace AS t SELECT n.*
    ON CONFLICT (id) DO UPDATE SET default_ttl = EXCLUDED.default_ttl, max_entries = EXCLUDED.max_entries,
        max_bytes = EXCLUDED.max_bytes, evict = EXCLUDED.evict, cached = EXCLUDED.cached, embed = EXCLUDED.embed,
        dims = EXCLUDED.dims, description = EXCLUDED.description, origin = EXCLUDED.origin,
        origin_path = EXCLUDED.origin_path, origin_ttl = EXCLUDED.origin_ttl, words = EXCLUDED.words;
    IF (was.embed, was.embed OR was.words, CASE WHEN was.embed THEN was.dims END)
        IS DISTINCT FROM (n.embed, n.embed OR n.words, CASE WHEN n.embed THEN n.dims END) THEN
        IF was.embed OR was.words THEN
            EXECUTE format('DROP TABLE swarm._recall_%s', space);
        END IF;
        IF n.embed OR n.words THEN
            PERFORM swarm._recall_create(space);
            PERFORM swarm._memory_reembed(caller, name);
            IF n.embed THEN
                PERFORM swarm._recall_index(space, n.dims);
            END IF;
        END IF;
    END IF;
END $$;

-- Exclusive lock on a namespace, until the end of the transaction.
CREATE FUNCTION swarm._namespace_lock(id int) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm__namespace_lock';

-- swarm.namespace_alter(name, settings): e.g. '{"default_ttl": "1 day",
-- "max_entries": null}'. Errors: 42704, 42501 not the owner, 22023, 22007.
-- Waits for those who write there. Writes _namespace, with embed _recall.
CREATE FUNCTION swarm.namespace_alter(name text, settings jsonb)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_namespace_alter';
COMMENT ON FUNCTION swarm.namespace_alter IS 'change settings of a memory namespace: a JSON object of them';

CREATE FUNCTION swarm._namespace_drop(caller oid, name text, with_below boolean)
RETURNS bigint LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    space int := swarm._namespace_check(caller, name, 'own');
    n swarm._namespace;
    dropped bigint := 0;
BEGIN
    LOCK TABLE swarm._namespace IN SHARE ROW EXCLUSIVE MODE;
    IF NOT coalesce(with_below, false) AND EXISTS (SELECT FROM swarm._namespace_all a WHERE starts_with(a.name, name || '/')) THEN
        RAISE EXCEPTION USING ERRCODE = 'dependent_objects_still_exist',
            MESSAGE = format('namespace "%s" has others below it', name),
            HINT = 'Drop them first, or call with with_below => true.';
    END IF;
    FOR n IN SELECT * FROM swarm._namespace_all a
             WHERE a.id = space OR starts_with(a.name, name || '/') ORDER BY a.id LOOP
        IF EXISTS (SELECT FROM swarm._namespace_builtin() b WHERE b.id = n.id) THEN
            RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
                MESSAGE = format('namespace "%s" is built in and cannot be dropped', n.name),
                HINT = 'swarm.memory_clear() removes its entries.';
        END IF;
        PERFORM swarm._namespace_lock(n.id);
        DELETE FROM swarm._namespace t WHERE t.id = n.id;
        DELETE FROM swarm._namespace_grant g WHERE g.namespace = n.id;
        INSERT INTO swarm._namespace_gone (namespace) VALUES (n.id) ON CONFLICT DO NOTHING;
        IF n.embed OR n.words THEN
            EXECUTE format('DROP TABLE swarm._recall_%s', n.id);
        END IF;
        dropped := dropped + 1;
    END LOOP;
    RETURN dropped;
END $$;

-- swarm.namespace_drop(name, with_below): takes as long with a million entries
-- as with none; the sweep removes the rows. Returns how many namespaces.
-- Errors: 42704, 42501, 2BP01 others below, 55000 built in.
CREATE FUNCTION swarm.namespace_drop(name text, with_below boolean = false)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_namespace_drop';
COMMENT ON FUNCTION swarm.namespace_drop IS 'drop a memory namespace with its entries';

CREATE FUNCTION swarm._namespace_grant(caller oid, name text, grantee text, privilege text)
RETURNS void LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    space int := swarm._namespace_check(caller, name, 'own');
BEGIN
    IF privilege IS NULL OR privilege NOT IN ('read', 'write') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'privilege must be "read" or "write"';
    END IF;
    INSERT INTO swarm._namespace_grant AS g VALUES (space, swarm._grantee(grantee), privilege = 'write')
    ON CONFLICT ON CONSTRAINT _namespace_grant_pkey DO UPDATE SET may_write = EXCLUDED.may_write;
END $$;

CREATE FUNCTION swarm._grantee(grantee text) RETURNS oid
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    role oid;
BEGIN
    IF lower(grantee) = 'public' THEN
        RETURN 0;
    END IF;
    SELECT r.oid INTO role FROM pg_roles r WHERE r.rolname = grantee;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('role "%s" does not exist', grantee);
    END IF;
    RETURN role;
END $$;

-- swarm.namespace_grant(name, grantee, privilege): privilege "read", or
-- "write", which includes it; grantee a role, or "public". It holds for
-- the namespaces below, too. Replaces an earlier grant to that role.
-- Errors: 42704, 42501 not the owner, 22023.
CREATE FUNCTION swarm.namespace_grant(name text, grantee text, privilege text = 'write')
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_namespace_grant';
COMMENT ON FUNCTION swarm.namespace_grant IS 'let a role read, or read and write, a namespace and those below it';

CREATE FUNCTION swarm._namespace_revoke(caller oid, name text, grantee text)
RETURNS boolean LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    space int := swarm._namespace_check(caller, name, 'own');
BEGIN
    DELETE FROM swarm._namespace_grant g WHERE g.namespace = space AND g.grantee = swarm._grantee(grantee);
    RETURN FOUND;
END $$;

-- swarm.namespace_revoke(name, grantee): false if nothing was granted there.
CREATE FUNCTION swarm.namespace_revoke(name text, grantee text)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_namespace_revoke';
COMMENT ON FUNCTION swarm.namespace_revoke IS 'take a role''s grant on a namespace back';

-- ---------------------------------------------------------------------
-- Entries: C code, memory_sql.c
-- ---------------------------------------------------------------------

-- swarm.memory_store(namespace, key, value, ...): the new version, from 1; NULL
-- if if_absent or expect_version forbade it. expect_version 0: absent.
-- Errors: 42704, 42501, 22004, 22023 ttl or key, 53400 a limit of the namespace.
CREATE FUNCTION swarm.memory_store(namespace text, key text, value jsonb, ttl interval = NULL,
    if_absent boolean = false, expect_version bigint = NULL, keep_ttl boolean = false,
    tags text[] = '{}', embedding real[] = NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_memory_store';
COMMENT ON FUNCTION swarm.memory_store IS 'store a value under a key, with an expiry; returns its version, or NULL if a condition did not hold';

-- swarm.memory_store_many(namespace, entries): an array of objects with key,
-- value and, optionally, ttl, if_absent, expect_version, keep_ttl, tags; or an
-- object of keys and values. Returns how many were stored.
CREATE FUNCTION swarm.memory_store_many(namespace text, entries jsonb)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_memory_store_many';
COMMENT ON FUNCTION swarm.memory_store_many IS 'store the entries of a JSON array or object; returns how many were stored';

CREATE FUNCTION swarm.memory_get(namespace text, key text)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'swarm_memory_get';
COMMENT ON FUNCTION swarm.memory_get IS 'the value under a key, or NULL';

-- One row a key that is there, in the order of keys.
CREATE FUNCTION swarm.memory_get_many(namespace text, keys text[])
RETURNS SETOF swarm.memory_entry LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10
AS 'MODULE_PATHNAME', 'swarm_memory_get_many';
COMMENT ON FUNCTION swarm.memory_get_many IS 'the entries of many keys';

CREATE FUNCTION swarm.memory_delete(namespace text, key text)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_memory_delete';
COMMENT ON FUNCTION swarm.memory_delete IS 'remove an entry; false if there was none';

-- condition: nx only without an expiry, xx only with one, gt only later, lt
-- only earlier. No expiry counts as infinitely late. False: nothing was changed.
CREATE FUNCTION swarm.memory_expire(namespace text, key text, ttl interval, condition text = NULL)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_memory_expire';
COMMENT ON FUNCTION swarm.memory_expire IS 'let an entry expire after a time; conditions nx, xx, gt, lt';

CREATE FUNCTION swarm.memory_expire_at(namespace text, key text, at timestamptz, condition text = NULL)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_memory_expire_at';
COMMENT ON FUNCTION swarm.memory_expire_at IS 'let an entry expire at an instant; one in the past deletes it';

CREATE FUNCTION swarm.memory_ttl(namespace text, key text)
RETURNS interval LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'swarm_memory_ttl';
COMMENT ON FUNCTION swarm.memory_ttl IS 'how long an entry has to live; NULL if it has no expiry or does not exist';

CREATE FUNCTION swarm.memory_persist(namespace text, key text)
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_memory_persist';
COMMENT ON FUNCTION swarm.memory_persist IS 'take the expiry of an entry away; false if it had none';

-- What memory_increment() says of a value that it cannot add to. (A cast of a JSON null is NULL from 18 on.)
CREATE FUNCTION swarm._memory_no_number(value jsonb) RETURNS numeric
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
        MESSAGE = format('cannot add to a value of JSON type %s', jsonb_typeof(value)),
        HINT = 'Only a number can be incremented.';
END $$;

-- Keeps the expiry of what is there; what is not starts at 0. Errors: 22023 the
-- value is no number.
CREATE FUNCTION swarm.memory_increment(namespace text, key text, by numeric = 1)
RETURNS numeric LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_memory_increment';
COMMENT ON FUNCTION swarm.memory_increment IS 'add to a number and return it; one that is not there starts at 0';

-- swarm.memory_wait(namespace, key, timeout, since_version): with since_version
-- until the entry has another version, or is gone (then NULL); without, until
-- there is one. NULL when the time is over. Errors: 55000 without preload and,
-- where it would have to wait, on a standby.
CREATE FUNCTION swarm.memory_wait(namespace text, key text, timeout interval = '1 min', since_version bigint = NULL)
RETURNS swarm.memory_entry LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_memory_wait';
COMMENT ON FUNCTION swarm.memory_wait IS 'wait until an entry is there, or has another version, without polling';

-- Handler of kind memory_fill: fetches keys from the origin of a namespace.
-- Everybody may execute it, only a runner can; it does what the settings of a
-- namespace of the job's owner say.
CREATE PROCEDURE swarm._memory_fill(job swarm.job) LANGUAGE c
AS 'MODULE_PATHNAME', 'swarm_memory_fill';
INSERT INTO swarm._handler (id, kind, owner, handler)
VALUES (10, 'memory_fill', 10::oid::regrole, 'swarm._memory_fill');

-- ---------------------------------------------------------------------
-- Lists, clearing, sweeping
-- ---------------------------------------------------------------------

-- The table of a namespace, or NULL where it cannot be read (unlogged, standby).
CREATE FUNCTION swarm._memory_table(space int) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE WHEN durability = 'logged' THEN 'swarm._memory'
            WHEN NOT pg_is_in_recovery() THEN 'swarm._memory_unlogged' END
FROM swarm._namespace_all WHERE id = space
$$;

CREATE FUNCTION swarm._memory_list(caller oid, namespace text, prefix text, lim int, after text)
RETURNS SETOF swarm.memory_entry LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    space int := swarm._namespace_check(caller, namespace, 'read');
    entries text := swarm._memory_table(space);
BEGIN
    IF prefix IS NULL OR lim IS NULL OR lim < 0 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'prefix and lim must not be null, and lim not be negative';
    END IF;
    IF entries IS NULL THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE format(
        'SELECT %L::text, key::text, value, version, tags, expires_at, created_at, updated_at FROM %s
         WHERE namespace = $1 AND key ^@ $2 AND key > $3
           AND (expires_at IS NULL OR expires_at > swarm._now())
         ORDER BY key LIMIT $4', namespace, entries)
    USING space, prefix, coalesce(after, ''), lim;
END $$;

-- swarm.memory_list(namespace, prefix, lim, after): by key (bytes), page by
-- page: after is the last key of the page before.
CREATE FUNCTION swarm.memory_list(namespace text, prefix text = '', lim int = 100, after text = NULL)
RETURNS SETOF swarm.memory_entry LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'swarm_memory_list';
COMMENT ON FUNCTION swarm.memory_list IS 'entries whose key begins with a prefix, in the order of keys';

CREATE FUNCTION swarm._memory_clear(caller oid, namespace text, prefix text)
RETURNS bigint LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    space int := swarm._namespace_check(caller, namespace, 'write');
    entries text := swarm._memory_table(space);
    n bigint;
    veto text;
BEGIN
    IF prefix IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'prefix must not be null';
    END IF;
    veto := swarm._hook_run(caller, 'memory_delete', 'before', jsonb_build_object('namespace', namespace, 'prefix', prefix));
    IF veto IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'external_routine_exception', MESSAGE = format('operation "memory_delete" was refused: %s', veto);
    END IF;
    EXECUTE format(
        'WITH gone AS (DELETE FROM %s WHERE namespace = $1 AND key ^@ $2 RETURNING expires_at)
         SELECT count(*) FROM gone WHERE expires_at IS NULL OR expires_at > swarm._now()', entries)
    INTO n USING space, prefix;
    PERFORM swarm._hook_run(caller, 'memory_delete', 'after', jsonb_build_object('namespace', namespace, 'prefix', prefix, 'entries', n));
    RETURN n;
END $$;

CREATE FUNCTION swarm.memory_clear(namespace text, prefix text = '')
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_memory_clear';
COMMENT ON FUNCTION swarm.memory_clear IS 'remove the entries whose key begins with a prefix; returns how many there were';

-- One batch of one table: remove what has expired, look later at what lives
-- longer than it was to. Returns rows removed and rows looked at. Both
-- statements find their rows by the index on sweep_at, in its order also before
-- there are statistics: the planner would sort all that is due for each batch.
CREATE FUNCTION swarm._memory_sweep_table(entries text, now timestamptz, lim int, OUT removed bigint, OUT seen bigint)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
SET enable_sort = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_variable
DECLARE
    s swarm._memory_swept;
    low timestamptz;
    high timestamptz;
    due tid[];
BEGIN
    SELECT * INTO s FROM swarm._memory_swept t WHERE t.kind = entries;
    -- from the start now and then: a transaction that was open then may have
    -- stored what was due already; and when the clock was set back
    low := CASE WHEN s.from_start > now - interval '10 min' AND s.swept_to <= now THEN s.swept_to ELSE '-infinity' END;
    EXECUTE format(
        'SELECT array_agg(ctid), max(sweep_at) FROM (SELECT ctid, sweep_at FROM %s
         WHERE sweep_at >= $1 AND sweep_at <= $2 ORDER BY sweep_at LIMIT $3 FOR UPDATE SKIP LOCKED) d', entries)
    INTO due, high USING low, now, lim;
    seen := coalesce(cardinality(due), 0);
    removed := 0;
    IF seen > 0 THEN
        EXECUTE format('DELETE FROM %s WHERE ctid = ANY ($1) AND expires_at <= $2', entries) USING due, now;
        GET DIAGNOSTICS removed = ROW_COUNT;
        IF removed < seen THEN
            EXECUTE format('UPDATE %s SET sweep_at = expires_at WHERE ctid = ANY ($1)
                            AND (expires_at IS NULL OR expires_at > $2)', entries) USING due, now;
        END IF;
    END IF;
    IF seen < lim THEN
        high := now;
    END IF;
    IF seen > 0 OR low = '-infinity' AND s.from_start < s.swept_to THEN
        INSERT INTO swarm._memory_swept AS t VALUES (entries, high, now)
        ON CONFLICT (kind) DO UPDATE SET swept_to = EXCLUDED.swept_to,
            from_start = CASE WHEN low = '-infinity' THEN EXCLUDED.from_start ELSE t.from_start END;
    END IF;
END $$;

CREATE FUNCTION swarm._memory_sweep(caller oid, lim int)
RETURNS bigint LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    now timestamptz := swarm._now();
    total bigint := 0;
    n bigint;
    entries text;
    gone int;
BEGIN
    IF lim IS NULL OR lim < 1 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'lim must be at least 1';
    END IF;
    FOREACH entries IN ARRAY ARRAY['swarm._memory', 'swarm._memory_unlogged'] LOOP
        IF total < lim THEN
            SELECT removed INTO n FROM swarm._memory_sweep_table(entries, now, (lim - total)::int);
            total := total + n;
        END IF;
    END LOOP;
    FOR gone IN SELECT g.namespace FROM swarm._namespace_gone g ORDER BY 1 FOR UPDATE SKIP LOCKED LOOP
        EXIT WHEN total >= lim;
        n := 0;
        FOREACH entries IN ARRAY ARRAY['swarm._memory', 'swarm._memory_unlogged'] LOOP
            EXECUTE format('WITH gone AS (DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT ctid FROM %s WHERE namespace = $1 LIMIT $2))
                                          RETURNING 1) SELECT count(*) + $3 FROM gone', entries, entries)
            INTO n USING gone, lim - total, n;
        END LOOP;
        total := total + n;
        IF n = 0 THEN
            -- one of a restored dump may be of another server
            UPDATE swarm._namespace_gone g SET horizon = pg_snapshot_xmax(pg_current_snapshot())
            WHERE g.namespace = gone AND (g.horizon IS NULL OR g.horizon > pg_snapshot_xmax(pg_current_snapshot()));
            DELETE FROM swarm._namespace_gone g
            WHERE g.namespace = gone AND g.horizon <= pg_snapshot_xmin(pg_current_snapshot());
        END IF;
    END LOOP;
    RETURN total;
END $$;

-- swarm.memory_sweep(lim): remove up to lim rows that have expired, or whose
-- namespace was dropped; returns how many. The scheduler calls it; without
-- preload, pg_cron may. Cost: what is removed.
CREATE FUNCTION swarm.memory_sweep(lim int = 10000)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_memory_sweep';
COMMENT ON FUNCTION swarm.memory_sweep IS 'remove what has expired, up to lim rows; returns how many';

-- When the sweep will next have something to do; NULL: never. For the scheduler.
CREATE FUNCTION swarm._memory_next_sweep() RETURNS timestamptz
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    due timestamptz;
BEGIN
    SELECT min(m) INTO due FROM (
        SELECT (SELECT min(sweep_at) FROM swarm._memory
                WHERE sweep_at >= coalesce((SELECT swept_to FROM swarm._memory_swept WHERE kind = 'swarm._memory'
                                            AND swept_to <= swarm._now()), '-infinity')) AS m
        UNION ALL
        SELECT (SELECT min(sweep_at) FROM swarm._memory_unlogged
                WHERE sweep_at >= coalesce((SELECT swept_to FROM swarm._memory_swept WHERE kind = 'swarm._memory_unlogged'
                                            AND swept_to <= swarm._now()), '-infinity'))
        UNION ALL
        SELECT min(from_start) + interval '10 min' FROM swarm._memory_swept WHERE from_start < swept_to
        UNION ALL
        SELECT swarm._now() WHERE EXISTS (SELECT FROM swarm._namespace_gone)) s;
    RETURN due;
END $$;

-- ---------------------------------------------------------------------
-- Search
-- ---------------------------------------------------------------------

-- The words of an entry: its key, and the strings and numbers of its value.
CREATE FUNCTION swarm._memory_text(key text, value jsonb) RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE COST 50
AS 'MODULE_PATHNAME', 'swarm__memory_text';

-- Any of the words, each also as the beginning of one; NULL: there are none.
-- In plpgsql, so that a session keeps its plan.
CREATE FUNCTION swarm._memory_query(query text) RETURNS tsquery
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT string_agg('''' || replace(replace(lexeme, E'\\', E'\\\\'), '''', '''''') || ''':*', ' | ')::tsquery
            FROM unnest(to_tsvector('english'::regconfig, query)));
END $$;

-- Write what a namespace with embed is searched by, anew for all entries.
CREATE FUNCTION swarm._memory_reembed(caller oid, namespace text) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    space int := swarm._namespace_check(caller, namespace, 'own');
    entries text := swarm._memory_table(space);
    n swarm._namespace;
    done bigint;
BEGIN
    SELECT * INTO n FROM swarm._namespace_all a WHERE a.id = space;
    IF NOT n.embed AND NOT n.words THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('namespace "%s" keeps no embeddings', namespace),
            HINT = format('SELECT swarm.namespace_alter(%L, ''{"embed": true}'').', namespace);
    END IF;
    PERFORM swarm._namespace_lock(space);
    EXECUTE format('LOCK TABLE %s IN SHARE MODE', entries);
    EXECUTE format('DELETE FROM swarm._recall_%s', space);
    EXECUTE format(
        'INSERT INTO swarm._recall_%s SELECT namespace, key, CASE WHEN $2 > 0 THEN swarm.embed(t, $2) END, to_tsvector(''english''::regconfig, t)
         FROM %s, swarm._memory_text(key, value) t
         WHERE namespace = $1 AND (expires_at IS NULL OR expires_at > swarm._now())', space, entries)
    USING space, CASE WHEN n.embed THEN n.dims ELSE 0 END;
    GET DIAGNOSTICS done = ROW_COUNT;
    RETURN done;
END $$;

-- swarm.memory_reembed(namespace): returns how many entries. Errors: 42704,
-- 42501 not the owner, 55000 no embed.
CREATE FUNCTION swarm.memory_reembed(namespace text) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_hooked_memory_reembed';
COMMENT ON FUNCTION swarm.memory_reembed IS 'compute the embeddings of all entries of a namespace anew';

-- Run a statement that swarm._memory_search() made; the session keeps its plan,
-- with one_plan the same for all arguments. In it $1 is namespace, $2 space, $3
-- filter, $4 words, $5 embedding.
CREATE FUNCTION swarm._memory_search_run(sql text, one_plan boolean, namespace text, space int, filter jsonb, words tsquery, embedding real[])
RETURNS SETOF swarm.memory_match LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'swarm__memory_search_run';

-- A filter that few entries pass does not cost answers: the index goes on. The
-- namespace is read through indexes, whatever the planner thinks of so few rows.
CREATE FUNCTION swarm._memory_search(caller oid, namespace text, query text, lim int, mode text, filter jsonb, embedding real[])
RETURNS SETOF swarm.memory_match LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET qhnsw.iterative_scan = relaxed SET qhnsw.max_scan_tuples = -1 SET enable_seqscan = off AS $$
#variable_conflict use_variable
DECLARE
    space int := swarm._namespace_check(caller, namespace, 'read');
    entries text;
    n swarm._namespace;
    words tsquery;
    by_text boolean;
    by_meaning boolean;
    depth int;
    visible text := 'm.namespace = $2 AND (m.expires_at IS NULL OR m.expires_at > swarm._now())'
                    || CASE WHEN filter IS NULL THEN '' ELSE ' AND m.value @> $3' END;
    text_list text;
    meaning_list text;
    most_read CONSTANT bigint := 10000;
    to_read bigint;
BEGIN
    IF mode IS NULL OR mode NOT IN ('text', 'semantic', 'hybrid') THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'mode must be "text", "semantic" or "hybrid"';
    END IF;
    IF lim IS NULL OR lim NOT BETWEEN 0 AND 10000 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'lim must be between 0 and 10000';
    END IF;
    IF query IS NULL AND (embedding IS NULL OR mode <> 'semantic') THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'query must not be null';
    END IF;
    SELECT * INTO n FROM swarm._namespace t WHERE t.id = space;
    IF NOT FOUND THEN
        SELECT * INTO n FROM swarm._namespace_all a WHERE a.id = space;
    END IF;
    IF n.durability = 'logged' THEN
        entries := 'swarm._memory';
    ELSIF NOT pg_is_in_recovery() THEN
        entries := 'swarm._memory_unlogged';
    END IF;
    IF query IS NOT NULL AND (mode <> 'semantic' OR embedding IS NULL) THEN
        words := swarm._memory_query(query);
    END IF;
    IF mode = 'semantic' AND NOT n.embed THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('namespace "%s" keeps no embeddings', namespace),
            HINT = format('Its owner can call swarm.namespace_alter(%L, ''{"embed": true}'').', namespace);
    END IF;
    IF embedding IS NOT NULL AND n.embed AND coalesce(array_length(embedding, 1), 0) <> n.dims THEN
        RAISE EXCEPTION USING ERRCODE = 'data_exception',
            MESSAGE = format('embedding must have %s dimensions', n.dims);
    END IF;
    IF entries IS NULL THEN
        RETURN;
    END IF;
    by_text := mode <> 'semantic' AND words IS NOT NULL;
    by_meaning := mode <> 'text' AND n.embed AND (embedding IS NOT NULL OR words IS NOT NULL);
    IF NOT by_text AND NOT by_meaning THEN
        RETURN;
    END IF;
    embedding := coalesce(embedding, CASE WHEN by_meaning THEN swarm.embed(query, n.dims) END);
    depth := CASE WHEN mode = 'hybrid' THEN greatest(lim * 4, 40) ELSE lim END;
    IF NOT by_text THEN
        text_list := 'SELECT NULL::text AS key, 0::float8 AS rank WHERE false';
    ELSIF n.embed OR n.words THEN
        text_list := format(
            'SELECT r.key::text, ts_rank_cd(r.words, $4, 1)::float8 AS rank FROM swarm._recall_%s r JOIN %s m ON m.key = r.key
             WHERE r.words @@ $4 AND %s ORDER BY rank DESC, r.key LIMIT %s', space, entries, visible, depth);
    ELSE
        -- every entry has to be read, and its words found, by every search
        EXECUTE format('SELECT count(*) FROM (SELECT FROM %s m WHERE %s LIMIT %s) e', entries,
                       replace(replace(visible, '$3', '$1'), '$2', space::text), most_read + 1) INTO to_read USING filter;
        IF to_read > most_read THEN
            RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded',
                MESSAGE = format('namespace "%s" has no index of words, and more than %s entries to read', namespace, most_read),
                HINT = format('Its owner can call swarm.namespace_alter(%L, ''{"words": true}''); or let a filter leave fewer.', namespace);
        END IF;
        text_list := format(
            'SELECT m.key::text, ts_rank_cd(w, $4, 1)::float8 AS rank
             FROM %s m, to_tsvector(''english''::regconfig, swarm._memory_text(m.key, m.value)) w
             WHERE w @@ $4 AND %s ORDER BY rank DESC, m.key LIMIT %s', entries, visible, depth);
    END IF;
    IF by_meaning THEN
        meaning_list := format(
            'SELECT r.key::text, r.embedding OPERATOR(@extschema@.<=>) $5 AS distance FROM swarm._recall_%s r JOIN %s m ON m.key = r.key
             WHERE %s ORDER BY r.embedding OPERATOR(@extschema@.<=>) $5 LIMIT %s', space, entries, visible, depth);
    ELSE
        meaning_list := 'SELECT NULL::text AS key, 0::float8 AS distance WHERE false';
    END IF;
    IF mode = 'semantic' THEN
        -- one plan for all: nothing but a filter would change it
        RETURN QUERY SELECT * FROM swarm._memory_search_run(format(
            'SELECT $1, f.key, f.value, 1 - f.distance, f.distance, f.version, f.tags, f.expires_at, f.updated_at FROM (
                 SELECT r.key::text, m.value, r.embedding OPERATOR(@extschema@.<=>) $5 AS distance,
                        m.version, m.tags, m.expires_at, m.updated_at
                 FROM swarm._recall_%s r JOIN %s m ON m.key = r.key
                 WHERE %s ORDER BY r.embedding OPERATOR(@extschema@.<=>) $5 LIMIT %s) f
             ORDER BY f.distance, f.key COLLATE "C"', space, entries, visible, lim),
            filter IS NULL, namespace, space, filter, words, embedding);
        RETURN;
    END IF;
    RETURN QUERY SELECT * FROM swarm._memory_search_run(format(
        'WITH t AS MATERIALIZED (SELECT key, rank, row_number() OVER (ORDER BY rank DESC, key COLLATE "C") AS place FROM (%s) l),
              s AS MATERIALIZED (SELECT key, distance, row_number() OVER (ORDER BY distance, key COLLATE "C") AS place FROM (%s) l),
              f AS (SELECT key, CASE %L WHEN ''text'' THEN t.rank
                                        ELSE coalesce(1.0 / (60 + t.place), 0) + coalesce(1.0 / (60 + s.place), 0) END::float8 AS score,
                           s.distance
                    FROM t FULL JOIN s USING (key))
         SELECT $1, m.key::text, m.value, f.score, f.distance, m.version, m.tags, m.expires_at, m.updated_at
         FROM (SELECT * FROM f ORDER BY score DESC, key COLLATE "C" LIMIT %s) f JOIN %s m ON m.namespace = $2 AND m.key = f.key COLLATE "C"
         ORDER BY f.score DESC, m.key', text_list, meaning_list, mode, lim, entries),
        false, namespace, space, filter, words, embedding);
END $$;

-- swarm.memory_search(namespace, query, lim, mode, filter, embedding): the best
-- first. mode "text": any word of the query, or its beginning; "semantic":
-- nearest embeddings (namespace with embed); "hybrid": both, by reciprocal
-- rank, or text alone without embed. filter: contained in the value. Errors:
-- 42704, 42501, 22023, 22004, 55000 semantic without embed, 22000 dimensions,
-- 54000 a text search would have to read more than 10,000 entries.
CREATE FUNCTION swarm.memory_search(namespace text, query text, lim int = 10, mode text = 'hybrid',
    filter jsonb = NULL, embedding real[] = NULL)
RETURNS SETOF swarm.memory_match LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'swarm_memory_search';
COMMENT ON FUNCTION swarm.memory_search IS 'entries by words, by meaning, or both';

-- ---------------------------------------------------------------------
-- The tool of claude-flow
-- ---------------------------------------------------------------------

-- A time as JavaScript writes it.
CREATE FUNCTION swarm._iso_time(t timestamptz) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
RETURN to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"');

CREATE FUNCTION swarm._memory_usage(caller oid, action text, namespace text, key text, value jsonb, ttl int, pattern text)
RETURNS jsonb LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    common jsonb := jsonb_build_object('action', action, 'namespace', namespace, 'storage_type', 'postgresql',
                                       'timestamp', swarm._iso_time(swarm._now()));
    space int;
    entries text;
    found jsonb;
    answer jsonb;
    told jsonb;
    veto text;
BEGIN
    IF action IS NULL OR action NOT IN ('store', 'retrieve', 'list', 'delete', 'search') THEN
        RETURN jsonb_build_object('success', false, 'error', 'Unknown action: ' || coalesce(action, 'undefined'),
                                  'timestamp', common->'timestamp');
    END IF;
    space := swarm._namespace_check(caller, namespace,
                                    CASE WHEN action IN ('store', 'delete') THEN 'write' ELSE 'read' END);
    entries := swarm._memory_table(space);
    IF action IN ('store', 'retrieve', 'delete') AND key IS NULL THEN
        RETURN jsonb_build_object('success', false, 'error', format('Action %s needs a key', action),
                                  'timestamp', common->'timestamp');
    END IF;
    CASE action
    WHEN 'store' THEN
        told := jsonb_build_object('namespace', namespace, 'key', key, 'value', coalesce(value, 'null'));
        veto := swarm._hook_run(caller, 'memory_store', 'before', told);
        IF veto IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'external_routine_exception', MESSAGE = format('operation "memory_store" was refused: %s', veto);
        END IF;
        PERFORM swarm._memory_store_as(caller, namespace, key, coalesce(value, 'null'),
                                       CASE WHEN ttl <> 0 THEN make_interval(secs => ttl) END);
        PERFORM swarm._hook_run(caller, 'memory_store', 'after', told);
        answer := jsonb_build_object('key', key, 'stored', true, 'size', length(coalesce(value #>> '{}', 'null')),
                                     'id', space || ':' || key);
    WHEN 'retrieve' THEN
        found := swarm.memory_get(namespace, key);
        answer := jsonb_build_object('key', key, 'value', found, 'found', found IS NOT NULL);
    WHEN 'delete' THEN
        answer := jsonb_build_object('key', key, 'deleted', swarm.memory_delete(namespace, key));
    WHEN 'list' THEN
        IF entries IS NOT NULL THEN
            EXECUTE format(
                'SELECT jsonb_agg(jsonb_build_object(''key'', key, ''value'', value, ''namespace'', $2, ''metadata'', jsonb_build_object(''tags'', tags),
                         ''createdAt'', swarm._iso_time(created_at), ''updatedAt'', swarm._iso_time(updated_at)))
                 FROM (SELECT * FROM %s WHERE namespace = $1 AND (expires_at IS NULL OR expires_at > swarm._now())
                       ORDER BY updated_at DESC, key LIMIT 100) e', entries) INTO found USING space, namespace;
        END IF;
        found := coalesce(found, '[]');
        answer := jsonb_build_object('entries', found, 'count', jsonb_array_length(found));
    WHEN 'search' THEN
        pattern := coalesce(pattern, value #>> '{}', '');
        IF entries IS NOT NULL THEN
            EXECUTE format(
                'SELECT jsonb_agg(jsonb_build_object(''key'', key, ''value'', value, ''namespace'', $2, ''score'', 0,
                         ''updatedAt'', swarm._iso_time(updated_at)))
                 FROM (SELECT * FROM %s WHERE namespace = $1 AND (expires_at IS NULL OR expires_at > swarm._now())
                         AND (strpos(lower(key), lower($3)) > 0 OR strpos(lower(value::text), lower($3)) > 0)
                       ORDER BY updated_at DESC, key LIMIT 50) e', entries) INTO found USING space, namespace, pattern;
        END IF;
        found := coalesce(found, '[]');
        answer := jsonb_build_object('pattern', pattern, 'results', found, 'count', jsonb_array_length(found));
    END CASE;
    RETURN jsonb_build_object('success', true) || common || answer;
END $$;

-- swarm.memory_usage(action, ...): ttl in seconds; 0, as there, none of its own.
-- Errors: rights and limits; what the tool itself answers with is in success
-- and error.
CREATE FUNCTION swarm.memory_usage(action text, namespace text = 'default', key text = NULL, value jsonb = NULL,
    ttl int = NULL, pattern text = NULL)
RETURNS jsonb LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm_memory_usage';
COMMENT ON FUNCTION swarm.memory_usage IS 'store, retrieve, list, delete and search, as the tool memory_usage of claude-flow answers';

-- ---------------------------------------------------------------------
-- Results of queries
-- ---------------------------------------------------------------------

-- Trigger of tables that results of swarm.cached() depend on.
CREATE FUNCTION swarm._cache_table_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'swarm__cache_table_changed';

-- What a result computed from now on goes by: as long as these tables do not
-- change it stays the same. NULL: nothing can be said at this moment (somebody
-- is committing a change, this transaction has made one, or does not see new
-- ones; standby, no preload).
CREATE FUNCTION swarm._cache_stamp(tables oid[]) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'swarm__cache_stamp';

-- The tables, their partitions and children, which a query of them reads, and their parents: a statement on one of these
-- changes them, and fires no trigger but its own.
CREATE FUNCTION swarm._cache_family(tables regclass[]) RETURNS SETOF oid
LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
WITH RECURSIVE up AS (
    SELECT t::oid AS relid FROM unnest(tables) t UNION SELECT i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.relid),
down AS (
    SELECT t::oid AS relid FROM unnest(tables) t UNION SELECT i.inhrelid FROM down JOIN pg_inherits i ON i.inhparent = down.relid)
SELECT relid FROM up UNION SELECT relid FROM down
$$;

-- The tables and what belongs to them. Errors: 42809 no table, 55000 not watched.
CREATE FUNCTION swarm._cache_tables(tables regclass[]) RETURNS oid[]
LANGUAGE plpgsql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result oid[];
    wrong regclass;
BEGIN
    SELECT array_agg(x.relid ORDER BY x.relid), min(x.relid) FILTER (WHERE NOT x.watched) INTO result, wrong
    FROM (SELECT f AS relid, EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = f AND g.tgenabled = 'A'
                                     AND g.tgfoid = 'swarm._cache_table_changed'::regproc) AS watched
          FROM swarm._cache_family(tables) f) x;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state',
            MESSAGE = format('changes of table %s are not watched', wrong),
            HINT = format('Call swarm.cache_watch(%L).', wrong);
    END IF;
    RETURN coalesce(result, '{}');
END $$;

-- swarm.cache_watch(table): let results of swarm.cached() depend on a table: a
-- statement trigger on it, its partitions, children and parents. Needs TRIGGER on them. Errors:
-- 42501, 42809 no table.
CREATE FUNCTION swarm._cache_watch("table" regclass) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t regclass;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = $1 AND c.relkind IN ('r', 'p')) THEN
        RAISE EXCEPTION USING ERRCODE = 'wrong_object_type', MESSAGE = format('"%s" is not a table', $1);
    END IF;
    FOR t IN SELECT f FROM swarm._cache_family(ARRAY[$1]) f LOOP
        IF EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t AND g.tgfoid = 'swarm._cache_table_changed'::regproc) THEN
            EXECUTE format('DROP TRIGGER swarm_cache_watch ON %s', t);
        END IF;
        EXECUTE format('CREATE TRIGGER swarm_cache_watch AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON %s
                        FOR EACH STATEMENT EXECUTE FUNCTION swarm._cache_table_changed()', t);
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER swarm_cache_watch', t);
    END LOOP;
END $$;

CREATE FUNCTION swarm.cache_watch("table" regclass) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_cache_watch';
COMMENT ON FUNCTION swarm.cache_watch IS 'let results of swarm.cached() depend on a table';

CREATE FUNCTION swarm._cache_unwatch("table" regclass) RETURNS void
LANGUAGE plpgsql VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t regclass;
BEGIN
    FOR t IN SELECT g.tgrelid FROM pg_trigger g WHERE g.tgfoid = 'swarm._cache_table_changed'::regproc
             AND g.tgrelid IN (SELECT f FROM swarm._cache_family(ARRAY[$1]) f) LOOP
        EXECUTE format('DROP TRIGGER swarm_cache_watch ON %s', t);
    END LOOP;
END $$;

CREATE FUNCTION swarm.cache_unwatch("table" regclass) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_cache_unwatch';
COMMENT ON FUNCTION swarm.cache_unwatch IS 'take the trigger of swarm.cache_watch() away';

-- swarm.cached(namespace, key, sql, ttl, tables): the rows of a query as a JSON
-- array of objects, from memory if they are there; else the query is run, as
-- the caller, and its result stored, for ttl, the namespace's default_ttl, or an
-- hour. One session computes, the others wait for its transaction. With tables
-- a result is good until one of them changes. Errors: rights, those of the
-- query, 55000 a table is not watched.
CREATE FUNCTION swarm.cached(namespace text, key text, sql text, ttl interval = NULL, tables regclass[] = NULL)
RETURNS jsonb LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE AS $$
#variable_conflict use_variable
DECLARE
    found pg_catalog.jsonb;
    relids pg_catalog.oid[];
    stamp pg_catalog.text;
BEGIN
    -- no search_path of its own: names in the query are the caller's
    IF sql IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'null_value_not_allowed', MESSAGE = 'sql must not be null';
    END IF;
    FOR i IN 1 .. 2 LOOP
        IF tables IS NULL THEN
            found := swarm.memory_get(namespace, key);
            IF found IS NOT NULL THEN
                RETURN found;
            END IF;
        ELSE
            relids := swarm._cache_tables(tables);
            -- before it is read, and before the query's snapshot
            stamp := swarm._cache_stamp(relids);
            found := swarm.memory_get(namespace, key);
            IF found OPERATOR(pg_catalog.->>) 'stamp' OPERATOR(pg_catalog.=) stamp THEN
                RETURN found OPERATOR(pg_catalog.->) 'result';
            END IF;
            EXIT WHEN stamp IS NULL;
        END IF;
        IF i OPERATOR(pg_catalog.=) 1 THEN
            PERFORM pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(pg_catalog.concat(namespace, E'\x01', key), 5077));
        END IF;
    END LOOP;
    EXECUTE pg_catalog.concat('SELECT coalesce(pg_catalog.jsonb_agg(pg_catalog.to_jsonb(_q)), ''[]'') FROM (', sql, E'\n) _q') INTO found;
    IF tables IS NULL OR stamp IS NOT NULL THEN
        PERFORM swarm.memory_store(namespace, key,
            CASE WHEN tables IS NULL THEN found ELSE pg_catalog.jsonb_build_object('stamp', stamp, 'result', found) END,
            coalesce(ttl, (SELECT n.default_ttl FROM swarm.namespaces n WHERE n.name OPERATOR(pg_catalog.=) namespace), '3600 s'));
    END IF;
    RETURN found;
END $$;
COMMENT ON FUNCTION swarm.cached IS 'the result of a query as jsonb: from memory, or computed once and stored';

-- ---------------------------------------------------------------------
-- The activity of agents
-- ---------------------------------------------------------------------

CREATE SEQUENCE swarm._track_seq;

-- Store without looking at the caller's rights: for functions that do.
CREATE FUNCTION swarm._memory_store_as(caller oid, namespace text, key text, value jsonb, ttl interval = NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm__memory_store_as';

-- CPU seconds, resident bytes and seconds of life of this process.
CREATE FUNCTION swarm._process_usage(OUT cpu float8, OUT memory bigint, OUT uptime float8)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'swarm__process_usage';

-- A record was kept, or could not be: count; warn the first time in a session.
CREATE FUNCTION swarm._track_count(error text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'swarm__track_count';

CREATE FUNCTION swarm._track_counts(OUT recorded bigint, OUT dropped bigint)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'swarm__track_counts';

-- One record, whatever happens to it. Never an error, but for a cancellation.
CREATE FUNCTION swarm._track(caller oid, namespace text, key text, value jsonb, channel text = NULL) RETURNS void
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
BEGIN
    IF NOT current_setting('pg_swarm.track_agents')::boolean THEN
        RETURN;
    END IF;
    -- all of its namespaces are builtin, so their ids are known
    IF EXISTS (SELECT FROM swarm._memory m
               WHERE m.namespace = CASE _track.namespace WHEN 'agent-activities' THEN 2 WHEN 'agent-metrics' THEN 3 WHEN 'wiki-notifications' THEN 4 END
                 AND m.key = _track.key AND (m.expires_at IS NULL OR m.expires_at > swarm._now())
                 AND NOT pg_has_role(caller, m.owner::oid, 'USAGE')) THEN
        RAISE EXCEPTION USING ERRCODE = 'insufficient_privilege', MESSAGE = 'the record belongs to another role';
    END IF;
    PERFORM swarm._memory_store_as(caller, namespace, key, value);
    IF channel IS NOT NULL THEN
        PERFORM pg_notify(channel, value::text);
    END IF;
    PERFORM swarm._track_count(NULL);
EXCEPTION WHEN OTHERS THEN
    PERFORM swarm._track_count(SQLERRM);
END $$;

CREATE FUNCTION swarm._millis(t timestamptz) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN floor(extract(epoch FROM t) * 1000)::bigint;

CREATE FUNCTION swarm._track_spawn(caller oid, agent_id text, agent_type text, task text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := swarm._now();
BEGIN
    PERFORM swarm._track(caller, 'agent-activities', 'agent-' || agent_id || '-spawn', jsonb_build_object(
        'agentId', agent_id, 'agentType', agent_type, 'task', task, 'status', 'spawned',
        'timestamp', swarm._iso_time(at), 'startTime', swarm._millis(at)));
    RETURN jsonb_build_object('agentId', agent_id, 'startTime', swarm._millis(at));
END $$;

CREATE FUNCTION swarm._track_execution(caller oid, agent_id text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := swarm._now();
    sample jsonb;
BEGIN
    SELECT jsonb_build_object('cpu', u.cpu, 'memory', u.memory, 'uptime', u.uptime,
                              'agentId', agent_id, 'timestamp', swarm._iso_time(at))
    INTO sample FROM swarm._process_usage() u;
    PERFORM swarm._track(caller, 'agent-metrics',
        format('agent-%s-metrics-%s-%s', agent_id, swarm._millis(at), swarm._track_number()), sample);
    RETURN sample;
END $$;

-- The next number, where one can be had (not on a standby).
CREATE FUNCTION swarm._track_number() RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE WHEN current_setting('transaction_read_only')::boolean THEN 0 ELSE nextval('swarm._track_seq') END
$$;

-- The live entry with the spawn of an agent; NULL also if it cannot be read, by us or by the caller.
CREATE FUNCTION swarm._track_spawned(caller oid, agent_id text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET lock_timeout = '1s' AS $$
BEGIN
    -- namespace 2 is agent-activities, which is builtin
    RETURN (SELECT m.value FROM swarm._memory m
            WHERE m.namespace = 2 AND m.key = 'agent-' || agent_id || '-spawn'
              AND (m.expires_at IS NULL OR m.expires_at > swarm._now())
              AND (swarm._namespace_may_as(caller, m.namespace) OR pg_has_role(caller, m.owner::oid, 'USAGE')));
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;

CREATE FUNCTION swarm._track_completion(caller oid, agent_id text, status text, outcome text, error text) RETURNS jsonb
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at timestamptz := swarm._now();
    spawn jsonb := swarm._track_spawned(caller, agent_id);
    duration bigint;
BEGIN
    duration := ceil(extract(epoch FROM at) * 1000)::bigint - (spawn->>'startTime')::bigint;
    PERFORM swarm._track(caller, 'agent-activities', 'agent-' || agent_id || '-complete', jsonb_build_object(
        'agentId', agent_id, 'agentType', coalesce(spawn->>'agentType', 'unknown'),
        'task', coalesce(spawn->>'task', 'unknown'), 'status', status, 'outcome', outcome, 'error', error,
        'duration', duration, 'timestamp', swarm._iso_time(at)));
    PERFORM swarm._track(caller, 'wiki-notifications',
        format('wiki-event-%s-%s', swarm._millis(at), swarm._track_number()),
        jsonb_build_object('type', 'agent-completion', 'agentId', left(agent_id, 1000),
            'agentType', left(coalesce(spawn->>'agentType', 'unknown'), 1000), 'duration', duration,
            'status', left(status, 100), 'timestamp', swarm._iso_time(at)), 'pg_swarm_wiki');
    RETURN jsonb_build_object('duration', duration, 'status', status);
END $$;

-- What these record belongs to the caller; who may read the namespaces reads
-- it, too. No error but a cancellation: what cannot be kept is counted
-- (swarm.stat_tracker) and warned of once a session.
CREATE FUNCTION swarm.track_spawn(agent_id text, agent_type text, task text) RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_track_spawn';
COMMENT ON FUNCTION swarm.track_spawn IS 'record that an agent was spawned';

CREATE FUNCTION swarm.track_execution(agent_id text) RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_track_execution';
COMMENT ON FUNCTION swarm.track_execution IS 'record CPU seconds, resident bytes and age of the process that calls, for an agent';

CREATE FUNCTION swarm.track_completion(agent_id text, status text, outcome text = NULL, error text = NULL) RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_track_completion';
COMMENT ON FUNCTION swarm.track_completion IS 'record how an agent ended, with its duration in ms, and announce it (NOTIFY pg_swarm_wiki)';

CREATE FUNCTION swarm._agent_history(caller oid, agent_id text, since timestamptz)
RETURNS TABLE (agent_id text, agent_type text, task text, status text, outcome text, error text, duration bigint,
               recorded_at timestamptz, record jsonb)
LANGUAGE sql VOLATILE PARALLEL UNSAFE ROWS 100 SET search_path = pg_catalog, pg_temp AS $$
SELECT value->>'agentId', value->>'agentType', value->>'task', value->>'status', value->>'outcome', value->>'error',
       (value->>'duration')::bigint, created_at, value
FROM swarm._memory
WHERE namespace = 2 AND (expires_at IS NULL OR expires_at > swarm._now())
  AND ($2 IS NULL OR key = 'agent-' || $2 || '-spawn' OR key = 'agent-' || $2 || '-complete')
  AND ($3 IS NULL OR created_at >= $3)
  AND jsonb_typeof(value) = 'object' AND key ~ '-(spawn|complete)$'
  AND (swarm._namespace_may_as($1, 2) OR pg_has_role($1, owner::oid, 'USAGE'))
ORDER BY created_at, key DESC
$$;

CREATE FUNCTION swarm._namespace_may_as(caller oid, id int) RETURNS boolean
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'swarm__namespace_may_as';

-- swarm.agent_history(agent_id, since): what the caller recorded, or all if he
-- may read namespace agent-activities; the oldest first.
CREATE FUNCTION swarm.agent_history(agent_id text = NULL, since timestamptz = NULL)
RETURNS TABLE (agent_id text, agent_type text, task text, status text, outcome text, error text, duration bigint,
               recorded_at timestamptz, record jsonb)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100
AS 'MODULE_PATHNAME', 'swarm_agent_history';
COMMENT ON FUNCTION swarm.agent_history IS 'spawns and completions of agents of the last 7 days';

-- ---------------------------------------------------------------------
-- Row-level security and views
-- ---------------------------------------------------------------------

ALTER TABLE swarm._namespace ENABLE ROW LEVEL SECURITY;
CREATE POLICY reader ON swarm._namespace FOR SELECT USING (swarm._namespace_may(id, 'read'));
ALTER TABLE swarm._namespace_grant ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON swarm._namespace_grant FOR SELECT USING (swarm._namespace_may(namespace, 'own'));
ALTER TABLE swarm._memory ENABLE ROW LEVEL SECURITY;
CREATE POLICY reader ON swarm._memory FOR SELECT
    USING (swarm._namespace_may(namespace, 'read') AND (expires_at IS NULL OR expires_at > swarm._now()));
ALTER TABLE swarm._memory_unlogged ENABLE ROW LEVEL SECURITY;
CREATE POLICY reader ON swarm._memory_unlogged FOR SELECT
    USING (swarm._namespace_may(namespace, 'read') AND (expires_at IS NULL OR expires_at > swarm._now()));

CREATE VIEW swarm.namespaces WITH (security_barrier = true) AS
SELECT n.name::text, n.owner, n.default_ttl, n.max_entries, n.max_bytes, n.evict, n.durability, n.cached, n.embed, n.dims,
       n.description, swarm._namespace_may(n.id, 'write') AS may_write, swarm._namespace_may(n.id, 'own') AS own,
       n.words, n.origin, n.origin_path, n.origin_ttl
FROM swarm._namespace_all n
WHERE swarm._namespace_may(n.id, 'read');
COMMENT ON VIEW swarm.namespaces IS 'memory namespaces that the current role may read, with their settings';

CREATE VIEW swarm.namespace_grants WITH (security_barrier = true) AS
SELECT n.name::text AS namespace, CASE WHEN g.grantee = 0::oid THEN 'public' ELSE g.grantee::text END AS grantee,
       CASE WHEN g.may_write THEN 'write' ELSE 'read' END AS privilege
FROM swarm._namespace_grant g JOIN swarm._namespace_all n ON n.id = g.namespace
WHERE swarm._namespace_may(n.id, 'own');
COMMENT ON VIEW swarm.namespace_grants IS 'who may read and write the memory namespaces of the current role';

CREATE VIEW swarm.memory WITH (security_barrier = true) AS
SELECT n.name::text AS namespace, m.key::text, m.value, m.version, m.tags, m.expires_at, m.created_at, m.updated_at, m.owner
FROM swarm._namespace_all n JOIN swarm._memory m ON m.namespace = n.id
WHERE swarm._namespace_may(n.id, 'read') AND (m.expires_at IS NULL OR m.expires_at > swarm._now());
COMMENT ON VIEW swarm.memory IS 'entries of the logged namespaces that the current role may read';

CREATE FUNCTION swarm._memory_rows(space int, durability text, OUT expires_at timestamptz, OUT size int)
RETURNS SETOF record LANGUAGE plpgsql STABLE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF durability = 'logged' THEN
        RETURN QUERY SELECT m.expires_at, m.size FROM swarm._memory m WHERE m.namespace = space;
    ELSIF NOT pg_is_in_recovery() THEN
        RETURN QUERY SELECT m.expires_at, m.size FROM swarm._memory_unlogged m WHERE m.namespace = space;
    END IF;
END $$;

CREATE VIEW swarm.stat_memory WITH (security_barrier = true) AS
SELECT n.name::text AS namespace, coalesce(e.entries, 0) AS entries, coalesce(e.bytes, 0) AS bytes,
       coalesce(e.expired, 0) AS unswept, e.next_expiry, n.max_entries, n.max_bytes
FROM swarm._namespace_all n
LEFT JOIN LATERAL (
    SELECT count(*) FILTER (WHERE expires_at IS NULL OR expires_at > swarm._now()) AS entries,
           sum(size) FILTER (WHERE expires_at IS NULL OR expires_at > swarm._now())::bigint AS bytes,
           count(*) FILTER (WHERE expires_at <= swarm._now()) AS expired,
           min(expires_at) FILTER (WHERE expires_at > swarm._now()) AS next_expiry
    FROM swarm._memory_rows(n.id, n.durability)) e ON true
WHERE swarm._namespace_may(n.id, 'read');
COMMENT ON VIEW swarm.stat_memory IS 'entries and bytes of each memory namespace, counted when asked';

CREATE FUNCTION swarm._cache_stats(OUT size bigint, OUT used bigint, OUT entries bigint, OUT hits bigint, OUT misses bigint,
    OUT bypasses bigint, OUT table_hits bigint, OUT table_misses bigint, OUT fills bigint, OUT evictions bigint,
    OUT invalidations bigint, OUT origin_asks bigint, OUT origin_fills bigint, OUT origin_misses bigint)
LANGUAGE c VOLATILE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'swarm__cache_stats';

CREATE VIEW swarm.stat_cache AS
SELECT s.*, round(100.0 * hits / nullif(hits + misses, 0), 2) AS hit_percent FROM swarm._cache_stats() s;
COMMENT ON VIEW swarm.stat_cache IS 'the shared cache of memory entries, since server start; zeros without preload';

CREATE VIEW swarm.stat_tracker AS SELECT * FROM swarm._track_counts();
COMMENT ON VIEW swarm.stat_tracker IS 'records of agents kept and dropped since server start';

-- ---------------------------------------------------------------------
-- Maintenance by pg_cron
-- ---------------------------------------------------------------------

-- swarm.maintenance_schedule(): jobs of pg_cron that sweep memory, keep the
-- history of jobs and gather statistics; again: the same jobs. Returns how many.
-- Errors: 55000 without pg_cron.
CREATE FUNCTION swarm._maintenance_schedule() RETURNS int
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM swarm._require_cron('SELECT swarm.memory_sweep()');
    EXECUTE 'SELECT cron.schedule($1, $2, $3), cron.schedule($4, $5, $6), cron.schedule($7, $8, $9)'
    USING 'pg_swarm maintenance: sweep', '* * * * *', 'SELECT swarm.memory_sweep()',
          'pg_swarm maintenance: history', '7 * * * *', 'SELECT swarm._job_history_maintain()',
          'pg_swarm maintenance: statistics', '17 * * * *', 'ANALYZE swarm._memory, swarm._memory_unlogged';
    RETURN 3;
END $$;

CREATE FUNCTION swarm.maintenance_schedule() RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_maintenance_schedule';
COMMENT ON FUNCTION swarm.maintenance_schedule IS 'let pg_cron sweep memory, keep the history of jobs and gather statistics';

CREATE FUNCTION swarm._maintenance_unschedule() RETURNS int
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    n int := 0;
BEGIN
    IF to_regclass('cron.job') IS NOT NULL THEN
        EXECUTE $q$SELECT count(cron.unschedule(jobid)) FROM cron.job
                   WHERE starts_with(jobname, 'pg_swarm maintenance: ') AND database = current_database()
                     AND username = current_user$q$ INTO n;
    END IF;
    RETURN n;
END $$;

CREATE FUNCTION swarm.maintenance_unschedule() RETURNS int
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'swarm_hooked_maintenance_unschedule';
COMMENT ON FUNCTION swarm.maintenance_unschedule IS 'take the jobs of maintenance_schedule() out of pg_cron';
