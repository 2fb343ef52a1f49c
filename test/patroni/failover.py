"""A group of three members, of which one is a Patroni pair with a physical standby. Its primary is killed while clients write.

usage: failover.py BINDIR DIRECTORY ROUND...

A round is "async" (kill the primary), "behind" (kill it while the standby does not receive) or "synchronous" (Patroni's
synchronous_mode). After each: no acknowledged write at quorum is lost, nor a row that the standby had (in "synchronous", nor an
acknowledged write at one); the pair is a member again without a hand, the former primary is its standby, all members are equal.
How long that took is printed. Patroni's configuration is the one of doc/operations.md, with this machine's addresses.
"""
import json, os, re, signal, socket, subprocess, sys, threading, time, urllib.request

import psycopg2

BIN, DIRECTORY, ROUNDS = sys.argv[1], sys.argv[2], sys.argv[3:]
TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
PATIENCE = 120
PAUSE = threading.Event()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def dsn(*servers, attrs="any"):
    ports = ",".join(str(s.port) for s in servers)
    hosts = ",".join("127.0.0.1" for s in servers)
    return f"host={hosts} port={ports} dbname=postgres user=postgres connect_timeout=3 target_session_attrs={attrs}"


def ask(where, sql, *args):
    """The first row's values, or None."""
    connection = psycopg2.connect(where)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(sql, args)
            return cursor.fetchall() if cursor.description else None
    finally:
        connection.close()


def value(where, sql, *args):
    return ask(where, sql, *args)[0][0]


def wait_for(what, condition, patience=PATIENCE):
    until = time.monotonic() + patience
    error = None
    while time.monotonic() < until:
        try:
            if condition():
                return
        except psycopg2.Error as e:
            error = e
        PAUSE.wait(0.05)
    raise SystemExit(f"not ok: {what} ({error})")


def spawn(name, *command):
    log = open(os.path.join(DIRECTORY, name + ".log"), "a")
    return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)


class Plain:
    """A member on an ordinary server."""

    def __init__(self, name):
        self.name, self.port, self.data = name, free_port(), os.path.join(DIRECTORY, name)
        subprocess.run([f"{BIN}/initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "-N"], check=True, stdout=subprocess.DEVNULL)
        with open(f"{self.data}/postgresql.conf", "a") as conf:
            conf.write(subprocess.run([f"{TOP}/test/server_conf", f"{BIN}/postgres"], check=True, stdout=subprocess.PIPE, text=True).stdout)
            conf.write(f"port = {self.port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{self.data}'\n")
        self.process = spawn(name, f"{BIN}/postgres", "-D", self.data)

    def stop(self):
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()


class Patroni:
    """One of the pair's servers, and the Patroni that looks after it."""

    def __init__(self, name, etcd):
        self.name, self.port, self.rest, self.data = name, free_port(), free_port(), os.path.join(DIRECTORY, name)
        text = re.search(r"```yaml\n(.*?)```", open(f"{TOP}/doc/operations.md").read(), re.S).group(1)
        for there, here in (("pg1.example:5432", f"127.0.0.1:{self.port}"), ("pg1.example:8008", f"127.0.0.1:{self.rest}"), ("0.0.0.0:5432", f"127.0.0.1:{self.port}"),
                            ("0.0.0.0:8008", f"127.0.0.1:{self.rest}"), ("etcd1.example:2379", f"127.0.0.1:{etcd}"), ("name: pg1", f"name: {name}"),
                            ("/usr/lib/postgresql/15/bin", BIN), ("/var/lib/postgresql/15/region1", self.data), ("/etc/patroni/repl_ml.conf", f"{DIRECTORY}/repl_ml.conf"),
                            ("10.0.0.0/8 scram-sha-256", "127.0.0.1/32 trust"), ("/var/run/postgresql", DIRECTORY)):
            if there not in text:
                raise SystemExit(f"doc/operations.md: {there} is not in patroni.yml")
            text = text.replace(there, here)
        # a test cannot wait that long
        text = text.replace("loop_wait: 10", "loop_wait: 1").replace("retry_timeout: 5", "retry_timeout: 3")
        self.file = os.path.join(DIRECTORY, name + ".yml")
        with open(self.file, "w") as f:
            f.write(text)
        self.start()

    def start(self):
        self.process = spawn(self.name, "/usr/bin/patroni", self.file)

    def postmaster(self):
        with open(f"{self.data}/postmaster.pid") as f:
            return int(f.readline())

    def kill(self):
        """As if the machine were gone."""
        processes = [self.process.pid, self.postmaster()]
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(processes[1])], stdout=subprocess.PIPE, text=True).stdout.split()
        for pid in processes + [int(c) for c in children]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()

    def stop(self):
        if self.process.poll() is None:
            self.kill()

    def is_standby(self):
        return value(dsn(self), "SELECT pg_is_in_recovery() AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming')")


class Writer(threading.Thread):
    """Inserts rows of its own, one after the other; remembers which were acknowledged."""

    numbers = iter(range(10**6))

    def __init__(self, where, level):
        super().__init__(daemon=True)
        self.where, self.level, self.number = where, level, next(Writer.numbers)
        self.acknowledged, self.errors, self.ended = [], {}, threading.Event()
        self.start()

    def run(self):
        connection = None
        i = 0
        while not self.ended.is_set():
            i += 1
            key = f"{self.level} {self.number} {i}"
            try:
                if connection is None:
                    connection = psycopg2.connect(self.where, options=f"-c repl_ml.write_consistency={self.level} -c statement_timeout=10s")
                    connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO t VALUES (%s)", (key,))
                self.acknowledged.append(key)
            except psycopg2.Error as e:
                self.errors[e.pgcode] = self.errors.get(e.pgcode, 0) + 1
                if connection is not None and connection.closed:
                    connection = None
                self.ended.wait(0.05)
            self.ended.wait(0.002)


class Group:
    def __init__(self):
        self.etcd_port, peer = free_port(), free_port()
        self.etcd = spawn("etcd", "/usr/bin/etcd", "--data-dir", f"{DIRECTORY}/etcd", "--listen-client-urls", f"http://127.0.0.1:{self.etcd_port}",
                          "--advertise-client-urls", f"http://127.0.0.1:{self.etcd_port}", "--listen-peer-urls", f"http://127.0.0.1:{peer}",
                          "--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", f"default=http://127.0.0.1:{peer}")
        with open(f"{DIRECTORY}/repl_ml.conf", "w") as conf:
            known = subprocess.run([f"{BIN}/postgres", "--describe-config"], check=True, stdout=subprocess.PIPE, text=True).stdout
            if "output_plugin_libraries" in known:
                conf.write("output_plugin_libraries = 'pgoutput, repl_ml'\n")
        self.others = [Plain("n2"), Plain("n3")]
        self.pair = [Patroni("pg1", self.etcd_port)]
        wait_for("the first of the pair starts", lambda: not value(dsn(self.pair[0]), "SELECT pg_is_in_recovery()"))
        self.pair.append(Patroni("pg2", self.etcd_port))
        wait_for("the second follows it", self.pair[1].is_standby)
        self.node = dsn(*self.pair, attrs="primary")
        ask(self.node, "CREATE EXTENSION repl_ml")
        ask(self.node, "SELECT repl_ml.create_group('g', 'n1', %s)", self.node)
        ask(self.node, "CREATE TABLE t (id text PRIMARY KEY); SELECT repl_ml.add_table('t')")
        for other in self.others:
            ask(dsn(other), "CREATE EXTENSION repl_ml")
            ask(dsn(other), "SELECT repl_ml.join_group(%s, %s, %s)", other.name, dsn(other), self.node)
            wait_for(f"{other.name} joins", lambda: value(dsn(other), "SELECT state = 'ready' FROM repl_ml.local_node"))
        self.members = [self.node] + [dsn(o) for o in self.others]
        self.wait_healthy()

    def wait_healthy(self):
        for member in self.members:
            wait_for("health", lambda: value(member, "SELECT count(*) = 0 FROM repl_ml.health WHERE status <> 'ok'"))

    def primary(self):
        port = value(self.node, "SELECT inet_server_port()")
        return next(p for p in self.pair if p.port == port)

    def set_synchronous(self, on):
        request = urllib.request.Request(f"http://127.0.0.1:{self.primary().rest}/config", json.dumps({"synchronous_mode": on}).encode(), method="PATCH")
        urllib.request.urlopen(request, timeout=5).read()
        wanted = "SELECT current_setting('synchronous_standby_names') " + ("NOT IN ('', 'repl_ml_quorum')" if on else "= 'repl_ml_quorum'")
        wait_for("Patroni sets synchronous_standby_names", lambda: value(self.node, wanted))

    def stop(self):
        for server in self.pair + self.others:
            server.stop()
        self.etcd.kill()


def check(what, lost):
    print(("ok" if not lost else "not ok") + f": {what}" + (f": {len(lost)}, as {sorted(lost)[:3]}" if lost else ""))
    return not lost


def fails_with(where, sql, sqlstate):
    try:
        ask(where, sql)
    except psycopg2.Error as e:
        return e.pgcode == sqlstate
    return False


def play(group, name):
    synchronous = name == "synchronous"
    ok = True
    if synchronous:
        group.set_synchronous(True)
        refused = fails_with(group.node, "SET repl_ml.write_consistency = quorum; INSERT INTO t VALUES ('refused')", "55000")
        ok &= check("quorum is refused while Patroni has synchronous_standby_names", set() if refused else {"not refused"})
    old = group.primary()
    new = next(p for p in group.pair if p is not old)
    identity = value(group.node, "SELECT node_id || ' ' || incarnation FROM repl_ml.local_node")
    writers = [Writer(group.node, level) for level in (("one", "one") if synchronous else ("quorum", "quorum", "one"))]
    writers += [Writer(dsn(o), level) for o in group.others for level in ("quorum", "one")]
    PAUSE.wait(4)
    if name == "behind":
        receiver = value(dsn(new), "SELECT pid FROM pg_stat_wal_receiver")
        os.kill(receiver, signal.SIGSTOP)
        PAUSE.wait(2)
    old.kill()
    if name == "behind":
        # what has come meanwhile is not read any more
        os.kill(receiver, signal.SIGTERM)
        os.kill(receiver, signal.SIGCONT)
    before = {w: len(w.acknowledged) for w in writers}
    killed = time.monotonic()
    had = set()
    promoted = None
    while promoted is None and time.monotonic() < killed + PATIENCE:
        (recovers,), = ask(dsn(new), "SELECT pg_is_in_recovery()")
        if recovers:
            had = {r[0] for r in ask(dsn(new), "SELECT id FROM t")}
            PAUSE.wait(0.05)
        else:
            promoted = time.monotonic()
    if promoted is None:
        raise SystemExit("not ok: Patroni does not promote the standby")
    level = "one" if synchronous else "quorum"
    wait_for("the pair is a member again", lambda: ask(group.node, f"SET repl_ml.write_consistency = {level}; INSERT INTO t VALUES ('back in {name}') ON CONFLICT DO NOTHING; SELECT 1"))
    back = time.monotonic()
    now = value(group.node, "SELECT node_id || ' ' || incarnation FROM repl_ml.local_node")
    print(f"{name}: promoted {promoted - killed:.1f} s after the kill, writes at {level} {back - promoted:.1f} s after that; node and incarnation {identity}, then {now}")
    PAUSE.wait(2)
    old.start()
    wait_for("the former primary follows", old.is_standby)
    print(f"{name}: the former primary is a standby {time.monotonic() - back:.1f} s after that")
    for w in writers:
        w.ended.set()
    for w in writers:
        w.join()
    if synchronous:
        group.set_synchronous(False)
    group.wait_healthy()
    for member in group.members:
        ask(member, "SELECT repl_ml.barrier('30 s')")
    sets = [{r[0] for r in ask(m, "SELECT id FROM t")} for m in group.members]
    acknowledged = {k for w in writers for k in w.acknowledged if w.level == "quorum" or synchronous or w.where != group.node}
    all_of_one = {k for w in writers for k in w.acknowledged if w.level == "one" and w.where == group.node}
    ok &= check("all members have the same rows", (sets[0] | sets[1] | sets[2]) - (sets[0] & sets[1] & sets[2]))
    ok &= check("no acknowledged write is lost", acknowledged - sets[0])
    ok &= check("no row is lost that the standby had", had - sets[0])
    verdicts = {r[0] for r in ask(group.members[1], "SELECT DISTINCT status FROM repl_ml.verify_all()")}
    ok &= check("verify_all() says consistent", verdicts - {"consistent"})
    print(f"{name}: {len(acknowledged)} such writes, {sum(before.values())} before the kill, {len(had)} rows on the standby;"
          f" of {len(all_of_one)} acknowledged at one {len(all_of_one - sets[0])} lost with the primary")
    return ok


def main():
    os.makedirs(DIRECTORY)
    os.chdir(DIRECTORY)
    group = Group()
    try:
        ok = all([play(group, name) for name in ROUNDS])
    finally:
        group.stop()
    sys.exit(0 if ok else 1)


main()
