"""Clients: operations planned by the seed, and a record of what was asked and answered.

A lost connection, a client's own timeout and 40003 leave the outcome open
("info"). Every other error means that nothing was done. Nothing is tried again
under the same id.
"""
import math
import random
import select
import threading

import psycopg2
import psycopg2.extensions

from history import Answer, Operation, Witness, now, parse_clock

REGISTERS = 4
WANTED = 40       # ids a read looks for
PATIENCE = 6      # seconds until a client gives up on one statement
TABLES = ("CREATE TABLE history_register (key bigint PRIMARY KEY, value bigint NOT NULL)",
          "CREATE TABLE history_entry (id bigint PRIMARY KEY)")
LEVELS = {"one": 2, "quorum": 10, "all": 2}
KINDS = {"write": 9, "insert": 6, "read": 8, "look": 4, "after": 3, "ask": 2}

READ = """
SELECT r.key, r.value, r.__repl_clock::text, e.id IS NOT NULL FROM history_register r LEFT JOIN history_entry e ON e.id = r.value WHERE r.key = ANY (%s)
UNION ALL SELECT NULL, e.id, NULL, NULL FROM history_entry e WHERE e.id = ANY (%s)
"""


# what a session says last when its server ends at once: it may come right behind the success of a commit
SERVER_ENDS = ("terminating connection due to immediate shutdown command",
               "terminating connection because of crash of another server process")


class TimedOut(psycopg2.Error):
    pass


class Connection(psycopg2.extensions.connection):
    """One that gives up at a deadline."""
    deadline = None
    linger = None  # called between a request and the look at its answer


def wait(connection):
    """What psycopg2 calls instead of waiting for ever; connections of other kinds do."""
    deadline = getattr(connection, "deadline", math.inf) or now() + PATIENCE
    while True:
        state = connection.poll()
        if state == psycopg2.extensions.POLL_OK:
            return
        lists = ([connection], []) if state == psycopg2.extensions.POLL_READ else ([], [connection])
        left = deadline - now()
        if getattr(connection, "linger", None):
            connection.linger()
        if left <= 0 or not any(select.select(*lists, [], None if math.isinf(left) else left)):
            raise TimedOut("the client's own timeout")


psycopg2.extensions.set_wait_callback(wait)


class Shared:
    """What clients know of each other's writes."""

    def __init__(self, history, prefix, servers):
        self.history, self.prefix, self.servers = history, prefix, servers
        self.keys = [prefix + number for number in range(REGISTERS)]
        self.acknowledged = []                                          # ids with an answer, in that order
        self.waiting = {server.name: {} for server in servers}          # node: {id: operation} whose COMMIT is under way
        self.vectors = []                                               # (operation, vector)
        self.written = []                                               # operations that have a token
        self.is_over = threading.Event()


class Client(threading.Thread):
    """A connection to one node. What it does depends on the seed and its number, but for what it learns from others."""

    def __init__(self, number, server, seed, shared):
        super().__init__()
        self.number, self.server, self.shared = number, server, shared
        self.random = random.Random("client %d %d" % (seed, number))
        self.serial = 0
        self.connection = None
        self.witnesses = {}  # connections to other nodes
        self.error = None
        self.by_session = number % 2  # the level is set for the session; else for each transaction
        self.successes = 0

    def run(self):
        try:
            while not self.shared.is_over.is_set():
                if self.connect():
                    self.operate()
                else:
                    self.shared.is_over.wait(0.05)
        except Exception as error:
            self.error = error
        finally:
            self.disconnect()

    def connect(self):
        if self.connection is not None and not self.connection.closed:
            return True
        try:
            self.connection = psycopg2.connect(self.server.dsn() + " tcp_user_timeout=%d" % (PATIENCE * 1000), connection_factory=Connection)
            self.connection.autocommit = True
            return True
        except psycopg2.Error:
            return False

    def disconnect(self):
        for connection in [self.connection, *self.witnesses.values()]:
            if connection is not None:
                connection.close()

    def operate(self):
        kind, = self.random.choices(list(KINDS), KINDS.values())
        if kind == "ask":
            return self.ask_for_status()
        self.serial += 1
        operation = Operation(self.shared.prefix + 1000000 * (self.number + 1) + self.serial, kind, self.number, self.server.name, invoked=now())
        try:
            with self.connection.cursor() as cursor:
                (self.write if operation.is_write() else self.read)(cursor, operation)
            operation.outcome = "ok"
            self.successes += 1
        except psycopg2.Error as error:
            self.classify(operation, error)
        operation.returned = now()
        self.shared.history.add(operation)
        if operation.is_write():
            self.tell_others(operation)
        if operation.outcome != "ok":
            self.shared.is_over.wait(0.02)

    def classify(self, operation, error):
        operation.error = "%s %s" % (error.pgcode, str(error).strip().split("\n")[0])
        if self.connection.closed or error.pgcode is None or error.diag.severity_nonlocalized != "ERROR":
            self.connection.close()
        elif error.pgcode != "40003":
            operation.outcome = "fail"
        if not self.connection.closed:
            self.execute(self.connection.cursor(), "ROLLBACK", tolerant=True)

    def execute(self, cursor, statement, *values, tolerant=False):
        self.connection.deadline = now() + PATIENCE
        try:
            cursor.execute(statement, values or None)
        except psycopg2.Error:
            if not tolerant:
                raise

    # writes

    def write(self, cursor, operation):
        operation.level, = self.random.choices(list(LEVELS), LEVELS.values())
        if operation.kind == "write":
            operation.key = self.random.choice(self.shared.keys)
        setting = "repl_ml.write_consistency = '%s'" % operation.level
        self.execute(cursor, ("SET %s; BEGIN" if self.by_session else "BEGIN; SET LOCAL %s") % setting)
        self.execute(cursor, "INSERT INTO history_entry VALUES (%s)", operation.id)
        if operation.kind == "write":
            self.execute(cursor, "UPDATE history_register SET value = %s WHERE key = %s RETURNING __repl_clock::text", operation.id, operation.key)
            operation.clock = parse_clock(cursor.fetchone()[0])
        if self.random.random() < 0.6:
            self.execute(cursor, "SELECT repl_ml.transaction_token()")
            operation.token = cursor.fetchone()[0]
        self.commit(cursor, operation)

    def commit(self, cursor, operation):
        del self.connection.notices[:]
        self.shared.waiting[self.server.name][operation.id] = operation
        operation.committing = now()
        try:
            self.execute(cursor, "COMMIT")
            if cursor.statusmessage != "COMMIT":
                raise AssertionError("COMMIT says %s" % cursor.statusmessage)
            operation.notices = [notice for notice in self.connection.notices
                                 if notice.startswith("WARNING") and not any(end in notice for end in SERVER_ENDS)] or None
        finally:
            del self.shared.waiting[self.server.name][operation.id]

    def ask_for_status(self):
        """Of one of the last writes, whose outcome its client may not know."""
        write = self.random.choice(self.shared.written[-10:] or [None])
        if write is None:
            return
        began = now()
        try:
            with self.connection.cursor() as cursor:
                self.execute(cursor, "SELECT repl_ml.transaction_status(%s)", write.token)
                self.shared.history.add(Answer(write.id, self.server.name, began, now(), cursor.fetchone()[0]))
        except psycopg2.Error:
            self.connection.close()

    def tell_others(self, operation):
        if operation.token is not None and (operation.outcome == "info" or self.random.random() < 0.2):
            self.shared.written.append(operation)
        if operation.outcome != "ok":
            return
        if operation.level != "one":
            self.shared.acknowledged.append(operation.id)
        if self.random.random() < 0.2:
            with self.connection.cursor() as cursor:
                try:
                    self.execute(cursor, "SELECT repl_ml.current_vector()::text")
                    self.shared.vectors.append((operation, cursor.fetchone()[0]))
                except psycopg2.Error:
                    self.connection.close()

    # reads

    def read(self, cursor, operation):
        operation.wanted = self.shared.acknowledged[-WANTED:]
        if operation.kind == "look":
            operation.way = "plain"
            operation.wanted = list(self.shared.waiting[self.server.name]) + operation.wanted
        elif operation.kind == "after" and self.shared.vectors:
            write, vector = self.random.choice(self.shared.vectors[-5:])
            operation.way, operation.write = "vector", write.id
            operation.wanted.append(write.id)
            operation.invoked = now()
            self.execute(cursor, "SELECT repl_ml.wait_for_vector(%s, '5 s')", vector)
        else:
            operation.kind, operation.way = "read", self.random.choice(("function", "setting"))
            operation.invoked = now()
            if operation.way == "function":
                self.execute(cursor, "SELECT repl_ml.barrier('5 s')")
        by_setting = operation.way == "setting"
        if by_setting:
            self.execute(cursor, "SET repl_ml.read_consistency = barrier")
        try:
            self.execute(cursor, READ, self.shared.keys, operation.wanted)
            rows = cursor.fetchall()
        finally:
            if by_setting and not self.connection.closed:
                self.execute(cursor, "RESET repl_ml.read_consistency", tolerant=True)
        operation.registers = {key: (value, parse_clock(clock)) for key, value, clock, _ in rows if key is not None}
        operation.torn = [value for key, value, _, whole in rows if key is not None and not whole]
        operation.found = [value for key, value, _, _ in rows if key is None]
        if operation.kind == "look":
            self.call_witnesses(operation)

    def call_witnesses(self, look):
        """Who else has what was seen here before its client has the answer?"""
        seen = now()
        for id in look.found:
            write = self.shared.waiting[self.server.name].get(id)
            if write is None or write.level == "one":
                continue
            others = [server for server in self.shared.servers if server is not self.server]
            has = {server.name: self.ask(server, id) for server in others}
            self.shared.history.add(Witness(id, seen, {name: answer for name, answer in has.items() if answer is not None}))

    def ask(self, server, id):
        """Is it there, or put aside there until a commit that waits lets go of a row? None if the server does not answer."""
        connection = self.witnesses.pop(server.name, None)
        try:
            if connection is None:
                connection = psycopg2.connect(server.admin_dsn(), connection_factory=Connection)
                connection.autocommit = True
            connection.deadline = now() + 1
            with connection.cursor() as cursor:
                cursor.execute("SELECT EXISTS (SELECT FROM history_entry WHERE id = %s) OR EXISTS (SELECT FROM repl_ml.parked_changes"
                               " WHERE put_aside AND table_name = 'history_entry' AND change ->> 'id' = %s)", (id, str(id)))
                answer = cursor.fetchone()[0]
            self.witnesses[server.name] = connection
            return answer
        except psycopg2.Error:
            return None
