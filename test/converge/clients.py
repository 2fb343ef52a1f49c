"""Clients: transactions planned by the seed, and a record of every version they wrote."""
import json
import random
import threading
import time

import psycopg2

from group import wait_until
from model import Version, parse_clock
from tables import CHOSEN, KEYS

KINDS = {"insert": 12, "insert_if_new": 6, "upsert": 26, "update": 30, "update_some": 5, "delete": 12, "move": 9}


class Progress:
    """How many transactions the clients have tried, for whoever wants to do something in between."""

    def __init__(self, total):
        self.total, self.count = total, 0
        self.changed = threading.Condition()

    def step(self):
        with self.changed:
            self.count += 1
            self.changed.notify_all()

    def wait_for(self, count):
        with self.changed:
            self.changed.wait_for(lambda: self.count >= count)

    def is_over(self):
        return self.count >= self.total


class Step:
    """One statement of a plan."""

    def __init__(self, kind, table, keys, values, undone=False):
        self.kind, self.table, self.keys, self.values, self.undone = kind, table, keys, values, undone


class Writer:
    """A connection to a node, and what was written over it."""

    def __init__(self, node, name):
        self.node, self.name = node, name
        self.connection = None
        self.committed, self.uncertain = [], []  # versions; (number of the transaction, versions)
        self.transactions = 0
        self.refused = 0

    def transact(self, steps, roll_back=False):
        """True if it was committed, for all this client knows."""
        versions, began = [], time.monotonic()
        self.transactions += 1
        try:
            if self.connection is None:
                self.connection = wait_until(self.connect, "%s accepts connections" % self.node.name)
            with self.connection.cursor() as cursor:
                for step in steps:
                    versions += self.run_step(cursor, step)
                cursor.execute("INSERT INTO converge_ledger VALUES (%s, %s)", (self.name, self.transactions))
                cursor.execute("SELECT floor::text FROM repl_ml.collection WHERE node_id = %s UNION ALL SELECT '{}' LIMIT 1", (self.node.id,))
                floor = parse_clock(cursor.fetchone()[0])
            for version in versions:
                version.floor, version.began = floor, began
                version.transaction = (self.name, self.transactions)
            if roll_back:
                self.connection.rollback()
                return False
            self.connection.commit()
            for version in versions:
                version.ended = time.monotonic()
            self.committed += versions
            return True
        except psycopg2.Error:
            if self.is_connected():
                self.refused += 1
            else:
                self.connection = None
                self.uncertain.append((self.transactions, versions))
            return False

    def is_connected(self):
        """Ends the transaction; False if that is not to be had any more."""
        try:
            self.connection.rollback()
            return not self.connection.closed
        except psycopg2.Error:
            return False

    def connect(self):
        try:
            return psycopg2.connect(self.node.dsn, connect_timeout=5, options="-c statement_timeout=60s")
        except psycopg2.OperationalError:
            return None

    def settle(self):
        """Asks, after a lost connection, what had been committed all the same (an xid may be used again after a crash)."""
        for number, versions in self.uncertain:
            if self.node.sql("SELECT EXISTS (SELECT FROM converge_ledger WHERE writer = %s AND transaction = %s)", self.name, number)[0][0]:
                self.committed += versions
        lost, self.uncertain = len(self.uncertain), []
        if self.connection is not None:
            self.connection.close()
        return lost

    def run_step(self, cursor, step):
        if step.undone:
            cursor.execute("SAVEPOINT undone")
        # whose place the write takes: locked, so that it is known
        cursor.execute("SELECT id, __repl_clock::text FROM %s WHERE id = ANY (%%s) ORDER BY id FOR UPDATE" % step.table.name,
                       (step.keys if step.kind == "update_some" else step.keys[:1],))
        before = {key: parse_clock(clock) for key, clock in cursor.fetchall()}
        cursor.execute(*self.statement(step))
        first_clocks = dict(cursor.fetchall())
        written, deleted = list(first_clocks), []
        if step.kind == "delete":
            written, deleted = [], written
        if step.kind == "move" and written:
            deleted = step.keys[:1]
        versions = self.read_rows(cursor, step.table, written, first_clocks) + [self.read_deletion(cursor, step.table, key) for key in deleted]
        for version in versions:
            version.before = before.get(version.key)
        if step.undone:
            cursor.execute("ROLLBACK TO undone")
            return []
        return versions

    def statement(self, step):
        sql, values = self.write(step)
        return sql + " RETURNING id, __repl_clock::text", values

    def write(self, step):
        name, key, values = step.table.name, step.keys[0], step.values
        columns, places = ", ".join(["id", *values]), ", ".join(["%s"] * (len(values) + 1))
        assign = ", ".join("%s = %%s" % column for column in values)
        row = [key, *values.values()]
        if step.kind == "insert":
            return "INSERT INTO %s (%s) VALUES (%s)" % (name, columns, places), row
        if step.kind == "insert_if_new":
            return "INSERT INTO %s (%s) VALUES (%s) ON CONFLICT DO NOTHING" % (name, columns, places), row
        if step.kind == "upsert":
            excluded = ", ".join("%s = excluded.%s" % (column, column) for column in values)
            return "INSERT INTO %s (%s) VALUES (%s) ON CONFLICT (id) DO UPDATE SET %s" % (name, columns, places, excluded), row
        if step.kind == "update":
            return "UPDATE %s SET %s WHERE id = %%s" % (name, assign), [*values.values(), key]
        if step.kind == "update_some":
            column = next(reversed(values))
            return "UPDATE %s SET %s = %%s WHERE id = ANY (%%s)" % (name, column), [values[column], step.keys]
        if step.kind == "delete":
            return "DELETE FROM %s WHERE id = %%s" % name, [key]
        return "UPDATE %s SET id = %%s WHERE id = %%s" % name, [step.keys[1], key]

    def read_rows(self, cursor, table, keys, first_clocks):
        """What was written: twice where the clock was lifted above tombstones at the statement's end."""
        if not keys:
            return []
        cursor.execute("SELECT row_to_json(t)::text FROM %s t WHERE id = ANY (%%s)" % table.name, (keys,))
        versions = []
        for text, in cursor.fetchall():
            content = json.loads(text)
            first, last = first_clocks[content["id"]], content.pop("__repl_clock")
            for clock in {first, last}:
                versions.append(Version(table.name, content["id"], parse_clock(clock), content, self.node.name, self.name))
                versions[-1].is_lifted = clock != last
        return versions

    def read_deletion(self, cursor, table, key):
        cursor.execute("SELECT __repl_clock::text FROM repl_ml.tombstone WHERE table_name = %s AND key = ARRAY[%s]"
                       " AND repl_ml.last_writer(__repl_clock) = %s ORDER BY repl_ml.max_counter(__repl_clock) DESC LIMIT 1",
                       (table.name, key, self.node.id))
        return Version(table.name, key, parse_clock(cursor.fetchone()[0]), None, self.node.name, self.name)


class Client(threading.Thread):
    """Does so many transactions on one node; which ones depends on the seed and its number only."""

    def __init__(self, number, node, seed, transactions, progress):
        super().__init__()
        self.number, self.seed, self.transactions, self.progress = number, seed, transactions, progress
        self.prefix = "s%d-" % seed
        self.random = random.Random("client %d %d" % (seed, number))
        self.serial = 0
        self.writers = [Writer(node, "client %d of seed %d on %s" % (number, seed, node.name))]
        self.error = None

    def tag(self):
        """A text nobody else writes."""
        self.serial += 1
        return "c%d-%d" % (self.number, self.serial)

    def run(self):
        try:
            for _ in range(self.transactions):
                steps = self.plan()
                self.writers[0].transact(steps, roll_back=self.random.random() < 0.05)
                self.progress.step()
        except Exception as error:
            self.error = error
            self.progress.count = self.progress.total
            self.progress.step()

    def plan(self):
        return [self.plan_step() for _ in range(self.random.choice((1, 1, 1, 2, 2, 3, 4)))]

    def plan_step(self):
        table = self.random.choice(CHOSEN)
        kind, = self.random.choices(list(KINDS), KINDS.values())
        keys = ["%sk%d" % (self.prefix, number) for number in self.random.sample(range(KEYS), 3)]
        return Step(kind, table, keys, table.values(self), undone=self.random.random() < 0.06)


class Relay(threading.Thread):
    """Writes one row on one node after the other, each time when the former write has arrived: no conflict, ever."""

    def __init__(self, nodes, seed, progress):
        super().__init__()
        self.seed, self.progress, self.number = seed, progress, 0
        self.prefix = "s%d-" % seed
        self.random = random.Random("relay %d" % seed)
        self.writers = [Writer(node, "relay of seed %d on %s" % (seed, node.name)) for node in nodes]
        self.table = self.random.choice(CHOSEN)
        self.key = self.prefix + "relay"
        self.error = None
        self.handed_on = 0

    tag = Client.tag
    serial = 0

    def run(self):
        try:
            former = None
            while not self.progress.is_over():
                writer = self.random.choice(self.writers)
                if former is not None and not self.wait_for(writer.node, former):
                    return
                kind = self.random.choice(("upsert", "upsert", "delete")) if former and former.content else "upsert"
                values = self.table.values(self)
                values.update({column: None for columns in self.table.unique for column in columns})
                if not writer.transact([Step(kind, self.table, [self.key], values)]):
                    return
                former = writer.committed[-1]
                self.handed_on += 1
        except Exception as error:
            self.error = error

    def wait_for(self, node, version):
        """Until the version is on the node; False if the clients came to their end before."""
        counter, writer = version.dot
        reads = wait_until(Writer(node, "").connect, "%s accepts connections" % node.name)
        try:
            with reads.cursor() as cursor:
                while not self.progress.is_over():
                    cursor.execute("SELECT EXISTS (SELECT FROM {0} WHERE id = %s AND repl_ml.counter(__repl_clock, %s) >= %s)"
                                   " OR EXISTS (SELECT FROM repl_ml.tombstone WHERE table_name = '{0}' AND key = ARRAY[%s] AND repl_ml.counter(__repl_clock, %s) >= %s)"
                                   .format(self.table.name), (self.key, writer, counter) * 2)
                    if cursor.fetchone()[0]:
                        return True
                    reads.rollback()
                    self.pause.wait(0.01)
            return False
        except psycopg2.Error:
            return False
        finally:
            reads.close()

    pause = threading.Event()  # never set
