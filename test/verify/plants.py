#!/usr/bin/python3
"""Plants differences of all kinds into random tables; verify_table must find each, and repair_table mend it.

plants.py [--plants N] [--seed N] NODE...

A NODE is name|connection string|data directory|log file of a running member of a
group; all members must be given. Tables are made, compared (they are the same),
broken on single nodes past the triggers, compared again, repaired and compared a
last time, until N differences have been planted. Each table prints "ok" or "not
ok" and, indented, what was found. What is done is a function of the seed. The
exit status is 0 if all was ok.
"""
import argparse
import os
import random
import struct
import sys
import traceback

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "converge"))
from group import Group, Node, wait_until
from values import COLLATIONS, EXTENSIONS, FEW, KEYS, TYPES_DDL, VALUES

SIZES = [0, 1, 2, 3, 20, 100, 250]
SHOWN = 15  # findings of a table
LONG = "(SELECT string_agg(md5((i + %d)::text), '') FROM generate_series(1, 200) i)"

# columns that all tables have beside random ones: what plants are made of
FIXED = {"tag": "int4", "s1": "text", "s2": "text", "n": "int8", "f": "float8", "any_nan": "float8", "long": "text"}


class Row:
    """A row by its tag: literals of its columns, and what it was before its last write."""

    def __init__(self, tag, values):
        self.tag, self.values = tag, values
        self.old = None  # earlier literals and clock
        self.deleted_clock = None  # of a deleted row: the clock of its last version
        self.planted = False


class Wanted:
    """What a comparison must say of a row, and what repair_table must make of it."""

    def __init__(self, verdict, columns, after, plant):
        self.verdict, self.columns, self.after, self.plant = verdict, columns, after, plant


class Table:
    """A random table, made by each node in its own way."""

    def __init__(self, number, chance, nodes, extensions):
        self.name, self.chance, self.nodes = "t%d" % number, chance, nodes
        key_type = chance.choice(list(KEYS))
        self.keys = {"k%d" % i: (kind, FEW[kind]) for i, kind in enumerate(chance.sample(list(FEW), chance.choice([0, 0, 1, 2])))}
        self.keys["key"] = key_type, KEYS[key_type]
        kinds = {**VALUES, **{kind: values for name in extensions for kind, values in EXTENSIONS[name].items()}}
        self.columns = {"c%d" % i: kind for i, kind in enumerate(chance.sample(list(kinds), chance.randint(1, 9)))}
        self.choices = {column: kinds[kind] for column, kind in self.columns.items()}
        self.orders = {}  # of the key's columns, by node
        self.partitioned = key_type in ("int4", "int8", "text", "uuid", "date") and chance.random() < 0.5
        self.rows = {}
        self.wanted = {}
        self.plants = {node.name: [] for node in nodes}
        self.made = 0
        self.next_tag = 0

    # the table

    def ddl(self, node):
        chance = self.chance
        keys = list(self.keys)
        chance.shuffle(keys)
        self.orders[node.name] = keys
        columns = ['%s %s%s' % (column, kind, " COLLATE " + chance.choice(COLLATIONS) if kind in ("text", "varchar(30)") and chance.random() < 0.7 else "")
                   for column, (kind, _) in self.keys.items()]
        columns += ["%s %s" % (column, kind) for column, kind in [*FIXED.items(), *self.columns.items()] if column != "n"]
        columns += ["n %s" % chance.choice(["int8", "int4"]), "made int GENERATED ALWAYS AS (tag * %d) STORED" % node.id]
        gone = ["gone%d %s" % (i, chance.choice(["int", "text", "bool"])) for i in range(chance.choice([0, 0, 1, 3]))]
        columns += gone
        chance.shuffle(columns)
        partitions, by = self.partition_ddl()
        statements = ["CREATE TABLE %s (%s, PRIMARY KEY (%s))%s" % (self.name, ", ".join(columns), ", ".join(keys), by), *partitions]
        statements += ["ALTER TABLE %s DROP %s" % (self.name, column.split()[0]) for column in gone]
        statements += ["ALTER TABLE %s ALTER long SET STORAGE EXTERNAL" % self.name]
        return "; ".join(statements)

    def partition_ddl(self):
        """The partitions, which are others on each node."""
        if not self.partitioned:
            return [], ""
        count = self.chance.randint(1, 4)
        parts = ["CREATE TABLE {0}_{1} PARTITION OF {0} FOR VALUES WITH (MODULUS {2}, REMAINDER {1})".format(self.name, i, count) for i in range(count)]
        if self.keys["key"][0] == "int4" and self.chance.random() < 0.5:
            bounds = sorted(self.chance.sample(range(1, 400), 3))
            parts = ["CREATE TABLE {0}_{1} PARTITION OF {0} FOR VALUES FROM ({2}) TO ({3})".format(self.name, i, low, high)
                     for i, (low, high) in enumerate(zip(["MINVALUE", *bounds], [*bounds, "MAXVALUE"]))]
            return parts, " PARTITION BY RANGE (key)"
        return parts, " PARTITION BY HASH (key)"

    def literals(self):
        """A row's values; those with a NaN of an unusual kind are for plants only, as text does not hold it."""
        chance = self.chance
        values = {column: chance.choice([value for value in [*choices, "NULL"] if "(0x" not in value]) for column, choices in self.choices.items()}
        values.update(s1=chance.choice(["''", "'x'"]), s2=chance.choice(["'y'", "'z'", "NULL"]), n=str(chance.randint(-5, 5)), f=chance.choice(["'0'", "'NaN'", "'1.5'"]),
                      any_nan=chance.choice(["'NaN'", "'-NaN'"]), long=LONG % self.next_tag)
        return values

    def new_row(self):
        tag = self.next_tag
        self.next_tag += 1
        return Row(tag, {**{column: make(tag) for column, (_, make) in self.keys.items()}, "tag": str(tag), **self.literals()})

    def insert(self, rows, clock=None):
        """SQL that inserts rows, with that clock or a new one."""
        columns = list(rows[0].values)
        return "INSERT INTO %s (%s%s) VALUES %s" % (self.name, ", ".join(columns), ", __repl_clock" if clock else "", ", ".join(
            "(%s%s)" % (", ".join(row.values[column] for column in columns), ", '%s'" % clock if clock else "") for row in rows))

    def assignments(self, values):
        return ", ".join("%s = %s" % item for item in values.items())

    def clocks(self, node):
        return dict(node.sql("SELECT tag, __repl_clock::text FROM %s" % self.name))

    def insert_rows(self):
        rows = [self.new_row() for _ in range(self.chance.choice(SIZES))]
        for row in rows:
            self.rows[row.tag] = row
        for i in range(0, len(rows), 40):
            self.chance.choice(self.nodes).sql(self.insert(rows[i:i + 40]))

    def update_rows(self):
        chance, clocks = self.chance, self.clocks(self.nodes[0])
        for row in chance.sample(list(self.rows.values()), len(self.rows) // 3):
            changed = {column: value for column, value in self.literals().items() if column != "long" and chance.random() < 0.5}
            changed["n"] = str(int(row.values["n"]) + 10)
            row.old = dict(row.values), clocks[row.tag]
            row.values.update(changed)
            chance.choice(self.nodes).sql("UPDATE %s SET %s WHERE tag = %d" % (self.name, self.assignments(changed), row.tag))

    def delete_rows(self):
        chance, clocks = self.chance, self.clocks(self.nodes[0])
        for row in chance.sample(list(self.rows.values()), len(self.rows) // 5):
            row.deleted_clock = clocks[row.tag]
            chance.choice(self.nodes).sql("DELETE FROM %s WHERE tag = %d" % (self.name, row.tag))

    def rearrange(self):
        """On one node rows have another place, and were of another shape."""
        if self.chance.random() < 0.3:
            node = self.chance.choice(self.nodes)
            node.sql("VACUUM %s" % self.name)
            node.sql("ALTER TABLE {0} ADD late text DEFAULT 'fast'; ALTER TABLE {0} DROP late".format(self.name))

    # plants

    def victims(self, count=1, wanted=lambda row: True, deleted=False):
        """Rows that nothing has been planted in; the first and the last ones more often."""
        rows = [row for row in self.rows.values() if not row.planted and (row.deleted_clock is not None) == deleted and wanted(row)]
        if len(rows) < count:
            raise LookupError
        chosen = self.chance.sample(rows, count)
        if count == 1 and self.chance.random() < 0.2:
            chosen = [self.chance.choice([rows[0], rows[-1]])]
        for row in chosen:
            row.planted = True
        return chosen

    def want(self, row, plant, verdict, columns, after):
        self.wanted[row.tag] = Wanted(verdict, set(columns), after, plant)
        self.made += 1

    def on(self, node, sql):
        self.plants[node.name].append(sql)

    def set(self, node, row, values):
        self.on(node, "UPDATE %s SET %s WHERE tag = %d" % (self.name, self.assignments(values), row.tag))

    def plant(self, count):
        kinds = [name for name in dir(self) if name.startswith("plant_")]
        for kind in self.chance.choices(kinds, k=count):
            try:
                getattr(self, kind)(kind[6:], self.chance.choice(self.nodes))
            except LookupError:
                pass
        for node in self.nodes:
            if self.plants[node.name]:
                self.run_plants(node)

    def run_plants(self, node):
        """All that is planted on a node at once, past the triggers, and sent to nobody."""
        tables = [name for name, in node.sql("SELECT %s UNION SELECT relid::regclass::text FROM pg_partition_tree(%s)", self.name, self.name)]
        triggers = [(name, trigger) for name in tables for trigger, in node.sql("SELECT tgname FROM pg_trigger WHERE tgrelid = %s::regclass AND NOT tgisinternal", name)]
        node.sql("; ".join(["SET allow_system_table_mods = on", "SET repl_ml.guard_off = on",
                            "INSERT INTO pg_replication_origin SELECT 65000, 'plants' WHERE NOT EXISTS (SELECT FROM pg_replication_origin WHERE roname = 'plants')"]))
        node.sql("SELECT pg_replication_origin_session_setup('plants')")
        node.sql("; ".join("ALTER TABLE %s DISABLE TRIGGER %s" % pair for pair in triggers))
        node.sql("; ".join(self.plants[node.name]))
        node.sql("; ".join("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s" % pair for pair in triggers))
        node.sql("SELECT pg_replication_origin_session_reset()")
        node.sql("RESET repl_ml.guard_off")

    def other_value(self, row, column):
        return self.chance.choice([value for value in [*self.choices[column], "NULL"] if value != row.values[column]])

    def plant_flip(self, kind, node):
        row, = self.victims()
        columns = self.chance.sample(list(self.columns), self.chance.randint(1, min(2, len(self.columns))))
        self.set(node, row, {column: self.other_value(row, column) for column in columns})
        self.want(row, kind, "corrupt", columns, "base")

    def plant_flip_two_ways(self, kind, node):
        row, = self.victims()
        other = self.chance.choice([other for other in self.nodes if other is not node])
        self.set(node, row, {"s1": "'one way'"})
        self.set(other, row, {"s1": "'the other'", "n": "77"})
        self.want(row, kind, "corrupt", ["s1", "n"], "source")

    def plant_missing(self, kind, node):
        row, = self.victims()
        self.on(node, "DELETE FROM %s WHERE tag = %d" % (self.name, row.tag))
        self.want(row, kind, "missing", [], "base")

    def plant_missing_on_all_but_one(self, kind, node):
        row, = self.victims()
        for other in self.nodes:
            if other is not node:
                self.on(other, "DELETE FROM %s WHERE tag = %d" % (self.name, row.tag))
        self.want(row, kind, "extra", [], "base")

    def plant_extra(self, kind, node):
        row = self.new_row()
        row.planted = True
        self.rows[row.tag] = row
        self.on(node, self.insert([row]))
        self.want(row, kind, "extra", [], "spread")

    def plant_other_key(self, kind, node):
        """The row goes from one key to another: it is missing here, and extra there."""
        row, = self.victims()
        moved = self.new_row()
        moved.planted = True
        self.rows[moved.tag] = moved
        self.set(node, row, {column: moved.values[column] for column in [*self.keys, "tag"]})
        moved.values.update({column: value for column, value in row.values.items() if column not in self.keys and column != "tag"})
        self.want(row, kind, "missing", [], "base")
        self.want(moved, kind, "extra", [], "spread")

    def plant_lost_deletion(self, kind, node):
        row, = self.victims(deleted=True)
        if self.chance.random() < 0.7:
            self.on(node, self.forget(row))
        self.on(node, self.insert([row], row.deleted_clock))
        self.want(row, kind, "extra", [], "gone")

    def plant_forgotten_deletion(self, kind, node):
        """Nobody knows of the deletion any more, and one has the row."""
        row, = self.victims(deleted=True)
        for other in self.nodes:
            self.on(other, self.forget(row))
        self.on(node, self.insert([row], row.deleted_clock))
        row.deleted_clock = None
        self.want(row, kind, "extra", [], "spread")

    def forget(self, row):
        """SQL that removes what is known of a row's deletion."""
        return "DELETE FROM repl_ml.tombstone WHERE table_name = '%s' AND repl_ml.merge(__repl_clock, '%s') = __repl_clock AND key @> ARRAY[format('%%s', (%s)::%s)]" % (
            self.name, row.deleted_clock, row.values["key"], self.keys["key"][0].split(" COLLATE")[0])

    def plant_swapped_rows(self, kind, node):
        column = self.chance.choice(["n", *self.columns])
        one, = self.victims()
        one.planted = False
        one, two = self.victims(2, lambda row: row is one or row.values[column] != one.values[column])
        if one.values[column] == two.values[column]:
            one.planted = two.planted = False
            raise LookupError
        for row, other in (one, two), (two, one):
            self.set(node, row, {column: other.values[column]})
            self.want(row, kind, "corrupt", [column], "base")

    def plant_cancelling(self, kind, node):
        column = self.chance.choice(["n", "f"])
        one, two = self.victims(2, lambda row: row.values["f"] == "'1.5'")
        for row, sign in (one, "+"), (two, "-"):
            self.set(node, row, {column: "%s %s 1" % (column, sign)})
            self.want(row, kind, "corrupt", [column], "base")

    def plant_null_for_empty(self, kind, node):
        row, = self.victims(1, lambda row: row.values["s1"] == "''")
        self.set(node, row, {"s1": "NULL"})
        self.want(row, kind, "corrupt", ["s1"], "base")

    def plant_out_of_line(self, kind, node):
        row, = self.victims()
        self.set(node, row, {"long": "overlay(long placing '%s' from %d)" % ("!", self.chance.choice([1, 2000, 6400]))})
        self.want(row, kind, "corrupt", ["long"], "base")

    def plant_minus_zero(self, kind, node):
        row, = self.victims(1, lambda row: row.values["f"] == "'0'")
        self.set(node, row, {"f": "'-0'"})
        self.want(row, kind, "corrupt", ["f"], "base")

    def plant_nan_payload(self, kind, node):
        row, = self.victims(1, lambda row: row.values["f"] == "'NaN'")
        self.set(node, row, {"f": "'NaN(0x7)'"})
        self.want(row, kind, "corrupt", ["f"], "base")

    def plant_swapped_columns(self, kind, node):
        row, = self.victims()
        self.set(node, row, {"s1": "s2", "s2": "s1"})
        self.want(row, kind, "corrupt", ["s1", "s2"], "base")

    def plant_older_version(self, kind, node):
        row, = self.victims(1, lambda row: row.old is not None)
        values, clock = row.old
        changed = {column: value for column, value in values.items() if value != row.values[column]}
        self.set(node, row, {**changed, "__repl_clock": "'%s'" % clock})
        self.want(row, kind, "lagging", [*(column for column in changed if column != "any_nan"), "__repl_clock"], "base")

    def plant_clock_with_more(self, kind, node):
        row, = self.victims()
        self.set(node, row, {"__repl_clock": "repl_ml.merge(__repl_clock, '{%d:%d}')" % (node.id, 5)})
        if self.knows(node, row):
            row.planted = False
            del self.plants[node.name][-1]
            raise LookupError
        self.want(row, kind, "lagging", ["__repl_clock"], "spread")

    def plant_clock_with_less(self, kind, node):
        row, = self.victims()
        self.set(node, row, {"__repl_clock": "format('{%s:%s}', repl_ml.last_writer(__repl_clock), 17)::repl_ml.vclock"})
        self.want(row, kind, "lagging", ["__repl_clock"], "base")

    def plant_concurrent(self, kind, node):
        row, = self.victims()
        if self.knows(node, row):
            row.planted = False
            raise LookupError
        self.set(node, row, {"s1": "'concurrent'", "__repl_clock": "'{%d:%d}'" % (node.id, 700000000000000 + row.tag)})
        self.want(row, kind, "concurrent", ["s1", "__repl_clock"], "joined")

    def plant_concurrent_clock(self, kind, node):
        row, = self.victims()
        if self.knows(node, row):
            row.planted = False
            raise LookupError
        self.set(node, row, {"__repl_clock": "'{%d:%d}'" % (node.id, 700000000000000 + row.tag)})
        self.want(row, kind, "concurrent", ["__repl_clock"], "joined")

    def plant_broken_clock(self, kind, node):
        row, = self.victims()
        self.set(node, row, {"__repl_clock": r"'\x%s'::bytea::repl_ml.vclock" % self.chance.choice(["00", "ffffffffffffffffffff", "01020304050607"])})
        self.want(row, kind, "corrupt", ["__repl_clock"], "base")

    def plant_no_clock(self, kind, node):
        row, = self.victims()
        not_null = ("UPDATE pg_attribute SET attnotnull = %s WHERE attname = '__repl_clock' AND attrelid IN"
                    " (SELECT '{0}'::regclass UNION SELECT relid FROM pg_partition_tree('{0}'))").format(self.name)
        self.on(node, not_null % "false")
        self.set(node, row, {"__repl_clock": "NULL"})
        self.on(node, not_null % "true")
        self.want(row, kind, "corrupt", ["__repl_clock"], "base")

    def knows(self, node, row):
        """Has the node written the row?"""
        return node.sql("SELECT strpos(translate(__repl_clock::text, '{', ','), ',%d:') > 0 FROM %s WHERE tag = %d" % (node.id, self.name, row.tag))[0][0]

    # what must come of it

    def dump(self, node):
        """By tag: the clock and all values, as text and as bytes."""
        columns = [*self.keys, *FIXED, *self.columns]
        texts = {tag: values for tag, *values in node.sql("SELECT tag, __repl_clock::bytea::text, ROW(%s)::text FROM %s" % (", ".join(columns), self.name))}
        # a NaN's sign is on the node only where it was written
        columns.remove("any_nan")
        return {tag: (*texts[tag], image) for tag, image in read_binary(node, "COPY (SELECT tag, %s FROM %s) TO STDOUT BINARY" % (", ".join(columns), self.name))}

    def key_texts(self):
        """By tag: the key's columns as text, of all rows that any node has."""
        found = {}
        for node in self.nodes:
            for tag, *texts in node.sql("SELECT tag, %s FROM %s" % (", ".join("format('%%s', %s)" % column for column in self.keys), self.name)):
                found.setdefault(tag, dict(zip(self.keys, texts)))
        return found

    def key_of(self, texts, tag, node):
        return [texts[tag][column] for column in self.orders[node.name]]

    def check_differences(self, node, texts):
        """What diff_rows says is what was planted."""
        found = {tuple(key): (verdict, set(columns or ())) for key, verdict, columns in
                 node.sql("SELECT key, verdict, columns::text[] FROM repl_ml.diff_rows(%s, 100000)", self.name)}
        for tag, wanted in self.wanted.items():
            key = tuple(self.key_of(texts, tag, node))
            got = found.pop(key, None)
            if got != (wanted.verdict, wanted.columns):
                yield "%s: %s of row %d %s: %s, must be %s %s" % (node.name, wanted.plant, tag, key, got, wanted.verdict, sorted(wanted.columns))
        for key, got in found.items():
            yield "%s: nothing was planted in %s: %s" % (node.name, key, got)
        status, differing = node.sql("SELECT status, differing_rows FROM repl_ml.verify_table(%s)", self.name)[0]
        if (status, differing) != (("differs", len(self.wanted)) if self.wanted else ("consistent", 0)):
            yield "%s: verify_table says %s, %s rows of %d" % (node.name, status, differing, len(self.wanted))

    def check_repaired(self, base, planted, source):
        """Every node has what it had before, or what the difference has become."""
        after = {node.name: self.dump(node) for node in self.nodes}
        first = after[self.nodes[0].name]
        for node in self.nodes:
            for tag in base[node.name].keys() | after[node.name].keys() | self.wanted.keys():
                wanted = self.wanted.get(tag)
                was, is_now = base[node.name].get(tag), after[node.name].get(tag)
                same = first.get(tag) and is_now and first[tag][:2] == is_now[:2]
                kind = wanted.after if wanted else "base"
                good = {"base": lambda: is_now == was,
                        "gone": lambda: is_now is None,
                        "spread": lambda: same and any(dump.get(tag) and dump[tag][:2] == is_now[:2] for dump in planted.values()),
                        "joined": lambda: same and was[1:] == is_now[1:],
                        "source": lambda: same and is_now[:2] == planted[source.name][tag][:2]}[kind]()
                if not good:
                    yield "%s: after the repair row %d (%s) is %s, must be %s: %s" % (
                        node.name, tag, wanted.plant if wanted else "untouched", shorten(is_now), kind, shorten(was))


def shorten(row):
    return row and (row[0], row[1][:150])


def read_binary(node, statement):
    """Rows of COPY BINARY whose first column is an int: that, and the bytes of the others."""
    import io
    stream = io.BytesIO()
    with node.connection.cursor() as cursor:
        cursor.copy_expert(statement, stream)
    data, at = stream.getvalue(), 19
    while True:
        count, = struct.unpack_from(">h", data, at)
        if count < 0:
            return
        at += 2
        start, tag = None, None
        for column in range(count):
            length, = struct.unpack_from(">i", data, at)
            at += 4
            if column == 0:
                tag, = struct.unpack_from(">i", data, at)
                start = at + length
            at += max(length, 0)
        yield tag, data[start:at]


class Proof:
    """All tables of a seed, one after the other."""

    def __init__(self, group, seed):
        self.group, self.chance = group, random.Random("plants %d" % seed)
        self.number = 0
        self.extensions = self.prepare()

    def prepare(self):
        first = self.group.nodes[0]
        names = [name for name, in first.sql("SELECT name FROM pg_available_extensions") if name in EXTENSIONS]
        for node in self.group.nodes:
            node.sql("CREATE TABLE tables_of_types ()")
            for name in names:
                node.sql("CREATE EXTENSION IF NOT EXISTS %s" % name)
            # so that object ids are not the same
            for _ in range(node.id):
                node.sql("SELECT lo_create(0)")
            node.sql(TYPES_DDL)
            # what damages a clock, and shows one that is damaged
            node.sql("CREATE CAST (bytea AS repl_ml.vclock) WITHOUT FUNCTION; CREATE CAST (repl_ml.vclock AS bytea) WITHOUT FUNCTION")
        return names

    def make_tables(self, count):
        tables = []
        for _ in range(count):
            self.number += 1
            table = Table(self.number, self.chance, self.group.nodes, self.extensions)
            for node in self.group.nodes:
                node.sql(table.ddl(node))
            tables.append(table)
        for table in tables:
            self.group.nodes[0].sql("SELECT repl_ml.add_table(%s)", table.name)
        for node in self.group.nodes:
            wait_until(lambda: node.sql("SELECT count(*) FILTER (WHERE state = 'replicated' AND pending_copies = 0) FROM repl_ml.tables")[0][0] == self.number,
                       lambda: "%s has all tables: %s" % (node.name, node.sql("SELECT * FROM repl_ml.tables WHERE state <> 'replicated' OR pending_copies > 0")))
        return tables

    def fill(self, tables):
        """Several nodes write, change and delete rows."""
        for step in Table.insert_rows, Table.update_rows, Table.delete_rows, Table.rearrange:
            for table in tables:
                step(table)
            self.group.wait_for_streams()

    def try_table(self, table):
        """Finds, repairs and compares; returns what was wrong."""
        nodes, chance = self.group.nodes, self.chance
        status = nodes[0].sql("SELECT status, detail FROM repl_ml.verify_table(%s)", table.name)[0]
        if status[0] != "consistent":
            return ["before anything was planted: %s: %s" % (status, nodes[0].sql("SELECT key, verdict, columns FROM repl_ml.diff_rows(%s)", table.name)[:3])]
        base = {node.name: table.dump(node) for node in nodes}
        table.plant(chance.randint(1, max(3, len(table.rows))))
        planted = {node.name: table.dump(node) for node in nodes}
        problems = list(table.check_differences(chance.choice(nodes), table.key_texts()))
        by = chance.choice(nodes)
        by.sql("SELECT FROM repl_ml.repair_table(%s)", table.name)
        if planted != {node.name: table.dump(node) for node in nodes}:
            problems.append("a dry run has changed rows")
        done = by.sql("SELECT node_name, key, action, verdict, detail FROM repl_ml.repair_table(%s, false)", table.name)
        left = [tag for tag, wanted in table.wanted.items() if wanted.after == "source"]
        differing = by.sql("SELECT differing_rows FROM repl_ml.verify_table(%s)", table.name)[0][0]
        if differing != len(left):
            problems.append("%d rows are left after the repair, must be %d: %s; %s" % (
                differing, len(left), by.sql("SELECT key, verdict, columns FROM repl_ml.diff_rows(%s)", table.name)[:3], [row for row in done if row[4]][:5]))
        source = chance.choice(nodes)
        by.sql("SELECT FROM repl_ml.repair_table(%s, false, %s)", table.name, source.name)
        for node in nodes:
            status = node.sql("SELECT status, rows, detail FROM repl_ml.verify_table(%s)", table.name)[0]
            rows = node.sql("SELECT count(*) FROM %s" % table.name)[0][0]
            if status != ("consistent", rows, None):
                problems.append("%s: after the repair: %s of %d rows" % (node.name, status, rows))
        return problems + list(table.check_repaired(base, planted, source))

    def run(self, plants):
        made = failed = 0
        while made < plants:
            tables = self.make_tables(8)
            self.fill(tables)
            for table in tables:
                problems = self.try_table(table)
                made += table.made
                failed += bool(problems)
                report(table, problems)
        return made, failed


def report(table, problems):
    kinds = sorted({wanted.plant for wanted in table.wanted.values()})
    print("%s %s: key %s, columns %s%s, %d rows: %d planted: %s" % (
        "not ok" if problems else "ok", table.name, ", ".join(kind for kind, _ in table.keys.values()), ", ".join(table.columns.values()),
        ", partitioned" if table.partitioned else "", len(table.rows), table.made, " ".join(kinds)))
    for text in problems[:SHOWN]:
        print("    %s" % text)
    if len(problems) > SHOWN:
        print("    and %d more" % (len(problems) - SHOWN))
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--plants", type=int, default=400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("nodes", nargs="+")
    arguments = parser.parse_args()
    try:
        proof = Proof(Group([Node(*node.split("|")) for node in arguments.nodes]), arguments.seed)
        made, failed = proof.run(arguments.plants)
        print("# %d planted in %d tables" % (made, proof.number))
    except Exception:
        print("not ok the tester failed")
        print(*("    " + line for line in traceback.format_exc().splitlines()), sep="\n")
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
