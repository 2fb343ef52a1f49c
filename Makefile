# repl_ml: PGXS Makefile.
#
#   make, make install      build and install for the server of PG_CONFIG
#   make installcheck       regress, isolation and TAP tests against that installation
#   make regress | isolation | prove_installcheck      one kind of them
#   make check-symbols      nothing exported without our prefix, nothing the server exports too
#   make tmp_algebra        the tester of the join without servers; see test/algebra
#   make syntax             compile without output (other majors' headers)
#   make check              everything, with dependencies and a private server; see test/run_checks
#   make check-core         PostgreSQL's own suites with the library preloaded; see test/core_suites
#   make check-truth        what the views say of lags, by an independent clock; four minutes
#   make check-monitoring   monitoring/ with Debian's exporters and Prometheus, which it installs
#   make demo, demo-stop    a three-node cluster on loopback; see test/demo.sh
#   make bench              cost of stamping; see test/bench/run
#   make bench-commits      cost of commits beside PostgreSQL's own replication; see test/bench/commits
#   make bench-idle         CPU time of an idle group; see test/bench/commits
#   make bench-verify       cost of comparing; see test/bench/verify
#   make bench-views        cost of looking at views; see test/bench/views
#   make bench-large        what a large transaction does to others' commits; see test/bench/large
#   make bench-strong       cost of strong tables; see test/bench/strong

MODULE_big = repl_ml
EXTENSION = repl_ml
PGFILEDESC = "repl_ml - multi-master replication with row clocks"
DATA_built = sql/repl_ml--1.0.sql

# The parts of the install script, in the order in which they need each other.
SQL_PARTS = extension clock stamp catalogs helpers membership tables setup conflicts parked read strong classes \
	collection transactions sequences schema_changes verify views metrics privileges

# In the order of the way of a change.
OBJS = \
	src/repl_ml.o \
	src/write/stamp.o \
	src/write/whole_row.o \
	src/write/nextval.o \
	src/write/number.o \
	src/write/range.o \
	src/write/statement.o \
	src/write/schema_change.o \
	src/write/reach.o \
	src/write/outcome.o \
	src/write/named_role.o \
	src/write/filled.o \
	src/write/guard.o \
	src/write/own.o \
	src/write/class.o \
	src/write/strong.o \
	src/write/definition.o \
	src/write/output.o \
	src/commit/level.o \
	src/commit/lease.o \
	src/commit/gate.o \
	src/commit/round.o \
	src/commit/commit.o \
	src/commit/reply.o \
	src/commit/waiter.o \
	src/commit/members.o \
	src/commit/quorum.o \
	src/commit/unacknowledged.o \
	src/commit/backlog.o \
	src/commit/recall.o \
	src/commit/void.o \
	src/commit/lacking.o \
	src/commit/token.o \
	src/commit/status.o \
	src/read/read.o \
	src/read/position.o \
	src/read/barrier.o \
	src/read/routing.o \
	src/wire/clock.o \
	src/wire/marks.o \
	src/wire/vclock.o \
	src/wire/binary.o \
	src/wire/stream.o \
	src/wire/ask.o \
	src/server/shmem.o \
	src/server/session.o \
	src/server/catalog.o \
	src/server/published.o \
	src/server/ticker.o \
	src/server/identity.o \
	src/server/peer.o \
	src/server/news.o \
	src/server/messages.o \
	src/server/rate.o \
	src/server/crash.o \
	src/row/table.o \
	src/row/owner.o \
	src/row/attempt.o \
	src/row/orphans.o \
	src/row/key.o \
	src/row/shape.o \
	src/row/column.o \
	src/row/size.o \
	src/row/late.o \
	src/row/tombstone.o \
	src/row/version.o \
	src/row/policy.o \
	src/row/share.o \
	src/row/amount.o \
	src/row/store.o \
	src/apply/progress.o \
	src/apply/network.o \
	src/apply/pieces.o \
	src/apply/dispatch.o \
	src/apply/fence.o \
	src/apply/change.o \
	src/apply/replay.o \
	src/apply/relation.o \
	src/apply/locked.o \
	src/apply/aside.o \
	src/apply/bulk.o \
	src/apply/schema_change.o \
	src/apply/park.o \
	src/apply/again.o \
	src/apply/record.o \
	src/apply/heard.o \
	src/apply/unsent.o \
	src/converge/target.o \
	src/converge/deletion.o \
	src/converge/row.o \
	src/converge/unique.o \
	src/converge/conflict.o \
	src/converge/resolve.o \
	src/converge/merge.o \
	src/converge/unite.o \
	src/converge/reconsider.o \
	src/converge/history.o \
	src/copy/link.o \
	src/copy/donor.o \
	src/copy/await.o \
	src/copy/starts.o \
	src/copy/dropped.o \
	src/copy/sync.o \
	src/copy/fetch.o \
	src/copy/replace.o \
	src/copy/differing.o \
	src/copy/digests.o \
	src/copy/former.o \
	src/copy/missed.o \
	src/copy/meet.o \
	src/copy/piece.o \
	src/copy/rows.o \
	src/copy/enrol.o \
	src/copy/schema.o \
	src/copy/definitions.o \
	src/copy/retry.o \
	src/verify/report.o \
	src/verify/compare.o \
	src/verify/increment.o \
	src/verify/settle.o \
	src/verify/repair.o \
	src/verify/key.o \
	src/verify/mend.o \
	src/verify/known.o \
	src/verify/part.o \
	src/verify/changes.o \
	src/verify/pages.o \
	src/verify/places.o \
	src/verify/scan.o \
	src/verify/throttle.o \
	src/verify/image.o \
	src/verify/progress.o \
	src/group/launcher.o \
	src/group/supervisor.o \
	src/group/heartbeat.o \
	src/group/worker.o \
	src/group/request.o \
	src/group/join.o \
	src/group/admission.o \
	src/group/shape.o \
	src/group/tenure.o \
	src/group/holding.o \
	src/group/election.o \
	src/group/verifier.o \
	src/group/health.o \
	src/group/beside.o \
	src/monitor/stats.o \
	src/monitor/network.o \
	src/monitor/shapes.o \
	src/monitor/consistency.o

# libpq's headers and library: connection strings are taken apart with PQconninfoParse.
PG_CPPFLAGS = -I$(srcdir)/src -I$(libpq_srcdir)
PG_CFLAGS = -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare
SHLIB_LINK_INTERNAL = $(libpq)

# sql/ holds the install script and the input of pg_regress, which wants it there.
REGRESS := $(filter-out repl_ml--%,$(notdir $(basename $(sort $(wildcard sql/*.sql)))))
REGRESS_PREP = tmp_server.conf
REGRESS_OPTS = --temp-instance=./tmp_regress --temp-config=tmp_server.conf \
	--encoding=UTF8 --no-locale --load-extension=repl_ml

ISOLATION := $(notdir $(basename $(sort $(wildcard test/isolation/specs/*.spec))))
ISOLATION_OPTS = --temp-instance=./tmp_isolation --temp-config=tmp_server.conf \
	--encoding=UTF8 --no-locale --load-extension=repl_ml \
	--inputdir=test/isolation --outputdir=output_iso

PROVE_TESTS ?= $(sort $(wildcard test/t/*.pl))
PROVE_FLAGS ?=
override PROVE_FLAGS += -I test
TAP_TESTS := $(if $(PROVE_TESTS),1)

EXTRA_CLEAN = tmp_regress tmp_isolation tmp_server.conf tmp_symbols tmp_algebra tmp_model

PG_CONFIG ?= pg_config

# These bring their own server and must run on a machine that has none yet, so they do without PGXS.
standalone := check check-truth check-clients check-core check-monitoring check-patroni demo demo-stop bench bench-commits bench-idle bench-verify bench-views bench-large bench-strong bench-mlflow
ifneq ($(filter $(standalone),$(MAKECMDGOALS)),)

ifneq ($(filter-out $(standalone),$(MAKECMDGOALS)),)
$(error run "make $(firstword $(filter $(standalone),$(MAKECMDGOALS)))" by itself)
endif

# Empty unless the caller chose a server.
chosen_pg_config := $(if $(filter file default,$(origin PG_CONFIG)),,$(PG_CONFIG))

.PHONY: $(standalone)
check:
	@PG_CONFIG='$(chosen_pg_config)' TESTS='$(TESTS)' test/run_checks
check-truth:
	@TRUTH=1 PG_CONFIG='$(chosen_pg_config)' TESTS='492' test/run_checks
check-core:
	@PG_CONFIG='$(chosen_pg_config)' TESTS='$(TESTS)' CORE_SOURCE='$(CORE_SOURCE)' test/core_suites
check-monitoring:
	@apt-get install -y -q prometheus prometheus-postgres-exporter prometheus-sql-exporter >/dev/null
	@PG_CONFIG='$(chosen_pg_config)' TESTS='490 491' test/run_checks
check-clients:
	@PG_CONFIG='$(chosen_pg_config)' TESTS='$(TESTS)' test/clients/run
check-patroni:
	@PG_CONFIG='$(chosen_pg_config)' TESTS='$(TESTS)' test/patroni/run
demo:
	@PG_CONFIG='$(chosen_pg_config)' test/demo.sh start
demo-stop:
	@test/demo.sh stop
bench:
	@PG_CONFIG='$(chosen_pg_config)' test/bench/run
bench-commits:
	@PG_CONFIG='$(chosen_pg_config)' test/bench/commits
bench-idle:
	@PG_CONFIG='$(chosen_pg_config)' test/bench/commits idle
bench-verify:
	@PG_CONFIG='$(chosen_pg_config)' test/bench/verify
bench-views:
	@PG_CONFIG='$(chosen_pg_config)' test/bench/views
bench-large:
	@PG_CONFIG='$(chosen_pg_config)' test/bench/large
bench-strong:
	@PG_CONFIG='$(chosen_pg_config)' test/bench/strong
bench-mlflow:
	@PG_CONFIG='$(chosen_pg_config)' TESTS=mlflow_cost test/clients/run

else # all other goals

PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifeq ($(wildcard $(PGXS)),)
$(error no PostgreSQL server headers found with "$(PG_CONFIG)": install postgresql-server-dev-15 or set PG_CONFIG)
endif

# A server built with LLVM asks for bitcode; go without where the compiler for it is not installed.
pgxs_clang := $(shell sed -n 's/^CLANG *= *//p' $(dir $(PGXS))../Makefile.global)
ifeq ($(if $(pgxs_clang),$(shell command -v $(pgxs_clang) 2>/dev/null)),)
override with_llvm = no
endif

include $(PGXS)

# PGXS knows nothing of headers: any change rebuilds everything, which takes seconds.
headers := $(wildcard $(srcdir)/src/*.h $(srcdir)/src/*/*.h)
$(OBJS) $(OBJS:.o=.bc): $(headers)

sql/repl_ml--1.0.sql: $(SQL_PARTS:%=sql/parts/%.sql)
	cat $^ > $@

tmp_server.conf: test/server_conf test/repl_ml.conf
	test/server_conf '$(bindir)/postgres' > $@

# The parts of installcheck, with PGXS's own commands: they set what each major's test modules expect.
.PHONY: regress isolation prove_installcheck check-symbols syntax
regress: submake $(REGRESS_PREP)
	$(if $(REGRESS),$(pg_regress_installcheck) $(REGRESS_OPTS) $(REGRESS))
isolation: submake $(REGRESS_PREP)
	$(if $(ISOLATION),$(pg_isolation_regress_installcheck) $(ISOLATION_OPTS) $(ISOLATION))
prove_installcheck:
	$(if $(PROVE_TESTS),$(prove_installcheck))

check-symbols: $(shlib)
	@test/check_symbols $(shlib) '$(bindir)/postgres'

# The code that decides about a row, linked with a node in memory instead of a server.
algebra_sources := $(wildcard $(srcdir)/test/algebra/*.c) \
	$(addprefix $(srcdir)/src/,converge/row.c converge/conflict.c converge/resolve.c wire/clock.c)
tmp_algebra: $(algebra_sources) $(srcdir)/test/algebra/algebra.h $(headers)
	$(CC) $(CFLAGS) $(CPPFLAGS) -I$(srcdir)/test/algebra $(algebra_sources) -o $@

syntax: $(OBJS:.o=.syntax)
%.syntax: %.c
	$(CC) $(CFLAGS) $(CPPFLAGS) -fsyntax-only $<

# For test/run_checks: the value of one variable.
print-%:
	@echo '$($*)'

endif
