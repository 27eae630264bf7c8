-- Six agents over the sections, and what they find.  docs/demo/run loads this as the role demo once the pages are read;
-- the types of agents are made by an administrator, and the agents work as the role demo.

CREATE TABLE demo.summary (page int PRIMARY KEY REFERENCES demo.page, sentence text NOT NULL);

-- Of each page the sentence that is nearest to the whole of its first section.
CREATE FUNCTION demo.summarize(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
	pages int := (SELECT count(*) FROM demo.section WHERE part = 1);
	done int := 0;
	s demo.section;
BEGIN
	FOR s IN SELECT * FROM demo.section WHERE part = 1 ORDER BY page LOOP
		INSERT INTO demo.summary
		SELECT s.page, sentence FROM regexp_split_to_table(s.body, '(?<=[.!?])\s+') sentence WHERE sentence ~ '\S'
		ORDER BY demo.embed(sentence) <=> s.embedding, sentence LIMIT 1;
		done := done + 1;
		IF done % 50 = 0 THEN
			PERFORM swarm.agent_progress((agent).id, done::float8 / pages, done || ' pages');
		END IF;
	END LOOP;
	RETURN jsonb_build_object('found', (SELECT count(*) FROM demo.summary) || ' summaries, as: ' ||
		(SELECT left(sentence, 70) FROM demo.summary ORDER BY length(sentence) BETWEEN 40 AND 70 DESC, page LIMIT 1));
END $$;

-- The chapter of a section, the first word of its file's name, told from the nearest section of another page.
CREATE FUNCTION demo.classify(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS $$
	WITH sample AS MATERIALIZED (
		SELECT s.page, s.embedding, substring(p.path FROM '([a-zA-Z]+)[^/]*$') AS chapter
		FROM demo.section s JOIN demo.page p ON p.id = s.page WHERE s.part = 1 ORDER BY hashint4(s.page) LIMIT 60)
	SELECT jsonb_build_object('found', format('%s of %s sections are of the chapter of their nearest neighbour',
		count(*) FILTER (WHERE chapter = guess), count(*)))
	FROM sample a, LATERAL (SELECT substring(p.path FROM '([a-zA-Z]+)[^/]*$') AS guess
		FROM demo.section s JOIN demo.page p ON p.id = s.page WHERE s.page <> a.page
		ORDER BY s.embedding <=> a.embedding LIMIT 1) n
$$;

-- Links of HTML pages that lead to no page.
CREATE FUNCTION demo.check_links(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS $$
	WITH link AS MATERIALIZED (
		SELECT p.path, (regexp_matches(p.source, 'href="([^"#:?]+\.html)', 'g'))[1] AS target FROM demo.page p)
	SELECT jsonb_build_object('found', format('%s links within the documents, %s lead nowhere', count(*),
		count(*) FILTER (WHERE target <> 'bookindex.html' AND NOT EXISTS (SELECT FROM demo.page p
			WHERE p.path = regexp_replace(link.path, '[^/]*$', '') || target))))
	FROM link
$$;

-- Sections that say the same.
CREATE FUNCTION demo.find_doubles(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('found', format('%s sections have the text of another one', coalesce(sum(n - 1), 0)))
	FROM (SELECT count(*) AS n FROM demo.section GROUP BY md5(body) HAVING count(*) > 1) d
$$;

-- The words that tell pages apart: frequent where they are, in few pages.
CREATE FUNCTION demo.keywords(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('found', 'words of few pages: ' || string_agg(word, ', ' ORDER BY weight DESC, word))
	FROM (SELECT word, nentry * ln((SELECT count(*) FROM demo.page)::float8 / ndoc) AS weight
		FROM ts_stat('SELECT to_tsvector(''english'', body) FROM demo.section WHERE part <= 2') WHERE word ~ '^[a-z]{4,}$'
		ORDER BY weight DESC, word LIMIT 6) w
$$;

-- How long the sections are.
CREATE FUNCTION demo.measure(task jsonb, agent swarm.agent) RETURNS jsonb LANGUAGE sql AS $$
	SELECT jsonb_build_object('found', format('%s characters, %s in the middle section, the longest is "%s"', sum(length(body)),
		percentile_disc(0.5) WITHIN GROUP (ORDER BY length(body)), (array_agg(left(heading, 40) ORDER BY length(body) DESC))[1]))
	FROM demo.section
$$;

CREATE TABLE demo.errand (task bigint PRIMARY KEY, agent text NOT NULL);
