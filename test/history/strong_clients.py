"""Clients of strong tables: ordinary statements, planned by the seed, and a record of what was seen.

Lists and registers are read under the locks of the rows, as RETURNING and FOR
UPDATE do, but for reads behind a barrier.
"""
import random

import psycopg2

from clients import Client
from history import now
from strong_history import Deed

LISTS = 3
REGISTERS = 2
NAMES = 2         # that numbers are counted for
KINDS = {"append": 6, "swap": 4, "set": 3, "number": 5, "share": 2, "read": 4}
TABLES = ("CREATE TABLE strong_list (key bigint PRIMARY KEY, entries bigint[] NOT NULL DEFAULT '{}')",
          "CREATE TABLE strong_register (key bigint PRIMARY KEY, version bigint NOT NULL DEFAULT 0, value bigint NOT NULL DEFAULT 0)",
          "CREATE TABLE strong_number (name bigint, number bigint, id bigint NOT NULL, PRIMARY KEY (name, number))",
          "SELECT repl_ml.add_table(name, class => 'strong') FROM unnest('{strong_list,strong_register,strong_number}'::regclass[]) name")


class StrongClient(Client):
    """A connection to one node."""

    def __init__(self, number, server, seed, shared):
        super().__init__(number, server, seed, shared)
        self.random = random.Random("strong client %d %d" % (seed, number))
        self.last = {}  # register: the last version that was seen

    def operate(self):
        kind, = self.random.choices(list(KINDS), KINDS.values())
        self.serial += 1
        deed = Deed(self.shared.prefix + 1000000 * (self.number + 1) + self.serial, kind, self.number, self.server.name, invoked=now())
        try:
            with self.connection.cursor() as cursor:
                getattr(self, "do_" + kind)(cursor, deed)
            deed.outcome = "ok"
            self.successes += 1
        except psycopg2.Error as error:
            self.classify(deed, error)
        deed.returned = now()
        self.shared.history.add(deed)
        if deed.outcome != "ok":
            self.shared.is_over.wait(0.02)

    def key(self, count):
        return self.shared.prefix + self.random.randrange(count)

    def ask(self, cursor, statement, *values):
        self.execute(cursor, statement, *values)
        return cursor.fetchall()

    def commit(self, cursor, deed):
        deed.committing = now()
        self.execute(cursor, "COMMIT")
        if cursor.statusmessage != "COMMIT":
            raise AssertionError("COMMIT says %s" % cursor.statusmessage)

    def do_append(self, cursor, deed):
        keys = self.random.sample(range(LISTS), self.random.choice((1, 1, 2)))
        deed.appended, deed.lists = [self.shared.prefix + key for key in keys], {}
        self.execute(cursor, "BEGIN")
        for key in deed.appended:
            entries, = self.ask(cursor, "UPDATE strong_list SET entries = entries || %s::bigint WHERE key = %s RETURNING entries", deed.id, key)[0]
            deed.lists[key] = entries[:-1]
        self.commit(cursor, deed)

    def do_swap(self, cursor, deed):
        key = self.key(REGISTERS)
        expected = self.last.get(key, [0, 0])
        self.execute(cursor, "BEGIN")
        swapped = self.ask(cursor, "UPDATE strong_register SET value = %s, version = version + 1 WHERE key = %s AND value = %s RETURNING version",
                           deed.id, key, expected[1])
        if swapped:
            deed.versions, deed.wrote = {key: [swapped[0][0] - 1, expected[1]]}, [key, swapped[0][0]]
        else:
            deed.versions = {key: list(self.ask(cursor, "SELECT version, value FROM strong_register WHERE key = %s FOR SHARE", key)[0])}
            self.last[key] = deed.versions[key]
        self.commit(cursor, deed)
        if deed.wrote:
            self.last[key] = [deed.wrote[1], deed.id]

    def do_set(self, cursor, deed):
        key = self.key(REGISTERS)
        self.execute(cursor, "BEGIN")
        version, value = self.ask(cursor, "SELECT version, value FROM strong_register WHERE key = %s FOR UPDATE", key)[0]
        deed.versions = {key: [version, value]}
        self.execute(cursor, "UPDATE strong_register SET value = %s, version = %s WHERE key = %s", deed.id, version + 1, key)
        deed.wrote = [key, version + 1]
        self.commit(cursor, deed)
        self.last[key] = [version + 1, deed.id]

    def do_number(self, cursor, deed):
        name = self.key(NAMES)
        deed.committing = now()
        highest, = self.ask(cursor, "INSERT INTO strong_number SELECT %s, coalesce(max(number), 0) + 1, %s FROM strong_number WHERE name = %s"
                            " RETURNING number", name, deed.id, name)[0]
        deed.number = [name, highest]

    def do_share(self, cursor, deed):
        self.execute(cursor, "BEGIN")
        deed.lists = dict(self.ask(cursor, "SELECT key, entries FROM strong_list WHERE key / 1000000000 = %s ORDER BY key FOR SHARE", self.shared.seed))
        deed.versions = {key: [version, value] for key, version, value in self.ask(
            cursor, "SELECT key, version, value FROM strong_register WHERE key / 1000000000 = %s ORDER BY key FOR SHARE", self.shared.seed)}
        self.commit(cursor, deed)

    def do_read(self, cursor, deed):
        self.execute(cursor, "SELECT repl_ml.barrier('5 s')")
        deed.lists = dict(self.ask(cursor, "SELECT key, entries FROM strong_list WHERE key / 1000000000 = %s", self.shared.seed))
        deed.versions = {key: [version, value] for key, version, value in self.ask(
            cursor, "SELECT key, version, value FROM strong_register WHERE key / 1000000000 = %s", self.shared.seed)}
