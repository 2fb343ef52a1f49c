#!/usr/bin/env bash
# Installs what "make check" and "make demo" need on Debian; does nothing when all of it is there.
# Without root, or on another system, it says what is missing. With PG_CONFIG set, that server is
# taken as it is and only the tools are looked at.
set -euo pipefail

server=(postgresql-15 postgresql-client-15 postgresql-server-dev-15)
tools=(gcc libc6-dev make perl libipc-run-perl python3-psycopg2 libfaketime spin util-linux iproute2)
wanted=("${tools[@]}")
[ -n "${PG_CONFIG:-}" ] || wanted+=("${server[@]}" libpq-dev)

version() {
	dpkg-query -W -f='${db:Status-Abbrev} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^.i *//p'
}

# What is not installed; and the whole server where its parts are of different minor versions,
# since a module built with newer headers need not run on an older server.
missing() {
	local package
	for package in "${wanted[@]}"; do
		[ -n "$(version "$package")" ] || echo "$package"
	done
	if [ -z "${PG_CONFIG:-}" ] &&
		[ "$(for package in "${server[@]}"; do version "$package"; done | sort -u | wc -l)" -gt 1 ]; then
		printf '%s\n' "${server[@]}"
	fi
}

# Without Debian's packages: are the commands there at all?
check_commands() {
	local command absent=()
	for command in "${PG_CONFIG:-pg_config}" gcc make prove; do
		command -v "$command" >/dev/null || absent+=("$command")
	done
	perl -MIPC::Run -e 1 2>/dev/null || absent+=("the Perl module IPC::Run")
	[ ${#absent[@]} -eq 0 ] && return
	echo "install_deps: not found: ${absent[*]}; install them, or set PG_CONFIG" >&2
	exit 1
}

if ! command -v dpkg-query >/dev/null; then
	check_commands
	exit 0
fi
mapfile -t packages < <(missing | sort -u)
[ ${#packages[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "install_deps: these packages are missing or of different versions: ${packages[*]}" >&2
	echo "install_deps: as root run: apt-get update && apt-get install ${packages[*]}" >&2
	exit 1
fi

# The package would create and start a cluster on port 5432, which nobody asked for.
no_cluster=/etc/postgresql-common/createcluster.d/repl_ml.conf
log=$(mktemp)
trap 'rm -f "$no_cluster" "$log"' EXIT
mkdir -p "$(dirname "$no_cluster")"
echo "create_main_cluster = false" > "$no_cluster"

export DEBIAN_FRONTEND=noninteractive
apt=(apt-get -qq -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 -o Acquire::Retries=3)
echo "install_deps: installing ${packages[*]}"
if ! { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${packages[@]}"; } \
	</dev/null > "$log" 2>&1; then
	cat "$log" >&2
	echo "install_deps: apt-get failed" >&2
	exit 1
fi
