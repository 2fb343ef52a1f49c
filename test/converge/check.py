"""What the nodes hold at rest, compared with each other and with what was written.

Rules, each a function that yields what contradicts it; check() runs all.
"""
import json

import tally
from model import Expected, History, Rule, clock_text, covers, dot_of, merge, parse_clock, shorten, within
from tables import BY_NAME, FUNCTIONS, TABLES


class Snapshot:
    """What one node has of a seed's rows."""

    def __init__(self, node, prefix):
        self.name, self.node = node.name, node
        like = prefix + "%"
        self.texts = {table.name: [text for text, in node.sql(
            'SELECT row_to_json(t)::text FROM %s t WHERE id LIKE %%s ORDER BY id COLLATE "C"' % table.name, like)] for table in TABLES}
        self.rows = {}
        for table, texts in self.texts.items():
            for text in texts:
                content = json.loads(text)
                self.rows[table, content["id"]] = parse_clock(content.pop("__repl_clock") or "{}"), content
        self.tombstones = {}
        for table, key, clock, evicted in node.sql(
                "SELECT table_name, key[1], __repl_clock::text, eviction IS NOT NULL FROM repl_ml.tombstone WHERE key[1] LIKE %s", like):
            self.tombstones.setdefault((table, key), []).append((parse_clock(clock), evicted))
        self.log = [LogRow(row) for row in node.dicts(
            "SELECT *, conflict_id::text AS id, lost_columns::text[] AS lost FROM repl_ml.conflict_history WHERE key[1] LIKE %s AND table_name <> 'tally'", like)]
        self.logged = {(row.table, row.key, row.loser): row for row in self.log}
        self.parked = node.dicts("SELECT table_name, action, change, sqlstate, message, conflict_id::text AS id FROM repl_ml.parked_change"
                                 " WHERE strpos(change::text, %s) > 0", prefix)
        floor = node.sql("SELECT floor::text FROM repl_ml.collection WHERE node_id = %s", node.id)
        self.floor = parse_clock(floor[0][0]) if floor else {}
        self.rules = {}
        for table, rule, arguments, clock in node.sql(
                "SELECT table_name::text, rule, arguments, __repl_clock::text FROM repl_ml.conflict_policy WHERE column_name = '' ORDER BY id"):
            self.rules.setdefault(table, []).append(Rule(dot_of(parse_clock(clock)), rule, arguments))


class LogRow:
    """A row of the conflict log."""

    def __init__(self, row):
        self.id, self.table, self.key = row["id"], row["table_name"], row["key"][0]
        self.type, self.resolution, self.lost = row["conflict_type"], row["resolution"], row["lost"]
        self.winner_clock, self.loser_clock = parse_clock(row["winner_clock"]), parse_clock(row["loser_clock"])
        self.winner, self.loser = dot_of(self.winner_clock), dot_of(self.loser_clock)
        self.winner_node, self.loser_node = row["winner_node"], row["loser_node"]
        self.winner_row, self.loser_row = row["winner_row"], row["loser_row"]

    def is_eviction(self):
        return self.resolution == "unique_key"

    def __repr__(self):
        return "%s %s: %s by %s, loser %s %s, winner %s %s" % (
            self.table, self.key, self.type, self.resolution, clock_text(self.loser_clock), self.loser_row and shorten(self.loser_row),
            clock_text(self.winner_clock), self.winner_row and shorten(self.winner_row))


class Case:
    """All that is known about a seed at rest."""

    def __init__(self, group, versions, prefix, ordered, copied, additions):
        self.arguments = group, versions, prefix, ordered, copied, additions
        self.group, self.prefix, self.additions = group, prefix, additions
        self.copied = copied  # names of nodes that lost a slot: they may have got rows with the conflicts resolved
        self.snapshots = [Snapshot(node, prefix) for node in group.nodes]
        self.ordered = ordered  # (table, key) of rows written in one causal order
        evicted = {(row.table, row.key, row.loser) for snapshot in self.snapshots for row in snapshot.log if row.is_eviction()}
        evicted |= {(*row, dot_of(clock)) for snapshot in self.snapshots for row, stones in snapshot.tombstones.items() for clock, told in stones if told}
        self.history = History(versions, evicted)
        rules = self.snapshots[0].rules
        self.expected = {(table, key): Expected(self.history, rules.get(table, ()), FUNCTIONS, table, key)
                         for table, key in self.history.rows if self.history.concurrent(table, key)}

    def again(self):
        """The same with what the nodes hold now."""
        return Case(*self.arguments)


def has_order(case):
    """Of the versions of a row some are the last: knowing each other has no circles."""
    for table, key in case.history.rows.keys() - case.expected.keys():
        yield "every version of %s %s is known to another" % (table, key)


def same_everywhere(case):
    """Every table has the same rows and clocks on all nodes; and so are the rules."""
    first = case.snapshots[0]
    for other in case.snapshots[1:]:
        for table in first.texts:
            for text in sorted(set(first.texts[table]) ^ set(other.texts[table])):
                yield "%s: only %s has %s" % (table, (first if text in first.texts[table] else other).name, text[:300])
        for table in first.rules.keys() | other.rules.keys():
            if {rule.since for rule in first.rules.get(table, ())} != {rule.since for rule in other.rules.get(table, ())}:
                yield "%s: %s and %s do not have the same rules" % (table, first.name, other.name)


def as_expected(case):
    """Every row is what its versions make it, on every node, under the merge of their clocks."""
    for snapshot in case.snapshots:
        for row in snapshot.rows.keys() - case.history.rows.keys():
            yield "%s: nobody wrote %s %s" % (snapshot.name, *row)
        for (table, key), expected in case.expected.items():
            clock, content = snapshot.rows.get((table, key), (None, None))
            if content != expected.content:
                yield "%s: %s %s is %s, must be %s of %s by %s" % (
                    snapshot.name, table, key, content and shorten(content), expected.content and shorten(expected.content),
                    expected.versions, expected.rule.name)
            elif content is not None and clock != expected.clock:
                yield "%s: %s %s has clock %s, must have %s: %s" % (
                    snapshot.name, table, key, clock_text(clock), clock_text(expected.clock), expected.versions)


def deletions_known(case):
    """Of a row that is gone every node has the merged clock, but for what it removed as stable."""
    for snapshot in case.snapshots:
        for (table, key), expected in case.expected.items():
            if (table, key) in snapshot.rows:
                continue
            clock = merge(clock for clock, _ in snapshot.tombstones.get((table, key), ()))
            if not within(expected.clock, merge([clock, snapshot.floor])):
                yield "%s: %s %s is deleted under %s, must be under %s" % (
                    snapshot.name, table, key, clock_text(clock), clock_text(expected.clock))
            if not within(clock, expected.clock):
                yield "%s: %s %s is deleted under %s, which is more than anybody wrote: %s" % (
                    snapshot.name, table, key, clock_text(clock), clock_text(expected.clock))


def nothing_lost(case):
    """Every committed write is there, known to a later one, or a loser in every node's log."""
    for (table, key), expected in case.expected.items():
        losers = expected.losers(case.history)
        for version in losers:
            if not any((table, key, version.dot) in snapshot.logged for snapshot in case.snapshots):
                yield "logged nowhere: %s, which lost to %s" % (version, expected.winner)
        for snapshot in case.snapshots:
            for version in losers:
                row = snapshot.logged.get((table, key, version.dot))
                if row is None:
                    if snapshot.name not in case.copied:
                        yield "%s: not logged: %s, which lost to %s" % (snapshot.name, version, expected.winner)
                elif row.loser_row != version.content:
                    yield "%s: logged as %s instead of %s" % (snapshot.name, row, version)
                elif (row.winner != expected.winner.dot and not case.history.is_evicted(version)
                      and snapshot.name not in case.copied):
                    yield "%s: the winner must be %s: %s" % (snapshot.name, expected.winner, row)


def log_is_true(case):
    """Log rows are about versions that were committed and that did not know each other, as they were written."""
    for snapshot in case.snapshots:
        for row in snapshot.log:
            loser, winner = case.history.by_dot.get((row.table, row.key, row.loser)), find_winner(case, row)
            if loser is None or winner is None:
                yield "%s: nobody committed the %s of %s" % (snapshot.name, "loser" if loser is None else "winner", row)
                continue
            later = [other for other in case.history.knowers(loser) if other.transaction == loser.transaction]
            if later:
                yield "%s: the loser was overwritten in its own transaction: by %s: %s" % (snapshot.name, later[0], row)
            if row.loser_row is not None and row.loser_row != loser.content:
                yield "%s: the loser was %s: %s" % (snapshot.name, loser, row)
            if row.loser_row is None and not case.history.is_dead(loser):
                yield "%s: the loser was no deletion: %s" % (snapshot.name, row)
            if (row.winner_node, row.loser_node) != (row.winner[1], row.loser[1]):
                yield "%s: the nodes are not the writers': %s" % (snapshot.name, row)
            yield from ("%s: %s: %s" % (snapshot.name, problem, row) for problem in
                        (check_eviction if row.is_eviction() else check_conflict)(case, snapshot, row, winner, loser))


def find_winner(case, row):
    """Of an eviction it is another row, which must have a unique value of the loser."""
    if not row.is_eviction():
        return case.history.by_dot.get((row.table, row.key, row.winner))
    return case.history.by_dot.get((row.table, row.winner_row and row.winner_row["id"], row.winner))


def check_conflict(case, snapshot, row, winner, loser):
    if covers(winner.clock, loser.dot) or covers(loser.clock, winner.dot):
        yield "the one knows the other"
    if row.winner_row is not None and not row.resolution.startswith("function") and row.winner_row != winner.content:
        yield "the winner was %s" % winner
    if row.winner_row is None and not case.history.is_dead(winner):
        yield "the winner was no deletion"
    if row.loser_row is None and row.winner_row is None:
        yield "both are deletions"
    expected = case.expected.get((row.table, row.key))
    if expected is not None and loser is expected.winner and loser.content == expected.content:
        yield "the loser has won"
    if row.type != conflict_type(row, winner, loser):
        yield "its type must be %s" % conflict_type(row, winner, loser)
    lost = sorted(name for name in row.winner_row or () if row.winner_row[name] != (row.loser_row or row.winner_row)[name])
    if sorted(row.lost) != lost:
        yield "lost_columns are %s, must be %s" % (row.lost, lost)


def conflict_type(row, winner, loser):
    if row.loser_row is None:
        return "delete_origin_differs"
    if row.winner_row is None:
        return "update_deleted"
    return "update_origin_differs" if winner.clock.keys() & loser.clock.keys() else "insert_exists"


def check_eviction(case, snapshot, row, winner, loser):
    if winner.dot < loser.dot:
        yield "the winner is the earlier one"
    # a row that was made of several versions is evicted with all of them
    if not any(collide(version, winner) for version in case.history.rows[row.table, row.key]):
        yield "the two rows do not collide"
    # the winner's writer had seen the loser overwritten: it took a value that was free
    for knower in case.history.knowers(loser):
        if knower.before == loser.clock and knower.node == winner.node and knower.ended < winner.began:
            yield "the value was free: the loser had been overwritten by %s" % knower


def collide(a, b):
    """Have two versions the same unique values?"""
    return a.content is not None and b.content is not None and any(
        all(a.content[column] is not None and a.content[column] == b.content[column] for column in columns)
        for columns in BY_NAME[a.table].unique)


def ids_agree(case):
    """A conflict id is the same losing version on all nodes, and a losing version has one id."""
    by_id, by_loser = {}, {}
    for snapshot in case.snapshots:
        for row in snapshot.log:
            other, where = by_id.setdefault(row.id, (row, snapshot.name))
            if (other.table, other.key, other.loser, other.loser_row) != (row.table, row.key, row.loser, row.loser_row):
                yield "conflict %s is %s on %s and %s on %s" % (row.id, other, where, row, snapshot.name)
            if by_loser.setdefault((row.table, row.key, row.loser), row.id) != row.id:
                yield "%s has another id on %s" % (row, snapshot.name)


def no_conflict_in_order(case):
    """Writes in one causal order make no conflict."""
    for snapshot in case.snapshots:
        for row in snapshot.log:
            if (row.table, row.key) in case.ordered:
                yield "%s: of ordered writes: %s" % (snapshot.name, row)


def unique_keys_hold(case):
    """No two rows have the same unique value (an index that lost an entry would not say so)."""
    for snapshot in case.snapshots:
        seen = {}
        for (table, key), (_, content) in snapshot.rows.items():
            for columns in BY_NAME[table].unique:
                value = tuple(content[column] for column in columns)
                if None not in value and seen.setdefault((table, columns, value), key) != key:
                    yield "%s: %s %s and %s both have %s" % (snapshot.name, table, key, seen[table, columns, value], value)


def parked_by_policy(case):
    """Nothing is parked but what a policy parks: the losers of keep_both and of unique keys."""
    for snapshot in case.snapshots:
        ids = {row.id: row for row in snapshot.log}
        for parked in snapshot.parked:
            row = ids.get(parked["id"])
            if parked["action"] not in ("evicted", "kept"):
                yield "%s: parked: %s of %s: %s %s" % (snapshot.name, parked["action"], parked["table_name"], parked["sqlstate"], parked["message"])
            elif row is None or (row.resolution == "keep_both") != (parked["action"] == "kept"):
                yield "%s: parked as %s without a conflict: %s" % (snapshot.name, parked["action"], parked["change"])
        parked = {row["id"] for row in snapshot.parked}
        for row in snapshot.log:
            if row.loser_row is not None and (row.is_eviction() or row.resolution == "keep_both") and row.id not in parked:
                yield "%s: not parked: %s" % (snapshot.name, row)


RULES = [has_order, same_everywhere, as_expected, deletions_known, nothing_lost, log_is_true, ids_agree, no_conflict_in_order,
         unique_keys_hold, parked_by_policy, tally.merged_columns]


def check(case):
    """All that is wrong, as (name of the rule, text)."""
    return [(rule.__name__, text) for rule in RULES for text in rule(case)]


def dump(case, table, key):
    """All that is known about a row."""
    yield "%s %s" % (table, key)
    for version in sorted(case.history.rows.get((table, key), ()), key=lambda v: v.dot):
        yield "  written: %s, transaction %s, on %s%s%s%s" % (
            version, version.transaction[1], version.node, ", evicted" if case.history.is_evicted(version) else "",
            "" if case.history.knowers(version) else ", known to none", version.floor and ", floor " + clock_text(version.floor))
    for snapshot in case.snapshots:
        clock, content = snapshot.rows.get((table, key), ({}, None))
        yield "  %s: %s %s" % (snapshot.name, clock_text(clock), content and shorten(content))
        for clock, told in snapshot.tombstones.get((table, key), ()):
            yield "    %s %s" % ("evicted" if told else "deleted", clock_text(clock))
        for clock, is_row in snapshot.node.sql("SELECT __repl_clock::text, content IS NOT NULL FROM repl_ml.concurrent_version WHERE table_name = %s AND key = ARRAY[%s]", table, key):
            yield "    version %s %s" % (clock, "row" if is_row else "deletion")
        for row in snapshot.log:
            if (row.table, row.key) == (table, key):
                yield "    log: %r" % row


# what a killed process, a server that is down and a lost race leave in repl_ml.stat_apply
EXPECTED_ERRORS = ("38000", "08000", "08001", "08003", "08006", "40001", "40P01", "55P03", "55006", "57P01", "57P02", "57P03")
EXPECTED_MESSAGES = ("terminating connection due to administrator command",)
CRASHES = ("TRAP:", "PANIC:", "was terminated by signal", "invalid memory alloc", "cache lookup failed")


def workers_are_well(group, since, copied=()):
    """No worker has had an error, since a time, that clients and disturbance (copied: as in a Case) do not explain; no process crashed; each says who it is."""
    problems = []
    for node in group.nodes:
        for peer, state, message in node.sql("SELECT node_name, last_error_sqlstate, last_error_message FROM repl_ml.stat_apply WHERE last_error_time > %s", since):
            if state not in EXPECTED_ERRORS and not any(text in message for text in EXPECTED_MESSAGES) and not (node.name in copied and "is lost and is made anew" in message):
                problems.append(("workers", "%s: the worker for %s had %s: %s" % (node.name, peer, state, message)))
        for name, in node.sql("SELECT application_name FROM pg_stat_replication WHERE application_name <> ALL (SELECT 'repl_ml ' || m.node_name FROM repl_ml.member m)"):
            problems.append(("workers", "%s: a peer's worker calls itself %r" % (node.name, name)))
        for line in node.new_log().splitlines():
            if any(crash in line for crash in CRASHES):
                problems.append(("workers", "%s: %s" % (node.name, line[:300])))
    return problems
