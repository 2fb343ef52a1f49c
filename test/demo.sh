#!/usr/bin/env bash
# Behind "make demo" and "make demo-stop": a group of three nodes on loopback, written to on all of
# them at once, with one provoked conflict. Everything it says is checked; the exit status is 0 only
# if all of it held. The servers are left running.
#
#   test/demo.sh start | stop
#
# DEMO_DIR (default /tmp/repl_ml_demo) holds everything; DEMO_PORT (default 55431) is the first of
# three ports. As root the servers run as "postgres" (or RUN_USER).
set -uo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
scratch=${DEMO_DIR:-/tmp/repl_ml_demo}
first_port=${DEMO_PORT:-55431}
nodes=(n1 n2 n3)
tables=(demo_driver_hourly_stats registered_models model_versions model_version_tags registered_model_aliases)
patience=60		# seconds to wait for any one state
failures=0
running=

start() {
	"$top/test/install_deps.sh" || die "packages are missing"
	. "$top/test/private_server.sh"
	settle_environment || die "no user to run the servers: set RUN_USER"
	stop_former
	check_ports
	trap 'stop_if_incomplete' EXIT

	say "Building repl_ml and three servers in $scratch"
	install_private
	for node in "${nodes[@]}"; do
		start_node "$node"
	done
	form_group
	write_everywhere
	hand_over
	change_schema
	provoke_conflict
	show_views
	show_result
}

stop() {
	. "$top/test/private_server.sh"
	settle_environment || die "no user runs the servers here"
	if [ ! -d "$scratch" ]; then
		echo "no demonstration is there: $scratch does not exist"
		return
	fi
	stop_former
	echo "stopped, and removed $scratch"
}

# ---- words and checks ----

say() {
	printf '\n== %s (%d s)\n' "$1" "$SECONDS"
}

die() {
	echo "demo: $1" >&2
	exit 1
}

# Says whether something claimed is so. usage: claim TEXT WANTED FOUND
claim() {
	if [ "$2" = "$3" ]; then
		echo "ok: $1"
	else
		echo "NOT SO: $1: expected \"$2\", found \"$3\""
		failures=$((failures + 1))
	fi
}

# ---- servers ----

port() {
	echo $((first_port + ${1#n} - 1))
}

dsn() {
	echo "host=127.0.0.1 port=$(port "$1") dbname=postgres user=postgres"
}

client() {
	local node=$1
	shift
	"$private_bin/psql" -X -q -v ON_ERROR_STOP=1 -P pager=off -d "$(dsn "$node")" "$@"
}

# Runs SQL on a node and prints the bare result.
sql() {
	client "$1" -At -c "$2"
}

# The same for its effect, and psql with options for its output; the demonstration ends where that fails.
run() {
	sql "$1" "$2" > /dev/null || die "$1: this failed: $2"
}

print() {
	client "$@" || die "$1: this failed: ${*:2}"
}

# Waits until the query on a node gives the result. usage: poll NODE WANTED QUERY
poll() {
	local end=$((SECONDS + patience)) found tick
	exec {tick}<> <(:)
	until found=$(sql "$1" "$3" 2>&1) && [ "$found" = "$2" ]; do
		[ $SECONDS -lt $end ] || die "$1: after $patience s still \"$found\" instead of \"$2\" from: $3"
		read -rt 0.1 -u "$tick" || :
	done
	exec {tick}>&-
}

# Ends a demonstration that runs in the directory, and removes it; touches nothing else.
stop_former() {
	local node bin
	[ -e "$scratch" ] || [ -L "$scratch" ] || return 0
	if [ -L "$scratch" ] || [ ! -f "$scratch/.repl_ml_demo" ] ||
		[[ " $(id -un) $run_user " != *" $(stat -c %U "$scratch") "* ]]; then
		die "$scratch is there and is not a demonstration of ours: remove it or set DEMO_DIR"
	fi
	bin=$(cat "$scratch/.repl_ml_demo")
	for node in "${nodes[@]}"; do
		[ -f "$scratch/$node/data/postmaster.pid" ] || continue
		as_user "$bin/pg_ctl" stop -s -w -m fast -D "$scratch/$node/data" || :
		if [ -f "$scratch/$node/data/postmaster.pid" ]; then
			as_user "$bin/pg_ctl" stop -s -w -m immediate -D "$scratch/$node/data" || :
		fi
	done
	rm -rf "$scratch"
}

check_ports() {
	local node
	for node in "${nodes[@]}"; do
		if (exec 3<>"/dev/tcp/127.0.0.1/$(port "$node")") 2>/dev/null; then
			die "port $(port "$node") is taken: set DEMO_PORT to the first of three free ports"
		fi
	done
}

install_private() {
	mkdir "$scratch" && chown "$run_user" "$scratch" && chmod 755 "$scratch" || die "cannot make $scratch"
	: > "$scratch/.repl_ml_demo"
	copy_server && copy_sources || die "cannot copy the server"
	echo "$private_bin" > "$scratch/.repl_ml_demo"
	build_and_install || die "the build failed"
	"$private_bin/postgres" --version
}

start_node() {
	local node=$1 data=$scratch/$1/data

	as_user mkdir -p "$scratch/$node"
	as_user "$private_bin/initdb" -A trust -U postgres -E UTF8 --no-locale -N -D "$data" \
		> "$scratch/initdb.log" || die "initdb failed: $scratch/initdb.log"
	{
		"$top/test/server_conf" "$private_bin/postgres"
		echo "cluster_name = '$node'"
		echo "listen_addresses = '127.0.0.1'"
		echo "port = $(port "$node")"
		echo "unix_socket_directories = '$scratch/$node'"
		# as by default; tests have it off
		echo "repl_ml.replicate_ddl = on"
	} | as_user tee -a "$data/postgresql.conf" > /dev/null
	as_user "$private_bin/pg_ctl" start -s -w -D "$data" -l "$scratch/$node/log" < /dev/null ||
		die "$node did not start: $(tail -n 5 "$scratch/$node/log")"
	echo "$node listens on port $(port "$node")"
}

# A demonstration that broke off leaves no servers, only logs; one whose claims failed stays up.
stop_if_incomplete() {
	local node
	[ -z "$running" ] || return
	for node in "${nodes[@]}"; do
		[ -f "$scratch/$node/log" ] || continue
		echo "---- $scratch/$node/log"
		grep -E 'ERROR|FATAL|PANIC|WARNING' "$scratch/$node/log" | tail -n 10
		as_user "$private_bin/pg_ctl" stop -s -m immediate -D "$scratch/$node/data" 2>/dev/null || :
	done
}

# ---- the group ----

form_group() {
	local node

	say "n1 makes the group and enrols the tables that it has"
	print n1 -f "$top/test/sql/demo_schema.sql"
	run n1 "CREATE EXTENSION repl_ml"
	run n1 "SELECT repl_ml.create_group('demo', 'n1', '$(dsn n1)')"
	print n1 -c "SELECT * FROM repl_ml.add_all_tables()"

	say "n2 and n3 join through n1"
	for node in n2 n3; do
		run "$node" "CREATE EXTENSION repl_ml"
		run "$node" "SELECT repl_ml.join_group('$node', '$(dsn "$node")', '$(dsn n1)')"
	done
	for node in "${nodes[@]}"; do
		poll "$node" "n1 n2 n3" \
			"SELECT string_agg(node_name::text, ' ' ORDER BY node_name) FROM repl_ml.nodes WHERE state = 'ready'"
	done
	print n1 -c "SELECT node_id, node_name, state FROM repl_ml.nodes ORDER BY node_id"
}

# Waits until every node has what was committed on any node before the call.
converge() {
	local node lsn
	local -A lsns
	for node in "${nodes[@]}"; do
		lsn=$(sql "$node" "SELECT pg_current_wal_flush_lsn()") || die "$node does not answer"
		lsns[$node]=$lsn
	done
	for node in "${nodes[@]}"; do
		poll "$node" t "SELECT count(*) = 2 AND bool_and(greatest(confirmed_flush_lsn, replay_lsn) >= '${lsns[$node]}')
			FROM pg_replication_slots s LEFT JOIN pg_stat_replication w ON w.pid = s.active_pid WHERE slot_name LIKE 'repl\\_ml\\_%'"
	done
}

# Rows and digest of a table with its clocks, in an order that only its content gives.
digest() {
	sql "$1" "SELECT count(*) || ' rows, md5 ' || coalesce(md5(string_agg(line, E'\\n' ORDER BY line COLLATE \"C\")), '')
		FROM (SELECT to_jsonb(t)::text AS line FROM $2 t) s"
}

claim_equal() {
	local table wanted
	for table in "${tables[@]}"; do
		wanted=$(digest n1 "$table")
		claim "n1, n2, n3 have the same $table: $wanted" "$wanted / $wanted" \
			"$(digest n2 "$table") / $(digest n3 "$table")"
		claim "each of its rows has a clock" 0 "$(sql n1 "SELECT count(*) FROM $table WHERE __repl_clock IS NULL")"
	done
}

claim_conflicts() {
	local node
	for node in "${nodes[@]}"; do
		claim "conflicts on $node: $1" "$1" "$(sql "$node" "SELECT count(*) FROM repl_ml.conflicts")"
	done
}

# ---- writing ----

# One client's transactions: ten rounds of online-store upserts for 20 drivers, ten registered
# models with a version, a tag and an alias each, half of them renamed, two aliases removed.
client_script() {
	local node=$1 round driver model

	for round in {1..10}; do
		for driver in {1..20}; do
			echo "INSERT INTO demo_driver_hourly_stats (entity_key, feature_name, value, event_ts, created_ts)
				VALUES ('driver_id:$node:$driver'::bytea, 'conv_rate', float8send($round / 10.0), now(), now())
				ON CONFLICT (entity_key, feature_name) DO UPDATE
				SET value = EXCLUDED.value, event_ts = EXCLUDED.event_ts, created_ts = EXCLUDED.created_ts;"
		done
		model="model-$node-$round"
		echo "BEGIN;
			INSERT INTO registered_models (name, creation_time, description) VALUES ('$model', $round, 'made on $node');
			INSERT INTO model_versions (name, version, current_stage, status) VALUES ('$model', 1, 'None', 'READY');
			INSERT INTO model_version_tags (name, version, key, value) VALUES ('$model', 1, 'node', '$node');
			INSERT INTO registered_model_aliases (name, alias, version) VALUES ('$model', 'champion', 1);
			COMMIT;"
		if [ $((round % 2)) -eq 0 ]; then
			echo "UPDATE registered_models SET name = '$model-renamed' WHERE name = '$model';"
		fi
	done
	echo "DELETE FROM registered_model_aliases WHERE name IN ('model-$node-1', 'model-$node-2-renamed');"
}

write_everywhere() {
	local node client clients=()

	say "Three clients write at once, one on each node"
	for node in "${nodes[@]}"; do
		client_script "$node" | client "$node" > "$scratch/client_$node.log" 2>&1 &
		clients+=($!)
	done
	for client in "${clients[@]}"; do
		wait "$client" || die "a client failed: $(cat "$scratch"/client_*.log)"
	done
	converge
	claim_equal
	claim "all features are there" 60 "$(sql n3 "SELECT count(*) FROM demo_driver_hourly_stats")"
	claim "renames cascaded to all versions" 15 \
		"$(sql n2 "SELECT count(*) FROM model_versions WHERE name LIKE '%-renamed'")"
	claim "deleted aliases are gone" 24 "$(sql n1 "SELECT count(*) FROM registered_model_aliases")"
	claim_conflicts 0
}

# Each node changes rows another one wrote, after it has seen them: an order, not a conflict.
hand_over() {
	local i node other

	say "Each node changes its neighbour's rows, having seen them"
	for i in 0 1 2; do
		node=${nodes[i]} other=${nodes[(i + 1) % 3]}
		run "$node" "UPDATE model_versions SET current_stage = 'Production' WHERE name LIKE 'model-$other-%'"
		run "$node" "UPDATE demo_driver_hourly_stats SET value_text = 'checked on $node'
			WHERE convert_from(entity_key, 'UTF8') LIKE 'driver_id:$other:%'"
	done
	converge
	claim_equal
	claim "all versions are in production" 30 \
		"$(sql n3 "SELECT count(*) FROM model_versions WHERE current_stage = 'Production'")"
	claim_conflicts 0
}

# One node changes a table: the others have the column, and its values, when they have the rows.
change_schema() {
	say "n2 migrates a table, and the others have it"
	run n2 "ALTER TABLE registered_models ADD COLUMN stage text NOT NULL DEFAULT 'none'; UPDATE registered_models SET stage = 'archived' WHERE creation_time < 3"
	converge
	claim_equal
	claim "n3 has the column" "archived none" "$(sql n3 "SELECT string_agg(DISTINCT stage, ' ' ORDER BY stage) FROM registered_models")"
}

provoke_conflict() {
	local node conflict row

	say "A conflict: n1 and n2 change one row without seeing each other"
	run n1 "SELECT repl_ml.pause_apply('n2')"
	run n2 "SELECT repl_ml.pause_apply('n1')"
	run n1 "UPDATE registered_models SET description = 'reviewed on n1' WHERE name = 'model-n3-1'"
	run n2 "UPDATE registered_models SET description = 'reviewed on n2' WHERE name = 'model-n3-1'"
	run n1 "SELECT repl_ml.resume_apply('n2')"
	run n2 "SELECT repl_ml.resume_apply('n1')"
	converge
	claim_equal
	claim_conflicts 1

	conflict=$(sql n1 "SELECT conflict_id, winner_node, loser_node, key FROM repl_ml.conflicts")
	for node in n2 n3; do
		claim "$node recorded the same conflict as n1" "$conflict" \
			"$(sql "$node" "SELECT conflict_id, winner_node, loser_node, key FROM repl_ml.conflicts")"
	done
	row=$(sql n3 "SELECT description FROM registered_models WHERE name = 'model-n3-1'")
	claim "the row is the winner's" "$row" \
		"$(sql n1 "SELECT 'reviewed on ' || winner_node FROM repl_ml.conflicts")"
	claim "the loser's row is kept in the history" t \
		"$(sql n1 "SELECT loser_row ->> 'description' = 'reviewed on ' || loser_node FROM repl_ml.conflicts")"
}

show_views() {
	local node

	say "What the views say"
	print n1 -x -c "SELECT * FROM repl_ml.conflicts"
	print n1 -c "SELECT node_name, slot_name, state, sent_lsn, replay_lsn, lag_bytes, replay_lag, heartbeat_lag FROM repl_ml.stat_replication ORDER BY node_name"
	for node in "${nodes[@]}"; do
		claim "$node streams to both others" 2 \
			"$(sql "$node" "SELECT count(*) FROM repl_ml.stat_replication WHERE state = 'streaming'")"
	done
}

show_result() {
	local node
	running=yes
	say "The group at a glance"
	print n1 -c "SELECT * FROM repl_ml.top"
	claim "no line of it is longer than 100 columns" yes \
		"$(print n1 -c "SELECT * FROM repl_ml.top" | awk '{ if (length($0) > 100) long = 1 } END { print long ? "no" : "yes" }')"
	say "The group is running"
	for node in "${nodes[@]}"; do
		echo "$node:  $private_bin/psql '$(dsn "$node")'      log: $scratch/$node/log"
	done
	echo "Watch it:  SELECT * FROM repl_ml.top \\watch 2"
	echo "Anyone on this machine may connect without a password: it is a demonstration."
	echo "Stop it and remove its files:  make demo-stop"
	[ "$failures" -eq 0 ] || die "$failures of the claims above did not hold"
}

case ${1:-} in
	start | stop) "$1" ;;
	*) die "usage: test/demo.sh start | stop" ;;
esac
