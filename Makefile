# pg_swarm: PostgreSQL 15 to 18, built with PGXS.  `make help` lists the targets.

EXTENSION  = pg_swarm pg_swarm_vector pg_swarm_test
EXTVERSION := $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" pg_swarm.control)
MODULE_big = pg_swarm
OBJS       := $(sort $(patsubst %.c,%.o,$(wildcard src/*.c src/*/*.c)))
DATA_built = sql/pg_swarm--$(EXTVERSION).sql
DATA       := $(wildcard sql/upgrade/*.sql sql/pg_swarm_vector--*.sql sql/pg_swarm_test--*.sql)

PG_CPPFLAGS = -I$(srcdir)/src
PG_CFLAGS   = -fvisibility=hidden '-DPGDLLEXPORT=__attribute__((visibility("default")))' -MMD -MP
PG_CPPFLAGS += $(shell pkg-config --cflags libcurl 2>/dev/null)
SHLIB_LINK  = $(or $(shell pkg-config --libs libcurl 2>/dev/null),-lcurl)

# gzip and zstd, where their headers are: without them they are refused when asked for.
has_header = $(shell printf '\43include <$(1)>\n' | cc -E -x c - >/dev/null 2>&1 && echo yes)
HAS_ZLIB    := $(call has_header,zlib.h)
HAS_ZSTD    := $(call has_header,zstd.h)
PG_CPPFLAGS += $(if $(HAS_ZLIB),-DSWARM_WITH_ZLIB) $(if $(HAS_ZSTD),-DSWARM_WITH_ZSTD)
SHLIB_LINK  += $(if $(HAS_ZLIB),-lz) $(if $(HAS_ZSTD),-lzstd)

# PGXS asks with ifdef, so that an empty list must be an empty value.
REGRESS        := $(sort $(patsubst test/sql/%.sql,%,$(wildcard test/sql/*.sql)))
REGRESS_OPTS    = --inputdir=test --encoding=UTF8 --load-extension=pg_swarm
ISOLATION      := $(sort $(patsubst test/isolation/specs/%.spec,%,$(wildcard test/isolation/specs/*.spec)))
ISOLATION_OPTS  = --inputdir=test/isolation --encoding=UTF8 --load-extension=pg_swarm
PROVE_TESTS    := $(sort $(wildcard test/t/*.pl))
PROVE_FLAGS     = -I test/perl
TAP_TESTS      := $(and $(PROVE_TESTS),$(shell command -v prove),1)

# make COVERAGE=1, make SANITIZE=address,undefined: instrumented builds
ifdef COVERAGE
PG_CFLAGS  += -O0 --coverage
SHLIB_LINK += --coverage
endif
ifdef SANITIZE
PG_CFLAGS  += -O1 -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=$(SANITIZE)
SHLIB_LINK += -fsanitize=$(SANITIZE)
endif

EXTRA_CLEAN = $(DATA_built) $(OBJS:.o=.d) results log tmp_check tmp_check_logs output_iso

PG_CONFIG ?= pg_config

# The targets that need no server beforehand: they install what is missing.  PGXS
# has a `check` of its own and stops where there is no pg_config, so it is left
# out whenever one of these is asked for; other targets named beside them get a
# make of their own.
OWN_TARGETS = help provision check demo bench lint indent matrix sanitize valgrind coverage
ifneq ($(filter $(OWN_TARGETS),$(MAKECMDGOALS)),)

export PG_CONFIG
.NOTPARALLEL:
.PHONY: $(MAKECMDGOALS)

help:
	@echo 'make             build against PG_CONFIG [pg_config]'
	@echo 'make install     install there'
	@echo 'make installcheck  test the running server that PGHOST and PGPORT name'
	@echo 'make check       install what is missing, build, run every test in a throw-away cluster'
	@echo '                 (ONLY=regress|isolation|tap TESTS="names" KEEP=1)'
	@echo 'make demo        install what is missing, build, show what pg_swarm does'
	@echo 'make bench       run the benchmarks (ARGS=...)'
	@echo 'make lint        warnings, include directions, format, cppcheck, codespell, shellcheck'
	@echo 'make indent      format the C files'
	@echo 'make matrix      the tests on the other PostgreSQL versions and with assertions (needs root)'
	@echo 'make sanitize    the tests with AddressSanitizer and UBSan'
	@echo 'make valgrind    the SQL tests under valgrind'
	@echo 'make coverage    the tests with gcov; report in coverage/'
	@echo 'make provision   only install what `make check` needs'

provision:
	test/tools/provision check

check:
	@test/tools/provision check
	@test/tools/check

demo:
	@test/tools/provision demo
	@docs/demo/run $(ARGS)

bench:
	@test/tools/provision check
	@bench/run $(ARGS)

lint indent matrix:
	@test/tools/provision check
	@test/tools/$@ $(ARGS)

sanitize valgrind coverage:
	@test/tools/provision check
	@test/tools/instrumented $@

$(filter-out $(OWN_TARGETS),$(MAKECMDGOALS)):
	@$(MAKE) --no-print-directory $@

else

PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifeq ($(wildcard $(PGXS)),)
.DEFAULT all:
	@echo 'No PostgreSQL to build against ($(PG_CONFIG)): run "make provision" or give PG_CONFIG=.' >&2; exit 1
else

include $(PGXS)

sql/pg_swarm--$(EXTVERSION).sql: $(sort $(wildcard sql/modules/*.sql))
	cat $^ >$@

-include $(OBJS:.o=.d)

endif
endif
