"""Three servers for clients, one database and group for each; claims, and what clients do about errors."""
import concurrent.futures
import os
import re
import socket
import subprocess
import threading
import time

import psycopg2

TOP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
NODES = ("n1", "n2", "n3")
PATIENCE = 120
failures = []


def claim(holds, what, seen=""):
    if not holds:
        failures.append(what)
    print(("ok" if holds else "NOT OK") + " - " + what + ("" if holds else f": {seen}"), flush=True)


def pause(seconds):
    """Between two looks at a state, or two tries."""
    threading.Event().wait(seconds)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Group:
    """Three servers; a database of a name on each is a group."""

    def __init__(self, bin_directory, directory):
        self.bin, self.directory = bin_directory, directory
        self.ports = {node: free_port() for node in NODES}
        self.others = []
        for node in NODES:
            data = f"{directory}/{node}"
            self.run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "-N", "-D", data)
            conf = subprocess.run([f"{TOP}/test/server_conf", f"{bin_directory}/postgres"], check=True, capture_output=True, text=True).stdout
            with open(f"{data}/postgresql.conf", "a") as f:
                f.write(f"{conf}\nlisten_addresses = '127.0.0.1'\nport = {self.ports[node]}\nunix_socket_directories = ''\nmax_connections = 200\nrepl_ml.replicate_ddl = on\n")
            self.run("pg_ctl", "start", "-s", "-w", "-D", data, "-l", f"{data}.log")

    def run(self, program, *arguments):
        """As the user who may run servers; clients stay who they are, as their Python may be nobody else's to read."""
        user = os.environ.get("RUN_USER", "postgres")
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if os.geteuid() == 0 else []
        subprocess.run([*become, f"{self.bin}/{program}", *arguments], check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def plain_server(self):
        """A server without the library, settled as the others but for fsync; returns the URL of its database."""
        data, port = f"{self.directory}/plain", free_port()
        self.run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-locale", "-N", "-D", data)
        with open(f"{data}/postgresql.conf", "a") as f:
            f.write(f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\nshared_buffers = 32MB\nmax_wal_size = 256MB\n")
        self.run("pg_ctl", "start", "-s", "-w", "-D", data, "-l", f"{data}.log")
        self.others.append(data)
        return f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def stop(self):
        for data in self.others:
            self.run("pg_ctl", "stop", "-s", "-m", "immediate", "-D", data)
        for node in NODES:
            self.run("pg_ctl", "stop", "-s", "-m", "immediate", "-D", f"{self.directory}/{node}")

    def begin(self, name):
        self.name = name
        for node in NODES:
            self.sql(node, f"CREATE DATABASE {name}", "postgres")
            self.sql(node, "CREATE EXTENSION repl_ml")
        self.sql("n1", f"SELECT repl_ml.create_group('{name}', 'n1', '{self.dsn('n1')}')")

    def join(self):
        for node in NODES[1:]:
            self.sql(node, f"SELECT repl_ml.join_group('{node}', '{self.dsn(node)}', '{self.dsn('n1')}')")
        for node in NODES:
            self.wait(node, "SELECT count(*) = 3 FROM repl_ml.nodes WHERE state = 'ready' AND reachable", "three nodes are ready")

    def dsn(self, node, database=None):
        return f"host=127.0.0.1 port={self.ports[node]} dbname={database or self.name} user=postgres"

    def url(self, node):
        return f"postgresql://postgres@127.0.0.1:{self.ports[node]}/{self.name}"

    def sql(self, node, statement, database=None):
        connection = psycopg2.connect(self.dsn(node, database))
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        finally:
            connection.close()

    def one(self, node, statement):
        return self.sql(node, statement)[0][0]

    def wait(self, node, query, what):
        end = time.monotonic() + PATIENCE
        while not self.one(node, query):
            if time.monotonic() > end:
                claim(False, what, self.sql(node, "SELECT check_name, detail FROM repl_ml.health WHERE status <> 'ok'"))
                return
            pause(0.2)

    def dump_schema(self, node):
        """As pg_dump has it, but for what is ours."""
        dump = subprocess.run([f"{self.bin}/pg_dump", "-s", "--no-publications", "-N", "repl_ml", "-d", self.dsn(node)], check=True, capture_output=True, text=True).stdout
        return "\n".join(line for line in dump.split("\n") if not re.match(r"\\(un)?restrict|SECURITY LABEL FOR repl_ml ON COLUMN \S+\.__repl_clock", line))

    def statements(self, client, nodes=("n1",)):
        """Those of the book, if they are not to be left out; else all tables, and no more."""
        text = open(f"{TOP}/doc/clients.md").read()
        found = re.search(rf"<!-- check-clients: {client} -->\n```sql\n(.*?)```", text, re.S).group(1)
        if os.environ.get("ABOUT") == "without":
            found = "SELECT * FROM repl_ml.add_all_tables();"
        for statement in found.split(";\n"):
            for node in nodes if statement.strip() else ():
                self.sql(node, statement)

    def judge(self, client):
        """All equal at last, nothing parked."""
        for node in NODES:
            self.wait(node, "SELECT NOT EXISTS (SELECT FROM repl_ml.stat_replication WHERE lag_since IS NOT NULL) AND NOT EXISTS (SELECT FROM repl_ml.parked_change)", f"{client}: all that was written is everywhere")
        for (table,) in self.sql("n1", "SELECT relation::text FROM repl_ml.tables ORDER BY 1"):
            sums = {node: self.sql(node, f"SELECT count(*), coalesce(md5(string_agg(r, '' ORDER BY r)), '') FROM (SELECT to_jsonb(t)::text AS r FROM {table} t) x")[0] for node in NODES}
            if len(set(sums.values())) > 1:
                claim(False, f"{client}: {table} is the same on all nodes", sums)
        for node in NODES:
            parked = self.sql(node, "SELECT to_jsonb(p)::text FROM repl_ml.parked_changes p")
            claim(not parked, f"{client}: nothing is parked on {node}", parked[:3])


def at_once(work):
    """Runs work(node) for all nodes at once; returns what each returned."""
    with concurrent.futures.ThreadPoolExecutor(len(NODES)) as pool:
        return dict(zip(NODES, pool.map(work, NODES)))


def again(work, attempts=40):
    """As a client that has been told to try again: the errors of doc/clients.md."""
    for attempt in range(attempts):
        try:
            return work()
        except Exception as error:  # noqa: BLE001, each client wraps them in its own
            if attempt == attempts - 1 or not re.search("40001|40P01|57P03|SerializationFailure|could not serialize access|DeadlockDetected|deadlock detected|CannotConnectNow", repr(error)):
                raise
            pause(0.05 * (1 + attempt % 5))
