# pg_swarm: build with PGXS, PostgreSQL 15 to 18.  `make help` lists the targets.
EXTENSION  = pg_swarm
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" $(EXTENSION).control)
MODULE_big = pg_swarm
OBJS       = $(sort $(patsubst %.c,%.o,$(wildcard src/*.c src/*/*.c)))
DATA_built = sql/pg_swarm--$(EXTVERSION).sql
DATA       = $(wildcard sql/upgrade/*.sql)

PG_CPPFLAGS = -I$(srcdir)/src
PG_CFLAGS   = -fvisibility=hidden '-DPGDLLEXPORT=__attribute__((visibility("default")))' -MMD -MP
SHLIB_LINK  =

TESTS          = $(sort $(patsubst test/sql/%.sql,%,$(wildcard test/sql/*.sql)))
REGRESS        = $(TESTS)
REGRESS_OPTS   = --inputdir=test
ISOLATION      = $(sort $(patsubst test/isolation/specs/%.spec,%,$(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS = --inputdir=test/isolation
TAP_TESTS      = 1
PROVE_TESTS    = $(sort $(wildcard test/t/*.pl))
EXTRA_CLEAN    = $(DATA_built) $(OBJS:.o=.d) results log tmp_check output_iso

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

sql/pg_swarm--$(EXTVERSION).sql: $(sort $(wildcard sql/modules/*.sql))
	cat $^ >$@

-include $(OBJS:.o=.d)
