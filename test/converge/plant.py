"""Breaks nodes on purpose: what the checks must find, each in the rule that is for it.

What is altered in a table goes to the peers as well, under clocks they have:
they drop it, so only the one node is wrong.
"""
import json

from check import check, workers_are_well
from tables import TABLES


def altering(table, action, clause):
    """SQL that changes rows behind repl_ml's back."""
    triggers = ["_repl_ml_insert", "zz_repl_ml_update", "zz_repl_ml_delete"]
    return "; ".join(["SET repl_ml.guard_off = on", *("ALTER TABLE %s DISABLE TRIGGER %s" % (table, name) for name in triggers),
                      action + " " + clause,
                      *("ALTER TABLE %s ENABLE ALWAYS TRIGGER %s" % (table, name) for name in triggers), "RESET repl_ml.guard_off"])


def put_back(node, table, text):
    row = json.loads(text)
    node.sql(altering(table, "DELETE FROM %s" % table, "WHERE id = '%s'" % row["id"]))
    node.sql(altering(table, "INSERT INTO %s SELECT * FROM json_populate_record(NULL::%s, '%s')" % (table, table, text.replace("'", "''")), ""))


class Plants:
    """Each method breaks something and returns what mends it; its name says which rule must complain."""

    def __init__(self, case):
        self.case = case
        self.snapshot = next(snapshot for snapshot in case.snapshots if snapshot.name not in case.copied)
        self.other = next(snapshot for snapshot in case.snapshots if snapshot is not self.snapshot)
        self.node = self.snapshot.node
        self.table, self.key, self.text = self.find_row()
        self.losers = {(table, key, version.dot) for (table, key), expected in case.expected.items() for version in expected.losers(case.history)}

    def find_row(self):
        """A row with a merged clock."""
        for table in TABLES:
            for text in self.snapshot.texts[table.name]:
                row = json.loads(text)
                if "," in row["__repl_clock"] and table.name == "note":
                    return table.name, row["id"], text

    def find_log_row(self, wanted=lambda row: True):
        return next(row for row in self.snapshot.log if (row.table, row.key, row.loser) in self.losers and row.loser_row and wanted(row))

    def alter_row(self, node, change):
        """Sets columns of the row."""
        node.sql(altering(self.table, "UPDATE %s SET %s" % (self.table, change), "WHERE id = '%s'" % self.key))
        return lambda: put_back(node, self.table, self.text)

    def alter_log(self, node, row, change):
        """Sets columns of a log row, or removes it."""
        where = "conflict_id = '%s'" % row.id
        saved = node.sql("SELECT row_to_json(c)::text FROM repl_ml.conflict_history c WHERE " + where)[0][0]
        node.sql("UPDATE repl_ml.conflict_history SET %s WHERE %s" % (change, where) if change else
                 "DELETE FROM repl_ml.conflict_history WHERE " + where)

        def mend():
            node.sql("DELETE FROM repl_ml.conflict_history WHERE conflict_id = (%s::json ->> 'conflict_id')::uuid OR conflict_id = '00000000-0000-0000-0000-000000000000'", saved)
            node.sql("INSERT INTO repl_ml.conflict_history SELECT * FROM json_populate_record(NULL::repl_ml.conflict_history, %s)", saved)
        return mend

    def on_all(self, alter, *arguments):
        mends = [alter(node, *arguments) for node in self.case.group.nodes]
        return lambda: [mend() for mend in mends]

    def same_everywhere__content(self):
        return self.alter_row(self.node, "body = body || '!'")

    def same_everywhere__clock(self):
        return self.alter_row(self.node, "__repl_clock = format('{%s:1}', repl_ml.last_writer(__repl_clock))::repl_ml.vclock")

    def as_expected__content_on_all_nodes(self):
        return self.on_all(self.alter_row, "body = body || '!'")

    def as_expected__clock_on_all_nodes(self):
        return self.on_all(self.alter_row, "__repl_clock = format('{%s:1}', repl_ml.last_writer(__repl_clock))::repl_ml.vclock")

    def as_expected__row_gone(self):
        self.node.sql(altering(self.table, "DELETE FROM %s" % self.table, "WHERE id = '%s'" % self.key))
        return lambda: put_back(self.node, self.table, self.text)

    def nothing_lost__log_row_gone(self):
        return self.alter_log(self.node, self.find_log_row(), None)

    def nothing_lost__log_rows_gone(self):
        """Not of an eviction, of which nothing else may be left that says there was one."""
        return self.on_all(self.alter_log, self.find_log_row(lambda row: not row.is_eviction() and all(
            (row.table, row.key, row.loser) in snapshot.logged for snapshot in self.case.snapshots)), None)

    def nothing_lost__loser_without_its_row(self):
        return self.alter_log(self.node, self.find_log_row(), "loser_row = NULL")

    def log_is_true__loser_row(self):
        return self.alter_log(self.node, self.find_log_row(), """loser_row = loser_row || '{"body": "!"}'""")

    def log_is_true__winner_row(self):
        return self.alter_log(self.node, self.find_log_row(lambda row: row.resolution == "last_write" and row.winner_row), """winner_row = winner_row || '{"body": "!"}'""")

    def log_is_true__type(self):
        return self.alter_log(self.node, self.find_log_row(lambda row: not row.is_eviction()), "conflict_type = '!'")

    def log_is_true__ordered_versions(self):
        """A version is called the loser to one that knew it."""
        row = self.find_log_row(lambda row: not row.is_eviction() and row.winner_row)
        known = next((a, b) for versions in self.case.history.rows.values() for a in versions for b in versions
                     if a is not b and a.content and b.content and b.before == a.clock)
        return self.alter_log(self.node, row, "table_name = '%s', key = ARRAY['%s'], loser_clock = '%s', winner_clock = '%s', loser_row = '%s', winner_row = '%s'"
                              % (known[0].table, known[0].key, text_of(known[0]), text_of(known[1]), json.dumps(known[0].content), json.dumps(known[1].content)))

    def ids_agree__id(self):
        return self.alter_log(self.node, self.find_log_row(lambda row: (row.table, row.key, row.loser) in self.other.logged),
                              "conflict_id = '00000000-0000-0000-0000-000000000000'")

    def no_conflict_in_order__log_row(self):
        (table, key), = self.case.ordered
        return self.alter_log(self.node, self.find_log_row(), "table_name = '%s', key = ARRAY['%s']" % (table, key))

    def parked_by_policy__insert(self):
        self.node.sql("INSERT INTO repl_ml.parked_change (origin_node, origin_xid, origin_lsn, schema_name, table_name, action, change, sqlstate, message)"
                      " VALUES (2, '1', '0/1', 'public', 'note', 'insert', %s, '23514', 'planted')", json.dumps({"id": self.key}))
        return lambda: self.node.sql("DELETE FROM repl_ml.parked_change WHERE message = 'planted'")

    def merged_columns__counter(self):
        """On all nodes, so that it is a wrong sum and not a difference."""
        key = self.case.additions[0].key
        return self.on_all(self.alter_tally, "n = n %%s 1 WHERE id = '%s'" % key)

    def alter_tally(self, node, change):
        node.sql(altering("tally", "UPDATE tally SET", change % "+"))
        return lambda: node.sql(altering("tally", "UPDATE tally SET", change % "-"))

    def workers__crash(self):
        with open(self.node.log, "a") as log:
            log.write("TRAP: planted\n")
        return lambda: None

    def deletions_known__tombstones_gone(self):
        """On the snapshot: on the node they may be removed as stable at any time."""
        row = next((table, key) for (table, key), expected in self.case.expected.items() if expected.content is None)
        self.snapshot.tombstones.pop(row, None)
        self.snapshot.floor = {}
        return None

    def unique_keys_hold__same_value(self):
        """On the snapshot: the index would not let it in."""
        content = next(content for (table, _), (_, content) in self.snapshot.rows.items() if table == "account" and content["email"])
        self.snapshot.rows["account", "planted"] = {}, dict(content, id="planted")
        return None


def text_of(version):
    return "{%s}" % ",".join("%d:%d" % entry for entry in sorted(version.clock.items()))


def findings(case):
    return set(check(case) + workers_are_well(case.group, "infinity"))


def run(case):
    """Plants one after the other; returns how many were not found."""
    missed = 0
    for name in [name for name in dir(Plants) if "__" in name.strip("_")]:
        case = case.again()
        before = findings(case)
        try:
            mend = getattr(Plants(case), name)()
        except StopIteration:
            print("# nothing to plant for %s" % name)
            continue
        rule, _, what = name.partition("__")
        found = findings(case.again() if mend else case)
        ok = any(complaint == rule for complaint, _ in found - before)
        print("%s planted: %s: %s" % ("ok" if ok else "not ok", rule, what.replace("_", " ")))
        missed += not ok
        if mend:
            mend()
    return missed
