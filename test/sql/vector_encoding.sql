-- swarm.embed in databases with other encodings: the text decides, not its
-- bytes; and no byte sequence is an error.
\set bits 'md5((SELECT string_agg(float4send(x), \'\' ORDER BY i) FROM unnest(v) WITH ORDINALITY u(x, i)))'
SELECT :bits AS utf8 FROM swarm.embed(U&'caf\00E9 \00DCberg\00F6\00DFe \00BD') v \gset
SELECT :bits AS japanese FROM swarm.embed(U&'\65E5\672C\8A9E') v \gset
SELECT current_database() AS back \gset
CREATE DATABASE swarm_test_latin1 ENCODING 'LATIN1' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0;
CREATE DATABASE swarm_test_euc_jp ENCODING 'EUC_JP' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0;
CREATE DATABASE swarm_test_ascii ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C' TEMPLATE template0;

\c swarm_test_latin1
SET client_min_messages = warning;
CREATE EXTENSION pg_swarm;
SELECT :bits = :'utf8' AS same
FROM swarm.embed(convert_from('\x636166e920dc62657267f6df6520bd', 'LATIN1')) v;
\c swarm_test_euc_jp
SET client_min_messages = warning;
CREATE EXTENSION pg_swarm;
SELECT :bits = :'japanese' AS same FROM swarm.embed(convert_from('\xc6fccbdcb8ec', 'EUC_JP')) v;
-- not assigned in this encoding: no counterpart in Unicode
SELECT cardinality(swarm.embed(convert_from('\xc6fca9a1cbdcfefefefe', 'EUC_JP') || ' index')) AS dims;
\c swarm_test_ascii
SET client_min_messages = warning;
CREATE EXTENSION pg_swarm;
-- valid UTF-8 is read as such, other bytes are letters
SELECT :bits = :'utf8' AS same FROM swarm.embed(convert_from('\x636166c3a920c39c62657267c3b6c39f6520c2bd', 'SQL_ASCII')) v;
SELECT swarm.embed(convert_from('\xff', 'SQL_ASCII')) <> swarm.embed(convert_from('\xfe', 'SQL_ASCII')) AS different,
	   swarm.embed(convert_from('\xe282', 'SQL_ASCII')) <> swarm.embed('') AS cut_short;
DO $$
DECLARE
	t text;
BEGIN
	PERFORM setseed(0.5);
	FOR i IN 1 .. 500 LOOP
		SELECT convert_from(string_agg(set_byte('\x00', 0, 1 + (random() * 254)::int), ''), 'SQL_ASCII')
		INTO t FROM generate_series(1, i);
		ASSERT cardinality(swarm.embed(t)) = 384;
	END LOOP;
	-- continuation bytes across the blocks of the reader
	ASSERT cardinality(swarm.embed(convert_from(decode(repeat('80', 200000), 'hex'), 'SQL_ASCII'))) = 384;
END $$;

\c :back
DROP DATABASE swarm_test_latin1 WITH (FORCE);
DROP DATABASE swarm_test_euc_jp WITH (FORCE);
DROP DATABASE swarm_test_ascii WITH (FORCE);
