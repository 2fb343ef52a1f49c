"""Servers in namespaces of their own, and how to end, freeze and heal them.

The processes are children of this one, so that nobody has to guess when they
are gone. Statements of the tester go over Unix sockets, which no cut of the
network concerns.
"""
import os
import shutil
import signal
import subprocess
import threading
import time

import psycopg2

from history import now
from net import Network, address

PATIENCE = 120  # seconds for any state to come about
waiting = threading.Event()  # never set


class NotAtRest(Exception):
    pass


def wait_until(condition, what, patience=PATIENCE):
    """Waits for a true value and returns it."""
    deadline = time.monotonic() + patience
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise NotAtRest("after %d s not yet: %s" % (patience, what() if callable(what) else what))
        waiting.wait(0.01)


class Server:
    """One node's server, with its data in directory/name."""

    def __init__(self, cluster, number):
        self.cluster, self.number, self.name = cluster, number, "n%d" % number
        self.data = os.path.realpath(os.path.join(cluster.directory, self.name))
        self.sockets = os.path.join(cluster.sockets, self.name)
        self.log = os.path.join(cluster.logs, cluster.prefix + self.name + ".log")
        self.process = None
        self.is_paused = False
        self.killed = None  # when, last
        self.connection = None
        self.lock = threading.RLock()
        os.mkdir(self.sockets)
        cluster.own(self.sockets)
        if cluster.network:
            cluster.network.add(number)

    def dsn(self):
        """How peers and clients reach it."""
        host = address(self.number) if self.cluster.network else self.sockets
        return "host=%s port=5432 user=postgres dbname=postgres" % host

    def admin_dsn(self):
        """How the tester does."""
        return "host=%s port=5432 user=postgres dbname=postgres" % self.sockets

    def create(self):
        self.make_room()
        shutil.copytree(self.cluster.template, self.data, symlinks=True, dirs_exist_ok=True)
        os.chmod(self.data, 0o700)
        with open(os.path.join(self.data, "postgresql.conf"), "a") as conf:
            conf.write("unix_socket_directories = '%s'\nlisten_addresses = '%s'\n" % (self.sockets, address(self.number) if self.cluster.network else ""))
        self.cluster.own(self.data)

    def make_room(self):
        os.mkdir(self.data)

    def forget(self):
        """Removes what a server that is down has kept."""
        shutil.rmtree(self.data)

    # processes

    def start(self):
        for name in (os.path.join(self.data, "postmaster.pid"), os.path.join(self.sockets, ".s.PGSQL.5432.lock")):
            if os.path.exists(name):
                os.unlink(name)
        within = self.cluster.network.within(self.number) if self.cluster.network else []
        with open(self.log, "a") as log:
            self.process = subprocess.Popen([*within, *self.cluster.become, os.path.join(self.cluster.bin, "postgres"), "-D", self.data],
                                            stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self.accepts, "%s accepts connections" % self.name)

    def accepts(self):
        if self.process.poll() is not None:
            raise NotAtRest("%s ended: see %s" % (self.name, self.log))
        try:
            self.sql("SELECT 1")
            return True
        except psycopg2.Error:
            return False

    def processes(self):
        """The postmaster and its children."""
        pid = self.process.pid
        with open("/proc/%d/task/%d/children" % (pid, pid)) as file:
            return [pid, *map(int, file.read().split())]

    def signal(self, number):
        """To the postmaster first, and until nobody is left out who was started meanwhile."""
        done = set()
        while True:
            todo = [pid for pid in self.processes() if pid not in done]
            if not todo:
                return done
            for pid in todo:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
                done.add(pid)

    def pause(self):
        self.is_paused = True
        self.signal(signal.SIGSTOP)

    def resume(self):
        self.signal(signal.SIGCONT)
        self.is_paused = False

    def kill(self):
        """SIGKILL to the postmaster and all its children, at once and without a word to anybody."""
        self.kill_stopped(self.signal(signal.SIGSTOP))

    def kill_stopped(self, pids):
        for pid in pids:
            end(pid)
        self.killed = now()
        self.process.wait()
        self.connection, self.is_paused = None, False
        wait_until(lambda: not any(is_alive(pid) for pid in pids) and not self.end_stragglers(), "the killed processes of %s are gone" % self.name)

    def end_stragglers(self):
        """Those the postmaster was just starting; true if there were some."""
        stragglers = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if os.readlink("/proc/%s/cwd" % name) == self.data:
                    stragglers.append(int(name))
            except OSError:
                continue
        for pid in stragglers:
            end(pid)
        return stragglers

    def stop_immediately(self):
        if self.is_paused:
            self.resume()
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()
        self.connection = None

    def is_up(self):
        return self.process is not None and self.process.poll() is None

    # SQL

    def sql(self, statement, *values):
        """Runs SQL by itself and returns its rows; tries again on a new connection if the old one was lost."""
        with self.lock:
            try:
                return self.execute(statement, values)
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                if self.connection is None or not self.connection.closed:
                    raise
                self.connection = None
                return self.execute(statement, values)

    def execute(self, statement, values):
        if self.connection is None:
            self.connection = psycopg2.connect(self.admin_dsn())
            self.connection.autocommit = True
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []


def end(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def is_alive(pid):
    """A zombie is not."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Cluster:
    """A group of servers; conf are settings beyond test/repl_ml.conf."""

    server_class = Server

    def __init__(self, binaries, conf_file, directory, sockets, logs, conf=(), prefix="", with_network=True):
        # servers refuse to run as root
        self.user = os.environ.get("RUN_USER", "postgres") if os.geteuid() == 0 else None
        self.become = ["setpriv", "--reuid=" + self.user, "--regid=" + self.user, "--init-groups"] if self.user else []
        self.bin, self.directory, self.sockets, self.logs, self.prefix = binaries, directory, sockets, logs, prefix
        self.network = Network() if with_network else None
        self.servers = []
        self.created = 0
        self.template = os.path.join(directory, "template")
        subprocess.run([*self.become, os.path.join(self.bin, "initdb"), "-D", self.template, "-U", "postgres", "-A", "trust", "-N", "--locale=C", "--encoding=UTF8"],
                       check=True, stdout=subprocess.DEVNULL)
        with open(conf_file) as file:
            settings = file.read() + "".join("%s\n" % line for line in conf)
        with open(os.path.join(self.template, "postgresql.conf"), "a") as file:
            file.write(settings)
        with open(os.path.join(self.template, "pg_hba.conf"), "a") as file:
            file.write("host all all 10.77.0.0/24 trust\n")

    def own(self, path):
        """Gives what was made here to the servers' user."""
        if self.user:
            subprocess.run(["chown", "-R", self.user, path], check=True)

    def add_server(self):
        """One more running server, which is no member of the group yet."""
        self.created += 1
        server = self.server_class(self, self.created)
        server.create()
        self.servers.append(server)
        server.start()
        server.sql("CREATE EXTENSION repl_ml")
        return server

    def form_group(self, members, *tables):
        """A group of so many nodes with these tables, given as their definitions."""
        for _ in range(members):
            server = self.add_server()
            if server is self.servers[0]:
                server.sql("SELECT repl_ml.create_group('g', %s, %s)", server.name, server.dsn())
                for table in tables:
                    server.sql(table)
                server.sql("SELECT repl_ml.add_all_tables()")
            else:
                self.join(server, self.servers[0])

    def join(self, server, member):
        server.sql("SELECT repl_ml.join_group(%s, %s, %s)", server.name, server.dsn(), member.dsn())
        for other in self.servers:
            if other.is_up():
                wait_until(lambda: other.sql("SELECT count(*) = 1 FROM repl_ml.nodes WHERE node_name = %s AND state = 'ready'", server.name)[0][0],
                           "%s is ready for %s" % (server.name, other.name))

    def forget(self, server):
        """A server that is down and never comes back."""
        self.servers.remove(server)
        server.forget()

    def wait_until_equal(self, query, patience=PATIENCE):
        """Waits until a query has the same result on all nodes that are up, and returns it."""
        servers = [server for server in self.servers if server.is_up()]

        def rows(server):
            try:
                return server.sql(query)
            except psycopg2.errors.CannotConnectNow as error:   # strong tables of a node that was outvoted
                return str(error)

        def equal():
            results = [rows(server) for server in servers]
            return isinstance(results[0], list) and all(result == results[0] for result in results) and results[:1]
        return wait_until(equal, lambda: "the nodes are equal: %s" % {server.name: len(rows(server)) for server in servers}, patience)[0]

    def wait_for_streams(self):
        """Until every node has all that any of them had committed before the call."""
        for server in self.servers:
            wait_until(lambda: server.sql("SELECT coalesce(bool_and(state = 'streaming'), true) FROM repl_ml.stat_apply")[0][0],
                       lambda: "workers of %s stream: %s" % (server.name, server.sql("SELECT node_name, state, error_sqlstate, error_message FROM repl_ml.stat_apply")))
        positions = [(server, server.sql("SELECT pg_current_wal_flush_lsn()")[0][0]) for server in self.servers]
        for server, position in positions:
            wait_until(lambda: server.sql("SELECT count(*) FILTER (WHERE greatest(confirmed_flush_lsn, CASE WHEN replay_lsn <= write_lsn THEN replay_lsn END) >= %s) >= %s FROM pg_replication_slots s LEFT JOIN pg_stat_replication w ON w.pid = s.active_pid WHERE slot_name LIKE 'repl\\_ml\\_%%'",
                                          position, len(self.servers) - 1)[0][0],
                       "all have what %s wrote" % server.name)

    def close(self):
        for server in self.servers:
            if server.is_up():
                server.kill()
        for server in self.servers:
            server.forget()
        if self.network:
            self.network.close()
