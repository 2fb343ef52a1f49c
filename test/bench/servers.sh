# Sourced by benchmarks of several servers, not run: private servers on sockets, and a group of them.
#
# The caller sets "top" and "bench" (this directory). bring_up makes "scratch", with the server copied and
# repl_ml built; "as_server" is then how to run a program of it.

bring_up() {
	"$top/test/install_deps.sh"
	. "$top/test/private_server.sh"
	settle_environment
	scratch=$(mktemp -d /tmp/repl_ml_bench.XXXXXX)
	trap clean_up EXIT
	trap 'exit 130' INT TERM
	chown "$run_user" "$scratch"
	chmod 755 "$scratch"
	copy_server
	copy_sources
	build_and_install COPT=-Werror
	as_server=(as_user env "PATH=$private_bin:$PATH")
}

clean_up() {
	local data
	for data in "$scratch"/*/data; do
		[ -d "$data" ] || continue
		"${as_server[@]}" pg_ctl -D "$data" -m immediate stop >/dev/null 2>&1 || true
	done
	rm -rf "$scratch"
}

# Runs psql on a server. usage: sql SERVER OPTION...
sql() {
	local server=$1
	shift
	"${as_server[@]}" psql -h "$scratch/$server" -U postgres -XqAt -v ON_ERROR_STOP=1 "$@"
}

# Writes a server's configuration, last the given lines, and starts it.
start_server() {
	local server=$1 line
	shift
	{
		"$top/test/server_conf" "$private_bin/postgres"
		cat "$bench/commits.conf"
		echo "cluster_name = '$server'"
		echo "unix_socket_directories = '$scratch/$server'"
		for line in "$@"; do
			echo "$line"
		done
	} >>"$scratch/$server/data/postgresql.conf"
	"${as_server[@]}" pg_ctl -D "$scratch/$server/data" -l "$scratch/$server/log" -w start >/dev/null
}

make_server() {
	as_user mkdir "$scratch/$1"
	"${as_server[@]}" initdb -D "$scratch/$1/data" -A trust -U postgres -E UTF8 --locale=C --no-sync >/dev/null
	start_server "$@"
}

# Of repl_ml1 to repl_ml3, with all tables of the first.
form_group() {
	local first i
	first="host=$scratch/repl_ml1 user=postgres dbname=postgres"
	sql repl_ml1 -c "SELECT repl_ml.create_group('bench', 'n1', '$first')" -c "SELECT repl_ml.add_all_tables()" >/dev/null
	for i in 2 3; do
		sql "repl_ml$i" -c "SELECT repl_ml.join_group('n$i', '${first/repl_ml1/repl_ml$i}', '$first')" >/dev/null
	done
	for i in 1 2 3; do
		await "repl_ml$i" "(SELECT count(*) = 3 FROM repl_ml.nodes WHERE state = 'ready')"
	done
}

# Waits until a condition holds on a server.
await() {
	sql "$1" -c "SET statement_timeout = '${patience:-60s}'" -c "DO \$\$ BEGIN
		WHILE ($2) IS NOT TRUE LOOP COMMIT; PERFORM pg_sleep(0.005); END LOOP; END \$\$"
}

# Waits until both peers have applied what was committed on the server.
await_peers() {
	local lsn
	lsn=$(sql "$1" -c 'SELECT pg_current_wal_flush_lsn()')
	await "$1" "SELECT count(*) = 2 AND bool_and(replay_lsn >= '$lsn') FROM pg_stat_replication"
}
