"""repl_ml.verify_all beside the tester's own comparison: while clients write and links stand still, and at rest.

While they write no table may be said to differ: what is on its way is incomplete
at most. At rest it must say what the tester finds: nothing, or that table.
"""
import random
import threading

import psycopg2

from tables import TABLES

PATIENCE = "5 s"  # of comparisons while clients write; longer ones would see less of it
COMPARED = {table.name for table in TABLES} | {"tally"}


class Watcher(threading.Thread):
    """Compares all tables on one node after the other until it is told to stop."""

    def __init__(self, group, seed):
        super().__init__()
        self.group, self.random = group, random.Random("verify %d" % seed)
        self.ended = threading.Event()
        self.counts = {}  # of tables compared, by what was said
        self.alarms = []

    def run(self):
        while not self.ended.is_set():
            try:
                self.compare(self.random.choice(self.group.nodes))
            except psycopg2.Error:
                # the server went down, or its backends
                self.ended.wait(0.1)

    def compare(self, node):
        connection = psycopg2.connect(node.dsn, connect_timeout=5)
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT relation::text, status, detail FROM repl_ml.verify_all(%s)", (PATIENCE,))
                for table, status, detail in cursor.fetchall():
                    self.counts[status] = self.counts.get(status, 0) + 1
                    if status == "differs":
                        cursor.execute("SELECT key, verdict, columns::text[], versions, detail FROM repl_ml.diff_rows(%s)", (table,))
                        self.alarms.append("while all wrote %s said of %s: %s; then: %s" % (node.name, table, detail, cursor.fetchall()[:2]))
        finally:
            connection.close()

    def stop(self):
        self.ended.set()
        self.join()

    def describe(self):
        return "compared while all wrote: " + (", ".join("%d %s" % (count, status) for status, count in sorted(self.counts.items())) or "nothing")


def at_rest(case, problems):
    """What verify_all says at rest that is not as the tester's own comparison of these nodes."""
    differ = {text.split(":")[0] for rule, text in problems if rule == "same_everywhere"}
    node = case.group.nodes[len(case.prefix) % len(case.group.nodes)]
    found = {table: (status, detail) for table, status, detail in
             node.sql("SELECT relation::text, status, detail FROM repl_ml.verify_all() WHERE relation::text = ANY (%s)", sorted(COMPARED))}
    for table in sorted(COMPARED - found.keys()):
        yield "%s has not compared %s" % (node.name, table)
    for table, (status, detail) in sorted(found.items()):
        if (status == "consistent") == (table in differ) or status == "incomplete":
            yield "%s says that %s %s (%s), the tester that it is %s: %s" % (
                node.name, table, status, detail, "not the same" if table in differ else "the same",
                node.sql("SELECT key, verdict, columns::text[], versions, detail FROM repl_ml.diff_rows(%s)", table)[:2])
