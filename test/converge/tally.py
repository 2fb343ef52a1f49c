"""Columns that are merged: clients that only add to rows, and what must come of it.

Whatever came in which order, however often: a counter is the sum of what was
added, the other columns have all that was put into them, and each of the
independent ones is what was last written to it.
"""
import random
import threading

from clients import Writer
from model import dot_of, parse_clock

KEYS = 3


class Addition:
    """One write: how much it added, and which of a and b it wrote."""

    def __init__(self, key, dot, amount, tag, texts):
        self.key, self.dot, self.amount, self.tag, self.texts = key, dot, amount, tag, texts

    def __repr__(self):
        return "%d by %s at %d:%d, %s" % (self.amount, self.tag, self.dot[1], self.dot[0], self.texts)


class TallyWriter(Writer):
    def run_step(self, cursor, step):
        """A step is (key, amount, tag, column, is_set): adds the amount or, is_set, makes it the value of n."""
        key, amount, tag, column, is_set = step
        cursor.execute("SELECT n FROM tally WHERE id = %s FOR UPDATE", (key,))
        before = cursor.fetchone()
        if is_set and before:
            amount -= before[0]
        cursor.execute("INSERT INTO tally AS t (id, n, vec, peak, tags, doc, {0}) VALUES (%(key)s, %(n)s, ARRAY[%(n)s, 1], %(n)s, ARRAY[%(tag)s], jsonb_build_object(%(tag)s, %(n)s), %(tag)s)"
                       " ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n, vec = ARRAY[t.vec[1] + excluded.vec[1], t.vec[2] + 1], peak = greatest(t.peak, excluded.peak),"
                       " tags = t.tags || excluded.tags, doc = t.doc || excluded.doc, {0} = excluded.{0} RETURNING __repl_clock::text, xmax = 0".format(column),
                       {"key": key, "n": amount, "tag": tag})
        clock, inserted = cursor.fetchone()
        texts = {"a": None, "b": None, column: tag} if inserted else {column: tag}
        return [Addition(key, dot_of(parse_clock(clock)), amount, tag, texts)]


class TallyClient(threading.Thread):
    """Adds on one node; what depends on the seed and its number only."""

    def __init__(self, number, node, seed, transactions):
        super().__init__()
        self.number, self.transactions = "t%d" % number, transactions
        self.prefix = "s%d-" % seed
        self.random = random.Random("tally %d %d" % (seed, number))
        self.writers = [TallyWriter(node, "tally %d of seed %d on %s" % (number, seed, node.name))]
        self.serial = 0
        self.error = None

    def tag(self):
        self.serial += 1
        return "%s-%d" % (self.number, self.serial)

    def step(self):
        return ("%sk%d" % (self.prefix, self.random.randrange(KEYS)), self.random.randrange(-20, 50), self.tag(),
                self.random.choice("ab"), self.random.random() < 0.2)

    def run(self):
        try:
            for _ in range(self.transactions):
                self.writers[0].transact([self.step() for _ in range(self.random.choice((1, 1, 2)))], roll_back=self.random.random() < 0.05)
        except Exception as error:
            self.error = error


def expected(additions):
    """The columns of a row, made of all additions to it."""
    last = {}
    for column in "ab":
        last[column] = max((a for a in additions if column in a.texts), key=lambda a: a.dot, default=None)
    return {"n": sum(a.amount for a in additions), "vec": [sum(a.amount for a in additions), len(additions)],
            "peak": max(a.amount for a in additions), "tags": {a.tag for a in additions}, "doc": {a.tag: a.amount for a in additions},
            **{column: last[column] and last[column].texts[column] for column in last}}


def merged_columns(case):
    """A rule of check.py: on every node each row is what was added to it, under one clock, and only a and b have lost anything."""
    rows = {}
    for addition in case.additions:
        rows.setdefault(addition.key, []).append(addition)
    clocks = {}
    for node in case.group.nodes:
        has = {row["id"]: row for row in node.dicts("SELECT *, __repl_clock::text AS clock FROM tally WHERE id LIKE %s", case.prefix + "%")}
        for key in has.keys() | rows.keys():
            if key not in has or key not in rows:
                yield "%s: tally %s is %s" % (node.name, key, "missing" if key in rows else "nobody's")
                continue
            clocks.setdefault(key, (node.name, has[key]["clock"]))
            yield from check_row(node.name, has[key], expected(rows[key]), rows[key])
            if has[key]["clock"] != clocks[key][1]:
                yield "tally %s has clock %s on %s and %s on %s" % (key, *reversed(clocks[key]), has[key]["clock"], node.name)
        for key, lost in node.sql("SELECT key[1], lost_columns::text[] FROM repl_ml.conflict_history WHERE table_name = 'tally' AND key[1] LIKE %s", case.prefix + "%"):
            if not set(lost) <= {"a", "b"}:
                yield "%s: tally %s has lost %s" % (node.name, key, lost)


def check_row(name, row, wanted, additions):
    if len(row["tags"]) != len(set(row["tags"])):
        yield "%s: tally %s has tags more than once: %s" % (name, row["id"], row["tags"])
    row = {**row, "tags": set(row["tags"])}
    for column, value in wanted.items():
        if row[column] != value:
            yield "%s: tally %s has %s %s, must have %s: %s under %s" % (name, row["id"], column, row[column], value, additions, row["clock"])
