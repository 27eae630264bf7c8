-- The demo's tables, its handler and its search.  docs/demo/run loads this as the role demo, into schema demo,
-- after the extension.  Nothing here needs a superuser.

-- A document as it came.  format: html, md or text.
CREATE TABLE demo.page (
	id int PRIMARY KEY,
	path text NOT NULL,
	format text NOT NULL,
	source text NOT NULL,
	title text						-- once it is read
);

-- What the jobs make of it.  A long section has several parts.
CREATE TABLE demo.section (
	page int NOT NULL REFERENCES demo.page,
	part int NOT NULL,
	heading text NOT NULL,
	body text NOT NULL,
	embedding real[] NOT NULL,
	PRIMARY KEY (page, part)
);

-- The jobs, and when the COMMIT that made them durable had returned.  what: page, or single for a job enqueued alone
-- on a server at rest.
CREATE TABLE demo.enqueued (
	job bigint PRIMARY KEY,
	what text NOT NULL,
	page int REFERENCES demo.page,
	committed_at timestamptz
);

-- More dimensions than swarm.embed's 384: less often do two words meet in one, and a few thousand rows can afford it.
CREATE FUNCTION demo.embed(content text) RETURNS real[] LANGUAGE sql IMMUTABLE STRICT AS $$
	SELECT swarm.embed(content, 1024)
$$;

-- The text of bytes in UTF-8, or null if they are something else.
CREATE FUNCTION demo.as_text(b bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT AS $$
BEGIN
	RETURN convert_from(b, 'UTF8');
EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
	RETURN NULL;
END $$;

-- HTML's entities back to characters; &amp; comes last, or "&amp;lt;" would become a tag.
CREATE FUNCTION demo.unescape(t text) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT AS $$
DECLARE
	code text;
BEGIN
	IF strpos(t, '&') = 0 THEN
		RETURN t;
	END IF;
	FOR code IN SELECT DISTINCT m[1] FROM regexp_matches(t, '&#([0-9]{2,6});', 'g') AS m LOOP
		IF code::int NOT BETWEEN 1 AND 1114111 OR code::int BETWEEN 55296 AND 57343 THEN
			t := replace(t, '&#' || code || ';', ' ');
		ELSE
			t := replace(t, '&#' || code || ';', chr(code::int));
		END IF;
	END LOOP;
	t := replace(replace(replace(replace(t, '&lt;', '<'), '&gt;', '>'), '&quot;', '"'), '&nbsp;', ' ');
	RETURN replace(t, '&amp;', '&');
END $$;

-- A document as one string in which E'\x01' begins a heading, E'\x02' ends it and E'\x03' ends a paragraph.
CREATE FUNCTION demo.outline(source text, format text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	t text := translate(source, E'\x01\x02\x03\r', '');
BEGIN
	CASE format
		WHEN 'html' THEN
			-- What a reader does not read: head, scripts, the manual's navigation.
			t := regexp_replace(t, '^.*?<body[^>]*?>', '', 'i');
			t := regexp_replace(t, '<(script|style)[ >].*?</\1>', ' ', 'gi');
			t := regexp_replace(t, '<div class="navheader">.*?</div>', ' ');
			t := regexp_replace(t, '<div class="navfooter">.*?</div>', ' ');
			t := regexp_replace(t, '<!--.*?-->', ' ', 'g');
			-- Notes and tips have headings that are none.
			t := regexp_replace(t, '<h3 class="title">(?:Tip|Note|Warning|Caution|Important)</h3>', ' ', 'g');
			t := regexp_replace(t, '<h[1-6][^>]*?>(.*?)</h[1-6]>', E'\x01\\1\x02', 'gi');
			t := regexp_replace(t, '</?(?:p|pre|tr|dd|li|blockquote)(?:\s[^>]*)?>', E'\x03', 'gi');
			t := regexp_replace(t, '</(?:td|th|dt|div)>|<br */?>', ' ', 'gi');
			t := regexp_replace(t, '<[^>]+>', '', 'g');
			t := demo.unescape(t);
		WHEN 'md' THEN
			t := regexp_replace(t, '^#{1,6}[ \t]+([^\n]*?)[ \t#]*$', E'\x01\\1\x02', 'gn');
			t := regexp_replace(t, '\n[ \t]*\n', E'\x03', 'g');
		ELSE
			t := regexp_replace(t, '\n[ \t]*\n', E'\x03', 'g');
	END CASE;
	RETURN t;
END $$;

-- The title: of the HTML, the first heading of a Markdown file, the first line of a text; else the file's name.
CREATE FUNCTION demo.title(source text, format text, path text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
	SELECT coalesce(
		nullif(left(btrim(regexp_replace(
			CASE format
				WHEN 'html' THEN demo.unescape(substring(source FROM '(?i)<title[^>]*?>(.*?)</title>'))
				WHEN 'md' THEN substring(source FROM '(?n)^#{1,6}[ \t]+(.*)$')
				ELSE substring(source FROM '[^\s][^\n\r]*')
			END, '\s+', ' ', 'g')), 100), ''),
		regexp_replace(path, '^.*/', ''))
$$;

-- The sections of an outline.  Short ones (a line of "See also") join their neighbours and long ones are cut where a
-- paragraph ends: a vector says most about a text of some 600 to 1,500 characters.
CREATE FUNCTION demo.parts(outline text, title text, OUT heading text, OUT body text) RETURNS SETOF record
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
	least CONSTANT int := 600;
	most CONSTANT int := 1500;
	headings text[] := '{}';
	bodies text[] := '{}';
	n int := 0;					-- parts so far; the last one still grows
	section text;
	name text;
	paragraph text;
	size int := most;			-- of the last part
BEGIN
	FOREACH section IN ARRAY string_to_array(outline, E'\x01') LOOP
		name := title;
		IF strpos(section, E'\x02') > 0 THEN
			name := btrim(regexp_replace(split_part(section, E'\x02', 1), '\s+', ' ', 'g'));
			section := substr(section, strpos(section, E'\x02') + 1);
		END IF;
		IF size < least AND name <> headings[n] THEN
			bodies[n] := bodies[n] || ' ' || name || '.';
		END IF;
		FOREACH paragraph IN ARRAY string_to_array(section, E'\x03') LOOP
			paragraph := btrim(regexp_replace(paragraph, '\s+', ' ', 'g'));
			WHILE paragraph <> '' LOOP		-- once, but for a paragraph that is a page
				IF size >= least AND (size + length(paragraph) > most OR headings[n] <> name) THEN
					n := n + 1;
					headings[n] := name;
					bodies[n] := '';
				END IF;
				bodies[n] := btrim(bodies[n] || ' ' || left(paragraph, 2 * most));
				size := length(bodies[n]);
				paragraph := substr(paragraph, 2 * most + 1);
			END LOOP;
		END LOOP;
	END LOOP;
	IF n > 1 AND size < least / 2 THEN
		bodies[n - 1] := bodies[n - 1] || ' ' || bodies[n];
		n := n - 1;
	END IF;
	FOR i IN 1 .. n LOOP
		heading := headings[i];
		body := bodies[i];
		RETURN NEXT;
	END LOOP;
END $$;

-- The handler.  A runner calls it with the job; its work and the job's end commit together, so a page is never half
-- read, and a job that runs again (after a crash, say) begins afresh.
CREATE FUNCTION demo.read_page(job swarm.job) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	p demo.page;
	page_title text;
	n int;
BEGIN
	SELECT * INTO STRICT p FROM demo.page WHERE id = (job.args->>'page')::int;
	page_title := demo.title(p.source, p.format, p.path);
	DELETE FROM demo.section WHERE page = p.id;
	INSERT INTO demo.section (page, part, heading, body, embedding)
	SELECT p.id, s.part, s.heading, s.body,
		   demo.embed(concat_ws('. ', page_title, nullif(s.heading, page_title), s.body))
	FROM demo.parts(demo.outline(p.source, p.format), page_title) WITH ORDINALITY AS s(heading, body, part);
	GET DIAGNOSTICS n = ROW_COUNT;
	IF n = 0 THEN
		-- Nothing but headings or blanks: the title is all there is to find.
		INSERT INTO demo.section VALUES (p.id, 1, page_title, page_title, demo.embed(page_title));
		n := 1;
	END IF;
	UPDATE demo.page SET title = page_title WHERE id = p.id;
	RETURN jsonb_build_object('sections', n);
END $$;

-- A job that does nothing, for the time it takes to start one.
CREATE FUNCTION demo.nothing(job swarm.job) RETURNS jsonb LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';

-- One job a page, a hundred pages a transaction.  clock_timestamp() right after COMMIT is the moment at which a client
-- is told.
CREATE PROCEDURE demo.enqueue_pages() LANGUAGE plpgsql AS $$
DECLARE
	a int;
BEGIN
	FOR a IN SELECT generate_series(1, max(id), 100) FROM demo.page LOOP
		INSERT INTO demo.enqueued
		SELECT swarm.job_enqueue('read_page', jsonb_build_object('page', id), max_attempts => 2), 'page', id
		FROM demo.page WHERE id BETWEEN a AND a + 99;
		COMMIT;
		UPDATE demo.enqueued SET committed_at = clock_timestamp() WHERE committed_at IS NULL;
		COMMIT;
	END LOOP;
END $$;

CREATE PROCEDURE demo.enqueue_singles(n int) LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1 .. n LOOP
		INSERT INTO demo.enqueued VALUES (swarm.job_enqueue('nothing'), 'single');
		COMMIT;
		UPDATE demo.enqueued SET committed_at = clock_timestamp() WHERE committed_at IS NULL;
		COMMIT;
		PERFORM pg_sleep(0.02);
		COMMIT;
	END LOOP;
END $$;

-- The best sections for a question, by an exact scan.  Parts of one section count once.
CREATE FUNCTION demo.ask(question text, n int DEFAULT 3,
	OUT similarity real, OUT title text, OUT heading text, OUT body text, OUT page int) RETURNS SETOF record
LANGUAGE sql STABLE AS $$
	WITH asked AS MATERIALIZED (SELECT demo.embed(question) AS e),
	near AS MATERIALIZED (
		SELECT s.page, s.heading, s.body, s.embedding OPERATOR(public.<=>) asked.e AS distance
		FROM demo.section s, asked
		ORDER BY distance LIMIT n * 10),
	best AS (SELECT DISTINCT ON (page, heading) * FROM near ORDER BY page, heading, distance)
	SELECT (1 - b.distance)::real, p.title, b.heading, b.body, b.page
	FROM best b JOIN demo.page p ON p.id = b.page
	WHERE b.distance < 1
	ORDER BY b.distance LIMIT n
$$;

-- What is exported: references, that the runner reads when it sends them.
CREATE FUNCTION demo.export() RETURNS swarm.s3_file[] LANGUAGE sql AS $$
	SELECT ARRAY[
		swarm.s3_file('demo/sections.csv', swarm.from_query(q, 'csv'), 'text/csv'),
		swarm.s3_file('demo/sections.json', swarm.from_query(q, 'json'), 'application/x-ndjson')]
	FROM (VALUES ('SELECT page, part, heading, body, embedding FROM demo.section ORDER BY page, part')) v(q)
$$;

-- The jobs of the demo so far.
CREATE VIEW demo.progress AS
SELECT count(*) FILTER (WHERE state IN ('completed', 'dead', 'cancelled')) AS ended,
	   count(*) FILTER (WHERE state IN ('dead', 'cancelled') OR error IS NOT NULL) AS errors
FROM swarm.jobs WHERE kind = 'read_page';

-- What was measured.  waited: ms from the COMMIT of the transaction that enqueued the job to its start.
CREATE VIEW demo.figures AS
SELECT what, count(*) AS jobs,
	   count(*) / nullif(extract(epoch FROM max(finished_at) - min(started_at)), 0) AS per_second,
	   percentile_cont(0.5) WITHIN GROUP (ORDER BY waited) AS median,
	   percentile_cont(0.99) WITHIN GROUP (ORDER BY waited) AS p99
FROM (SELECT e.what, j.started_at, j.finished_at,
			 greatest(0, extract(epoch FROM j.started_at - e.committed_at) * 1000) AS waited
	  FROM demo.enqueued e JOIN swarm.jobs j ON j.id = e.job
	  WHERE j.state = 'completed') x
GROUP BY what;
