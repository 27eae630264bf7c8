begin;
insert into plain values (nextval('plain_id_seq'), 16, 16, 10, 1, 5, 300000000, now(), now(), false, null, '{"seq": 1}', '{}');
notify jb;
commit;
