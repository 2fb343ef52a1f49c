"""The nodes under test: SQL on them, their links, and when they are at rest."""
import subprocess
import threading
import time

import psycopg2
import psycopg2.extras

from tables import FUNCTION_DDL, TABLES, TALLY_DDL, TALLY_MERGES

PATIENCE = 120  # seconds for any state to come about

psycopg2.extensions.register_type(psycopg2.extensions.new_type((1700,), "NUMERIC", psycopg2.extensions.FLOAT))
waiting = threading.Event()  # never set


class NotAtRest(Exception):
    pass


def wait_until(condition, what):
    """Waits for a true value and returns it."""
    deadline = time.monotonic() + PATIENCE
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise NotAtRest("after %d s not yet: %s" % (PATIENCE, what() if callable(what) else what))
        waiting.wait(0.02)


class Node:
    def __init__(self, name, dsn, data, log):
        self.name, self.dsn, self.data, self.log = name, dsn, data, log
        self.connection = None
        self.log_read = 0
        self.id = self.sql("SELECT node_id FROM repl_ml.local_node")[0][0]

    def sql(self, statement, *values):
        """Runs SQL by itself and returns its rows; tries again on a new connection if the old one was lost."""
        try:
            return self.execute(statement, values)
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            if self.connection is not None and not self.connection.closed:
                raise
            self.connection = None
            return self.execute(statement, values)

    def execute(self, statement, values):
        if self.connection is None:
            self.connection = psycopg2.connect(self.dsn, connect_timeout=5)
            self.connection.autocommit = True
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def dicts(self, statement, *values):
        with self.connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall()

    def crash(self):
        subprocess.run(["pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop"], check=True, stdout=subprocess.DEVNULL)

    def start(self):
        subprocess.run(["pg_ctl", "-D", self.data, "-l", self.log, "-w", "start"], check=True, stdout=subprocess.DEVNULL)
        self.connection = None

    def new_log(self):
        """What the server has logged since the last call."""
        with open(self.log, errors="replace") as log:
            log.seek(self.log_read)
            text = log.read()
            self.log_read = log.tell()
        return text


class Group:
    def __init__(self, nodes):
        self.nodes = nodes
        self.names = {node.id: node.name for node in nodes}
        self.links = [(reader, writer) for reader in nodes for writer in nodes if reader is not writer]

    def prepare(self):
        """Makes the tables and their resolvers, once."""
        first = self.nodes[0]
        if first.sql("SELECT to_regclass('note') IS NOT NULL")[0][0]:
            return
        for table in TABLES:
            first.sql(table.ddl())
            first.sql("SELECT repl_ml.add_table(%s)", table.name)
        first.sql(TALLY_DDL)
        first.sql("SELECT repl_ml.add_table('tally')")
        for node in self.nodes:
            wait_until(lambda: node.sql("SELECT count(*) FROM repl_ml.tables WHERE state = 'replicated' AND pending_copies = 0")[0][0] == len(TABLES) + 1,
                       "%s has all tables" % node.name)
        for node in self.nodes:
            node.sql(FUNCTION_DDL)
            # not replicated: each node's own word for what was committed there
            node.sql("CREATE TABLE converge_ledger (writer text, transaction int)")
        for table in TABLES:
            if table.resolver:
                first.sql("SELECT repl_ml.set_resolver(%s, %s)", table.name, table.resolver)
        for column, merge in TALLY_MERGES.items():
            first.sql("SELECT repl_ml.set_column_merge('tally', %s, %s)", column, merge)
        self.rest()

    # links

    def pause(self, reader, writer):
        reader.sql("SELECT repl_ml.pause_apply(%s)", writer.name)

    def resume(self, reader, writer):
        reader.sql("SELECT repl_ml.resume_apply(%s)", writer.name)

    def slot(self, reader, writer):
        return writer.sql("SELECT repl_ml.link_name(%s)", reader.id)[0][0]

    def drop_slot(self, reader, writer):
        """Loses the slot, so that all tables are copied again."""
        slot = self.slot(reader, writer)
        self.pause(reader, writer)
        # lost a moment ago, it is not there again yet
        wait_until(lambda: writer.sql("SELECT count(*) = 0 FROM pg_replication_slots WHERE active AND slot_name = %s", slot)[0][0],
                   "slot %s is not in use" % slot)
        writer.sql("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s", slot)
        self.resume(reader, writer)

    def end_worker(self, reader, writer):
        reader.sql("SELECT pg_terminate_backend(pid) FROM repl_ml.stat_apply WHERE node_id = %s AND pid IS NOT NULL", writer.id)

    def end_walsender(self, reader, writer):
        writer.sql("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", self.slot(reader, writer))

    def origins(self):
        """How far each link is, to be set back to later."""
        return {(reader.name, writer.name): reader.sql("SELECT pg_replication_origin_progress(repl_ml.link_name(%s), true)", writer.id)[0][0]
                for reader, writer in self.links}

    def rewind(self, reader, writer, position):
        """Sets a link back: the writer forgets what was confirmed by a crash, the reader is told an older position."""
        self.pause(reader, writer)
        writer.crash()
        writer.start()
        self.end_worker(reader, writer)

        def set_back():
            try:
                reader.sql("SELECT pg_replication_origin_advance(repl_ml.link_name(%s), %s)", writer.id, position)
                return True
            except psycopg2.errors.ObjectInUse:
                self.end_worker(reader, writer)
                return False
        wait_until(set_back, "the origin of %s on %s is free" % (writer.name, reader.name))
        self.resume(reader, writer)

    # at rest

    def rest(self):
        """Lets all links run until every node has everything, also what applying itself brings about."""
        for reader, writer in self.links:
            self.resume(reader, writer)
        before = None
        while True:
            self.wait_for_streams()
            after = [node.sql("SELECT count(*) FROM repl_ml.tombstone WHERE eviction IS NOT NULL")[0][0] for node in self.nodes]
            if after == before:
                return
            before = after

    def wait_for_streams(self):
        for node in self.nodes:
            wait_until(lambda: node.sql("SELECT NOT EXISTS (SELECT FROM repl_ml.eviction) AND NOT EXISTS (SELECT FROM repl_ml.table_sync WHERE state = 'pending')"
                                        " AND (SELECT bool_and(state = 'streaming') FROM repl_ml.stat_apply)")[0][0],
                       lambda: "workers of %s stream: %s" % (node.name, node.sql("SELECT node_name, state, error_sqlstate, error_message FROM repl_ml.stat_apply")))
        positions = [(node, node.sql("SELECT pg_current_wal_flush_lsn()")[0][0]) for node in self.nodes]
        for node, position in positions:
            wait_until(lambda: node.sql("SELECT count(*) FILTER (WHERE greatest(confirmed_flush_lsn, CASE WHEN replay_lsn <= write_lsn THEN replay_lsn END) >= %s) >= %s FROM pg_replication_slots s LEFT JOIN pg_stat_replication w ON w.pid = s.active_pid WHERE slot_name LIKE 'repl\\_ml\\_%%'",
                                        position, len(self.nodes) - 1)[0][0],
                       "all have what %s wrote" % node.name)
