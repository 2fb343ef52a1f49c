# Sourced by test/run_checks and test/demo.sh, not run: a private copy of a PostgreSQL server with
# repl_ml built and installed into it, so that no system path is touched.
#
# The caller sets "top" (the checkout) and, once it exists, "scratch" (a directory).

# Chooses the server (PG_CONFIG, or Debian's 15) and the user that runs it, and drops what the
# caller's environment would say to psql, make and initdb.
settle_environment() {
	local chosen=${PG_CONFIG:-} timeout=${PG_TEST_TIMEOUT_DEFAULT:-120}

	unset ${!PG*} MAKEFLAGS MFLAGS MAKELEVEL DESTDIR TEMP_CONFIG
	export LC_ALL=C.UTF-8 PG_TEST_TIMEOUT_DEFAULT=$timeout
	if [ -z "$chosen" ]; then
		chosen=/usr/lib/postgresql/15/bin/pg_config
		[ -x "$chosen" ] || chosen=pg_config
	fi
	system_config=$chosen

	# initdb refuses root
	run_user=$(id -un)
	if [ "$(id -u)" -eq 0 ]; then
		run_user=${RUN_USER:-postgres}
		id "$run_user" >/dev/null || return 1
	fi
}

# Runs a command as the server's user, in the scratch directory.
as_user() {
	(
		cd "$scratch" || exit 1
		export HOME=$scratch
		if [ "$(id -un)" = "$run_user" ]; then
			exec "$@"
		fi
		exec setpriv --reuid="$run_user" --regid="$(id -g "$run_user")" --init-groups "$@"
	)
}

# The longest directory that holds all arguments.
common_directory() {
	local common=$1 path
	for path in "$@"; do
		while [[ $path/ != "$common"/* ]]; do
			common=${common%/*}
		done
	done
	echo "$common"
}

# Copies the server's trees to $scratch/pg in the same arrangement: it finds itself in the new place.
# Sets private_config and private_bin.
copy_server() {
	local bin libs prefix directories=()

	bin=$("$system_config" --bindir) || return 1
	directories=("$bin" "$("$system_config" --sharedir)" "$("$system_config" --pkglibdir)"
		"$("$system_config" --pkgincludedir)")
	# a server with a prefix of its own brings its own libpq; Debian's is the system's
	libs=$("$system_config" --libdir)
	case $libs in
		/lib | /lib64 | /usr/lib | /usr/lib64 | /usr/lib/*-linux-gnu*) ;;
		*) directories+=("$libs" "$("$system_config" --includedir)") ;;
	esac

	prefix=$(common_directory "${directories[@]}")
	as_user mkdir -p "$scratch/pg" || return 1
	tar -C "$prefix" -cf - "${directories[@]#"$prefix"/}" | as_user tar -C "$scratch/pg" -xf - || return 1
	private_bin=$scratch/pg/${bin#"$prefix"/}
	private_config=$private_bin/pg_config
}

# Copies the sources to $scratch/build, without what was built in the checkout.
copy_sources() {
	as_user mkdir -p "$scratch/build" || return 1
	(cd "$top" && tar --exclude='*.o' --exclude='*.bc' --exclude='*.so' -cf - \
		Makefile LICENSE META.json *.md doc examples monitoring repl_ml.control src sql expected test) |
		as_user tar -C "$scratch/build" -xf -
}

# make in the copied sources, for the private server.
make_private() {
	as_user make -s -C "$scratch/build" PG_CONFIG="$private_config" with_llvm=no "$@"
}

# Builds with the given options (COPT=...) and installs into the private server.
build_and_install() {
	make_private -j"$(nproc)" "$@" all && make_private "$@" install
}
