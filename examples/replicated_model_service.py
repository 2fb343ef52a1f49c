#!/usr/bin/python3
"""A model registry's service over the nodes of a group, each of which can be read and written.

    service = ReplicatedModelService(["host=n1.example dbname=app", "host=n2.example dbname=app", ...])
    service.write("UPDATE model_version SET stage = %s WHERE name = %s AND version = %s", ("Production", "churn", 3))
    service.read("SELECT version FROM model_version WHERE name = %s AND stage = 'Production'", ("churn",), "session")

Reads go round the nodes, and to the next one where a node is down or does not catch up in time:

    eventual  what the node has: never waits, may be old
    session   not older than what this service has written or read
    strong    not older than anything that was acknowledged to anybody before the read began

Writes are acknowledged when a majority of the nodes has them. One whose answer was lost is asked for with its token,
so it is done once or raises an error, and never twice. Not for several threads: each has a service of its own.
"""
import itertools
import time

import psycopg2

NOTHING_WRITTEN = {"57P03", "40001", "40P01"}           # no majority, a conflict, a deadlock: may be done again
LOST = {None, "57P01", "57P02", "08001", "08006"}       # no connection, or none any more
LATE = {"57014", "55000"}                               # the node does not catch up in time, or is no member (yet)


class ReplicatedModelService:
    def __init__(self, dsns, timeout=10.0):
        self.nodes = itertools.cycle(range(len(dsns)))
        self.dsns, self.timeout = dsns, timeout
        self.connections = {}
        self.seen = "{}"                        # a vector: what this service has written or read

    def _cursor(self, node):
        connection = self.connections.get(node)
        if connection is None or connection.closed:
            connection = psycopg2.connect(self.dsns[node], connect_timeout=2)
            connection.autocommit = True
            self.connections[node] = connection
        return connection.cursor()

    def _forget(self, node):
        connection = self.connections.pop(node, None)
        if connection is not None:
            connection.close()

    def _on_some_node(self, work):
        """Runs work(cursor) on the next node that can do it, within the timeout."""
        deadline = time.monotonic() + self.timeout
        while True:
            node = next(self.nodes)
            try:
                return work(self._cursor(node))
            except psycopg2.Error as error:
                self._forget(node)
                if error.pgcode not in NOTHING_WRITTEN | LOST | LATE or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    # --- reading -------------------------------------------------------------

    def read(self, query, parameters=(), consistency="eventual", patience=1.0):
        """The rows of a query; a node that cannot show enough within the patience, in seconds, is passed by."""
        def work(cursor):
            if consistency == "session":
                cursor.execute("SELECT repl_ml.wait_for_vector(%s, %s * interval '1 s')", (self.seen, patience))
            elif consistency == "strong":
                cursor.execute("SELECT repl_ml.barrier(%s * interval '1 s')", (patience,))
            elif consistency != "eventual":
                raise ValueError(f'consistency "{consistency}" does not exist: use eventual, session or strong')
            cursor.execute(query, parameters)
            rows = cursor.fetchall()
            if consistency != "eventual":
                self._see(cursor)
            return rows
        return self._on_some_node(work)

    def _see(self, cursor):
        """Remembers what the node shows, beside what is remembered already."""
        cursor.execute("SELECT repl_ml.merge(%s, repl_ml.current_vector())", (self.seen,))
        (self.seen,) = cursor.fetchone()

    # --- writing -------------------------------------------------------------

    def write(self, statement, parameters=()):
        """Runs a statement in a transaction of its own, on some node, until a majority has it."""
        deadline = time.monotonic() + self.timeout
        while True:
            node, token = next(self.nodes), None
            try:
                cursor = self._cursor(node)
                cursor.execute("BEGIN")
                cursor.execute("SET LOCAL repl_ml.write_consistency = quorum")
                cursor.execute(statement, parameters)
                cursor.execute("SELECT repl_ml.transaction_token()")
                (token,) = cursor.fetchone()
                cursor.execute("COMMIT")
                return self._see(cursor)
            except psycopg2.Error as error:
                self._forget(node)
                if token is not None and error.pgcode in LOST | {"40003"}:
                    if self._outcome(token, deadline) == "acknowledged":
                        return None
                elif error.pgcode not in NOTHING_WRITTEN | (LOST if token is None else set()):
                    raise
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _outcome(self, token, deadline):
        """Asks what became of a transaction until somebody knows: acknowledged or aborted."""
        def ask(cursor):
            cursor.execute("SELECT repl_ml.transaction_status(%s)", (token,))
            (status,) = cursor.fetchone()
            self._see(cursor)
            return status
        while True:
            status = self._on_some_node(ask)
            if status in ("acknowledged", "aborted"):
                return status
            if time.monotonic() > deadline:
                raise TimeoutError(f"transaction {token} is {status}")
            time.sleep(0.1)

    # --- waiting -------------------------------------------------------------

    def wait_for_replication(self, timeout=10.0):
        """Waits until every node shows what this service has written; returns the numbers of those that do not."""
        late = []
        for node in range(len(self.dsns)):
            try:
                self._cursor(node).execute("SELECT repl_ml.wait_for_vector(%s, %s * interval '1 s')", (self.seen, timeout))
            except psycopg2.Error:
                self._forget(node)
                late.append(node)
        return late
